"""What importers of LMDB files share: records numbered over several files, each read by its place.

Promise: nothing but file reads touches the database, see `lmdb_pages`; each damaged part is one input, a reject.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.importers.base import RawRecord, TextRecord
from vlbert_data.importers.lmdb_pages import LmdbIndex, LmdbRefusedError, index_lmdb, lmdb_file, looks_like_lmdb
from vlbert_data.importers.lmdb_records import LmdbRecords
from vlbert_data.importers.numbered import NumberedImporter, hash_files, place_in
from vlbert_data.importers.plain_arrays import RefusedDataError
from vlbert_data.importers.record_dict import RecordPlace

# A hundred RoIs with distributions of 1601 classes, in float64, take 3 MB.
MAX_RECORD_BYTES = 64 << 20
# Keys under which databases list their own keys.
LISTS_OF_KEYS = frozenset({b"keys", b"__keys__"})
# tensorpack's keys; names of images that are numbers have no zeros in front, or twelve digits.
NUMBER_DIGITS = 8
# The way down to the first leaf of any database, and a few leaves.
SNIFFED_PAGES = 40
SNIFFED_VALUES = 8


class LmdbImporter(NumberedImporter):
    """The records of LMDB files, one file after the other, each in the order of its keys; then what is damaged."""

    reading_threads = 0

    def __init__(self, paths: Sequence[Path]) -> None:
        """Find all records.

        Raises:
            LmdbRefusedError: a file that is no LMDB database.
            ConfigError: a file is given twice, or there is no record.
        """
        files = [lmdb_file(path) for path in paths]
        self.indexes: tuple[LmdbIndex, ...] = tuple(index_lmdb(path, skipped=LISTS_OF_KEYS) for path in files)
        self._ends = list(accumulate(len(index.nodes) for index in self.indexes))
        self._damages = [(index.path, damage) for index in self.indexes for damage in index.damages]
        self._file_facts = hash_files(files)
        self._open: dict[int, LmdbRecords] = {}
        if not self._ends[-1]:
            raise ConfigError(f"{files[0]}: no record in it. Expected a database with a record an image.")

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind."""
        return {**self.__dict__, "_open": {}}

    def __len__(self) -> int:
        """Return the number of records and damages."""
        return self._ends[-1] + len(self._damages)

    def keys(self) -> Iterator[str]:
        """Yield the database's keys."""
        for number, index in enumerate(self.indexes):
            for key in self.records(number).keys(0, len(index.nodes)):
                yield text_key(key)
        yield from [""] * len(self._damages)

    def where(self, number: int) -> str:
        """Return file and position of a record."""
        if number >= self._ends[-1]:
            return str(self._damages[number - self._ends[-1]][0])
        file, row = place_in(self._ends, number)
        return f"{self.indexes[file].path}!record {row}"

    def load(self, number: int) -> RawRecord:
        """Return the record, decoded."""
        return self.decode(*self._value(number))

    def load_text(self, number: int) -> RawRecord | TextRecord:
        """Return the record, its arrays as text where that is what they are."""
        return self.decode_text(*self._value(number))

    def _value(self, number: int) -> tuple[int, bytes, RecordPlace]:
        """Return file, value and place of a record."""
        if number >= self._ends[-1]:
            raise RecordRejectedError("damaged file", self._damages[number - self._ends[-1]][1])
        file, row = place_in(self._ends, number)
        key, value = self.records(file).read(row, max_bytes=MAX_RECORD_BYTES)
        where = f"{self.indexes[file].path}!{text_key(key)}"
        return file, value, RecordPlace(key=text_key(key), where=where, num_bytes=len(value))

    @abstractmethod
    def decode(self, file: int, value: bytes, place: RecordPlace) -> RawRecord:
        """Return the record in a value of the file of that number.

        Raises:
            RecordRejectedError, RefusedDataError: what is wrong with it.
        """

    def decode_text(self, file: int, value: bytes, place: RecordPlace) -> RawRecord | TextRecord:
        """Return what `decode` does, or a record whose arrays are text undecoded."""
        return self.decode(file, value, place)

    def records(self, file: int) -> LmdbRecords:
        """Return what reads the records of a file."""
        if file not in self._open:
            self._open[file] = LmdbRecords(self.indexes[file])
        return self._open[file]


def text_key(key: bytes) -> str:
    """Return a key as text; bytes that are no UTF-8 are written as escapes."""
    return key.decode("utf-8", "backslashreplace")


def is_numbering(key: bytes) -> bool:
    """Return whether a database's first key is a low one of tensorpack's, which number the records by eight digits."""
    return len(key) == NUMBER_DIGITS and key.isdigit() and key.startswith(b"0")


def sniff_values(path: Path, look: Callable[[bytes, bytes], str | None]) -> str | None:
    """Return what `look` finds in key and value of one of a database's first records, of which some may be damaged.

    None for what is no database. look: may raise RecordRejectedError and RefusedDataError.
    """
    if not looks_like_lmdb(path):
        return None
    try:
        index = index_lmdb(
            lmdb_file(path), skipped=LISTS_OF_KEYS, most_pages=SNIFFED_PAGES, enough_records=SNIFFED_VALUES
        )
    except LmdbRefusedError:
        return None
    records = LmdbRecords(index)
    try:
        for number in range(min(len(index.nodes), SNIFFED_VALUES)):
            with suppress(RefusedDataError, RecordRejectedError):
                found = look(*records.read(number, max_bytes=MAX_RECORD_BYTES))
                if found is not None:
                    return found
    finally:
        records.close()
    return None
