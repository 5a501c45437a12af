"""What the two containers have in common. Promise: a reader maps the file once and hands out views, never copies.

A reader keeps no handle of lmdb or h5py: it learns once where every array lies and maps the file. So readers survive
fork, several may read one file in one process, and an open shard costs no file descriptor.
"""

import mmap
from pathlib import Path
from typing import Protocol

import numpy as np

from vlbert_data.errors import ShardError
from vlbert_data.shards.schema import Field, RecordArrays, ShardSchema
from vlbert_data.types import Array, ImageRois, MaskedViews, RoiSet


class ShardWriter(Protocol):
    """Writes one shard file. Nothing is there under the file's own name before `close` has returned.

    value_offsets: int64 [rows] after `close`, the byte at which each record's value begins; None where there is no such
    place, since a container stores columns.
    """

    value_offsets: Array | None

    def add(self, record: ImageRois, arrays: RecordArrays, crc: int) -> None:
        """Append a record.

        arrays: what `record_arrays` gives of it; crc: what `content_crc` gives. The writer may keep the arrays until
        `close`; they must not change.

        Raises:
            OSError: the disk is full or the file cannot be written.
        """
        ...

    def close(self) -> str:
        """Finish, sync to disk, give the file its name, and return the hex BLAKE3 of its bytes."""
        ...

    def abort(self) -> None:
        """Throw away what was written."""
        ...


class MappedShard:
    """A shard file mapped into memory, whose arrays are found by arithmetic alone.

    mapped: uint8 [file bytes]. num_rois: int64 [rows]. Subclasses say where fields and texts lie.
    """

    def __init__(self, path: Path, schema: ShardSchema, num_rois: Array) -> None:
        self.path = path
        self.schema = schema
        self.num_rois = num_rois
        self.mapped = map_file(path)
        self._places: dict[str, Array] = {}
        self._fields = {field.name: field for field in schema.fields()}

    def __len__(self) -> int:
        return len(self.num_rois)

    def places(self, name: str) -> Array:
        """Return int64 [rows]: the byte in the file at which each row's array of field `name` begins."""
        if name not in self._places:
            places = self._find(self._fields[name])
            ends = places + self.schema.num_bytes(self._fields[name], self.num_rois)
            if len(ends) and int(ends.max()) > len(self.mapped):
                raise ShardError(
                    f"{self.path}: {len(self.mapped)} bytes, but {name} reaches to byte {int(ends.max())}. "
                    "The file is cut short; rebuild it or copy it again."
                )
            self._places[name] = places
        return self._places[name]

    def columns(self) -> dict[str, int]:
        """Return for each field the byte at which its column begins; 0 where a container stores no columns."""
        return dict.fromkeys(self._fields, 0)

    def view(self, name: str, row: int) -> Array:
        """Return the array of field `name` of row `row`, a read-only view of the mapped file."""
        field = self._fields[name]
        shape = self.schema.shape(field, int(self.num_rois[row]))
        array: Array = np.ndarray(shape, field.dtype, self.mapped, int(self.places(name)[row]))
        return array

    def read(self, row: int) -> ImageRois:
        """Return row `row`; its arrays are views of the mapped file."""
        width_px, height_px = self.image_size(row)
        has = self._fields.keys()
        rois = RoiSet(
            boxes=self.view("boxes", row),
            scores=self.view("scores", row),
            label_ids=self.view("label_ids", row),
            label_probs=self.view("label_probs", row),
            attribute_ids=self.view("attribute_ids", row) if "attribute_ids" in has else None,
            attribute_probs=self.view("attribute_probs", row) if "attribute_probs" in has else None,
            source_rows=self.view("source_rows", row) if "source_rows" in has else None,
        )
        views = None
        if "view_chosen" in has:
            views = MaskedViews(
                chosen=self.view("view_chosen", row),
                features=self.view("view_features", row),
                image_features=self.view("view_image_features", row),
            )
        return ImageRois(
            image_id=self.image_id(row),
            width_px=width_px,
            height_px=height_px,
            captions=self.captions(row),
            rois=rois,
            features=self.view("features", row),
            image_feature=self.view("image_feature", row),
            masked_views=views,
            thumbnail=self.thumbnail(row),
        )

    def _find(self, field: Field) -> Array:
        raise NotImplementedError

    def image_size(self, row: int) -> tuple[int, int]:
        """Return (width_px, height_px)."""
        raise NotImplementedError

    def image_id(self, row: int) -> str:
        """Return the image's id."""
        raise NotImplementedError

    def captions(self, row: int) -> tuple[str, ...]:
        """Return the image's captions."""
        raise NotImplementedError

    def thumbnail(self, row: int) -> bytes | None:
        """Return the stored JPEG, if there is one."""
        raise NotImplementedError

    def stored_crc(self, row: int) -> int:
        """Return the CRC-32 that was stored with the record (see `schema.content_crc`)."""
        raise NotImplementedError


def map_file(path: Path) -> Array:
    """Return the file's bytes as a read-only uint8 array, mapped for random access.

    Raises:
        ShardError: the file is missing, empty or unreadable.
    """
    try:
        with path.open("rb") as stream:
            mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise ShardError(f"{path}: there is no such file.") from error
    except ValueError as error:
        raise ShardError(f"{path}: the file is empty; a shard never is. Rebuild it or copy it again.") from error
    except OSError as error:
        raise ShardError(f"{path}: cannot be read: {error.strerror}.") from error
    # Random order is how training reads; asking the kernel to read ahead would fetch neighbours nobody wants.
    if hasattr(mmap, "MADV_RANDOM"):
        mapping.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapping, np.uint8)


def decode_text(data: bytes, where: str) -> str:
    """Return UTF-8 `data` as text; a ShardError names `where` if it is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ShardError(
            f"{where}: text that is not UTF-8; the file is damaged. Run vlb inspect-shard --verify."
        ) from error
