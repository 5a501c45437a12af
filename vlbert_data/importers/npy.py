"""Numpy's own files. Promise: no pickle in them is executed, and no more is unpacked than limits allow.

`.npy` is a header, written as Python source, and the array's bytes; `.npz` is a zip archive of such files. The header
is matched, not evaluated. Where a file holds one dict (which `numpy.save` stores as a pickle) the restricted reader of
`safe_pickle` reads it.

Source: the format as documented in `numpy.lib.format`, versions 1 to 3.
"""

import io
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from vlbert_data.importers.plain_arrays import NotPlainError, RefusedDataError, plain_array, plain_dtype
from vlbert_data.importers.safe_pickle import PickleLimits, loads_plain

NPY_MAGIC = b"\x93NUMPY"
ZIP_MAGIC = b"PK\x03\x04"
OBJECT_DESCR = "|O"
MAX_HEADER_BYTES = 1 << 16
# {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }: numpy writes the keys in this order; Python 2 wrote 3L.
HEADER = re.compile(
    rb"\{\s*'descr'\s*:\s*'([<>|=]?[A-Za-z?][0-9]{0,6})'\s*,\s*'fortran_order'\s*:\s*(True|False)\s*,"
    rb"\s*'shape'\s*:\s*\(([0-9L,\s]{0,1024})\)\s*,?\s*\}\s*"
)


class NpyRefusedError(RefusedDataError):
    """A `.npy` or `.npz` file that is damaged, too large, or holds more than plain data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NpyLimits:
    """How much is unpacked: bytes in all, times the packed size, and members of an archive."""

    max_bytes: int = 256 * 2**20
    # Deflate packs at most 1032 times; feature files pack to a third at best, boxes and zeros perhaps to a hundredth.
    max_ratio: int = 250
    max_members: int = 64


DEFAULT_LIMITS = NpyLimits()
# What a small member may unpack to whatever its ratio: 100 rows of zeros pack well.
FREE_BYTES = 4 << 20


def loads_npy(data: bytes | memoryview, *, what: str, limits: NpyLimits = DEFAULT_LIMITS) -> Any:
    """Return the array of a `.npy` file, read-only and not copied, or the dict that it holds.

    Raises:
        NpyRefusedError: damaged, beyond `limits`, bytes after its end, or an array of objects.
        PickleRefusedError: it holds a pickle of more than plain data.
    """
    if len(data) > limits.max_bytes:
        raise NpyRefusedError(f"{what}: {len(data)} bytes; at most {limits.max_bytes} are read.")
    view = memoryview(data)
    try:
        code, is_fortran, shape, start = _header(view)
        if code != OBJECT_DESCR:
            return plain_array(plain_dtype(code), shape, view[start:], "F" if is_fortran else "C")
        if shape != ():
            raise NotPlainError(f"an array of objects of shape {list(shape)}")
    except NotPlainError as error:
        raise NpyRefusedError(f"{what}: {error}; expected a .npy file of numbers, or of one dict.") from error
    found = loads_plain(view[start:], what=what, limits=PickleLimits(max_bytes=limits.max_bytes))
    if type(found) is not dict:
        raise NpyRefusedError(f"{what}: holds a {type(found).__name__}; expected an array, or one dict.")
    return found


def _header(view: memoryview) -> tuple[str, bool, tuple[int, ...], int]:
    """Return dtype code, whether columns come first, shape, and where the array's bytes begin."""
    if bytes(view[:6]) != NPY_MAGIC or len(view) < 12:
        raise NotPlainError("not a .npy file")
    if view[6] not in (1, 2, 3):
        raise NotPlainError(f"a .npy file of version {view[6]}")
    start = 10 if view[6] == 1 else 12
    end = start + int.from_bytes(view[8:start], "little")
    if end > min(len(view), MAX_HEADER_BYTES):
        raise NotPlainError("truncated in its header, or with a header that is none")
    found = HEADER.fullmatch(bytes(view[start:end]))
    if found is None:
        raise NotPlainError("a header that is not numpy's")
    sides = [side.strip() for side in found[3].decode().split(",")]
    sides = sides[:-1] if sides[-1] == "" else sides
    if any(not re.fullmatch(r"[0-9]{1,15}L?", side) for side in sides):
        raise NotPlainError("a shape that is none")
    return found[1].decode(), found[2] == b"True", tuple(int(side.rstrip("L")) for side in sides), end


def loads_npz(
    data: bytes | memoryview, *, what: str, names: Sequence[str] | None = None, limits: NpyLimits = DEFAULT_LIMITS
) -> dict[str, Any]:
    """Return the members of a `.npz` file by name, or those of `names` that are there; others stay packed.

    Raises:
        NpyRefusedError: damaged, beyond `limits`, a member twice, or one whose name leads out of the archive.
        PickleRefusedError: a member holds a pickle of more than plain data.
    """
    found: dict[str, Any] = {}
    room = limits.max_bytes
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if len(members) > limits.max_members:
                raise NotPlainError(f"{len(members)} members; at most {limits.max_members} are read")
            for member in members:
                name = _member_name(member)
                if name in found:
                    raise NotPlainError(f"the member {name!r} twice")
                if names is not None and name not in names:
                    continue
                raw = _unpack(archive, member, min(room, _most_bytes(member, limits)))
                room -= len(raw)
                found[name] = loads_npy(raw, what=f"{what}!{name}", limits=limits)
    except NotPlainError as error:
        raise NpyRefusedError(f"{what}: {error}.") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        # RuntimeError: an encrypted member. OSError: an offset that no file has.
        raise NpyRefusedError(f"{what}: a damaged .npz file: {error or type(error).__name__}.") from error
    return found


def _member_name(member: zipfile.ZipInfo) -> str:
    path = PurePosixPath(member.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in member.filename:
        raise NotPlainError(f"a member whose name leads out of the archive: {member.filename[:80]!r}")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise NotPlainError(f"a member packed by method {member.compress_type}; numpy stores or deflates")
    return member.filename.removesuffix(".npy")


def _most_bytes(member: zipfile.ZipInfo, limits: NpyLimits) -> int:
    return max(FREE_BYTES, limits.max_ratio * member.compress_size)


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int) -> bytes:
    """Return a member's bytes, of which at most `most` are unpacked whatever its header says."""
    if member.file_size > most:
        raise NotPlainError(f"the member {member.filename[:80]!r} unpacks to {member.file_size} bytes; at most {most}")
    with archive.open(member) as stream:
        raw = stream.read(most + 1)  # read to its end, which compares the checksum
    if len(raw) != member.file_size:
        raise NotPlainError(f"the member {member.filename[:80]!r} is not of the size that it states")
    return raw
