"""Records of LMDB files, read by their place in an index. Promise: a value is whole and where its key says, or refused.

See `lmdb_pages` for the format.
"""

import os
from collections.abc import Iterator

from vlbert_data.importers.lmdb_pages import (
    BIG_DATA,
    MAX_PAGE,
    NODE,
    OVERFLOW,
    PAGE_HEADER,
    LmdbIndex,
    LmdbRefusedError,
)

# Longest stretch that is read of a value whose structure alone is wanted.
BLOCK_BYTES = 4096


class SparseValue:
    """A value of which only short stretches are read; a long one comes as zeros.

    A value's structure is read through it, what it is made of and its small parts, without reading its arrays.
    """

    def __init__(self, handle: int, start: int, size: int) -> None:
        self._handle, self._start, self._size = handle, start, size
        self._block_at, self._block = -1, b""

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice, /) -> memoryview:
        """Return a stretch of the value; zeros where it is longer than BLOCK_BYTES."""
        low, high, _ = part.indices(self._size)
        if high - low > BLOCK_BYTES:
            return memoryview(bytes(high - low))
        if not self._block_at <= low <= high <= self._block_at + len(self._block):
            self._block_at = low
            self._block = os.pread(self._handle, min(BLOCK_BYTES, self._size - low), self._start + low)
        return memoryview(self._block)[low - self._block_at : high - self._block_at]


class LmdbRecords:
    """Reads records by their place in an index. Opened by each process for itself."""

    def __init__(self, index: LmdbIndex) -> None:
        self._index = index
        self._handle = os.open(index.path, os.O_RDONLY)
        # Where the page of keys that was read last begins, and its bytes: the next record's key is mostly on it.
        self._page: tuple[int, bytes] = (-1, b"")

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def keys(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the keys of records `start` to `stop` - 1."""
        for place in self._index.nodes[start:stop].tolist():
            yield self._node(place)[0]

    def read(self, number: int, *, max_bytes: int) -> tuple[bytes, bytes]:
        """Return key and value of a record.

        Raises:
            LmdbRefusedError: its pages are not those of a value, it is larger than `max_bytes`, or the file ends
                before it does.
        """
        key, start, size = self._locate(number, max_bytes)
        value = self._read(start, size)
        if len(value) != size:
            raise LmdbRefusedError(f"{self._of(key)} lies beyond the end of the file.")
        return key, value

    def read_sparse(self, number: int, *, max_bytes: int) -> SparseValue:
        """Return the value of a record, of which nothing is read yet.

        Raises:
            LmdbRefusedError: see `read`.
        """
        _, start, size = self._locate(number, max_bytes)
        if start + size > os.fstat(self._handle).st_size:
            raise LmdbRefusedError(f"{self._index.path}: record {number} lies beyond the end of the file.")
        return SparseValue(self._handle, start, size)

    def _locate(self, number: int, max_bytes: int) -> tuple[bytes, int, int]:
        """Return key, and first byte and size of the value, of a record."""
        key, flags, size, start = self._node(int(self._index.nodes[number]))
        if size > max_bytes:
            raise LmdbRefusedError(f"{self._of(key)} has {size} bytes; at most {max_bytes} are read.")
        if flags & BIG_DATA:
            start = self._overflow(key, int.from_bytes(self._read_near(start, 8), "little"), size)
        return key, start, size

    def _of(self, key: bytes) -> str:
        """Return in words whose value is spoken of."""
        return f"{self._index.path}: the value of key {key[:80]!r}"

    def _overflow(self, key: bytes, page: int, size: int) -> int:
        """Return the byte at which a value on pages of its own begins."""
        start = page * self._index.page_bytes
        header = self._read(start, PAGE_HEADER.size) if 2 <= page < MAX_PAGE else b""
        if len(header) < PAGE_HEADER.size:
            raise LmdbRefusedError(f"{self._of(key)} lies beyond the end of the file. Copy the file again.")
        number, _, flags, low, high = PAGE_HEADER.unpack(header)
        room = (low | high << 16) * self._index.page_bytes - PAGE_HEADER.size
        if number != page or not flags & OVERFLOW or size > room:
            raise LmdbRefusedError(f"{self._of(key)} is not where its key says: the file is damaged. Copy it again.")
        return start + PAGE_HEADER.size

    def _node(self, place: int) -> tuple[bytes, int, int, int]:
        """Return a record's key, flags, value size, and the byte at which its value or overflow page number is."""
        head = self._read_near(place, NODE.size)
        if len(head) < NODE.size:
            raise LmdbRefusedError(f"{self._index.path}: ends before a record that its index has. Copy it again.")
        low, high, flags, key_size = NODE.unpack(head)
        return self._read_near(place + NODE.size, key_size), flags, low | high << 16, place + NODE.size + key_size

    def _read_near(self, offset: int, size: int) -> bytes:
        """Return a few bytes of a page of keys; they may be fewer where the page ends."""
        begin, page = self._page
        if not begin <= offset <= offset + size <= begin + len(page):
            begin = offset // self._index.page_bytes * self._index.page_bytes
            page = self._read(begin, self._index.page_bytes)
            self._page = begin, page
        return page[offset - begin : offset - begin + size]

    def _read(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._handle, size, offset)
        except OSError as error:
            raise LmdbRefusedError(f"{self._index.path}: cannot be read at byte {offset}: {error.strerror}.") from error
