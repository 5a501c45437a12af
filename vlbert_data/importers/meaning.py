"""From what a foreign file states to what a shard stores. Promise: the meaning stays, and what has none is refused.

Boxes become pixels of the original image, features float16; hard labels one-hot with their score, distributions their
most probable classes with the residual; RoIs go by foreground confidence, and the places they had are kept.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlbert_data import boxes as geometry
from vlbert_data.errors import RecordRejectedError
from vlbert_data.importers.base import ABSENT, LabelConvention, RawRecord, Traits
from vlbert_data.importers.encoded import MOST_ROIS
from vlbert_data.shards.schema import ShardSchema
from vlbert_data.types import BOX_SLACK_PX, Array, ImageRois, LabelSpace, RoiSet, to_float16

# An edge may stand this far outside the image and is then moved to its border: detectors round, and some count the
# last pixel as one more. Normalised edges are rounded to float16, whose step below 1 is 1/2048 of a side.
CLAMPED_PX = 1.0
CLAMPED_SHARE = 1 / 1024
CLAMPED = "box edges moved to the border, by up to a pixel"
# Rounding to float16 moves the sum of a distribution by less; a row further off is no distribution.
SUM_TOLERANCE = 0.1
# Below this, the sum is 1 for float16 numbers and is left as it is.
SUM_ROUNDING = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Meaning:
    """How the records of one input are understood.

    label_space: None for features only. label_topk: most classes kept for each RoI.
    """

    traits: Traits
    label_space: LabelSpace | None
    label_topk: int

    def schema(self) -> ShardSchema:
        """Return the schema of the records that `convert` makes."""
        return ShardSchema(
            feature_dim=self.traits.feature_dim,
            label_topk=self._kept_classes(),
            has_attributes=self.traits.attributes != ABSENT,
            has_source_rows=self._is_ordered(),
            label_space=self.label_space,
        )

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says of how records were understood, as JSON types."""
        attributes = self.traits.attributes
        return {
            "targets": "absent" if self.label_space is None else self.traits.labels.targets,
            "scores": "foreground confidence" if self._is_ordered() else "absent, stored as 0",
            "order": "by foreground confidence; source_rows has the order before" if self._is_ordered() else "as found",
            "image_feature": "as found" if self.traits.has_image_feature else "mean of the RoIs' features",
            "attributes": None
            if attributes == ABSENT
            else {"space": attributes.space, "num_attributes": attributes.num_classes - _has_background(attributes)},
        }

    def convert(
        self, record: RawRecord, image_id: str, captions: tuple[str, ...], size_px: tuple[int, int]
    ) -> tuple[ImageRois, Counter[str]]:
        """Return the record of an image, and what was changed in it, by name.

        size_px: (width, height) of the original image.

        Raises:
            RecordRejectedError: a value that cannot be true, or that a shard cannot hold.
        """
        from vlbert_data.importers.half_features import halve  # loads Numba: processes start without it

        self._check_shapes(record)
        boxes, changes = to_pixels(record.boxes, size_px, self.traits.box_units)
        features, mean = halve(record.features)
        confidence, ids, probs = self._labels(record)
        order = np.argsort(-confidence, kind="stable")
        if (order[1:] < order[:-1]).any():
            boxes, features, ids, probs = boxes[order], features[order], ids[order], probs[order]
        attribute_ids, attribute_probs = self._attributes(record)
        rois = RoiSet(
            boxes=boxes,
            scores=confidence[order].astype(np.float16),
            label_ids=ids,
            label_probs=probs,
            attribute_ids=None if attribute_ids is None else attribute_ids[order],
            attribute_probs=None if attribute_probs is None else attribute_probs[order],
            source_rows=order.astype(np.uint16) if self._is_ordered() else None,
        )
        image = ImageRois(
            image_id=image_id,
            width_px=size_px[0],
            height_px=size_px[1],
            captions=captions,
            rois=rois,
            features=features,
            image_feature=self._image_feature(record, mean),
        )
        return image, changes

    def _check_shapes(self, record: RawRecord) -> None:
        num = len(record.boxes)
        if num == 0:
            raise RecordRejectedError("no RoI", "the record has no RoI")
        if num > MOST_ROIS:
            raise RecordRejectedError("too many RoIs", f"{num} RoIs; at most {MOST_ROIS} are read")
        if record.features.shape != (num, self.traits.feature_dim):
            raise RecordRejectedError(
                "wrong length", f"features are {list(record.features.shape)}; expected {[num, self.traits.feature_dim]}"
            )

    def _is_ordered(self) -> bool:
        return self.label_space is not None or self.traits.has_confidence

    def _kept_classes(self) -> int:
        if self.label_space is None:
            return 0
        return 1 if self.traits.labels.targets == "hard" else min(self.label_topk, self.label_space.num_classes)

    def _image_feature(self, record: RawRecord, mean: Array) -> Array:
        """Return float16 [F]: the file's own, or the mean over the RoIs, as VL-BERT describes whole images."""
        if not self.traits.has_image_feature:
            return mean
        if record.image_feature is None or record.image_feature.shape != mean.shape:
            raise RecordRejectedError("no image feature", "the record lacks the whole image's feature, others have it")
        return to_float16(record.image_feature, what="the whole image's feature")

    def _labels(self, record: RawRecord) -> tuple[Array, Array, Array]:
        """Return foreground confidence float32 [R], class ids uint16 [R, K] and their probabilities float16 [R, K]."""
        num, space = len(record.boxes), self.label_space
        if space is None:
            confidence = np.zeros(num, np.float32)
            if self.traits.has_confidence:
                confidence = _scores(record.confidence, num, "confidence")
            return confidence, np.zeros((num, 0), np.uint16), np.zeros((num, 0), np.float16)
        if self.traits.labels.targets == "hard":
            ids = _ids(record.class_ids, num, space.num_classes, "class ids")
            scores = _scores(record.class_scores, num, "class scores")
            if space.background_index is not None:
                # The rest of a background's score is all that is left for objects; which one is not said.
                scores = np.where(ids == space.background_index, 0, scores)
            return scores, ids.astype(np.uint16)[:, None], np.ones((num, 1), np.float16)
        probs = _distributions(record.class_probs, num, space)
        ids, kept = top_classes(probs, self._kept_classes())
        return _foreground_confidence(probs, space.background_index), ids, kept

    def _attributes(self, record: RawRecord) -> tuple[Array | None, Array | None]:
        """Return the most probable attributes, uint16 [R], counted without "none", and probabilities float16 [R]."""
        convention, num = self.traits.attributes, len(record.boxes)
        if convention == ABSENT:
            return None, None
        first = convention.background == "first"
        if convention.targets == "soft":
            probs = _in_range(record.attribute_probs, (num, convention.num_classes), "attribute probabilities")
            named = probs[:, int(first) : probs.shape[1] - (convention.background == "last")]
            ids = named.argmax(axis=1)
            return ids.astype(np.uint16), np.take_along_axis(named, ids[:, None], axis=1)[:, 0].astype(np.float16)
        ids = _ids(record.attribute_ids, num, convention.num_classes, "attribute ids")
        scores = _scores(record.attribute_scores, num, "attribute scores")
        if convention.background == "none":
            return ids.astype(np.uint16), scores.astype(np.float16)
        ids = ids - first
        none = (ids < 0) if first else (ids == convention.num_classes - 1) & (convention.background == "last")
        return np.where(none, 0, ids).astype(np.uint16), np.where(none, 0, scores).astype(np.float16)


