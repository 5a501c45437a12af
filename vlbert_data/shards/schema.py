"""What a shard stores for an image, as data. Promise: both containers store these fields, in this order, and no other.

Letters: R RoIs of the image, F feature width, K classes kept, V masked views. Text comes after the arrays.
"""

import functools
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from vlbert_data.errors import ShardError
from vlbert_data.types import Array, ImageRois, LabelSpace

FORMAT_VERSION = 1
SMALLEST_READABLE_VERSION = 1


@dataclass(frozen=True, slots=True)
class Field:
    """One array of a record: its name, little-endian dtype, and shape in the letters above ("4" is the number 4)."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[str, ...]

    @property
    def per_roi(self) -> bool:
        """Return whether the array's length follows the image's number of RoIs."""
        return "R" in self.shape


FIELDS = (
    Field("features", np.dtype("<f2"), ("R", "F")),
    Field("image_feature", np.dtype("<f2"), ("F",)),
    Field("boxes", np.dtype("<f4"), ("R", "4")),
    Field("scores", np.dtype("<f2"), ("R",)),
    Field("label_ids", np.dtype("<u2"), ("R", "K")),
    Field("label_probs", np.dtype("<f2"), ("R", "K")),
    Field("attribute_ids", np.dtype("<u2"), ("R",)),
    Field("attribute_probs", np.dtype("<f2"), ("R",)),
    Field("source_rows", np.dtype("<u2"), ("R",)),
    Field("view_chosen", np.dtype("?"), ("V", "R")),
    Field("view_features", np.dtype("<f2"), ("V", "R", "F")),
    Field("view_image_features", np.dtype("<f2"), ("V", "F")),
)
ATTRIBUTE_FIELDS = frozenset({"attribute_ids", "attribute_probs"})
SOURCE_FIELDS = frozenset({"source_rows"})
VIEW_FIELDS = frozenset({"view_chosen", "view_features", "view_image_features"})


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSchema:
    """What is equal for all records of a folder, and with a record's R gives the shape of every array."""

    feature_dim: int
    label_topk: int
    num_views: int = 0
    has_attributes: bool = False
    has_source_rows: bool = False
    label_space: LabelSpace | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.feature_dim <= 2**20:
            raise ShardError(f"feature width {self.feature_dim}; a shard stores 1 to {2**20}.")
        if not 0 <= self.label_topk < 2**16 or not 0 <= self.num_views < 2**16:
            raise ShardError(f"{self.label_topk} classes and {self.num_views} views a RoI; at most 65535 of each.")
        if (self.label_space is None) != (self.label_topk == 0):
            raise ShardError("labels need a label space, and a label space needs labels.")

    def fields(self) -> tuple[Field, ...]:
        """Return the fields that records of this schema have, in storage order."""
        return _fields(self._absent())

    def shape(self, field: Field, num_rois: int) -> tuple[int, ...]:
        """Return the shape of `field` for an image of `num_rois` RoIs."""
        return _shape(field, (num_rois, self.feature_dim, self.label_topk, self.num_views))

    def shapes(self, num_rois: int) -> Mapping[str, tuple[Field, tuple[int, ...]]]:
        """Return each field with its shape for an image of `num_rois` RoIs, by name, in storage order."""
        return _shapes(self._absent(), (num_rois, self.feature_dim, self.label_topk, self.num_views))

    def _absent(self) -> frozenset[str]:
        return (
            (ATTRIBUTE_FIELDS if not self.has_attributes else frozenset())
            | (SOURCE_FIELDS if not self.has_source_rows else frozenset())
            | (VIEW_FIELDS if not self.num_views else frozenset())
        )

    def num_bytes(self, field: Field, num_rois: Array) -> Array:
        """Return the bytes of `field` for images of `num_rois` RoIs, int64 [n] for int [n]."""
        one = int(np.prod(self.shape(field, 1))) * field.dtype.itemsize
        rois = np.asarray(num_rois, dtype=np.int64)
        return one * rois if field.per_roi else np.full_like(rois, one)

    def row_bytes(self) -> Array:
        """Return int64 [2, f, 1]: the bytes of each field's array for each RoI of an image, and those it has once."""
        one = [int(self.num_bytes(field, np.ones((), np.int64))) for field in self.fields()]
        pairs = [(size, 0) if field.per_roi else (0, size) for field, size in zip(self.fields(), one, strict=True)]
        return np.array(pairs, np.int64).T[:, :, None]

    def as_json(self) -> dict[str, Any]:
        """Return this schema as JSON types."""
        space = self.label_space
        return {
            "feature_dim": self.feature_dim,
            "label_topk": self.label_topk,
            "num_views": self.num_views,
            "has_attributes": self.has_attributes,
            # Only where it is true: folders without that field keep the bytes they always had.
            **({"has_source_rows": True} if self.has_source_rows else {}),
            "label_space": space and label_space_as_json(space),
        }

    @staticmethod
    def from_json(facts: dict[str, Any]) -> "ShardSchema":
        """Return the schema that `as_json` made `facts` of."""
        space = facts["label_space"]
        return ShardSchema(
            feature_dim=int(facts["feature_dim"]),
            label_topk=int(facts["label_topk"]),
            num_views=int(facts["num_views"]),
            has_attributes=bool(facts["has_attributes"]),
            has_source_rows=bool(facts.get("has_source_rows", False)),
            label_space=space and label_space_from_json(space),
        )


