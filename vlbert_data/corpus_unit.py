"""One unit of input to one corpus file. Promise: constant memory, and the same bytes whoever makes it, whenever.

Tokens are gathered in scratch files, since a unit may hold one document of any size; from there Arrow writes them.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from vlbert_data import token_file
from vlbert_data.corpus import STATE_FOLDER, CorpusEntry, corpus_name
from vlbert_data.corpus_inputs import Unit
from vlbert_data.corpus_read import Event, Fault, Line, read_piece
from vlbert_data.errors import ConfigError
from vlbert_data.shards import files
from vlbert_data.token_file import TokenRuns
from vlbert_data.tokenizer import TextTokenizer
from vlbert_data.types import Array

# Texts that wait for the tokenizer: enough to make a call worth while, few enough to stay in the cache.
BATCH_LINES = 1024
BATCH_BYTES = 1 << 20
PACK_AT_ONCE = 1 << 22
DETAIL_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitSettings:
    """What decides a corpus beside its texts. document: one of `corpus_inputs.DOCUMENTS`, for text files."""

    document: str = "blank-line"
    text_field: str = "text"


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitOutcome:
    """A finished unit: its entry of the manifest, and its rejects by reason; their lines are in `rejects_path`."""

    entry: CorpusEntry
    rejects: Mapping[str, int]


def outcome_path(folder: Path, number: int) -> Path:
    """Return where a unit's outcome is kept until the corpus is whole; a unit that has one is done."""
    return folder / STATE_FOLDER / f"unit-{number:05d}.json"


def rejects_path(folder: Path, number: int) -> Path:
    """Return where the lines that a unit adds to `rejects.jsonl` are kept."""
    return folder / STATE_FOLDER / f"unit-{number:05d}.rejects.jsonl"


def load_outcome(folder: Path, number: int) -> UnitOutcome | None:
    """Return the outcome of a unit whose corpus file is there, None where it has still to be built."""
    path = outcome_path(folder, number)
    if not path.exists():
        return None
    facts = files.read_json(path, what="state of a unit")
    entry = CorpusEntry(**facts["entry"])
    file = folder / entry.file
    if not file.exists() or file.stat().st_size != entry.bytes:
        return None
    return UnitOutcome(entry=entry, rejects=facts["rejects"])


def build_unit(
    folder: Path,
    number: int,
    unit: Unit,
    settings: UnitSettings,
    tokenizer: TextTokenizer,
    advance: Callable[[int], None],
) -> None:
    """Write corpus file `number`, its rejects and, last, its outcome.

    advance: told the bytes of text done since the last call; together they are the unit's `num_bytes`.

    Raises:
        OSError: the disk is full, or the like. Input that cannot be read is a reject instead.
    """
    path = folder / corpus_name(number)
    temporary = files.temporary_name(path)
    with ExitStack() as stack:
        stack.callback(temporary.unlink, missing_ok=True)
        with files.atomic_path(rejects_path(folder, number)) as rejects, rejects.open("wb") as stream:
            writer = stack.enter_context(UnitWriter(folder / STATE_FOLDER / f"unit-{number:05d}", tokenizer, stream))
            for piece in unit:
                share = _Share(piece.num_bytes, advance)
                for event in read_piece(piece, settings.document, settings.text_field, share.add):
                    writer.take(event)
                share.close()
            writer.write(temporary)
        entry = writer.entry(path, files.publish(temporary, path))
    facts = {"entry": asdict(entry), "rejects": dict(sorted(writer.rejects.items()))}
    files.write_bytes(outcome_path(folder, number), files.canonical_json(facts))


class _Share:
    """Passes progress on, never more than was announced, and in the end exactly as much."""

    def __init__(self, num_bytes: int, advance: Callable[[int], None]) -> None:
        self._left = num_bytes
        self._advance = advance

    def add(self, num_bytes: int) -> None:
        step = min(num_bytes, self._left)
        self._left -= step
        self._advance(step)

    def close(self) -> None:
        self.add(self._left)


