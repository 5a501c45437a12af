"""Pieces of input to lines of documents. Promise: constant memory, and each document is in exactly one piece.

A document belongs to the piece in which it begins, as seen from the cuts: with a piece's `start`, reading begins at the
first border of documents at or behind it, and ends at the first border at or behind `stop`. So neighbours agree without
knowing of each other, and the documents are those of the uncut file.
"""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlbert_data.corpus_inputs import Piece, open_stream

BLOCK_BYTES = 1 << 20
# A longer line goes on in parts, cut before a space; a longer JSON record is rejected.
MAX_LINE_BYTES = 1 << 20
MAX_RECORD_BYTES = 1 << 26
ROWS_AT_ONCE = 256
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
KEYS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the current document. begins: False where it goes on a line that was too long for one part."""

    text: str
    num_bytes: int
    begins: bool


@dataclass(frozen=True, slots=True)
class Fault:
    """The current document cannot be taken; what else comes of it does not count."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class End:
    """The current document is over; `where` it began."""

    where: str


Event = Line | Fault | End


@dataclass(frozen=True, slots=True)
class _Part:
    """Bytes of a line without its end; `offset` in the file; whether they begin it, and end it."""

    offset: int
    data: bytes
    begins: bool
    ends: bool

    @property
    def is_blank_line(self) -> bool:
        """Return whether this is a whole line of white space only."""
        return self.begins and self.ends and not self.data.strip()


def read_piece(piece: Piece, document: str, text_field: str, advance: Callable[[int], None]) -> Iterator[Event]:
    """Yield the documents of a piece: lines and faults, and an `End` after each document.

    document: where text files are cut, one of `corpus_inputs.DOCUMENTS`; records of JSONL and Parquet are documents of
    themselves, their text under `text_field`. advance: told how many bytes of text were read.
    """
    name = piece.file.name
    whole = piece.start == 0 and piece.stop is None
    nothing = True
    try:
        for event in _events(piece, document, text_field, advance):
            nothing = False
            yield event
    except (OSError, pa.ArrowException) as error:
        yield Fault("file not readable", getattr(error, "strerror", None) or str(error).split("\n", 1)[0])
        yield End(name)
        return
    if nothing and whole:
        yield Fault("empty file", f"{piece.file.num_bytes} bytes, and no text in them")
        yield End(name)


def _events(piece: Piece, document: str, text_field: str, advance: Callable[[int], None]) -> Iterator[Event]:
    if piece.file.kind == "parquet":
        yield from _parquet(piece, text_field, advance)
        return
    with open_stream(piece.file) as stream:
        by_blank_lines = piece.file.kind == "text" and document == "blank-line"
        parts = _between_cuts(_parts_from(stream, piece.start, advance), piece, by_blank_lines=by_blank_lines)
        if piece.file.kind == "jsonl":
            yield from _json_documents(parts, piece.file.name, text_field)
        else:
            yield from _text_documents(parts, piece.file.name, document)


def _parts_from(stream: Any, start: int, advance: Callable[[int], None]) -> Iterator[_Part]:
    """Yield the lines that begin at byte `start` or behind."""
    at = max(start - 1, 0)
    _skip(stream, at)
    parts = _parts(stream, at, advance)
    if start > 0:
        # The line that holds the byte before `start` begins before it, even if that byte is its end.
        for part in parts:
            if part.ends:
                break
    yield from parts


def _skip(stream: Any, num_bytes: int) -> None:
    if isinstance(stream, pa.OSFile):
        stream.seek(num_bytes)
        return
    while num_bytes > 0 and (block := stream.read(min(num_bytes, BLOCK_BYTES))):
        num_bytes -= len(block)


def _parts(stream: Any, offset: int, advance: Callable[[int], None]) -> Iterator[_Part]:
    """Yield the lines of a stream whose first byte is byte `offset` of its file; long ones in several parts.

    Where a long line is cut depends on its own bytes alone, not on the blocks in which they come.
    """
    rest, begins, more = b"", True, True
    while more:
        block = stream.read(BLOCK_BYTES)
        advance(len(block))
        more = len(block) > 0
        *lines, rest = (rest + block).split(b"\n")
        # The last one is not known to be whole before the stream ends.
        for whole, ends in chain(zip(lines, repeat(True)), ((rest, False),)):
            line = whole
            while len(line) > MAX_LINE_BYTES:
                cut = _good_cut(line)
                yield _Part(offset, line[:cut], begins, ends=False)
                offset, line, begins = offset + cut, line[cut:], False
            if ends:
                yield _Part(offset, line, begins, ends=True)
                offset, begins = offset + len(line) + 1, True
            else:
                rest = line
    if rest or not begins:
        yield _Part(offset, rest, begins, ends=True)


