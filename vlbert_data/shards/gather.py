"""Copying fields of many images into one buffer. Promise: each byte is copied once, from the mapped file to its place.

This is the hot path of training. Where every array lies is computed for all images of a batch at once; what remains
for each image and field is one call of the C library's memory copy, without Python code between the calls. Other
threads run while a field is copied.
"""

from collections.abc import Sequence

import numpy as np

from vlbert_data import runs
from vlbert_data.addresses import address
from vlbert_data.compiled import compiled, memmove, prefetch
from vlbert_data.copies import copy_runs
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
        self._folder, self.images = folder, images
        self._stored: Array = folder.index.num_rois[images].astype(np.int64)  # [B]
        self.num_rois: Array = self._stored if num_rois is None else np.minimum(num_rois, self._stored)
        shards = folder.index.shard[images]
        origins = folder.origins(shards)  # [B, 2 + f]
        # Held so that what the addresses point to stays mapped.
        self._shards = [folder.shard(number) for number in set(shards.tolist())]
        self._addresses, self._file_bytes = origins[:, 0], origins[:, 1]  # [B] each
        self._starts = folder.places(images, origins)  # [f, B]
        # For all fields at once: planning field by field would cost as much as copying does.
        per_roi, once = folder.row_bytes()
        self._check(self._starts, per_roi * self._stored + once)
        self._sizes = per_roi * self.num_rois + once  # [f, B]
        self._numbers = folder.field_numbers()

    def spans(self, name: str, *, views: Array | None = None) -> tuple[Array, Array]:
        """Return (addresses, bytes), int64 [B] each, of what `copy` copies of each image; valid while this lives."""
        field = self._folder.stored_field(name)
        if "V" in field.shape:
            starts, sizes = self._view_spans(field, views)
            self._check(starts, sizes)
        else:
            starts, sizes = self._starts[self._numbers[name]], self._sizes[self._numbers[name]]
        return starts + self._addresses, sizes

    def copy(self, name: str, out: Array, *, views: Array | None = None) -> None:
        """Copy field `name` of all images into `out`, one image after another.

        out: writable, contiguous, of the field's dtype, just large enough for all images: [ΣR, ...] for fields of RoIs,
        [B, ...] for fields of images. views: int [B], for fields of masked views: the one view that is copied of each
        image, as if the field had no axis of views; without it all views of all RoIs are copied.
        """
        field = self._folder.stored_field(name)
        sources, sizes = self.spans(name, views=views)
        ends = np.cumsum(sizes)
        needed = int(ends[-1]) if len(ends) else 0
        if out.nbytes != needed or out.dtype != field.dtype or not (out.flags.c_contiguous and out.flags.writeable):
            raise ValueError(f"{name} of these images: {needed} bytes of {field.dtype}; got {out.dtype} {out.shape}")
        copy_runs(ends - sizes + address(out), sources, sizes)

    def read(self, name: str, *, views: Array | None = None) -> Array:
        """Return what `copy` copies of a field of RoIs, [ΣR, ...] of the field's dtype."""
        field, schema = self._folder.stored_field(name), self._folder.manifest.schema
        row = schema.shape(field, 1)[field.shape.index("R") + 1 :]
        found: Array = np.empty((int(self.num_rois.sum()), *row), field.dtype)
        self.copy(name, found, views=views)
        return found

    def read_rois(self, names: Sequence[str], rois: Array) -> list[Array]:
        """Return some fields of some RoIs, [n, ...] of the field's dtype each.

        rois: int64 [n], rising, counted through the RoIs of all images.
        """
        schema, borders = self._folder.manifest.schema, runs.borders(self.num_rois)
        made = []
        for name in names:
            field = self._folder.stored_field(name)
            assert field.shape[0] == "R", f"{name}: the views of a RoI lie apart"
            found: Array = np.empty((len(rois), *schema.shape(field, 1)[1:]), field.dtype)
            _copy_rois(address(found), found.strides[0], self.spans(name)[0], borders, rois)
            made.append(found)
        return made

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


@compiled
def _copy_rois(target: int, row_bytes: int, sources: Array, borders: Array, rois: Array) -> None:
    """Copy the rows of `rois`, int64 rising, to the address `target`.

    sources: int64 [B], the address of each image's first row. borders: int64 [B + 1], the RoIs before each image.
    """
    places, image = np.empty(len(rois), np.int64), 0
    for number, roi in enumerate(rois):
        while roi >= borders[image + 1]:
            image += 1
        places[number] = sources[image] + (roi - borders[image]) * row_bytes
        # Rows lie far apart: all are asked for before the first one is waited for.
        prefetch(places[number])
    for number, place in enumerate(places):
        memmove(target + number * row_bytes, place, row_bytes)
