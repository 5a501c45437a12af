"""Shards in HDF5: columns over all images. Promise: every column is one contiguous, aligned run of bytes in the file.

Groups and datasets (little-endian; ΣR RoIs and n images in the shard):

    roi/features [ΣR, F] f16 · roi/boxes [ΣR, 4] f32 · roi/scores [ΣR] · roi/label_ids, roi/label_probs [ΣR, K] · ...
    view/chosen [V·ΣR] bool · view/features [V·ΣR, F]: an image's V·R rows together, view after view
    image/feature [n, F] · image/width_px, image/height_px, image/num_captions [n] · image/crc32 [n]
    image/roi_offset, image/caption_offset, image/id_offset, image/thumbnail_offset [n + 1]
    caption/text_offset [captions + 1] · caption/utf8, image/id_utf8, image/thumbnail_jpeg: bytes one after another

A contiguous dataset is a plain run of bytes at `dataset.id.get_offset()`, so a reader asks h5py once where the columns
lie, closes it, and maps the file.
"""

import errno
import itertools
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from vlbert_data.errors import ShardError
from vlbert_data.shards.base import MappedShard, decode_text
from vlbert_data.shards.files import publish, temporary_name, try_size
from vlbert_data.shards.schema import (
    FORMAT_VERSION,
    Field,
    RecordArrays,
    ShardSchema,
    check_version,
)
from vlbert_data.types import Array, ImageRois

FORMAT_NAME = "vlbert-shard"
# Columns start on page boundaries: reads of whole pages, and views aligned for any dtype.
COLUMN_ALIGNMENT_BYTES = 4096
# Columns wait in memory up to this size together and in temporary files beyond it, which bounds memory for any shard.
HELD_BYTES = 256 << 20
COPY_BYTES = 8 << 20
# More than a shard's groups, small datasets and gaps between columns take.
LAYOUT_BYTES = 4 << 20
# Buffers that one call may write; POSIX allows at least 16, Linux 1024.
BUFFERS_A_CALL = 512
# Files that HDF5 1.10 and every later library can read.
LIBVER = ("earliest", "v110")

PATHS = {
    "image_feature": "image/feature",
    "view_chosen": "view/chosen",
    "view_features": "view/features",
    "view_image_features": "view/image_features",
}


def column_path(field: Field) -> str:
    """Return the dataset that holds `field`."""
    return PATHS.get(field.name, f"roi/{field.name}")


