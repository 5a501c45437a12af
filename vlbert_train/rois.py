"""The RoIs of a group of batches, read and masked. Promise: a feature is copied once, from mapped shard to batch.

Letters: D batches, C caption sequences, R their RoIs without whole images, Q asked RoIs, K classes kept, F feature
width. All but features is read and decided for the group at once; features are copied batch by batch. A hidden RoI's
feature is copied too: it stays where it is, and the model never looks at it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from vlbert_data import runs
from vlbert_data.copies import copy_runs
from vlbert_data.errors import ShardError
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.shards.gather import Picked
from vlbert_data.types import Array
from vlbert_train.buffers import Buffers
from vlbert_train.config import MaskingConfig
from vlbert_train.masking import MaskKeys, choose_views, hide_overlapping, mask_rois

BUFFERS = Buffers()
# In the released code's division by the number of visible RoIs.
PUBLISHED_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """The images of C caption sequences: folder and image in it, RoIs stored and RoIs kept, int64 [C] each.

    cuts: int64 [D + 1], the sequences before each batch.
    """

    folders: Sequence[ShardFolder]
    folder: Array
    image: Array
    stored: Array
    lengths: Array
    cuts: Array

    def parts(self) -> list[tuple[ShardFolder, Array | slice]]:
        """Return each folder that occurs with the sequences that are its, int64 rising, or all."""
        if len(self.folders) == 1:
            return [(self.folders[0], slice(None))]
        numbers = np.unique(self.folder).tolist()
        return [(self.folders[number], np.flatnonzero(self.folder == number)) for number in numbers]


@dataclass(frozen=True, kw_only=True, slots=True)
class RoiRules:
    """How RoIs are masked. labels_kept: K, 0 where shards declare no classes; then no RoI is masked.

    asks: False masks as ever but asks none.
    """

    masking: MaskingConfig
    feature_dim: int
    num_labels: int
    labels_kept: int
    asks: bool = True

    @property
    def masks(self) -> bool:
        """Return whether RoIs are masked."""
        return self.labels_kept > 0 and self.masking.roi_share > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rois:
    """What is read and decided of a group's RoIs, and where their features are.

    lengths: int64 [C]. geometry: float32 [R, 4], corners as shares of width and height. hidden: bool [R]. asked: int64
    [Q], rising, 0..R-1. target_ids: int64 [Q, K], target_probs: float32 [Q, K].
    """

    lengths: Array
    geometry: Array
    hidden: Array
    asked: Array
    target_ids: Array
    target_probs: Array
    features: "StoredFeatures"


def read_rois(images: Images, keys: MaskKeys, rules: RoiRules) -> Rois:
    """Return the RoIs of caption sequences with `keys` [C].

    Raises:
        ShardError: a shard that is missing or damaged.
    """
    parts, lengths = _read_parts(images), images.lengths
    geometry = np.empty((int(lengths.sum()), 4), np.float32)
    for part in parts:
        geometry[part.rois] = part.read("boxes", (4,), np.float32)
    geometry /= np.repeat(_sizes(parts, len(lengths)), lengths, axis=0)
    asked = hidden = np.zeros(len(geometry), np.bool_)
    views = None
    if rules.masks and rules.masking.leakage == "pixels":
        views = np.empty(len(lengths), np.int64)
        for part in parts:
            views[part.own] = choose_views(keys.views[part.own], part.folder.manifest.masked_views)
            hidden[part.rois] = part.read("view_chosen", (), np.bool_, views=views[part.own])
    elif rules.masks:
        asked, hidden = mask_rois(lengths, keys, rules.masking)
        if rules.masking.leakage == "overlap":
            hidden = hide_overlapping(geometry, lengths, hidden, rules.masking.overlap_threshold)
    found, ids, probs = _targets(parts, np.flatnonzero(asked) if rules.asks else np.zeros(0, np.int64), rules)
    return Rois(
        lengths=lengths,
        geometry=geometry,
        hidden=hidden,
        asked=found,
        target_ids=ids,
        target_probs=probs,
        features=_find_features(parts, images, views, hidden, rules),
    )


class _Part(NamedTuple):
    """What is read of one folder: the sequences `own` of the group, whose RoIs are `rois`: int64 rising, or all."""

    folder: ShardFolder
    picked: Picked
    own: Array | slice
    rois: Array | slice

    def read(self, name: str, shape: tuple[int, ...], dtype: object, *, views: Array | None = None) -> Array:
        """Return a stored field of these RoIs, [R, *shape]; views: see `Picked.copy`."""
        found: Array = np.empty((int(self.picked.num_rois.sum()), *shape), dtype)  # type: ignore[call-overload]
        self.picked.copy(name, found, views=views)
        return found

    def among(self, asked: Array) -> tuple[Array | slice, Array]:
        """Return which of the group's RoIs `asked`, int64 rising, are this folder's, and where among its own."""
        if isinstance(self.rois, slice):
            return slice(None), asked
        places = np.searchsorted(self.rois, asked)
        inside = np.flatnonzero(self.rois.take(places, mode="clip") == asked) if len(self.rois) else places[:0]
        return inside, places[inside]


def _read_parts(images: Images) -> list[_Part]:
    starts = runs.borders(images.lengths)[:-1]
    return [
        _Part(
            folder=folder,
            picked=Picked(folder, images.image[own], images.lengths[own]),
            own=own,
            rois=own if isinstance(own, slice) else runs.places(starts[own], images.lengths[own]),
        )
        for folder, own in images.parts()
    ]


def _sizes(parts: Sequence[_Part], num: int) -> Array:
    """Return float32 [num, 4]: width, height, width, height of each image in pixels."""
    found = np.empty((num, 4), np.float32)
    for part in parts:
        index, images = part.folder.index, part.picked.images
        found[part.own] = np.stack([index.width_px[images], index.height_px[images]] * 2, axis=1)
    return found


def _targets(parts: Sequence[_Part], asked: Array, rules: RoiRules) -> tuple[Array, Array, Array]:
    """Return (asked, ids, probs) of those asked RoIs that have a class with any probability."""
    ids = np.zeros((len(asked), rules.labels_kept), np.int64)
    probs = np.zeros((len(asked), rules.labels_kept), np.float32)
    for part in parts if len(asked) else ():
        inside, rows = part.among(asked)
        kept = part.folder.manifest.label_topk
        own = part.read("label_ids", (kept,), "<u2").take(rows, axis=0)
        ids[inside, :kept] = own
        probs[inside, :kept] = part.read("label_probs", (kept,), "<f2").take(rows, axis=0)
        if (largest := int(own.max(initial=0))) >= rules.num_labels:
            raise ShardError(
                f"{part.folder.path}: a RoI of class {largest}, but there are {rules.num_labels} "
                "classes. Run vlb inspect-shard --verify."
            )
    sound = probs.any(axis=1)
    return (asked, ids, probs) if sound.all() else (asked[sound], ids[sound], probs[sound])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Means:
    """Whole images that are described anew, as weighted sums of rows of their batch.

    images: int64 [H], rising, which of the C. borders: int64 [H + 1], of each sum in rows, int64, and weights, float16.
    cuts: int64 [D + 1], the changed images before each batch.
    """

    images: Array
    borders: Array
    rows: Array
    weights: Array
    cuts: Array

    def apply(self, batch: int, features: Tensor, first_image: int, cut: int) -> None:
        """Describe the whole images of a batch anew. first_image: the row of the image of caption `cut`."""
        begin, end = self.cuts[batch : batch + 2].tolist()
        if begin == end:
            return
        inside = slice(int(self.borders[begin]), int(self.borders[end]))
        # embedding_bag reads float16 as fast as memory gives it, adds in float32, and is some fifty times as fast as
        # numpy. A weight is rounded to float16, as its sum is.
        means = embedding_bag(
            torch.from_numpy(self.rows[inside]),
            features,
            torch.from_numpy(self.borders[begin:end] - self.borders[begin]),
            mode="sum",
            per_sample_weights=torch.from_numpy(self.weights[inside]),
        )
        rows = self.images[begin:end] + (first_image - cut)
        if rows[-1] - rows[0] == end - begin - 1:
            features[rows[0] : rows[-1] + 1] = means
        else:
            features[torch.from_numpy(rows)] = means


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFeatures:
    """Where the features of C sequences lie in mapped files.

    rois, roi_bytes: address and bytes of the kept RoIs' features. images: address of the whole image's, 0 where it is
    described anew without it. int64 [C] each. row_cuts: int64 [D + 1], the RoIs before each batch.
    """

    rois: Array
    roi_bytes: Array
    images: Array
    cuts: Array
    row_cuts: Array
    means: _Means
    feature_dim: int
    # Keeps the files mapped.
    held: Sequence[Picked]

    def read(self, batch: int, num_texts: int, *, pin_memory: bool) -> Tensor:
        """Return f16 [R + n + t, F]: a batch's RoIs, the whole image of each of its n captions, t rows of zeros."""
        begin, end = self.cuts[batch : batch + 2].tolist()
        num_rois, num = int(self.row_cuts[batch + 1] - self.row_cuts[batch]), end - begin
        num_rows, width = num_rois + num + num_texts, self.feature_dim
        # torch itself keeps page-locked memory for its next use.
        features = torch.empty(num_rows, width, dtype=torch.float16, pin_memory=True) if pin_memory else None
        features = BUFFERS.empty(num_rows, width) if features is None else features
        row_bytes, place = 2 * self.feature_dim, features.data_ptr()
        sizes, images = self.roi_bytes[begin:end], self.images[begin:end]
        copy_runs(place + runs.borders(sizes)[:-1], self.rois[begin:end], sizes)
        stored = np.flatnonzero(images)
        copy_runs(place + (num_rois + stored) * row_bytes, images[stored], np.full(len(stored), row_bytes))
        if num_texts:
            features[num_rois + num :] = 0
        self.means.apply(batch, features, num_rois, begin)
        return features


