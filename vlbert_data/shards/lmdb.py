"""Shards in LMDB: one file, one value an image. Promise: every array of a value starts on a 64-byte boundary in memory.

File: rows 0, 1, 2, ... under their 4-byte big-endian numbers, in order, and the schema as JSON under `meta`.

Value: a 48-byte header, then the schema's fields, each padded to 64 bytes, then caption offsets (uint32 [n + 1]),
captions, image id and thumbnail. LMDB puts a value of this size on pages of its own, right after their 16-byte page
header; 16 + 48 = 64 is what aligns the arrays. Values are padded to at least `SMALLEST_VALUE_BYTES` so that this
always holds. Because such a value is one run of bytes in the file, its place is kept in the index and a reader maps
the file directly; any LMDB tool still reads it the ordinary way.
"""

import ctypes
import itertools
import json
import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import lmdb
import numpy as np

from vlbert_data.errors import ShardError
from vlbert_data.shards.base import MappedShard, decode_text
from vlbert_data.shards.files import publish, require_space, temporary_name
from vlbert_data.shards.schema import (
    FORMAT_VERSION,
    Field,
    RecordArrays,
    ShardSchema,
    check_version,
)
from vlbert_data.types import Array, ImageRois

MAGIC = b"VLBR"
META_KEY = b"meta"
# magic, crc32, version, flags (0), R, F, K, V, width, height, captions, caption bytes, id bytes, thumbnail bytes
HEADER = struct.Struct("<4sIHHIIHHIIIIII")
ALIGNMENT = 64
# PAGEHDRSZ in LMDB's mdb.c, data version 1, 64-bit: page number (8), pad (2), flags (2), page count (4).
PAGE_HEADER_BYTES = 16
# LMDB moves a value off the leaf when key and value exceed about half a page; 2048 does for the 4096-byte pages
# that py-lmdb makes on every common machine.
SMALLEST_VALUE_BYTES = 2048
COMMIT_BYTES = 2 << 20
FIRST_MAP_BYTES = 64 << 20
# A disk with less room than one commit takes counts as full.
FULL_BYTES = 2 * COMMIT_BYTES

Number = TypeVar("Number", int, Array)


class LmdbShardWriter:
    """Writes one LMDB shard: bytes depend on the records alone, so the same records give the same file."""

    def __init__(self, path: Path, schema: ShardSchema) -> None:
        self._path = path
        self._schema = schema
        self._temporary = temporary_name(path)
        self._temporary.unlink(missing_ok=True)
        self._map_bytes = FIRST_MAP_BYTES
        # meminit=True (the default) zeroes page tails: without it files would hold stray memory and differ run by run.
        try:
            self._env = lmdb.open(
                os.fsencode(self._temporary),
                subdir=False,
                lock=False,
                map_size=FIRST_MAP_BYTES,
                sync=False,
                metasync=False,
            )
        except lmdb.Error as error:
            self._temporary.unlink(missing_ok=True)
            raise _disk_error(error, path) from error
        self._psize = int(self._env.stat()["psize"])
        self._txn = self._env.begin(write=True)
        self.value_offsets: Array | None = None
        self._row = 0
        self._used_bytes = 0
        self._pending_bytes = 0

    def add(self, record: ImageRois, arrays: RecordArrays, crc: int) -> None:
        """Append a record; see `ShardWriter.add`."""
        self._put(self._row.to_bytes(4, "big"), encode(record, arrays, self._schema, crc))
        self._row += 1

    def close(self) -> str:
        """Write the schema, sync and give the file its name; see `ShardWriter.close`."""
        meta = {"format_version": FORMAT_VERSION, "num_images": self._row, "schema": self._schema.as_json()}
        self._put(META_KEY, json.dumps(meta, ensure_ascii=False).encode())
        try:
            self._txn.commit()
            self._env.close()
        except lmdb.Error as error:
            raise _disk_error(error, self._path) from error
        return publish(self._temporary, self._path, meanwhile=self._find_values)

    def _find_values(self) -> None:
        env = _open(self._temporary)
        try:
            self.value_offsets, _ = _find_values(env, self._temporary, self._row)
        except lmdb.Error as error:
            raise _disk_error(error, self._path) from error
        finally:
            env.close()

    def abort(self) -> None:
        """Throw away what was written."""
        self._txn.abort()
        self._env.close()
        self._temporary.unlink(missing_ok=True)

    def _put(self, key: bytes, value: bytes | bytearray) -> None:
        pages = (len(value) + PAGE_HEADER_BYTES) // self._psize + 2
        self._used_bytes += pages * self._psize
        self._pending_bytes += pages * self._psize
        try:
            self._make_room()
            self._txn.put(key, value, append=True)
        except lmdb.Error as error:
            raise _disk_error(error, self._path) from error

    def _make_room(self) -> None:
        """Commit now and then, which bounds memory, and grow the map before it is full."""
        # An eighth on top covers branch and leaf pages, of which a commit writes a few anew.
        needed = self._used_bytes + self._used_bytes // 8 + (1 << 20)
        if needed <= self._map_bytes and self._pending_bytes < COMMIT_BYTES:
            return
        self._txn.commit()
        self._pending_bytes = 0
        while self._map_bytes < needed:
            self._map_bytes *= 2
        self._env.set_mapsize(self._map_bytes)
        self._txn = self._env.begin(write=True)