class Hdf5ShardWriter:
    """Writes one HDF5 shard: columns are collected one after another and laid out when their lengths are known."""

    def __init__(self, path: Path, schema: ShardSchema) -> None:
        self._path = path
        self._schema = schema
        self._temporary = temporary_name(path)
        self._temporary.unlink(missing_ok=True)
        self.value_offsets: Array | None = None
        self._columns: dict[str, _Column] = defaultdict(lambda: _Column(path.parent))
        self._held_bytes = 0
        self._rows: dict[str, list[int]] = {name: [] for name in ("width_px", "height_px", "crc32", "num_captions")}
        self._marks: dict[str, list[int]] = {name: [0] for name in ("roi", "caption", "id", "thumbnail", "text")}

    def add(self, record: ImageRois, arrays: RecordArrays, crc: int) -> None:
        """Append a record; see `ShardWriter.add`."""
        for field, array in arrays:
            self._hold(column_path(field), array.reshape(-1).view(np.uint8).data)
        texts = [caption.encode() for caption in record.captions]
        image_id, thumbnail = record.image_id.encode(), record.thumbnail or b""
        self._hold("caption/utf8", b"".join(texts))
        self._hold("image/id_utf8", image_id)
        self._hold("image/thumbnail_jpeg", thumbnail)
        for text in texts:
            self._advance("text", len(text))
        for name, step in (("roi", record.num_rois), ("caption", len(texts)), ("id", len(image_id))):
            self._advance(name, step)
        self._advance("thumbnail", len(thumbnail))
        self._rows["width_px"].append(record.width_px)
        self._rows["height_px"].append(record.height_px)
        self._rows["num_captions"].append(len(texts))
        self._rows["crc32"].append(crc)

    def close(self) -> str:
        """Lay the columns out, sync and give the file its name; see `ShardWriter.close`."""
        places = self._lay_out()
        with self._temporary.open("r+b", buffering=0) as stream:
            for name, place in places.items():
                self._columns[name].copy_to(stream.fileno(), place)
        self._close_columns()
        return publish(self._temporary, self._path)

    def abort(self) -> None:
        """Throw away what was written."""
        self._close_columns()
        self._temporary.unlink(missing_ok=True)

    def _lay_out(self) -> dict[str, int]:
        """Write all but the columns' bytes and return for each column the byte at which it lies.

        Raises:
            OSError: there is no room. It is tried before, because HDF5 cannot let go of a file that it fails to write.
        """
        try_size(self._temporary, sum(column.num_bytes for column in self._columns.values()) + LAYOUT_BYTES)
        try:
            with h5py.File(
                self._temporary,
                "w",
                libver=LIBVER,
                alignment_threshold=1,
                alignment_interval=COLUMN_ALIGNMENT_BYTES,
            ) as file:
                self._write_facts(file)
                return self._write_columns(file)
        except RuntimeError as error:
            raise OSError(errno.EIO, f"writing failed: {str(error).splitlines()[0]}", str(self._path)) from error

    def _close_columns(self) -> None:
        for column in self._columns.values():
            column.close()
        self._columns.clear()

    def _hold(self, name: str, data: bytes | memoryview) -> None:
        self._columns[name].append(data)
        self._held_bytes += len(data)
        if self._held_bytes > HELD_BYTES:
            for column in self._columns.values():
                column.spill()
            self._held_bytes = 0

    def _advance(self, name: str, step: int) -> None:
        self._marks[name].append(self._marks[name][-1] + step)

    def _write_facts(self, file: h5py.File) -> None:
        facts = self._schema.as_json()
        space = facts.pop("label_space")
        file.attrs["format"] = FORMAT_NAME
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["num_images"] = len(self._rows["crc32"])
        for name, value in facts.items():
            file.attrs[name] = value
        if space is not None:
            # A dataset, not an attribute: those end at 64 kB.
            data = np.frombuffer(json.dumps(space, ensure_ascii=False).encode(), np.uint8)
            file.create_dataset("label_space_json", data=data)

    def _write_columns(self, file: h5py.File) -> dict[str, int]:
        """Make all datasets, write the small ones, and return for each other one the byte at which it lies."""
        places: dict[str, int] = {}
        sizes = {"F": self._schema.feature_dim, "K": self._schema.label_topk, "4": 4}
        for field in self._schema.fields():
            # RoIs and views are rows; what remains of the shape is the shape of a row.
            row = tuple(sizes[letter] for letter in field.shape if letter in sizes)
            places[column_path(field)] = self._place_column(file, column_path(field), field.dtype, row)
        for name in ("caption/utf8", "image/id_utf8", "image/thumbnail_jpeg"):
            places[name] = self._place_column(file, name, np.dtype("u1"), ())
        for name, path in MARK_PATHS.items():
            file.create_dataset(path, data=np.array(self._marks[name], "<i8"))
        for name, values in self._rows.items():
            file.create_dataset(f"image/{name}", data=np.array(values, "<u4"))
        return places

    def _place_column(self, file: h5py.File, path: str, dtype: np.dtype[Any], row: tuple[int, ...]) -> int:
        """Make a contiguous dataset whose rows have shape `row` and return the byte at which it lies."""
        row_bytes = int(np.prod(row)) * dtype.itemsize
        rows = self._columns[path].num_bytes // row_bytes if row_bytes else self._marks["roi"][-1]
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_layout(h5py.h5d.CONTIGUOUS)
        # Its bytes have their place at once and are written there by `_Column.copy_to`, not by HDF5.
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        plan.set_obj_track_times(False)  # equal input gives equal bytes
        links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        links.set_create_intermediate_group(True)
        space = h5py.h5s.create_simple((rows, *row))
        kind = h5py.h5t.py_create(dtype, logical=True)
        dataset = h5py.h5d.create(file.id, path.encode(), kind, space, dcpl=plan, lcpl=links)
        return dataset.get_offset() or 0


