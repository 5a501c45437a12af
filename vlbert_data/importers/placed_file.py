"""A file read at any place. Promise: opened at its first read in a process, safe in threads, gone with its object."""

import os
from pathlib import Path

from vlbert_data.errors import RecordRejectedError


class PlacedFile:
    """Reads `path` at given bytes; pickled, it is its path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

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