class UnitWriter:
    """Takes events of `corpus_read`, tokenises lines in batches, and keeps what whole documents gave."""

    def __init__(self, scratch: Path, tokenizer: TextTokenizer, rejects: IO[bytes]) -> None:
        self.rejects: Counter[str] = Counter()
        self._reject_lines = rejects
        self._tokenizer = tokenizer
        self._ids = _Scratch(scratch.with_suffix(".ids"), tokenizer.dtype)
        self._words = _Scratch(scratch.with_suffix(".words"), np.dtype(np.bool_))
        self._bits = _Scratch(scratch.with_suffix(".bits"), np.dtype(np.uint8))
        self._documents = _Scratch(scratch.with_suffix(".documents"), np.dtype(np.int64))
        self._lines = _Scratch(scratch.with_suffix(".lines"), np.dtype(np.uint32))
        self._document_lines = _Scratch(scratch.with_suffix(".document-lines"), np.dtype(np.int64))
        self._documents.append(np.zeros(1, np.int64))
        self._document_lines.append(np.zeros(1, np.int64))
        self._text_bytes = 0
        self._batch: list[Line] = []
        self._batch_bytes = 0
        # Documents that end in the batch: behind how many of its lines, where they began, and their bytes.
        self._ends: list[tuple[int, str, int]] = []
        self._open_from = 0  # the first line of the batch that belongs to the open document
        self._open_bytes = 0  # of the open document's lines
        self._fault: Fault | None = None
        self._whole = (0, 0)  # tokens and lines of whole documents

    def __enter__(self) -> "UnitWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for scratch in self._scratches():
            scratch.close()

    def _scratches(self) -> tuple["_Scratch", ...]:
        return self._ids, self._words, self._bits, self._documents, self._lines, self._document_lines

    def take(self, event: Event) -> None:
        """Take the next event."""
        if isinstance(event, Line):
            if self._fault is None:
                self._add(event)
        elif isinstance(event, Fault):
            self._fault = self._fault or event
        else:
            self._end(event.where)

    def write(self, path: Path) -> None:
        """Write everything taken as a token file."""
        self._flush()
        words = self._words.read()
        for first in range(0, len(words), PACK_AT_ONCE):
            self._bits.append(np.packbits(words[first : first + PACK_AT_ONCE], bitorder="little"))
        tokens = TokenRuns(ids=self._ids.read(), starts_word=self._bits.read(), cu_lengths=self._documents.read())
        lines = (self._lines.read(), self._document_lines.read())
        token_file.write(path, tokens, lines, {"tokenizer": self._tokenizer.fingerprint})

    def entry(self, path: Path, blake3: str) -> CorpusEntry:
        """Return the manifest's entry of the file at `path` that `write` wrote."""
        return CorpusEntry(
            file=path.name,
            bytes=path.stat().st_size,
            blake3=blake3,
            documents=len(self._documents) - 1,
            lines=len(self._lines),
            tokens=len(self._ids),
            text_bytes=self._text_bytes,
        )

    def _add(self, line: Line) -> None:
        self._batch.append(line)
        self._batch_bytes += line.num_bytes
        self._open_bytes += line.num_bytes
        if len(self._batch) >= BATCH_LINES or self._batch_bytes >= BATCH_BYTES:
            self._flush()

    def _end(self, where: str) -> None:
        if self._fault is not None:
            del self._batch[self._open_from :]
            if not self._ends:
                # Some of its tokens may be in the scratch files already.
                self._cut_back()
            self._reject(where, self._fault)
            self._fault = None
        else:
            self._ends.append((len(self._batch), where, self._open_bytes))
        self._open_from, self._open_bytes = len(self._batch), 0

    def _cut_back(self) -> None:
        tokens, lines = self._whole
        self._ids.cut(tokens)
        self._words.cut(tokens)
        self._lines.cut(lines)

    def _flush(self) -> None:
        tokens_before, lines_before = len(self._ids), len(self._lines)
        runs = self._tokenizer.encode([line.text for line in self._batch])
        if tokens_before + len(runs.ids) > token_file.MAX_TOKENS:
            raise ConfigError("a document or row group of over 4 billion tokens; cut the input into smaller parts.")
        begins = np.fromiter((line.begins for line in self._batch), np.bool_, len(self._batch))
        begins &= np.diff(runs.cu_lengths) > 0
        self._ids.append(runs.ids)
        self._words.append(runs.starts_word)
        self._lines.append((tokens_before + runs.cu_lengths[:-1][begins]).astype(np.uint32))
        num_lines = np.concatenate([[0], np.cumsum(begins)])
        borders = []
        for index, where, num_bytes in self._ends:
            end = tokens_before + int(runs.cu_lengths[index])
            if end == self._whole[0]:
                self._reject(where, Fault("empty text", "no words in it"))
                continue
            self._whole = end, lines_before + int(num_lines[index])
            self._text_bytes += num_bytes
            borders.append(self._whole)
        ends = np.array(borders, np.int64).reshape(-1, 2)
        self._documents.append(ends[:, 0])
        self._document_lines.append(ends[:, 1])
        self._batch, self._ends = [], []
        self._batch_bytes = self._open_from = 0

    def _reject(self, where: str, fault: Fault) -> None:
        self.rejects[fault.reason] += 1
        facts = {"where": where, "reason": fault.reason, "detail": fault.detail[:DETAIL_CHARACTERS]}
        text = json.dumps(facts, ensure_ascii=False)
        self._reject_lines.write(text.encode(errors="backslashreplace") + b"\n")


class _Scratch:
    """An array that grows in a file."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._path = path
        self._dtype = dtype
        self._length = 0
        self._stream = path.open("wb")

    def __len__(self) -> int:
        return self._length

    def append(self, values: Array) -> None:
        """Append values of the array's dtype."""
        assert values.dtype == self._dtype, "scratch files hold one dtype"
        self._stream.write(np.ascontiguousarray(values).data)
        self._length += len(values)

    def cut(self, length: int) -> None:
        """Keep the first `length` values."""
        self._stream.seek(length * self._dtype.itemsize)
        self._stream.truncate()
        self._length = length

    def read(self) -> Array:
        """Return the array, mapped."""
        self._stream.flush()
        if self._length == 0:
            return np.zeros(0, self._dtype)
        return np.memmap(self._path, self._dtype, mode="r", shape=(self._length,))

    def close(self) -> None:
        """Remove the file."""
        try:
            self._stream.close()
        finally:
            self._path.unlink(missing_ok=True)
