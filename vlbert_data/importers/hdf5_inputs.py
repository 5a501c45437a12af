"""What importers of HDF5 files share: names and data sets, asked of a helper process.

Promise: no library of HDF5 runs in this process, see `child`.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.importers.child import SECONDS_A_SURVEY, shared_child
from vlbert_data.importers.names import Names
from vlbert_data.importers.numbered import NumberedImporter, place_in
from vlbert_data.importers.plain_arrays import RefusedDataError
from vlbert_data.types import Array

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
# Features of a thousand RoIs in float64 take 16 MB.
MAX_DATASET_BYTES = 64 << 20


def looks_like_hdf5(path: Path) -> bool:
    """Return whether a file begins as HDF5 files do."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(HDF5_MAGIC)) == HDF5_MAGIC
    except OSError:
        return False


def names_in(path: Path, group: str = "/") -> Names:
    """Return the names in a group.

    Raises:
        ChildRefusedError: the file cannot be read, or has no such group.
        RecordRejectedError: the answer makes no sense.
    """
    _, arrays = shared_child("hdf5").ask(path, {"op": "names", "name": group}, seconds=SECONDS_A_SURVEY)
    if len(arrays) != 2 or arrays[0].dtype != np.uint8 or arrays[1].dtype != np.int64:
        raise RecordRejectedError("damaged file", f"{path}: no names in {group}")
    text, ends = arrays
    if len(ends) and ((np.diff(ends, prepend=0) < 0).any() or int(ends[-1]) != len(text)):
        raise RecordRejectedError("damaged file", f"{path}: names in {group} that make no sense")
    return Names(text.tobytes(), ends)


def describe(path: Path, name: str = "/") -> dict[str, Any]:
    """Return what an object of a file is; see `hdf5_child.describe`.

    Raises:
        ChildRefusedError: the file cannot be read, or has no such object.
    """
    return shared_child("hdf5").ask(path, {"op": "describe", "name": name})[0]


def read_datasets(path: Path, names: Sequence[str], rows: tuple[int, int] | None = None) -> list[Array]:
    """Return data sets of a file, or the same rows of each of them.

    Raises:
        ChildRefusedError: one of them is not there, is too large, or is not made of numbers in this file.
    """
    items = [[name, None if rows is None else list(rows)] for name in names]
    _, arrays = shared_child("hdf5").ask(path, {"op": "read", "items": items, "max_bytes": MAX_DATASET_BYTES})
    return arrays


def first_names(path: Path) -> list[str]:
    """Return the first names in a file; none for what is no HDF5 file."""
    if not looks_like_hdf5(path):
        return []
    try:
        return [str(name) for name in describe(path).get("first", [])]
    except RefusedDataError:
        return []


class NamedInputs(NumberedImporter):
    """The objects at the top of HDF5 files, one file after the other, each under the image's name."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read the names.

        Raises:
            ConfigError: there is none. ChildRefusedError: a file cannot be read.
        """
        self._paths = list(paths)
        self._names = [names_in(path) for path in paths]
        self._ends = list(accumulate(len(names) for names in self._names))
        if not self._ends[-1]:
            raise ConfigError(f"{paths[0]}: nothing in it. Expected something for each image, under its name.")

    def __len__(self) -> int:
        """Return the number of names."""
        return self._ends[-1]

    def keys(self) -> Iterator[str]:
        """Yield the names."""
        for names in self._names:
            yield from names

    def where(self, number: int) -> str:
        """Return file and name."""
        return "!".join(map(str, self.named(number)))

    def named(self, number: int) -> tuple[Path, str]:
        """Return file and name."""
        file, row = place_in(self._ends, number)
        return self._paths[file], self._names[file][row]
