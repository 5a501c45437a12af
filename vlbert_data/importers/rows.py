"""Where the rows of a large table of text lie. Promise: one pass, in constant memory but for 24 bytes and a key a row.

Rows hold hundreds of kilobytes of base64, so the table is searched for line ends a chunk at a time; a row is only
looked into when it is read. A row of another number of columns than expected keeps no key: what is left of a torn
line must not pass for the image whose name it begins with.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.importers.placed_file import PlacedFile
from vlbert_data.sources.files import (
    UTF8_BOM,
    FileFacts,
    compression_of,
    hash_file,
    read_start,
    relative_names,
    unreadable,
)
from vlbert_data.types import Array

SCAN_CHUNK_BYTES = 8 << 20
# Longer names than any project gives; beyond it a row has no key.
LONGEST_KEY_BYTES = 1024
RETURN = ord("\r")
# 1,600 class and 400 attribute probabilities and 2,054 numbers for 100 RoIs are 2.2 MB of base64.
LONGEST_ROW_BYTES = 64 << 20
SNIFFED_BYTES = 8 << 20
LINES_SNIFFED = 8


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one file that are not blank.

    starts, stops: int64 [n], the bytes of each row, its line end left out. blank: int64, rising: how many rows stood
    before each blank line, of which no row is made.
    keys: the first columns one after another, UTF-8; key_stops: int64 [n], where each one ends.
    """

    file: PlacedFile
    facts: FileFacts
    starts: Array
    stops: Array
    blank: Array
    keys: bytes | bytearray = field(repr=False)
    key_stops: Array

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def path(self) -> Path:
        """Return the file's path."""
        return self.file.path

    def where(self, index: int) -> str:
        """Return file and line of a row, as editors write it."""
        return f"{self.path}:{index + 1 + int(np.searchsorted(self.blank, index, side='right'))}"

    def key(self, index: int) -> str:
        """Return the first column of a row; "" where it is unusable."""
        start = int(self.key_stops[index - 1]) if index else 0
        return self.keys[start : int(self.key_stops[index])].decode("utf-8", "replace")

    def read(self, index: int) -> bytes:
        """Return the bytes of a row without its line end.

        Raises:
            RecordRejectedError: "line too long", or the file changed under us.
        """
        start, num_bytes = int(self.starts[index]), int(self.stops[index] - self.starts[index])
        if num_bytes > LONGEST_ROW_BYTES:
            raise RecordRejectedError("line too long", f"{num_bytes} bytes; at most {LONGEST_ROW_BYTES} are read")
        return self.file.read_exactly(start, num_bytes)


# From a line's first bytes and its number of tabs to the row's key, b"" for none.
KeyOf = Callable[[bytes, int], bytes]


def index_files(paths: Sequence[Path], num_columns: int) -> tuple[Rows, ...]:
    """Return the rows of each table; `num_columns` is how many tab-separated columns a good row has.

    Raises:
        ConfigError: a file is given twice, unreadable, or holds no row.
    """

    def first_column(head: bytes, tabs: int) -> bytes:
        key, tab, _ = head.partition(b"\t")
        return key if tab and tabs == num_columns - 1 else b""

    found = tuple(
        index_rows(path, first_column, name=name) for path, name in zip(paths, relative_names(paths), strict=True)
    )
    for rows in found:
        if not len(rows):
            raise ConfigError(f"{rows.path}: an empty file; expected rows of {num_columns} columns.")
    return found


def index_rows(path: Path, key_of: KeyOf, *, name: str, head_bytes: int = LONGEST_KEY_BYTES) -> Rows:
    """Return the rows of a file; `key_of` sees the first `head_bytes` of each, or a little more.

    Raises:
        ConfigError: the file cannot be read.
    """
    # Plain lists of so many numbers would take five times the memory, and copies of these twice as much.
    starts, stops, blank, key_stops = array("q"), array("q"), array("q"), array("q")
    keys = bytearray()
    try:
        for start, stop, head, tabs in _lines(path, head_bytes):
            if stop == start:
                blank.append(len(starts))
                continue
            starts.append(start)
            stops.append(stop)
            keys += key_of(head, tabs)
            key_stops.append(len(keys))
    except OSError as error:
        raise unreadable(path, error) from error
    return Rows(
        file=PlacedFile(path),
        facts=hash_file(path, name=name),
        starts=np.frombuffer(starts, np.int64),
        stops=np.frombuffer(stops, np.int64),
        blank=np.array(blank, np.int64),
        keys=keys,
        key_stops=np.frombuffer(key_stops, np.int64),
    )


def _lines(path: Path, head_bytes: int) -> Iterator[tuple[int, int, bytes, int]]:
    """Yield (first byte, last byte + 1, first bytes, number of tabs) of every line; both kinds of line end left out."""
    with path.open("rb", buffering=0) as stream:
        start = len(UTF8_BOM) if stream.read(len(UTF8_BOM)) == UTF8_BOM else 0
        stream.seek(start)
        base, head, tabs, last = start, b"", 0, -1
        chunk = bytearray(SCAN_CHUNK_BYTES)
        while size := stream.readinto(chunk):
            begin = 0
            while (end := chunk.find(b"\n", begin, size)) >= 0:
                head += chunk[begin : min(end, begin + head_bytes)]
                last = chunk[end - 1] if end > begin else last
                yield start, base + end - (last == RETURN), head.rstrip(b"\r"), tabs + _count_tabs(chunk, begin, end)
                begin, head, tabs, last = end + 1, b"", 0, -1
                start = base + begin
            if len(head) < head_bytes:
                head += chunk[begin : min(size, begin + head_bytes)]
            tabs += _count_tabs(chunk, begin, size)
            last = chunk[size - 1] if begin < size else last
            base += size
        if start < base:
            yield start, base - (last == RETURN), head.rstrip(b"\r"), tabs


def _count_tabs(chunk: bytearray, begin: int, end: int) -> int:
    """Return the number of tabs; `find` jumps over long columns many times as fast as `count` walks through them."""
    tabs = 0
    while (begin := chunk.find(b"\t", begin, end) + 1) > 0:
        tabs += 1
    return tabs


def sniff_lines(path: Path, look: Callable[[bytes], str | None]) -> str | None:
    """Return what `look` finds in one of the first lines of a text file, which may be damaged; None for a folder.

    A compressed file has no lines.
    """
    if not path.is_file():
        return None
    try:
        start = read_start(path, SNIFFED_BYTES)
    except ConfigError:
        return None
    if compression_of(start) is not None:
        return None
    lines = start.removeprefix(UTF8_BOM).split(b"\n", LINES_SNIFFED)
    # What comes last is not a whole line, or not even the last line of the file.
    whole = lines[:-1] if len(start) == SNIFFED_BYTES else lines
    return next((found for line in whole[:LINES_SNIFFED] if (found := look(line.rstrip(b"\r"))) is not None), None)
