"""Copying fields of many images into one buffer. Promise: each byte is copied once, from the mapped file to its place.

This is the hot path of training. Where every array lies is computed for all images of a batch at once; what remains
for each image and field is two slices and a memory copy.
"""

from typing import Any

import numpy as np

from vlbert_data.errors import ShardError
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.shards.schema import Field
from vlbert_data.types import Array

# Below this an array is copied through memoryviews, whose slices cost half of numpy's; above it through numpy, which
# lets other threads run while it copies.
SMALL_BYTES = 1 << 14


class Picked:
    """Some images of a folder, found once, whose fields are then copied one by one.

    images: int [B], in the order in which they are copied; an image may occur more than once. num_rois: int [B], how
    many RoIs of each are copied, the first ones; none: all.

    Raises:
        ShardError: a shard is missing, cut short or not the manifest's.
    """

    def __init__(self, folder: ShardFolder, images: Array, num_rois: Array | None = None) -> None:
        self._folder = folder
        self._stored: Array = folder.index.num_rois[images].astype(np.int64)  # [B]
        self.num_rois: Array = self._stored if num_rois is None else np.minimum(num_rois, self._stored)
        numbers = folder.index.shard[images]
        shards = {number: folder.shard(number) for number in set(numbers.tolist())}
        self._mapped: list[Any] = [shards[number].mapped for number in numbers.tolist()]
        self._file_bytes = np.array([len(mapped) for mapped in self._mapped])
        self._places = folder.places(images)

    def copy(self, name: str, out: Array, *, views: Array | None = None) -> None:
        """Copy field `name` of all images into `out`, one image after another.

        out: contiguous, of the field's dtype, holding exactly the rows of all images: [ΣR, ...] for fields of RoIs,
        [B, ...] for fields of images. views: int [B], for fields of masked views: the one view that is copied of each
        image, as if the field had no axis of views; without it all views of all RoIs are copied.
        """
        starts, sizes = self._spans(name, views)
        ends = np.cumsum(sizes)
        needed = int(ends[-1]) if len(ends) else 0
        dtype = self._field(name).dtype
        if out.nbytes != needed or out.dtype != dtype or not out.flags.c_contiguous:
            raise ValueError(f"{name} of these images: {needed} bytes of {dtype}; got {out.dtype} {out.shape}")
        if not needed:
            return
        stops = starts + sizes
        if (stops > self._file_bytes).any():
            raise ShardError(f"{self._folder.path}: a record reaches beyond its file. Run vlb inspect-shard --verify.")
        target: Any = out.reshape(-1).view(np.uint8)
        sources = self._mapped
        if int(sizes.max()) < SMALL_BYTES:
            target, sources = target.data, [mapped.data for mapped in sources]
        spans = zip(sources, starts.tolist(), stops.tolist(), (ends - sizes).tolist(), ends.tolist(), strict=True)
        for source, start, stop, first, last in spans:
            target[first:last] = source[start:stop]

    def _spans(self, name: str, views: Array | None) -> tuple[Array, Array]:
        """Return (first bytes in the files, bytes), int64 [B] each, of what is copied of a field."""
        field, schema = self._field(name), self._folder.manifest.schema
        starts = self._places[name]
        if "V" not in field.shape:
            return starts, schema.num_bytes(field, self.num_rois)
        if views is None:
            if self.num_rois is not self._stored:
                raise ValueError(f"{name}: the first RoIs of all views do not lie together; name one view of each.")
            return starts, schema.num_bytes(field, self._stored)
        # An image's views lie one after another, each with all of its RoIs.
        whole, wanted = (schema.num_bytes(field, num) // schema.num_views for num in (self._stored, self.num_rois))
        return starts + views * whole, wanted

    def _field(self, name: str) -> Field:
        field = next((field for field in self._folder.manifest.schema.fields() if field.name == name), None)
        if field is None:
            raise ShardError(f"{self._folder.path}: stores no {name}.")
        return field