def _good_cut(data: bytes) -> int:
    """Return where to cut a long line: before its last white space in reach, else between two characters."""
    cut = max(data.rfind(space, 1, MAX_LINE_BYTES) for space in (b" ", b"\t", b"\r"))
    if cut > 0:
        return cut
    # A character of UTF-8 has up to 3 bytes that continue it, each 10xxxxxx.
    characters = (MAX_LINE_BYTES - back for back in range(4) if data[MAX_LINE_BYTES - back] & 0xC0 != 0x80)
    return next(characters, MAX_LINE_BYTES)


def _between_cuts(parts: Iterator[_Part], piece: Piece, *, by_blank_lines: bool) -> Iterator[_Part]:
    """Yield the parts from the first border of documents at or behind the start, up to that at or behind the stop."""
    inside = piece.start == 0 or not by_blank_lines
    for part in parts:
        border = part.is_blank_line if by_blank_lines else part.begins
        if border:
            if piece.stop is not None and part.offset >= piece.stop:
                return
            inside = True
        if inside:
            yield part


def _text_documents(parts: Iterator[_Part], name: str, document: str) -> Iterator[Event]:
    where = ""
    for part in parts:
        data = part.data
        if part.offset == 0 and data.startswith(BYTE_ORDER_MARK):
            data = data[len(BYTE_ORDER_MARK) :]
        over = part.begins if document == "line" else document == "blank-line" and part.is_blank_line
        if over and where:
            yield End(where)
            where = ""
        if not data.strip():
            continue
        if not where:
            where = f"{name} at byte {part.offset}"
        yield _decoded(data, part)
    if where:
        yield End(where)


def _decoded(data: bytes, part: _Part) -> Line | Fault:
    try:
        return Line(data.decode().strip(), len(data), part.begins)
    except UnicodeDecodeError as error:
        at = part.offset + len(part.data) - len(data) + error.start
        return Fault("broken UTF-8", f"byte 0x{data[error.start]:02x} at {at}: {error.reason}")


def _record(data: bytes, where: str) -> Iterator[Event]:
    """Yield the document whose whole text is `data`."""
    for part in _parts(io.BytesIO(data), 0, lambda _: None):
        if part.data.strip():
            yield _decoded(part.data, part)
    yield End(where)


def _json_documents(parts: Iterator[_Part], name: str, text_field: str) -> Iterator[Event]:
    record = bytearray()
    begin, too_long = 0, False
    for part in parts:
        if part.begins:
            record.clear()
            begin, too_long = part.offset, False
        too_long = too_long or len(record) + len(part.data) > MAX_RECORD_BYTES
        if not too_long:
            record += part.data
        if not part.ends:
            continue
        where = f"{name} at byte {begin}"
        if too_long:
            yield Fault("record too long", f"over {MAX_RECORD_BYTES} bytes")
            yield End(where)
            continue
        data = bytes(record).removeprefix(BYTE_ORDER_MARK) if begin == 0 else bytes(record)
        if data.strip():
            text = _json_text(data, text_field)
            yield from (text, End(where)) if isinstance(text, Fault) else _record(text, where)


def _json_text(data: bytes, text_field: str) -> bytes | Fault:
    try:
        facts = json.loads(data.decode())
        text = facts[text_field] if isinstance(facts, dict) else None
        if isinstance(text, str):
            return text.encode()
    except UnicodeDecodeError as error:
        return Fault("broken UTF-8", f"byte 0x{data[error.start]:02x}, {error.start} bytes on: {error.reason}")
    except UnicodeEncodeError as error:
        return Fault("broken Unicode", f"half a surrogate pair, {error.start} characters on")
    except (ValueError, RecursionError) as error:
        return Fault("bad JSON", str(error))
    except KeyError:
        keys = ", ".join(sorted(map(str, facts))[:KEYS_SHOWN])
        return Fault("no text field", f"no {text_field!r}; the keys are {keys or 'none'}")
    return Fault("no text field", f"{text_field!r} is not a text")


def _parquet(piece: Piece, text_field: str, advance: Callable[[int], None]) -> Iterator[Event]:
    with pq.ParquetFile(piece.file.path) as parquet:
        name, schema = piece.file.name, parquet.schema_arrow
        if text_field not in schema.names:
            keys = ", ".join(schema.names[:KEYS_SHOWN])
            yield Fault("no text field", f"no column {text_field!r}; the columns are {keys or 'none'}")
            yield End(name)
            return
        kind = schema.field(text_field).type
        if kind not in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary()):
            yield Fault("no text field", f"column {text_field!r} holds {kind}, not texts")
            yield End(name)
            return
        groups = range(piece.start, parquet.num_row_groups if piece.stop is None else piece.stop)
        row = sum(parquet.metadata.row_group(group).num_rows for group in range(piece.start))
        batches = parquet.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=[text_field], use_threads=False)
        for batch in batches:
            advance(batch.nbytes)
            for value in batch.column(0).cast(pa.large_binary()).to_pylist():
                yield from _record(value or b"", f"{name} at row {row}")
                row += 1