def to_pixels(boxes: Array, size_px: tuple[int, int], units: str) -> tuple[Array, Counter[str]]:
    """Return float32 [R, 4] boxes in pixels inside the image, and how many edges were moved to its border.

    Raises:
        RecordRejectedError: "not finite", "box outside image" or "bad box" (no area).
    """
    if units == "pixels" and boxes.dtype == np.float32 and _inside(boxes, size_px):
        return boxes.astype(np.float32), Counter()
    if not np.isfinite(boxes).all():
        raise RecordRejectedError("not finite", "boxes hold NaN or infinity")
    sides = np.array([*size_px, *size_px], np.float64)
    slack = np.full(4, CLAMPED_PX)
    pixels = np.asarray(boxes, np.float64)
    if units == "normalised":
        with np.errstate(over="ignore"):  # infinity is outside the image too
            pixels, slack = pixels * sides, np.maximum(slack, sides * CLAMPED_SHARE)
    if (pixels < -slack).any() or (pixels > sides + slack).any():
        worst = np.concatenate([pixels.min(axis=0)[:2], pixels.max(axis=0)[2:]])
        hint = " Are width and height swapped?" if (pixels <= sides[::-1] + slack[::-1]).all() else ""
        raise RecordRejectedError(
            "box outside image",
            f"boxes reach ({worst[0]:.1f}, {worst[1]:.1f}) to ({worst[2]:.1f}, {worst[3]:.1f}) in an image of "
            f"{size_px[0]} x {size_px[1]} pixels.{hint}",
        )
    exact = pixels.astype(np.float32)
    clipped = geometry.clip(exact, width_px=size_px[0], height_px=size_px[1])
    moved = int((np.abs(clipped - exact) > BOX_SLACK_PX).sum())
    if (clipped[:, 2:] <= clipped[:, :2]).any():
        raise RecordRejectedError("bad box", "a box has no area")
    return clipped, Counter({CLAMPED: moved}) if moved else Counter()


