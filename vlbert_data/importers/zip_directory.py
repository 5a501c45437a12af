"""Members of a .zip archive. Promise: found in 40 bytes a member, checked by CRC, and bounded when unpacked.

Millions of small files in one archive are the rule here, and Python's own reader keeps a kilobyte for each. This one
reads the archive's directory once and keeps columns. Members are stored or deflated; nothing else is read.

Source: the format's APPNOTE, sections 4.3.7 (local header), 4.3.12 (directory), 4.3.14 to 4.3.16 (ends), 4.5.3 (zip64).
"""

import struct
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.ids import id_hash
from vlbert_data.sources.files import FileFacts, hash_file, unreadable
from vlbert_data.types import Array

STORED, DEFLATED = 0, 8
LONGEST_MEMBER_BYTES = 64 << 20
_LOCAL = struct.Struct("<4s5H3L2H")
# signature, versions, flags, method, time, date, crc, packed, plain, lengths of name, extra, comment, disk,
# attributes, place of the local header
_ENTRY = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64_PLACE = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_LONGEST_COMMENT = 0xFFFF
ENCRYPTED = 1


class _BadZipError(Exception):
    """An archive that cannot be what it says, in words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ZipDirectory:
    """The files of an archive in the order of its directory.

    hashes: uint64 [n], rising; order: int64 [n], the file that has each. places, packed, plain: int64 [n], of each
    file the byte of its local header and its sizes. crcs: uint32 [n]. methods: uint16 [n].
    """

    path: Path
    facts: FileFacts
    hashes: Array = field(repr=False)
    order: Array = field(repr=False)
    places: Array = field(repr=False)
    packed: Array = field(repr=False)
    plain: Array = field(repr=False)
    crcs: Array = field(repr=False)
    methods: Array = field(repr=False)
    names: bytes = field(repr=False)
    name_stops: Array = field(repr=False)

    def __len__(self) -> int:
        return len(self.places)

    def name(self, member: int) -> str:
        """Return the name of file number `member`."""
        start = int(self.name_stops[member - 1]) if member else 0
        return self.names[start : int(self.name_stops[member])].decode("utf-8", "replace")

    def find(self, name: str) -> int:
        """Return the number of the file of this name.

        Raises:
            RecordRejectedError: "file not found".
        """
        wanted = np.uint64(id_hash(name))
        place = int(np.searchsorted(self.hashes, wanted))
        if place < len(self) and self.hashes[place] == wanted:
            return int(self.order[place])
        raise RecordRejectedError("file not found", f"{self.path} holds no {name!r}")

    def read(self, member: int) -> bytes:
        """Return the bytes of file number `member`.

        Raises:
            RecordRejectedError: "damaged archive", or more than LONGEST_MEMBER_BYTES.
        """
        plain = int(self.plain[member])
        if max(plain, int(self.packed[member])) > LONGEST_MEMBER_BYTES:
            raise RecordRejectedError("too many bytes", f"{plain} bytes; at most {LONGEST_MEMBER_BYTES} are read")
        try:
            with self.path.open("rb") as stream:
                data = self._read(stream, member)
        except OSError as error:
            raise RecordRejectedError("not readable", f"{self.path}: {error.strerror}") from error
        except (_BadZipError, zlib.error) as error:
            raise RecordRejectedError("damaged archive", f"{self.name(member)}: {error}") from error
        if len(data) != plain or zlib.crc32(data) != int(self.crcs[member]):
            raise RecordRejectedError(
                "damaged archive", f"{self.name(member)}: {len(data)} bytes, {plain} stated, or another CRC"
            )
        return data

    def _read(self, stream: BinaryIO, member: int) -> bytes:
        stream.seek(int(self.places[member]))
        header = _LOCAL.unpack(_exactly(stream, _LOCAL.size))
        if header[0] != b"PK\3\4":
            raise _BadZipError("no file begins where the directory says")
        stream.seek(header[-2] + header[-1], 1)
        data = _exactly(stream, int(self.packed[member]))
        method = int(self.methods[member])
        if method == STORED:
            return data
        if method == DEFLATED:
            # One byte more than stated shows that there is more, and no more than that is unpacked.
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, int(self.plain[member]) + 1)
        raise _BadZipError(f"packed by method {method}; only stored and deflated files are read")


def open_zip(path: Path, *, name: str) -> ZipDirectory:
    """Return the directory of the archive at `path`; folders and encrypted files are not in it.

    Raises:
        ConfigError: unreadable, or no .zip archive.
    """
    numbers = {column: array("q") for column in ("place", "packed", "plain", "crc", "method", "stop")}
    hashes, names = array("Q"), bytearray()
    try:
        with path.open("rb") as stream:
            for member, place, sizes, (crc, method) in _directory(stream, path.stat().st_size):
                names += member
                values = (place, *sizes, crc, method, len(names))
                for column, value in zip(numbers.values(), values, strict=True):
                    column.append(value)
                hashes.append(id_hash(member.decode("utf-8", "replace")))
    except OSError as error:
        raise unreadable(path, error) from error
    except (_BadZipError, struct.error, OverflowError) as error:
        raise ConfigError(f"{path}: not a .zip archive, or a damaged one: {error}.") from error
    unordered = np.array(hashes, np.uint64)
    order = np.argsort(unordered, kind="stable")
    columns = {column: np.array(values, np.int64) for column, values in numbers.items()}
    return ZipDirectory(
        path=path,
        facts=hash_file(path, name=name),
        hashes=unordered[order],
        order=order,
        places=columns["place"],
        packed=columns["packed"],
        plain=columns["plain"],
        crcs=columns["crc"].astype(np.uint32),
        methods=columns["method"].astype(np.uint16),
        names=bytes(names),
        name_stops=columns["stop"],
    )


Member = tuple[bytes, int, tuple[int, int], tuple[int, int]]


def _directory(stream: BinaryIO, num_bytes: int) -> Iterator[Member]:
    """Yield (name, place, (packed, plain), (crc, method)) for the files of an archive."""
    count, place = _find_directory(stream, num_bytes)
    stream.seek(place)
    for _ in range(count):
        entry = _ENTRY.unpack(_exactly(stream, _ENTRY.size))
        if entry[0] != b"PK\1\2":
            raise _BadZipError("the directory ends early")
        _, _, _, flags, method, _, _, crc, packed, plain, name_bytes, extra_bytes, comment_bytes, *_, header = entry
        name = _exactly(stream, name_bytes)
        extra = _exactly(stream, extra_bytes)
        stream.seek(comment_bytes, 1)
        plain, packed, header = _widen(extra, plain, packed, header)
        if not name.endswith(b"/") and not flags & ENCRYPTED:
            yield name, header, (packed, plain), (crc, method)


def _find_directory(stream: BinaryIO, num_bytes: int) -> tuple[int, int]:
    """Return how many entries the directory has and the byte at which it begins."""
    tail_bytes = min(num_bytes, _LONGEST_COMMENT + _END.size)
    stream.seek(num_bytes - tail_bytes)
    tail = _exactly(stream, tail_bytes)
    found = tail.rfind(b"PK\5\6")
    # The comment behind the end may hold the same letters; the end is where its length fits.
    while found >= 0 and not _ends_at(tail, found):
        found = tail.rfind(b"PK\5\6", 0, found)
    if found < 0:
        raise _BadZipError("it has no directory at its end; was it cut short?")
    end = _END.unpack_from(tail, found)
    count, place = end[4], end[6]
    if count != _FULL16 and place != _FULL32 and end[5] != _FULL32:
        return count, place
    at = num_bytes - tail_bytes + found - _END64_PLACE.size
    stream.seek(max(0, at))
    mark, _, end64, _ = _END64_PLACE.unpack(_exactly(stream, _END64_PLACE.size))
    if mark != b"PK\6\7":
        return count, place
    stream.seek(min(end64, num_bytes))
    wide = _END64.unpack(_exactly(stream, _END64.size))
    if wide[0] != b"PK\6\6":
        raise _BadZipError("its zip64 end is not where it should be")
    return wide[7], min(wide[9], num_bytes)


def _ends_at(tail: bytes, place: int) -> bool:
    """Return whether an end record at `place` with its comment fills the rest of `tail`."""
    rest = len(tail) - place - _END.size
    return rest >= 0 and _END.unpack_from(tail, place)[-1] == rest


def _widen(extra: bytes, plain: int, packed: int, header: int) -> tuple[int, int, int]:
    """Return sizes and place with those that do not fit 32 bits taken from the entry's zip64 field."""
    values = [plain, packed, header]
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{min(size, len(extra) - 4) // 8}Q", extra, 4))
            values = [next(wide, value) if value == _FULL32 else value for value in values]
        extra = extra[4 + size :]
    return values[0], values[1], values[2]


def _exactly(stream: BinaryIO, num_bytes: int) -> bytes:
    data = stream.read(num_bytes)
    if len(data) != num_bytes:
        raise _BadZipError("it ends early")
    return data