def encode(record: ImageRois, arrays: RecordArrays, schema: ShardSchema, crc: int) -> bytes:
    """Return the value stored for a record with its content CRC; see the module's description."""
    texts = [caption.encode() for caption in record.captions]
    image_id, thumbnail = record.image_id.encode(), record.thumbnail or b""
    offsets = list(itertools.accumulate(map(len, texts), initial=0))
    header = HEADER.pack(
        MAGIC,
        crc,
        FORMAT_VERSION,
        0,
        record.num_rois,
        schema.feature_dim,
        schema.label_topk,
        schema.num_views,
        record.width_px,
        record.height_px,
        len(texts),
        offsets[-1],
        len(image_id),
        len(thumbnail),
    )
    parts: list[Any] = [header]
    for _, array in arrays:
        num_bytes = array.nbytes
        parts += (array.data if num_bytes else b"", bytes(-num_bytes % ALIGNMENT))
    parts += (struct.pack(f"<{len(offsets)}I", *offsets), *texts, image_id, thumbnail)
    return b"".join(parts).ljust(SMALLEST_VALUE_BYTES, b"\0")


@dataclass(frozen=True, kw_only=True, slots=True)
class LmdbScan:
    """What `scan` finds: schema, and for each row where its value lies (int64 [rows]) and its R (int64 [rows])."""

    schema: ShardSchema
    value_offsets: Array
    num_rois: Array


def scan(path: Path) -> LmdbScan:
    """Return where the values of an LMDB shard lie in its file, read the ordinary way through lmdb.

    Damage inside the file can end the process (LMDB trusts its pages): call it for files whose hash is known to be
    right or that were just written, and in a child process otherwise.

    Raises:
        ShardError: not LMDB, not a shard, cut short, or of another version.
    """
    env = _open(path)
    try:
        psize = int(env.stat()["psize"])
        _check_length(path, (int(env.info()["last_pgno"]) + 1) * psize)
        with env.begin(buffers=True) as txn:
            schema, num_images = _read_meta(path, txn.get(META_KEY))
        offsets, num_rois = _find_values(env, path, num_images)
    except lmdb.Error as error:
        raise ShardError(f"{path}: damaged LMDB file: {error}. Rebuild it or copy it again.") from error
    finally:
        env.close()
    return LmdbScan(schema=schema, value_offsets=offsets, num_rois=num_rois)


def _find_values(env: lmdb.Environment, path: Path, num_images: int) -> tuple[Array, Array]:
    """Return where the values of rows 0 to `num_images` - 1 lie in the file, and the R of each: int64 [rows] both."""
    psize = int(env.stat()["psize"])
    offsets, num_rois = np.empty(num_images, np.int64), np.empty(num_images, np.int64)
    with env.begin(buffers=True) as txn:
        for row in range(num_images):
            value = txn.get(row.to_bytes(4, "big"))
            if value is None:
                raise ShardError(f"{path}: row {row} of {num_images} is missing. Rebuild it or copy it again.")
            offsets[row] = _file_offset(value, psize)
            num_rois[row] = HEADER.unpack_from(value)[4]
    return offsets, num_rois


