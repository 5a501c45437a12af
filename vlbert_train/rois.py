"""The RoIs of a group of batches, read and masked. Promise: all but features is read and decided at once.

Letters: C caption sequences, R their RoIs without whole images, Q asked RoIs, K classes kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlbert_data.compiled import compiled, half_to_float
from vlbert_data.errors import ShardError
from vlbert_data.types import Array
from vlbert_train.config import MaskingConfig
from vlbert_train.features import StoredFeatures, find_features
from vlbert_train.images import Images, Part
from vlbert_train.masking import MaskKeys, choose_views, hide_overlapping, mask_rois


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
    features: StoredFeatures


def read_rois(images: Images, keys: MaskKeys, rules: RoiRules) -> Rois:
    """Return the RoIs of caption sequences with `keys` [C].

    Raises:
        ShardError: a shard that is missing or damaged.
    """
    parts, lengths = images.parts(), images.lengths
    geometry, sizes = np.empty((int(lengths.sum()), 4), np.float32), np.empty((len(lengths), 4), np.float32)
    for part in parts:
        geometry[part.rois], sizes[part.own] = part.picked.read("boxes"), part.sizes()
    _divide(geometry, sizes, lengths)
    asked = hidden = np.zeros(len(geometry), np.bool_)
    views = None
    if rules.masks and rules.masking.leakage == "pixels":
        views = np.empty(len(lengths), np.int64)
        for part in parts:
            views[part.own] = choose_views(keys.views[part.own], part.folder.manifest.masked_views)
            hidden[part.rois] = part.picked.read("view_chosen", views=views[part.own])
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
        features=find_features(
            images, parts, hidden, rules.masking.leakage, feature_dim=rules.feature_dim, views=views
        ),
    )


@compiled
def _divide(boxes: Array, sizes: Array, lengths: Array) -> None:
    """Divide the boxes of each image, float32 [R, 4], by its sizes, float32 [C, 4]."""
    first = 0
    for image, length in enumerate(lengths):
        for roi in range(first, first + length):
            for side in range(4):
                boxes[roi, side] /= sizes[image, side]
        first += length


def _targets(parts: Sequence[Part], asked: Array, rules: RoiRules) -> tuple[Array, Array, Array]:
    """Return (asked, ids, probs) of those asked RoIs that have a class with any probability."""
    ids, sound = np.empty((len(asked), rules.labels_kept), np.int64), np.empty(len(asked), np.bool_)
    probs = np.empty((len(asked), rules.labels_kept), np.float32)
    for part in parts if len(asked) else ():
        rows, rois = part.among(asked)
        stored_ids, stored_probs = part.picked.read_rois(("label_ids", "label_probs"), rois)
        largest = _widen((stored_ids, stored_probs.view(np.uint16)), rows, (ids, probs, sound))
        if largest >= rules.num_labels:
            raise ShardError(
                f"{part.folder.path}: a RoI of class {largest}, but there are {rules.num_labels} "
                "classes. Run vlb inspect-shard --verify."
            )
    return (asked, ids, probs) if sound.all() else (asked[sound], ids[sound], probs[sound])


@compiled
def _widen(stored: tuple[Array, Array], rows: Array, found: tuple[Array, Array, Array]) -> int:
    """Fill `rows` of found: ids, probabilities, and whether any is above 0; return the largest id, -1 if there is none.

    stored: uint16 [n, k] each, ids and the bits of float16 probabilities; the K - k last columns of found become 0.
    """
    stored_ids, bits = stored
    ids, probs, sound = found
    kept, largest = stored_ids.shape[1], np.int64(-1)
    for number, row in enumerate(rows):
        is_sound = False
        for label in range(kept):
            identity, probability = np.int64(stored_ids[number, label]), half_to_float(bits[number, label])
            ids[row, label], probs[row, label] = identity, probability
            largest = max(largest, identity)
            is_sound |= probability != 0
        ids[row, kept:], probs[row, kept:] = 0, 0
        sound[row] = is_sound
    return int(largest)
