"""The things that everything else speaks of. Promise: frozen, and checked at birth; a wrong array never gets far.

Letters in shapes: R RoIs of an image, F feature width, K classes kept for each RoI, V masked views.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.halves import to_half

Array = NDArray[Any]

# Sums of K float16 probabilities near 1 can exceed 1 by K half-steps of float16 (2^-11 relative); 1 % covers K = 20.
PROBABILITY_SLACK = 0.01
# A box edge may stand this far outside the image, in pixels: float32 rounding of coordinates in the thousands.
BOX_SLACK_PX = 0.01
# float16 numbers from +0 on are ordered as their bits are; anything negative, infinite or NaN has larger bits.
INFINITY_BITS = 0x7C00


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelSpace:
    """What class ids mean: `class_names[id]` is the name, `background_index` the id that says "no object", if any."""

    name: str
    class_names: tuple[str, ...]
    background_index: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.class_names) <= 2**16:
            raise ConfigError(f"label space {self.name}: {len(self.class_names)} classes; a shard stores 1 to 65536.")
        bad = next((name for name in self.class_names if not is_unicode(name)), None)
        if bad is not None:
            raise ConfigError(f"label space {self.name}: the class name {bad!r} holds what UTF-8 cannot write.")
        if self.background_index is not None and not 0 <= self.background_index < len(self.class_names):
            raise ConfigError(
                f"label space {self.name}: background index {self.background_index} is outside its "
                f"{len(self.class_names)} classes."
            )

    @property
    def num_classes(self) -> int:
        """Return the number of ids, background included."""
        return len(self.class_names)

    def fingerprint(self) -> str:
        """Return a hex digest equal for two label spaces whose ids mean the same; the name does not matter."""
        text = json.dumps([list(self.class_names), self.background_index], ensure_ascii=False)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedViews:
    """An image described again with the pixels of some RoIs zeroed first, V times.

    chosen: bool [V, R], True where the pixels of that RoI were zeroed in that view.
    features: float16 [V, R, F], every RoI as described in that view. image_features: float16 [V, F], the whole image.
    """

    chosen: Array
    features: Array
    image_features: Array


@dataclass(frozen=True, kw_only=True, slots=True)
class RoiSet:
    """Boxes with class distributions, as a detector proposes them: most confident first.

    boxes: float32 [R, 4], (x0, y0, x1, y1) in pixels of the original, EXIF-oriented image.
    scores: float16 [R] in 0..1, the foreground confidence; never rising from one RoI to the next.
    label_ids: uint16 [R, K] and label_probs: float16 [R, K], the K most probable classes, most probable first. The
    probabilities are those of the full distribution: what is missing to 1 is the residual of the classes not kept.
    attribute_ids: uint16 [R] and attribute_probs: float16 [R], the most probable attribute, or both None; a probability
    of 0 says that none is known. source_rows: uint16 [R], the place that each RoI had among the image's RoIs before
    they were ordered, or None.
    """

    boxes: Array
    scores: Array
    label_ids: Array
    label_probs: Array
    attribute_ids: Array | None = None
    attribute_probs: Array | None = None
    source_rows: Array | None = None

    @property
    def num_rois(self) -> int:
        """Return R."""
        return int(self.boxes.shape[0])

    @staticmethod
    def empty(label_topk: int) -> "RoiSet":
        """Return a set of no RoI whose arrays have the shapes of `label_topk` kept classes."""
        return RoiSet(
            boxes=np.zeros((0, 4), np.float32),
            scores=np.zeros(0, np.float16),
            label_ids=np.zeros((0, label_topk), np.uint16),
            label_probs=np.zeros((0, label_topk), np.float16),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRois:
    """Everything a shard stores for one image.

    image_id: unique in its folder. width_px, height_px: size of the original image, EXIF orientation applied.
    captions: at least one, UTF-8. rois: see RoiSet. features: float16 [R, F]. image_feature: float16 [F], the whole
    image described. masked_views and thumbnail (a JPEG) may be absent.
    """

    image_id: str
    width_px: int
    height_px: int
    captions: tuple[str, ...]
    rois: RoiSet
    features: Array
    image_feature: Array
    masked_views: MaskedViews | None = None
    thumbnail: bytes | None = None

    @property
    def num_rois(self) -> int:
        """Return R."""
        return self.rois.num_rois

    @property
    def feature_dim(self) -> int:
        """Return F."""
        return int(self.image_feature.shape[0])

    @property
    def label_topk(self) -> int:
        """Return K."""
        return int(self.rois.label_ids.shape[1])

    def label_residual(self) -> Array:
        """Return float32 [R] in 0..1: the probability of all classes that are not among the K kept ones."""
        kept = self.rois.label_probs.astype(np.float32).sum(axis=1)
        residual: Array = np.clip(1.0 - kept, 0.0, 1.0)
        return residual


def is_unicode(text: str) -> bool:
    """Return whether UTF-8 can write `text`; JSON can smuggle in halves of surrogate pairs, which it cannot."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def to_float16(values: Array, *, what: str) -> Array:
    """Return `values` as float16, refusing what float16 cannot hold.

    Raises:
        RecordRejectedError: a value is not finite, or beyond float16's largest number, 65504. `what` names the array.
    """
    values = np.asarray(values)
    if values.dtype == np.float32 and values.flags.c_contiguous:
        quickly = to_half(values)
        if quickly is not None:
            return quickly
    if not np.isfinite(values).all():
        raise RecordRejectedError("feature not finite", f"{what} holds NaN or infinity")
    with np.errstate(over="ignore"):
        half: Array = values.astype(np.float16)
    if not all_finite(half):
        largest = float(np.abs(values).max())
        raise RecordRejectedError("feature overflow", f"{what} holds {largest:.6g}; float16 ends at 65504")
    return half


