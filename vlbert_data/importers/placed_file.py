"""A file read at any place. Promise: opened at its first read in a process, safe in threads, gone with its object."""

import os
from pathlib import Path

from vlbert_data.errors import RecordRejectedError

BLOCK_BYTES = 1 << 14


class PlacedFile:
    """Reads `path` at given bytes; pickled, it is its path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        # Where the block begins that `read_near` read last, and its bytes.
        self._block: tuple[int, bytes] = (-1, b"")

    def __reduce__(self) -> tuple[type["PlacedFile"], tuple[Path]]:
        return type(self), (self.path,)

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def read(self, start: int, num_bytes: int) -> bytes:
        """Return the bytes from `start` on; fewer where the file ends before.

        Raises:
            RecordRejectedError: "not readable".
        """
        try:
            if self._descriptor is None:
                self._open()
            assert self._descriptor is not None, "opened just now"
            return os.pread(self._descriptor, num_bytes, start)
        except OSError as error:
            raise RecordRejectedError("not readable", f"{self.path}: {error.strerror}") from error

    def read_near(self, start: int, num_bytes: int) -> bytes:
        """Return what `read` does, a block at a time: for short stretches of which most lie close behind each other.

        Raises:
            RecordRejectedError: "not readable".
        """
        begin, block = self._block
        if not begin <= start <= start + num_bytes <= begin + len(block):
            begin, block = self._block = start, self.read(start, max(num_bytes, BLOCK_BYTES))
        return block[start - begin : start - begin + num_bytes]

    def read_exactly(self, start: int, num_bytes: int) -> bytes:
        """Return `num_bytes` bytes from `start` on.

        Raises:
            RecordRejectedError: "not readable", also where the file ends before.
        """
        data = self.read(start, num_bytes)
        if len(data) != num_bytes:
            detail = f"{self.path} ends at byte {start + len(data)}; it changed while it was read"
            raise RecordRejectedError("not readable", detail)
        return data

    def _open(self) -> None:
        opened = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        if self._descriptor is None:
            self._descriptor = opened
        else:  # another thread was first
            os.close(opened)
