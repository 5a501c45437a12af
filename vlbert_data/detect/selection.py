"""From a detector's proposals to the RoIs of an image. Promise: one rule for every detector, in pure numpy.

The order is that of foreground confidence: the highest probability among classes that mean an object.
"""

import numpy as np
import torch

from vlbert_data import boxes as geometry
from vlbert_data.detect.base import SelectionRule
from vlbert_data.detect.nms import nms
from vlbert_data.types import Array, LabelSpace, RoiSet


def kept_classes(label_space: LabelSpace, label_topk: int) -> int:
    """Return K: `label_topk`, or all classes where there are fewer."""
    return min(label_topk, label_space.num_classes)


def select(
    boxes: Array, probs: Array, rule: SelectionRule, label_space: LabelSpace, size_px: tuple[int, int]
) -> tuple[RoiSet, int]:
    """Return the RoIs of one image, and how many proposals had no area inside it.

    boxes: float32 [P, 4] xyxy pixels. probs: float32 [P, C] over all classes of the label space, background included;
    a row sums to at most 1. size_px: (width, height).

    In turn: boxes are clipped to the image and those with a side under a pixel dropped; the rest are ordered by
    confidence; suppression drops those that overlap a more confident one; of what is left, all at or above the
    threshold, at least `min_rois` if there are so many, at most `max_rois`.
    """
    boxes = geometry.clip(boxes.astype(np.float32), width_px=size_px[0], height_px=size_px[1])
    sound = ~geometry.degenerate(boxes) & np.isfinite(probs).all(axis=1)
    boxes, probs = boxes[sound], probs[sound]
    confidence = foreground_confidence(probs, label_space.background_index)
    order = np.argsort(-confidence, kind="stable")
    if rule.nms_iou is not None:
        kept = nms(torch.from_numpy(boxes[order]), torch.from_numpy(confidence[order]), rule.nms_iou)
        order = order[kept.numpy()]
    num_sure = int((confidence[order] >= rule.score_threshold).sum())
    order = order[: min(max(num_sure, rule.min_rois), rule.max_rois)]
    label_ids, label_probs = top_classes(probs[order], kept_classes(label_space, rule.label_topk))
    rois = RoiSet(
        boxes=boxes[order],
        scores=confidence[order].astype(np.float16),
        label_ids=label_ids,
        label_probs=label_probs,
    )
    return rois, int((~sound).sum())


def foreground_confidence(probs: Array, background_index: int | None) -> Array:
    """Return float32 [P]: the highest of the probabilities [P, C] of classes that mean an object."""
    if background_index is not None:
        probs = np.delete(probs, background_index, axis=1)
    highest: Array = probs.max(axis=1, initial=0).astype(np.float32)
    return highest


def top_classes(probs: Array, topk: int) -> tuple[Array, Array]:
    """Return uint16 ids and float16 probabilities, [R, topk] each: the most probable of [R, C], equal ones by id."""
    ids = np.argsort(-probs, axis=1, kind="stable")[:, :topk]
    return ids.astype(np.uint16), np.take_along_axis(probs, ids, axis=1).astype(np.float16)