def _inside(boxes: Array, size_px: tuple[int, int]) -> bool:
    """Return whether all boxes [R, 4] have an area and lie inside the image, its edges included; none is NaN or -0."""
    if np.signbit(boxes).any():
        return False
    _, _, x1, y1 = boxes.max(axis=0).tolist()
    return bool(x1 <= size_px[0] and y1 <= size_px[1] and (boxes[:, 2:] > boxes[:, :2]).all())


def top_classes(probs: Array, topk: int) -> tuple[Array, Array]:
    """Return uint16 ids and float16 probabilities, [R, topk] each: the most probable of [R, C], equal ones by id."""
    num, columns = probs.shape
    if topk < columns:
        least = np.partition(probs, columns - topk, axis=1)[:, columns - topk]  # [R], the smallest that is kept
        above = probs > least[:, None]
        # Of those equal to the smallest one, as many as there is room for, lowest ids first.
        level = probs == least[:, None]
        room = topk - above.sum(axis=1)
        ids = np.nonzero(above | (level & (level.cumsum(axis=1) <= room[:, None])))[1].reshape(num, topk)
    else:
        ids = np.broadcast_to(np.arange(columns), (num, columns))
    kept = np.take_along_axis(probs, ids, axis=1)
    order = np.argsort(-kept, axis=1, kind="stable")
    chosen = np.take_along_axis(ids, order, axis=1).astype(np.uint16)
    return chosen, np.take_along_axis(kept, order, axis=1).astype(np.float16)


def _foreground_confidence(probs: Array, background_index: int | None) -> Array:
    """Return float32 [R]: the highest probability of a class that means an object."""
    if background_index == 0:
        probs = probs[:, 1:]
    elif background_index is not None:
        probs = probs[:, :background_index]
    highest: Array = probs.max(axis=1, initial=0)
    return highest


def _distributions(probs: Array | None, num: int, space: LabelSpace) -> Array:
    """Return float32 [R, C], each row a distribution; without a background class what is missing to 1 stays missing.

    Raises:
        RecordRejectedError: a wrong shape, or rows that are no distributions.
    """
    checked = _in_range(probs, (num, space.num_classes), "class probabilities")
    sums = checked.sum(axis=1)
    low = 1 - SUM_TOLERANCE if space.background_index is not None else 0.0
    if (sums < low).any() or (sums > 1 + SUM_TOLERANCE).any():
        raise RecordRejectedError(
            "not a distribution",
            f"class probabilities sum to {sums.min():.4g} .. {sums.max():.4g} a RoI; expected 1"
            + ("" if space.background_index is not None else " or, without background, less"),
        )
    off = sums > 1 + SUM_ROUNDING
    if space.background_index is not None:
        off |= sums < 1 - SUM_ROUNDING
    if off.any():
        checked = checked / np.where(off, sums, 1)[:, None]
    return checked


def _in_range(values: Array | None, shape: tuple[int, ...], what: str) -> Array:
    """Return float32 values of this shape, 0 to 1."""
    if values is None or values.shape != shape:
        found = "absent" if values is None else str(list(values.shape))
        raise RecordRejectedError("wrong length", f"{what} are {found}; expected {list(shape)}")
    if not np.isfinite(values).all():
        raise RecordRejectedError("not finite", f"{what} hold NaN or infinity")
    if values.size and (float(values.min()) < 0 or float(values.max()) > 1 + SUM_ROUNDING):
        raise RecordRejectedError(
            "not a probability",
            f"{what} range over {float(values.min()):.4g} .. {float(values.max()):.4g}; expected 0 to 1. "
            "Scores before the softmax cannot be taken.",
        )
    checked: Array = np.minimum(np.asarray(values, np.float32), 1)
    return checked


def _scores(values: Array | None, num: int, what: str) -> Array:
    return _in_range(values, (num,), what)


def _ids(values: Array | None, num: int, num_classes: int, what: str) -> Array:
    """Return int64 [R] ids of a space of `num_classes`."""
    if values is None or values.shape != (num,):
        found = "absent" if values is None else str(list(values.shape))
        raise RecordRejectedError("wrong length", f"{what} are {found}; expected {[num]}")
    if values.dtype.kind not in "iu":
        raise RecordRejectedError("bad label", f"{what} are {values.dtype}; expected integers")
    if values.size and (int(values.min()) < 0 or int(values.max()) >= num_classes):
        raise RecordRejectedError(
            "bad label", f"{what} are {int(values.min())} .. {int(values.max())}; the space has 0 .. {num_classes - 1}"
        )
    return values.astype(np.int64)


def _has_background(convention: LabelConvention) -> bool:
    return convention.background in ("first", "last")