def all_finite(values: Array) -> bool:
    """Return whether no value is NaN or infinite; for float16 about ten times as fast as numpy's own test."""
    if values.dtype != np.float16 or not values.flags.c_contiguous:
        return bool(np.isfinite(values).all())
    bits = values.view(np.uint16)
    if not values.size or int(bits.max()) < INFINITY_BITS:  # no negative number either, as after a rectifier
        return True
    # The exponent bits of float16 are all set in NaN and infinity, and in no number.
    return int((bits & 0x7FFF).max()) < INFINITY_BITS


def check_image_rois(record: ImageRois, *, label_space: LabelSpace | None, feature_dim: int | None = None) -> None:
    """Check a record's shapes, dtypes and values against the promises above; `label_space` None skips its ids.

    Raises:
        RecordRejectedError: the first thing that is wrong, in words.
    """
    rois, num = record.rois, record.num_rois
    dim = record.feature_dim if feature_dim is None else feature_dim
    _check_array("boxes", rois.boxes, np.float32, (num, 4))
    _check_kind("scores", rois.scores, np.float16, (num,))
    _check_kind("label_ids", rois.label_ids, np.uint16, (num, record.label_topk))
    _check_kind("label_probs", rois.label_probs, np.float16, (num, record.label_topk))
    _check_array("features", record.features, np.float16, (num, dim))
    _check_array("image_feature", record.image_feature, np.float16, (dim,))
    if (rois.attribute_ids is None) != (rois.attribute_probs is None):
        raise RecordRejectedError("bad record", "attribute ids and probabilities must come together")
    if rois.attribute_ids is not None and rois.attribute_probs is not None:
        _check_kind("attribute_ids", rois.attribute_ids, np.uint16, (num,))
        _check_kind("attribute_probs", rois.attribute_probs, np.float16, (num,))
        _check_range("attribute_probs", rois.attribute_probs, 0.0, 1.0)
    if rois.source_rows is not None:
        _check_kind("source_rows", rois.source_rows, np.uint16, (num,))
    if record.masked_views is not None:
        views = int(record.masked_views.chosen.shape[0])
        _check_kind("masked_views.chosen", record.masked_views.chosen, np.bool_, (views, num))
        _check_array("masked_views.features", record.masked_views.features, np.float16, (views, num, dim))
        _check_array("masked_views.image_features", record.masked_views.image_features, np.float16, (views, dim))
    check_text(record)
    _check_boxes(record)
    _check_labels(rois, label_space)


