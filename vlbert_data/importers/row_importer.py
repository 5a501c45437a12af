"""What importers of tables share: one row, one input. Promise: a row that cannot be read costs that row."""

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.importers.base import RawRecord, TextRecord, Traits
from vlbert_data.importers.rows import Rows
from vlbert_data.shards.files import blake2b_json
from vlbert_data.sources.base import SourceReject

# Rows looked at for what all of them have in common, before an import begins.
ROWS_TRIED = 32
# Enough to say how many columns two rows have that ran into each other.
MOST_COLUMNS = 64
Found = TypeVar("Found")
Value = TypeVar("Value", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class RowImporter:
    """An `Importer` of tables, one file after the other; a subclass says what a row holds."""

    reading_threads: ClassVar[int] = 0
    traits: Traits
    files: tuple[Rows, ...]

    def __len__(self) -> int:
        """Return the number of rows."""
        return sum(map(len, self.files))

    def keys(self) -> Iterator[str]:
        """Yield the key of each row."""
        return (rows.key(index) for rows in self.files for index in range(len(rows)))

    def read(self, start: int, stop: int) -> Iterator[RawRecord | SourceReject]:
        """Yield rows `start` to `stop` - 1."""
        return self._read(self.parse, start, stop)

    def read_texts(self, start: int, stop: int) -> Iterator[RawRecord | TextRecord | SourceReject]:
        """See `Importer`."""
        return self._read(self.parse_text, start, stop)

    def _read(self, parse: Callable[[Rows, int], Found], start: int, stop: int) -> Iterator[Found | SourceReject]:
        for number, rows, index in numbered(self.files, start, stop):
            try:
                yield parse(rows, index)
            except RecordRejectedError as error:
                yield SourceReject(number=number, where=rows.where(index), reason=error.reason, detail=error.detail)

    def parse_text(self, rows: Rows, index: int) -> RawRecord | TextRecord:
        """Return what `parse` does, or a record whose arrays are text undecoded.

        Raises:
            RecordRejectedError: as `parse` does.
        """
        return self.parse(rows, index)

    def parse(self, rows: Rows, index: int) -> RawRecord:
        """Return the record in row `index` of one of the files.

        Raises:
            RecordRejectedError: the row is damaged, or its columns disagree.
        """
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Return format, count and files."""
        files = [rows.facts.as_json() for rows in (*self.files, *self.files_beside())]
        return {"format": self.traits.format, "count": len(self), "files": files}

    def files_beside(self) -> Sequence[Rows]:
        """Return further files that records are made of."""
        return ()

    def fingerprint(self) -> str:
        """Return a digest of the files' contents."""
        return blake2b_json(self.facts())


def numbered(files: Sequence[Rows], start: int, stop: int) -> Iterator[tuple[int, Rows, int]]:
    """Yield (number, file, place in the file) of rows `start` to `stop` - 1 of the files one after another."""
    ends = list(itertools.accumulate(map(len, files)))
    for rows, end in zip(files, ends, strict=True):
        begin = end - len(rows)
        for number in range(max(start, begin), min(stop, end)):
            yield number, rows, number - begin


def try_rows(files: Sequence[Rows], measure: Callable[[Rows, int], Found], format_name: str) -> list[Found]:
    """Return what `measure` finds in those of the first rows that it does not reject.

    Raises:
        ConfigError: it rejects all of them.
    """
    found: list[Found] = []
    complaint = ""
    for _, rows, index in numbered(files, 0, ROWS_TRIED):
        try:
            found.append(measure(rows, index))
        except RecordRejectedError as error:
            complaint = complaint or f"{rows.where(index)}: {error}"
    if not found:
        raise ConfigError(
            f"{files[0].path}: none of the first rows is a row of {format_name}; the first trouble is at "
            f"{complaint or 'its end: it is empty'}. Name the right --format, or mend the file."
        )
    return found


def most_common(values: Iterable[Value]) -> Value:
    """Return the value that occurs most often, of equals the first: a damaged record does not decide for all."""
    return Counter(values).most_common(1)[0][0]


def split_columns(row: bytes, num_columns: int) -> list[memoryview]:
    """Return the tab-separated columns of a row, views of it: `split` would copy them all.

    Raises:
        RecordRejectedError: "wrong columns": more or fewer than there must be, as after a torn line.
    """
    view = memoryview(row)
    parts, begin = list[memoryview](), 0
    while (end := row.find(b"\t", begin)) >= 0 and len(parts) < MOST_COLUMNS:
        parts.append(view[begin:end])
        begin = end + 1
    parts.append(view[begin:])
    if len(parts) != num_columns:
        raise RecordRejectedError("wrong columns", f"{len(parts)} tab-separated columns; expected {num_columns}")
    return parts


def decode_key(column: bytes | memoryview) -> str:
    """Return the key in the first column.

    Raises:
        RecordRejectedError: "bad key": empty or not UTF-8.
    """
    try:
        key = str(column, "utf-8")
    except UnicodeDecodeError as error:
        raise RecordRejectedError("bad key", f"the first column is not UTF-8: {error}") from error
    if not key.strip():
        raise RecordRejectedError("bad key", "the first column is empty")
    return key
