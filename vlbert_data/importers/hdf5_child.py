"""Reads HDF5 files for `child`. Promise: what is read lies in the file that was named, and is no larger than allowed.

A link to another file, a virtual data set, data stored outside, a filter that would have to be loaded, and anything
but numbers are refused, and so is a data set that unpacks to far more than is stored of it.
"""

import math
import os
from collections import OrderedDict
from pathlib import PurePosixPath
from typing import Any

import h5py
import numpy as np

from vlbert_data.importers.child_side import Answer, UnreadableError, serve, state_of
from vlbert_data.types import Array

TROUBLES = (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError, MemoryError, AttributeError)
MAX_OPEN_FILES = 8
MAX_HOPS = 16
# deflate, shuffle, Fletcher-32, szip, n-bit, scale-offset and LZF: those that come with HDF5 and h5py.
FILTERS = frozenset({1, 2, 3, 4, 5, 6, 32000})
MAX_CHUNK_BYTES = 256 << 20
# Deflate packs at most 1032 times; what is this small may be packed as much as it likes.
MAX_RATIO, FREE_BYTES = 250, 4 << 20
MAX_NAMES = 50_000_000


class Files:
    """The files that were asked about last, open."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[str, int, int, int], Any] = OrderedDict()

    def get(self, path: str) -> Any:
        """Return an open file."""
        state = state_of(path)
        for other in [other for other in self._open if other[0] == path and other != state]:
            self._open.pop(other).close()  # HDF5 would give the file that was there before
        if state not in self._open:
            while len(self._open) >= MAX_OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            self._open[state] = h5py.File(path, "r")
        self._open.move_to_end(state)
        return self._open[state]

    def answer(self, request: dict[str, Any]) -> Answer:
        """Return the answer to a request: "names" of a group, "describe" an object, or "read" data sets."""
        file = self.get(request["path"])
        match request["op"]:
            case "names":
                return names(find(file, request["name"]))
            case "describe":
                return describe(find(file, request["name"])), []
            case "read":
                return {}, [
                    read(find(file, name), name[:80], rows, request["max_bytes"]) for name, rows in request["items"]
                ]
        raise UnreadableError(f"no such request: {request['op']}.")


def find(file: Any, name: str) -> Any:
    """Return an object of the file, each link on the way looked at before it is followed.

    Raises:
        UnreadableError: there is none of that name, or the way leads out of the file.
    """
    found, parts, hops = file["/"], [part for part in name.split("/") if part], 0
    at = PurePosixPath("/")
    while parts:
        part = parts.pop(0)
        if not isinstance(found, h5py.Group):
            raise UnreadableError(f"{at} is no group, so there is no {name[:80]} in the file.")
        step = os.fsencode(part)
        link = found.get(step, getlink=True)
        if link is None:
            raise UnreadableError(f"there is no {name[:80]} in the file.")
        if isinstance(link, h5py.ExternalLink):
            raise UnreadableError(
                f"{at / part} is a link to another file, {str(link.filename)[:80]!r}; such links are not followed. "
                "Copy the data into one file with h5repack or h5copy."
            )
        if isinstance(link, h5py.SoftLink):
            hops += 1
            if hops > MAX_HOPS:
                raise UnreadableError(f"{at / part} leads from link to link.")
            target = [step for step in link.path.split("/") if step]
            if link.path.startswith("/"):
                found, at = file["/"], PurePosixPath("/")
            parts = target + parts
            continue
        found, at = found[step], at / part
    return found


def names(group: Any) -> Answer:
    """Return the names in a group, as UTF-8 one after another and where each ends."""
    if not isinstance(group, h5py.Group):
        raise UnreadableError("not a group.")
    if len(group) > MAX_NAMES:
        raise UnreadableError(f"{len(group)} names in one group; at most {MAX_NAMES} are read.")
    encoded = [os.fsencode(name) for name in group]  # h5py gives a name that is no UTF-8 as bytes
    ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
    return {}, [np.frombuffer(b"".join(encoded), np.uint8), ends]


def describe(found: Any) -> dict[str, Any]:
    """Return what an object is: a group of so many names, the first of which are told, or a data set."""
    if isinstance(found, h5py.Group):
        first = [name for name, _ in zip(found, range(32), strict=False)]
        return {
            "kind": "group",
            "count": len(found),
            "first": [os.fsdecode(name) for name in first],
        }
    if isinstance(found, h5py.Dataset):
        return {"kind": "dataset", "shape": list(found.shape or ()), "dtype": found.dtype.str}
    return {"kind": "other"}


def read(found: Any, where: str, rows: list[int] | None, max_bytes: int) -> Array:
    """Return a data set, or its rows from rows[0] to rows[1] - 1; `where` names it.

    Raises:
        UnreadableError: it is not one of numbers in this file, or is too large.
    """
    if not isinstance(found, h5py.Dataset):
        raise UnreadableError("a group where a data set is expected.")
    if found.is_virtual or found.external:
        raise UnreadableError(f"the data of {where} lie in other files, which are not opened.")
    if found.dtype.kind not in "fiub" or found.shape is None:
        raise UnreadableError(f"{where} holds {found.dtype}; only numbers are read.")
    _check_storage(found, where)
    shape = (
        found.shape if rows is None else (max(0, min(rows[1], (found.shape or (0,))[0]) - rows[0]), *found.shape[1:])
    )
    size = int(np.prod([float(side) for side in shape])) * found.dtype.itemsize
    if size > max_bytes:
        raise UnreadableError(f"{where} has {size} bytes to read; at most {max_bytes} are read at once.")
    data: Array = np.asarray(found[()] if rows is None else found[rows[0] : rows[1]])
    return data


def _check_storage(found: Any, where: str) -> None:
    """Refuse filters that are not HDF5's own, chunks too large to unpack, and data of which almost none is stored."""
    plist = found.id.get_create_plist()
    used = {plist.get_filter(number)[0] for number in range(plist.get_nfilters())}
    if used - FILTERS:
        raise UnreadableError(f"{where} is packed by filter {min(used - FILTERS)}; only HDF5's own are used.")
    chunk = int(np.prod([float(side) for side in found.chunks or ()])) * found.dtype.itemsize
    if found.chunks is not None:
        wanted = math.prod(-(-side // part) for side, part in zip(found.shape, found.chunks, strict=True))
        if found.id.get_num_chunks() != wanted:
            raise UnreadableError(
                f"{where} has {found.id.get_num_chunks()} of {wanted} chunks; the rest was never written."
            )
    if chunk > MAX_CHUNK_BYTES:
        raise UnreadableError(f"{where} has chunks of {chunk} bytes; at most {MAX_CHUNK_BYTES} are unpacked.")
    size = int(np.prod([float(side) for side in found.shape])) * found.dtype.itemsize
    stored = found.id.get_storage_size()
    if size and not stored:
        raise UnreadableError(f"{where} was never written: it says it has {size} bytes, of which 0 are stored.")
    if size > max(FREE_BYTES, MAX_RATIO * stored):
        raise UnreadableError(f"{where} says it has {size} bytes, of which {stored} are stored.")


if __name__ == "__main__":
    serve(Files().answer, TROUBLES)
