"""The RoIs of a batch, read and masked. Promise: a feature is copied once, from the mapped shard to its place.

Letters: n caption sequences, t text-only ones after them, R their RoIs without whole images, Q asked RoIs, K classes
kept. A hidden RoI's feature stays where it is; the model never looks at it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from vlbert_data import runs
from vlbert_data.errors import ShardError
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.shards.gather import Picked
from vlbert_data.types import Array
from vlbert_train.config import MaskingConfig
from vlbert_train.masking import MaskKeys, choose_views, hide_overlapping, mask_rois

# In the released code's division by the number of visible RoIs.
PUBLISHED_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """The images of n caption sequences: folder, rising, and image in it; RoIs stored and RoIs kept; int64 [n] each."""

    folders: Sequence[ShardFolder]
    folder: Array
    image: Array
    stored: Array
    lengths: Array

    def parts(self) -> list[tuple[ShardFolder, slice]]:
        """Return each folder that occurs with the sequences that are its."""
        if len(self.folders) == 1:
            return [(self.folders[0], slice(0, len(self.folder)))]
        borders = np.searchsorted(self.folder, np.arange(len(self.folders) + 1)).tolist()
        pairs = zip(self.folders, borders[:-1], borders[1:], strict=True)
        return [(folder, slice(begin, end)) for folder, begin, end in pairs if begin < end]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rois:
    """What is read and decided of a batch's RoIs.

    features: f16 [R + n + t, F]: RoIs, then the whole image of each sequence, zero for text-only ones. geometry:
    float32 [R, 4], corners as shares of width and height. hidden: bool [R]. asked: int64 [Q], rising, 0..R-1.
    target_ids: int64 [Q, K], target_probs: float32 [Q, K].
    """

    features: Tensor
    lengths: Array
    geometry: Array
    hidden: Array
    asked: Array
    target_ids: Array
    target_probs: Array


@dataclass(frozen=True, kw_only=True, slots=True)
class RoiRules:
    """How RoIs are masked. labels_kept: K, 0 where shards declare no classes; then no RoI is masked.

    asks: False masks as ever but asks none. pin_memory: features in page-locked memory.
    """

    masking: MaskingConfig
    feature_dim: int
    num_labels: int
    labels_kept: int
    asks: bool = True
    pin_memory: bool = False


def read_rois(images: Images, keys: MaskKeys, rules: RoiRules, *, num_texts: int) -> Rois:
    """Return the RoIs of caption sequences with `keys` [n], followed by `num_texts` sequences without any."""
    lengths = images.lengths
    num_rois, total = int(lengths.sum()), int(lengths.sum()) + len(lengths) + num_texts
    features = torch.empty(total, rules.feature_dim, dtype=torch.float16, pin_memory=rules.pin_memory)
    borders = runs.borders(lengths)
    parts = [_read_part(folder, images, own, borders) for folder, own in images.parts()]
    geometry = np.empty((num_rois, 4), np.float32)
    for part in parts:
        part.picked.copy("boxes", geometry[part.rois])
    geometry /= np.repeat(_sizes(images), lengths, axis=0)
    masking = rules.masking
    masks = rules.labels_kept > 0 and masking.roi_share > 0
    views = None
    if masks and masking.leakage == "pixels":
        views = [choose_views(keys.views[part.own], part.folder.manifest.masked_views) for part in parts]
        asked = hidden = np.empty(num_rois, np.bool_)
        for part, chosen in zip(parts, views, strict=True):
            part.picked.copy("view_chosen", hidden[part.rois], views=chosen)
    elif masks:
        asked, hidden = mask_rois(lengths, keys, masking)
        if masking.leakage == "overlap":
            hidden = hide_overlapping(geometry, lengths, hidden, masking.overlap_threshold)
    else:
        asked = hidden = np.zeros(num_rois, np.bool_)
    _copy_features(features.numpy(), parts, views, num_rois)
    if views is None:
        _describe_images(features, images, hidden, masking.leakage)
    found, ids, probs = _targets(parts, np.flatnonzero(asked) if rules.asks else np.zeros(0, np.int64), rules)
    return Rois(
        features=features,
        lengths=lengths,
        geometry=geometry,
        hidden=hidden,
        asked=found,
        target_ids=ids,
        target_probs=probs,
    )


class _Part(NamedTuple):
    """What is read of one folder: sequences `own` of the batch, whose RoIs are `rois`."""

    folder: ShardFolder
    picked: Picked
    own: slice
    rois: slice


def _read_part(folder: ShardFolder, images: Images, own: slice, borders: Array) -> _Part:
    picked = Picked(folder, images.image[own], images.lengths[own])
    return _Part(folder, picked, own, slice(int(borders[own.start]), int(borders[own.stop])))


def _sizes(images: Images) -> Array:
    """Return float32 [n, 4]: width, height, width, height of each image in pixels."""
    found = np.empty((len(images.image), 4), np.float32)
    for folder, own in images.parts():
        image = images.image[own]
        found[own, 0::2] = folder.index.width_px[image][:, None]
        found[own, 1::2] = folder.index.height_px[image][:, None]
    return found


def _copy_features(target: Array, parts: Sequence[_Part], views: Sequence[Array] | None, num_rois: int) -> None:
    """Fill the rows of RoIs and of whole images with what is stored of them, or of the views chosen for each part."""
    end = num_rois
    for number, part in enumerate(parts):
        of_images = target[num_rois + part.own.start : num_rois + part.own.stop]
        end += len(of_images)
        if views is None:
            part.picked.copy("features", target[part.rois])
            part.picked.copy("image_feature", of_images)
        else:
            part.picked.copy("view_features", target[part.rois], views=views[number])
            part.picked.copy("view_image_features", of_images, views=views[number])
    target[end:] = 0


def _describe_images(features: Tensor, images: Images, hidden: Array, leakage: str) -> None:
    """Change the rows of whole images so that they show nothing of hidden RoIs; pixels: nothing to do.

    overlap: the mean of the visible RoIs, zero where none is visible; an image without RoIs keeps its stored feature.
    published: the stored feature times the number of stored RoIs, minus the hidden RoIs, divided by the number of the
    others + 1e-5, as in VL-BERT's released code; zero where all are hidden.
    """
    if leakage == "pixels" or not len(images.lengths):
        return
    owner = runs.owners(images.lengths)
    num_rois, num = len(owner), len(images.lengths)
    rows = np.flatnonzero(hidden if leakage == "published" else ~hidden)
    counts = np.bincount(owner[rows], minlength=num)  # [n]
    if leakage == "published":
        changes = counts > 0
        divisors = np.where(images.stored > counts, images.stored - counts + PUBLISHED_EPSILON, np.inf)
        # The bag of an image holds its stored feature, then its hidden RoIs.
        borders = runs.borders(counts)[:-1]
        weights = np.insert(np.full(len(rows), -1), borders, images.stored)
        rows = np.insert(rows, borders, num_rois + np.arange(num))
        counts = counts + 1
    else:
        changes = images.lengths > 0
        divisors = np.maximum(counts, 1)
        weights = np.ones(len(rows))
    means = _weighted_means(features, (rows, weights, counts), divisors)
    target = features[num_rois : num_rois + num]
    if changes.all():
        target.copy_(means)
    else:
        target[torch.from_numpy(changes)] = means[torch.from_numpy(changes)].half()


def _weighted_means(features: Tensor, bags: tuple[Array, Array, Array], divisors: Array) -> Tensor:
    """Return float32 [n, F]: sums of rows of `features` times whole numbers, added in float32, divided by `divisors`.

    bags: rows and their weights, one bag after another, and the number of rows in each bag, int64 [n].
    embedding_bag reads float16 as fast as memory gives it, some fifty times as fast as numpy, but gives float16: a
    power of two, as large as the largest weight or bag, is put before the sum and taken out after it.
    """
    rows, weights, counts = bags
    scale = 2.0 ** int(max(weights.max(initial=1), counts.max(initial=1))).bit_length()
    sums = embedding_bag(
        torch.from_numpy(rows),
        features,
        torch.from_numpy(np.cumsum(counts) - counts),
        mode="sum",
        per_sample_weights=torch.from_numpy((weights / scale).astype(np.float16)),
    )
    return sums * torch.from_numpy((scale / divisors).astype(np.float32))[:, None]


def _targets(parts: Sequence[_Part], asked: Array, rules: RoiRules) -> tuple[Array, Array, Array]:
    """Return (asked, ids, probs) of those asked RoIs that have a class with any probability."""
    ids = np.zeros((len(asked), rules.labels_kept), np.int64)
    probs = np.zeros((len(asked), rules.labels_kept), np.float32)
    if not len(asked):
        return asked, ids, probs
    for part in parts:
        inside = slice(*np.searchsorted(asked, [part.rois.start, part.rois.stop]).tolist())
        rows, kept = asked[inside] - part.rois.start, part.folder.manifest.label_topk
        for name, dtype, out in (("label_ids", "<u2", ids), ("label_probs", "<f2", probs)):
            stored = np.empty((part.rois.stop - part.rois.start, kept), dtype)
            part.picked.copy(name, stored)
            out[inside, :kept] = stored[rows]
        if int(ids[inside].max(initial=0)) >= rules.num_labels:
            raise ShardError(
                f"{part.folder.path}: a RoI of class {int(ids[inside].max())}, but there are {rules.num_labels} "
                "classes. Run vlb inspect-shard --verify."
            )
    sound = probs.any(axis=1)
    return (asked, ids, probs) if sound.all() else (asked[sound], ids[sound], probs[sound])