def check_text(record: ImageRois) -> None:
    """Check a record's id and captions.

    Raises:
        RecordRejectedError: there are none, or UTF-8 cannot write them.
    """
    if not record.image_id:
        raise RecordRejectedError("bad record", "the image id is empty")
    for text in (record.image_id, *record.captions):
        if not is_unicode(text):
            raise RecordRejectedError("bad record", f"{text!r} holds what UTF-8 cannot write")
    if not record.captions or any(not caption.strip() for caption in record.captions):
        raise RecordRejectedError(
            "empty caption", f"{len(record.captions)} captions, at least one needed and none empty"
        )


def _check_boxes(record: ImageRois) -> None:
    width, height, boxes = record.width_px, record.height_px, record.rois.boxes
    if not (1 <= width < 2**31 and 1 <= height < 2**31):
        raise RecordRejectedError("bad record", f"an image of {width} x {height} pixels")
    if record.num_rois == 0:
        return
    if (boxes[:, 2:] <= boxes[:, :2]).any():
        raise RecordRejectedError("bad box", "a box has no area")
    low, high = float(boxes.min()), boxes.max(axis=0).tolist()
    if low < -BOX_SLACK_PX or high[2] > width + BOX_SLACK_PX or high[3] > height + BOX_SLACK_PX:
        raise RecordRejectedError(
            "bad box",
            f"boxes reach {low:.2f} to ({high[2]:.2f}, {high[3]:.2f}) in an image of {width} x {height} pixels",
        )


def _check_labels(rois: RoiSet, label_space: LabelSpace | None) -> None:
    _check_range("scores", rois.scores, 0.0, 1.0)
    if (rois.scores[1:] > rois.scores[:-1]).any():
        raise RecordRejectedError("bad record", "RoIs are not ordered by foreground confidence")
    if rois.label_ids.size == 0:
        return
    _check_range("label_probs", rois.label_probs, 0.0, 1.0)
    several = rois.label_probs.shape[1] > 1
    if several and (np.add.reduce(rois.label_probs, axis=1, dtype=np.float32) > 1 + PROBABILITY_SLACK).any():
        raise RecordRejectedError("bad label", "the class probabilities of a RoI sum to more than 1")
    if label_space is not None and int(rois.label_ids.max()) >= label_space.num_classes:
        raise RecordRejectedError(
            "bad label",
            f"class id {int(rois.label_ids.max())}, but the label space has {label_space.num_classes} classes",
        )


def _check_kind(name: str, array: Array, dtype: Any, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise RecordRejectedError(
            "bad record",
            f"{name} is {array.dtype} {list(array.shape)}; expected {np.dtype(dtype)} {list(shape)}",
        )


def _check_array(name: str, array: Array, dtype: Any, shape: tuple[int, ...]) -> None:
    """Check an array's kind, and that its numbers are finite."""
    _check_kind(name, array, dtype, shape)
    if not all_finite(array):
        raise RecordRejectedError("not finite", f"{name} holds NaN or infinity")


def _check_range(name: str, values: Array, low: float, high: float) -> None:
    """Check that numbers are finite and in a range."""
    if low == 0 and values.dtype == np.float16 and values.flags.c_contiguous:
        # One pass instead of two; what fails it, such as -0, is looked at again below.
        limit = int(np.float16(high + PROBABILITY_SLACK).view(np.uint16))
        if not values.size or int(values.view(np.uint16).max()) <= limit:
            return
    if not all_finite(values):
        raise RecordRejectedError("not finite", f"{name} holds NaN or infinity")
    if values.size and (float(values.min()) < low or float(values.max()) > high + PROBABILITY_SLACK):
        raise RecordRejectedError(
            "bad record",
            f"{name} range over {float(values.min()):.4g}..{float(values.max()):.4g}; expected {low}..{high}",
        )
