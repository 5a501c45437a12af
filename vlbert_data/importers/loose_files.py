"""What importers of one file an image share: a folder's files, numbered. Promise: the same files, the same order."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.importers.names import Names
from vlbert_data.importers.numbered import NumberedImporter
from vlbert_data.importers.plain_arrays import RefusedDataError
from vlbert_data.sources.files import require_folder

# A hundred RoIs of 2048 features and 1601 classes in float64 take 3 MB.
MAX_FILE_BYTES = 64 << 20
# Entries of folders looked at to tell a format.
SNIFFED_ENTRIES = 5000
SNIFFED_FILES = 8


class LooseFiles(NumberedImporter):
    """The files of one folder and the folders in it that belong to images, in the order of their paths."""

    def __init__(self, paths: Sequence[Path], name: str, ending: str) -> None:
        """Find the files.

        Raises:
            ConfigError: several inputs, no folder, or no file in it.
        """
        if len(paths) != 1:
            raise ConfigError(f"{len(paths)} inputs of the format {name}; give the one folder that all files are in.")
        self._folder = require_folder(paths[0])
        self._format = name
        self.names = Names.of(
            sorted(
                file.relative_to(self._folder).as_posix()
                for file in self._folder.rglob(f"*{ending}")
                if self.is_input(file.name)
            )
        )
        if not len(self.names):
            raise ConfigError(f"{self._folder}: no file of the format {name}. Expected names that end in {ending}.")

    def is_input(self, name: str) -> bool:
        """Return whether a file of the right ending is an image's own."""
        return True

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def where(self, number: int) -> str:
        """Return the path of a file."""
        return str(self._folder / self.names[number])

    def keys(self) -> Iterator[str]:
        """Yield the paths of the files in the folder, without their ending."""
        return (name.rsplit(".", 1)[0] for name in self.names)

    def facts(self) -> dict[str, Any]:
        """Return format, count, and a digest over the names and sizes of all files."""
        digest, total = hashlib.blake2b(digest_size=16), 0
        for name in self.names:
            try:
                size = (self._folder / name).stat().st_size
            except OSError:
                size = -1
            total += max(size, 0)
            digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
        return {
            "format": self._format,
            "count": len(self),
            "folder": self._folder.name,
            "bytes": total,
            "blake2b_of_names_and_sizes": digest.hexdigest(),
        }


def read_small(path: Path) -> bytes:
    """Return the bytes of an image's file.

    Raises:
        RecordRejectedError: missing, unreadable, no file, or too large.
    """
    try:
        if not path.is_file():
            raise RecordRejectedError("not readable", f"{path}: no such file")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise RecordRejectedError("too many bytes", f"{path}: {size} bytes; at most {MAX_FILE_BYTES} are read")
        return path.read_bytes()
    except OSError as error:
        raise RecordRejectedError("not readable", f"{path}: {error.strerror}") from error


def sniff_files(folder: Path, ending: str, look: Callable[[Path], str | None]) -> str | None:
    """Return what `look` finds in one of a few files of that ending, of which some may be damaged.

    None for what is no folder, or has none. look: may raise RecordRejectedError and RefusedDataError.
    """
    for file in islice(_some_files(folder, ending), SNIFFED_FILES):
        with suppress(RefusedDataError, RecordRejectedError):
            found = look(file)
            if found is not None:
                return found
    return None


def _some_files(folder: Path, ending: str) -> Iterator[Path]:
    """Yield files of that ending in a folder and the folders in it, among the first SNIFFED_ENTRIES entries."""
    waiting, seen = deque([folder] if folder.is_dir() else []), 0
    while waiting:
        try:
            with os.scandir(waiting.popleft()) as entries:
                for entry in entries:
                    seen += 1
                    if seen > SNIFFED_ENTRIES:
                        return
                    if entry.name.endswith(ending) and entry.is_file():
                        yield Path(entry.path)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
        except OSError:
            continue