class _Column:
    """Bytes of one column, in order: what was appended last is held in memory, what was before it in a file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: list[bytes | memoryview] = []
        self._spilled: IO[bytes] | None = None
        self.num_bytes = 0

    def append(self, data: bytes | memoryview) -> None:
        """Add bytes, which must not change until they are copied or spilled."""
        if len(data):
            self._held.append(data)
            self.num_bytes += len(data)

    def spill(self) -> None:
        """Move what is held in memory to a temporary file."""
        if self._spilled is None:
            self._spilled = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  (closed by `close`)
        self._spilled.writelines(self._held)
        self._held.clear()

    def copy_to(self, file: int, place: int) -> None:
        """Write all bytes to the open file descriptor `file`, from byte `place` on."""
        if self._spilled is not None:
            self._spilled.seek(0)
            while block := self._spilled.read(COPY_BYTES):
                place += _write_all(file, [block], place)
        for start in range(0, len(self._held), BUFFERS_A_CALL):
            place += _write_all(file, self._held[start : start + BUFFERS_A_CALL], place)

    def close(self) -> None:
        """Let go of everything."""
        self._held.clear()
        if self._spilled is not None:
            self._spilled.close()


def _write_all(file: int, buffers: Sequence[bytes | memoryview], place: int) -> int:
    """Write buffers one after another from byte `place` on and return their bytes; the system may stop in between."""
    total = sum(map(len, buffers))
    written = os.pwritev(file, buffers, place)
    if written < total:
        rest = memoryview(b"".join(buffers))
        while written < total:
            written += os.pwrite(file, rest[written:], place + written)
    return total


MARK_PATHS = {
    "roi": "image/roi_offset",
    "caption": "image/caption_offset",
    "id": "image/id_offset",
    "thumbnail": "image/thumbnail_offset",
    "text": "caption/text_offset",
}


class Hdf5Shard(MappedShard):
    """A mapped HDF5 shard; everything about its layout comes from the file itself."""

    def __init__(self, path: Path) -> None:
        schema, self._columns, rows = _read_layout(path)
        self._rows = rows
        self._fields_at = {field.name: self._columns[column_path(field)] for field in schema.fields()}
        super().__init__(path, schema, np.diff(rows["roi"]))

    def columns(self) -> dict[str, int]:
        """Return for each field the byte at which its dataset begins."""
        return self._fields_at

    def image_size(self, row: int) -> tuple[int, int]:
        """Return (width_px, height_px)."""
        return int(self._rows["width_px"][row]), int(self._rows["height_px"][row])

    def stored_crc(self, row: int) -> int:
        """Return the record's CRC-32."""
        return int(self._rows["crc32"][row])

    def image_id(self, row: int) -> str:
        """Return the image's id."""
        return decode_text(self._bytes("image/id_utf8", *self._rows["id"][row : row + 2]), f"{self.path} row {row}")

    def captions(self, row: int) -> tuple[str, ...]:
        """Return the image's captions."""
        first, last = self._rows["caption"][row : row + 2]
        marks = self._rows["text"][first : last + 1]
        pairs = itertools.pairwise(marks.tolist())
        return tuple(decode_text(self._bytes("caption/utf8", a, b), f"{self.path} row {row}") for a, b in pairs)

    def thumbnail(self, row: int) -> bytes | None:
        """Return the stored JPEG, if there is one."""
        return self._bytes("image/thumbnail_jpeg", *self._rows["thumbnail"][row : row + 2]) or None

    def _bytes(self, column: str, start: int, stop: int) -> bytes:
        place = self._columns[column]
        return self.mapped[place + int(start) : place + int(stop)].tobytes()

    def _find(self, field: Field) -> Array:
        offsets = self._rows["roi"][:-1]
        if not field.per_roi:
            offsets = np.arange(len(offsets), dtype=np.int64)
        places: Array = self._columns[column_path(field)] + offsets * int(self.schema.num_bytes(field, np.array(1)))
        return places


def _read_layout(path: Path) -> tuple[ShardSchema, dict[str, int], dict[str, Array]]:
    """Return the schema, the byte at which each column begins, and the small columns themselves."""
    if not path.is_file():
        raise ShardError(f"{path}: there is no such file.")
    try:
        with h5py.File(path, "r", locking=False) as file:
            schema = _read_schema(file, path)
            rows = {name: file[place][()] for name, place in MARK_PATHS.items()}
            rows |= {name: file[f"image/{name}"][()] for name in ("width_px", "height_px", "crc32", "num_captions")}
            names = [column_path(field) for field in schema.fields()]
            names += ["caption/utf8", "image/id_utf8", "image/thumbnail_jpeg"]
            columns = {name: _column_start(file[name], path) for name in names}
            _check_marks(rows, int(file.attrs["num_images"]), path)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ShardError(f"{path}: not a vlb shard in HDF5, or a damaged one: {error}.") from error
    return schema, columns, rows


def _read_schema(file: h5py.File, path: Path) -> ShardSchema:
    if file.attrs.get("format") != FORMAT_NAME:
        raise ShardError(f"{path}: an HDF5 file, but not a vlb shard (its attribute `format` is not {FORMAT_NAME}).")
    check_version(int(file.attrs["format_version"]), str(path))
    facts = {name: file.attrs[name] for name in ("feature_dim", "label_topk", "num_views", "has_attributes")}
    facts["has_source_rows"] = file.attrs.get("has_source_rows", False)
    has_labels = "label_space_json" in file
    facts["label_space"] = json.loads(file["label_space_json"][()].tobytes()) if has_labels else None
    return ShardSchema.from_json(facts)


def _column_start(dataset: h5py.Dataset, path: Path) -> int:
    """Return the byte of the file at which a dataset begins; 0 for an empty one."""
    offset = dataset.id.get_offset()
    if offset is None and dataset.size:
        raise ShardError(f"{path}: {dataset.name} is not contiguous; this file was rewritten by another tool.")
    start = int(offset or 0)
    if start + dataset.nbytes > path.stat().st_size:
        raise ShardError(f"{path}: {dataset.name} reaches beyond the end of the file. The file is cut short.")
    return start


def _check_marks(rows: dict[str, Array], num_images: int, path: Path) -> None:
    """Refuse columns whose lengths or offsets cannot be those of `num_images` images."""
    for name in ("roi", "caption", "id", "thumbnail"):
        marks = rows[name]
        if marks.shape != (num_images + 1,) or marks[0] != 0 or (np.diff(marks) < 0).any():
            raise ShardError(f"{path}: {MARK_PATHS[name]} is damaged. Rebuild the shard or copy it again.")
    if len(rows["text"]) != rows["caption"][-1] + 1 or (np.diff(rows["text"]) < 0).any():
        raise ShardError(f"{path}: {MARK_PATHS['text']} is damaged. Rebuild the shard or copy it again.")