@functools.cache
def _fields(absent: frozenset[str]) -> tuple[Field, ...]:
    return tuple(field for field in FIELDS if field.name not in absent)


# R, F, K and V.
Sizes = tuple[int, int, int, int]


def _shape(field: Field, sizes: Sizes) -> tuple[int, ...]:
    letters = dict(zip("RFKV4", (*sizes, 4), strict=True))
    return tuple([letters[letter] for letter in field.shape])


@functools.lru_cache(maxsize=1024)
def _shapes(absent: frozenset[str], sizes: Sizes) -> Mapping[str, tuple[Field, tuple[int, ...]]]:
    return MappingProxyType({field.name: (field, _shape(field, sizes)) for field in _fields(absent)})


def label_space_as_json(space: LabelSpace) -> dict[str, Any]:
    """Return a label space as JSON types, with its fingerprint for programs that only compare."""
    return {
        "name": space.name,
        "num_classes": space.num_classes,
        "background_index": space.background_index,
        "fingerprint": space.fingerprint(),
        "class_names": list(space.class_names),
    }


def label_space_from_json(facts: dict[str, Any]) -> LabelSpace:
    """Return the label space that `label_space_as_json` made `facts` of."""
    return LabelSpace(
        name=str(facts["name"]),
        class_names=tuple(facts["class_names"]),
        background_index=facts["background_index"],
    )


RecordArrays = Sequence[tuple[Field, Array]]


def record_arrays(record: ImageRois, schema: ShardSchema) -> RecordArrays:
    """Return each field of `schema` with the record's array for it, C-contiguous, in storage order.

    Raises:
        ShardError: the record lacks a field, has one too many, or has another shape or dtype than the schema says.
    """
    views = record.masked_views
    found: dict[str, Array | None] = {
        "features": record.features,
        "image_feature": record.image_feature,
        "boxes": record.rois.boxes,
        "scores": record.rois.scores,
        "label_ids": record.rois.label_ids,
        "label_probs": record.rois.label_probs,
        "attribute_ids": record.rois.attribute_ids,
        "attribute_probs": record.rois.attribute_probs,
        "source_rows": record.rois.source_rows,
        "view_chosen": None if views is None else views.chosen,
        "view_features": None if views is None else views.features,
        "view_image_features": None if views is None else views.image_features,
    }
    wanted = schema.shapes(record.num_rois)
    extra = {name for name, array in found.items() if array is not None} - wanted.keys()
    if extra:
        raise ShardError(
            f"image {record.image_id}: brings {', '.join(sorted(extra))}, which this folder does not store."
        )
    arrays = []
    for name, (field, shape) in wanted.items():
        array = found[name]
        if array is None:
            raise ShardError(f"image {record.image_id}: lacks {name}, which this folder stores.")
        if array.shape != shape or array.dtype != field.dtype:
            raise ShardError(
                f"image {record.image_id}: {name} is {array.dtype} {list(array.shape)}; "
                f"this folder stores {field.dtype} {list(shape)}."
            )
        arrays.append((field, np.ascontiguousarray(array)))
    return arrays


class Sealed(NamedTuple):
    """A record that `types.check_image_rois` passes, with what `record_arrays` and `content_crc` give of it."""

    record: ImageRois
    arrays: RecordArrays
    crc: int


def content_crc(record: ImageRois, arrays: RecordArrays) -> int:
    """Return the CRC-32 of everything the record says; equal in both containers, whatever their padding."""
    crc = crc_of_sizes((record.width_px, record.height_px), record.num_rois, len(record.captions))
    for _, array in arrays:
        crc = zlib.crc32(array.data if array.size else b"", crc)
    return crc_with_texts(record, crc)


def crc_of_sizes(size_px: tuple[int, int], num_rois: int, num_captions: int) -> int:
    """Return the CRC that a record's content CRC begins with, and that its arrays carry on."""
    return zlib.crc32(struct.pack("<IIIII", *size_px, num_rois, num_captions, 0))


def crc_with_texts(record: ImageRois, crc: int) -> int:
    """Return a record's content CRC, given what it is up to the last array."""
    for text in (*record.captions, record.image_id):
        data = text.encode()
        crc = zlib.crc32(data, zlib.crc32(struct.pack("<I", len(data)), crc))
    return zlib.crc32(record.thumbnail or b"", crc)


def check_version(version: int, where: str) -> None:
    """Raise a ShardError unless this vlb reads format `version`."""
    if not SMALLEST_READABLE_VERSION <= version <= FORMAT_VERSION:
        raise ShardError(
            f"{where}: format version {version}; this vlb reads {SMALLEST_READABLE_VERSION}-{FORMAT_VERSION}. "
            "Update vlb, or rebuild it with vlb build-shards."
        )
