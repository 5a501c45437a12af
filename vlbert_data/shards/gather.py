"""Copying fields of many images into one buffer. Promise: each byte is copied once, from the mapped file to its place.

This is the hot path of training. Where every array lies is computed for all images of a batch at once; what remains
for each image and field is one call of the C library's memory copy, without Python code between the calls. Other
threads run while a copy does.
"""

import ctypes
from collections import deque
from typing import Any

import numpy as np

from vlbert_data.errors import ShardError
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.shards.schema import Field
from vlbert_data.types import Array


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
        # Held so that what the addresses point to stays mapped.
        self._shards = {number: folder.shard(number) for number in set(numbers.tolist())}
        files = {number: (address(shard.mapped), len(shard.mapped)) for number, shard in self._shards.items()}
        found = np.array([files[number] for number in numbers.tolist()], np.int64).reshape(-1, 2)
        self._addresses, self._file_bytes = found[:, 0], found[:, 1]  # [B] each
        self._plan(folder.places(images))

    def _plan(self, places: dict[str, Array]) -> None:
        """Find for all fields at once what is copied: planning field by field would cost as much as copying does."""
        row_bytes = self._folder.row_bytes()
        self._numbers = {name: number for number, name in enumerate(row_bytes)}
        per_roi, once = np.array(list(row_bytes.values())).T[:, :, None]  # [f, 1] each
        self._starts = np.stack([places[name] for name in row_bytes])  # [f, B]
        self._sizes = per_roi * self.num_rois + once  # [f, B]
        self._firsts = np.cumsum(self._sizes, axis=1) - self._sizes  # [f, B], in the output
        self._check(self._starts, per_roi * self._stored + once)
        self._size_lists = self._sizes.tolist()
        self._source_lists = (self._starts + self._addresses).tolist()

    def copy(self, name: str, out: Array, *, views: Array | None = None) -> None:
        """Copy field `name` of all images into `out`, one image after another.

        out: writable, contiguous, of the field's dtype, just large enough for all images: [ΣR, ...] for fields of RoIs,
        [B, ...] for fields of images. views: int [B], for fields of masked views: the one view that is copied of each
        image, as if the field had no axis of views; without it all views of all RoIs are copied.
        """
        field = self._folder.stored_field(name)
        number = self._numbers[name]
        sources, sizes, firsts = self._source_lists[number], self._size_lists[number], self._firsts[number]
        if "V" in field.shape:
            starts, wanted = self._view_spans(field, views)
            self._check(starts, wanted)
            firsts = np.cumsum(wanted) - wanted
            sources, sizes = (starts + self._addresses).tolist(), wanted.tolist()
        needed = int(firsts[-1]) + sizes[-1] if sizes else 0
        if out.nbytes != needed or out.dtype != field.dtype or not (out.flags.c_contiguous and out.flags.writeable):
            raise ValueError(f"{name} of these images: {needed} bytes of {field.dtype}; got {out.dtype} {out.shape}")
        # A bounded deque runs the copies one after another without keeping their results.
        deque(map(ctypes.memmove, (firsts + address(out)).tolist(), sources, sizes), maxlen=0)

    def _check(self, starts: Array, sizes: Array) -> None:
        """Refuse to read outside the files; starts, sizes: int64 [..., B]."""
        if starts.size and (int((starts + sizes - self._file_bytes).max()) > 0 or int(starts.min()) < 0):
            raise ShardError(f"{self._folder.path}: a record reaches beyond its file. Run vlb inspect-shard --verify.")

    def _view_spans(self, field: Field, views: Array | None) -> tuple[Array, Array]:
        """Return (first bytes in the files, bytes), int64 [B] each, of what is copied of a field of masked views."""
        schema, starts = self._folder.manifest.schema, self._starts[self._numbers[field.name]]
        if views is None:
            if self.num_rois is not self._stored:
                raise ValueError(f"{field.name}: the first RoIs of all views lie apart; name one view of each.")
            return starts, schema.num_bytes(field, self._stored)
        # An image's views lie one after another, each with all of its RoIs.
        whole, wanted = (schema.num_bytes(field, num) // schema.num_views for num in (self._stored, self.num_rois))
        return starts + views * whole, wanted


def address(array: Array) -> int:
    """Return where the first byte of an array lies in memory."""
    place: Any = array.__array_interface__["data"]
    return int(place[0])