def _find_features(
    parts: Sequence[_Part], images: Images, views: Array | None, hidden: Array, rules: RoiRules
) -> StoredFeatures:
    """Return where features lie, of the `views` of images where there are any, int64 [C]."""
    found = np.empty((3, len(images.lengths)), np.int64)
    prefix = "" if views is None else "view_"
    for part in parts:
        own_views = None if views is None else views[part.own]
        found[0:2, part.own] = part.picked.spans(f"{prefix}features", views=own_views)
        name = "image_feature" if views is None else "view_image_features"
        found[2, part.own] = part.picked.spans(name, views=own_views)[0]
    means, needs_stored = _means(images, hidden, rules.masking.leakage)
    return StoredFeatures(
        rois=found[0],
        roi_bytes=found[1],
        images=np.where(needs_stored, found[2], 0),
        cuts=images.cuts,
        row_cuts=runs.borders(images.lengths)[images.cuts],
        means=means,
        feature_dim=rules.feature_dim,
        held=[part.picked for part in parts],
    )


def _means(images: Images, hidden: Array, leakage: str) -> tuple[_Means, Array]:
    """Return how whole images are described so that they show nothing of hidden RoIs, and which need the stored one.

    overlap: the mean of the visible RoIs, zero where none is visible; an image without RoIs keeps its stored feature.
    published: the stored feature times the number of stored RoIs, minus the hidden RoIs, divided by the number of the
    others + 1e-5, as in VL-BERT's released code; zero where all are hidden. pixels: the stored feature, of a view.
    """
    lengths, cuts, num = images.lengths, images.cuts, len(images.lengths)
    owner = runs.owners(lengths)  # [R]
    row_cuts = runs.borders(lengths)[cuts]
    batch = runs.owners(np.diff(cuts))  # [C]
    taken = np.flatnonzero(hidden if leakage == "published" else ~hidden)  # RoIs that are added up
    if leakage == "pixels":
        taken = taken[:0]
    counts = np.bincount(owner[taken], minlength=num)  # [C]
    rows = taken - row_cuts[batch[owner[taken]]]
    needs_stored = np.ones(num, np.bool_)
    changed = counts > 0
    weights = np.repeat(1.0 / np.maximum(counts, 1), counts)
    if leakage == "overlap":
        changed = lengths > 0
        needs_stored = ~changed
    elif leakage == "published":
        others = images.stored - counts
        shares = np.where(others > 0, 1.0 / (others + PUBLISHED_EPSILON), 0.0)  # [C]
        weights = np.repeat(-shares, counts)
        # The stored feature comes first in the sum of a changed image.
        first = runs.borders(counts)[:-1][changed]
        whole = (np.diff(row_cuts)[batch] + np.arange(num) - cuts[batch])[changed]
        rows = np.insert(rows, first, whole)
        weights = np.insert(weights, first, (shares * images.stored)[changed])
        counts = counts + changed
    found = np.flatnonzero(changed)
    means = _Means(
        images=found,
        borders=runs.borders(counts[found]),
        rows=rows,
        weights=weights.astype(np.float16),
        cuts=np.searchsorted(found, cuts),
    )
    return means, needs_stored