class LmdbShard(MappedShard):
    """A mapped LMDB shard; `value_offsets` int64 [rows] says where each value begins in the file."""

    def __init__(self, path: Path, schema: ShardSchema, num_rois: Array, value_offsets: Array) -> None:
        super().__init__(path, schema, num_rois)
        self._offsets = value_offsets
        self._tails: Array | None = None
        if len(value_offsets):
            last = int(value_offsets.max())
            _check_length(path, last + SMALLEST_VALUE_BYTES)

    def header(self, row: int) -> tuple[int, ...]:
        """Return the header's numbers after the magic, checked against what the index says of this row.

        Raises:
            ShardError: these are not the bytes of a record of this folder.
        """
        magic, *numbers = HEADER.unpack_from(self.mapped.data, int(self._offsets[row]))
        expected = (int(self.num_rois[row]), self.schema.feature_dim, self.schema.label_topk, self.schema.num_views)
        if magic != MAGIC or tuple(numbers[3:7]) != expected:
            raise ShardError(
                f"{self.path}: no record of this folder at row {row}. The file is damaged or is not the one that the "
                "index describes; run vlb inspect-shard --verify."
            )
        check_version(numbers[1], f"{self.path} row {row}")
        return tuple(numbers)

    def image_size(self, row: int) -> tuple[int, int]:
        """Return (width_px, height_px)."""
        numbers = self.header(row)
        return numbers[7], numbers[8]

    def stored_crc(self, row: int) -> int:
        """Return the record's CRC-32 from its header."""
        return self.header(row)[0]

    def image_id(self, row: int) -> str:
        """Return the image's id."""
        return decode_text(self._tail(row)[1], f"{self.path} row {row}")

    def captions(self, row: int) -> tuple[str, ...]:
        """Return the image's captions."""
        where = f"{self.path} row {row}"
        return tuple(decode_text(text, where) for text in self._tail(row)[0])

    def thumbnail(self, row: int) -> bytes | None:
        """Return the stored JPEG, if there is one."""
        return self._tail(row)[2] or None

    def _tail(self, row: int) -> tuple[list[bytes], bytes, bytes]:
        """Return captions, image id and thumbnail as bytes."""
        _, _, _, _, _, _, _, _, _, count, caption_bytes, id_bytes, thumbnail_bytes = self.header(row)
        if self._tails is None:
            self._tails = self._all_places()[-1]
        start = int(self._tails[row])
        texts_at = start + 4 * (count + 1)
        end = texts_at + caption_bytes + id_bytes + thumbnail_bytes
        _check_length(self.path, end)
        marks = np.ndarray((count + 1,), "<u4", self.mapped, start).tolist()
        texts = self.mapped[texts_at : texts_at + caption_bytes].tobytes()
        ends = self.mapped[texts_at + caption_bytes : end].tobytes()
        return [texts[a:b] for a, b in itertools.pairwise(marks)], ends[:id_bytes], ends[id_bytes:]

    def _find(self, field: Field) -> Array:
        places: Array = self._all_places()[self.schema.fields().index(field)]
        return places

    def _all_places(self) -> Array:
        per_roi, once = self.schema.row_bytes()
        return field_places(per_roi * self.num_rois + once, self._offsets)


def field_places(sizes: Array, value_offsets: Array) -> Array:
    """Return int64 [f + 1, n]: the byte of the file at which each field's array begins; last row: where text does.

    sizes: int64 [f, n], the bytes of each array. value_offsets: int64 [n], where each value begins.
    """
    places = np.empty((len(sizes) + 1, len(value_offsets)), np.int64)
    places[0] = value_offsets + HEADER.size
    np.cumsum(_padded(sizes), axis=0, out=places[1:])
    places[1:] += places[0]
    return places


def _padded(num_bytes: Number) -> Number:
    """Return the number rounded up to the alignment."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _open(path: Path) -> lmdb.Environment:
    if not path.is_file():
        raise ShardError(f"{path}: there is no such file.")
    try:
        return lmdb.open(os.fsencode(path), subdir=False, readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise ShardError(f"{path}: not an LMDB file, or a damaged one: {error}.") from error


def _check_length(path: Path, needed: int) -> None:
    """Refuse a file that ends before byte `needed`: reading on would end the process, not raise."""
    found = path.stat().st_size
    if found < needed:
        raise ShardError(
            f"{path}: {found} bytes; its contents need at least {needed}. The file is cut short; copy it again or "
            "rebuild it."
        )


def _read_meta(path: Path, value: memoryview | None) -> tuple[ShardSchema, int]:
    if value is None:
        raise ShardError(
            f"{path}: an LMDB file, but not a vlb shard (no `meta`). To take over features: vlb build-shards."
        )
    try:
        meta = json.loads(bytes(value))
        check_version(int(meta["format_version"]), str(path))
        return ShardSchema.from_json(meta["schema"]), int(meta["num_images"])
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path}: the shard's `meta` is damaged: {error}. Rebuild it or copy it again.") from error


def _file_offset(value: memoryview, psize: int) -> int:
    """Return the byte of the file at which a mapped value begins, from the page number before it."""
    assert sys.byteorder == "little", "page numbers are read in little-endian order"
    address = np.frombuffer(value, np.uint8).__array_interface__["data"][0]
    page = ctypes.c_uint64.from_address(address - PAGE_HEADER_BYTES).value
    return int(page) * psize + PAGE_HEADER_BYTES


def _disk_error(error: lmdb.Error, path: Path) -> OSError:
    """Return lmdb's complaint as the OSError that other writers raise for the same trouble."""
    try:
        require_space(path.parent, FULL_BYTES)
    except OSError as full:
        # LMDB calls a write that was cut short an input/output error; a full disk is what cuts it.
        return full
    return OSError(getattr(error, "code", None) or 0, f"writing failed: {error}", str(path))
