"""How well a detector finds a scene's shapes. Promise: counted as PASCAL VOC counts, at an IoU of 0.5."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlbert_data import boxes as geometry
from vlbert_data.detect.base import DecodedImage, Detector
from vlbert_data.tour.scenes import CLASS_NAMES, Scene
from vlbert_data.types import Array, RoiSet

LEAST_IOU = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorFigures:
    """0..1 each. map50: mean over classes of the average precision; precision, recall: of all RoIs that are kept."""

    map50: float
    precision: float
    recall: float


def measure_detector(detector: Detector, scenes: Sequence[Scene]) -> DetectorFigures:
    """Return the figures of a detector that knows the classes of the world, on `scenes`."""
    images = [
        DecodedImage(image_id=str(number), file_name=f"{number}.png", pixels=scene.pixels)
        for number, scene in enumerate(scenes)
    ]
    found = detector.detect(images)
    totals = np.bincount(
        [CLASS_NAMES.index(thing.class_name) for scene in scenes for thing in scene.things], minlength=len(CLASS_NAMES)
    )
    scores = np.concatenate([rois.scores for rois in found]).astype(np.float32)
    classes = np.concatenate([rois.label_ids[:, 0] for rois in found])
    right = np.concatenate([_right(rois, scene) for rois, scene in zip(found, scenes, strict=True)])
    own = [np.flatnonzero(classes == number) for number in range(len(CLASS_NAMES))]
    precisions = [
        average_precision(scores[rows], right[rows], int(totals[n])) for n, rows in enumerate(own) if totals[n]
    ]
    return DetectorFigures(
        map50=float(np.mean(precisions)), precision=float(right.mean()), recall=float(right.sum() / totals.sum())
    )


def _right(rois: RoiSet, scene: Scene) -> Array:
    """Return bool [R]: which RoIs have the class of a thing and overlap it, and no surer RoI has it already."""
    wanted = np.array([thing.box for thing in scene.things], np.float32).reshape(-1, 4)
    classes = np.array([CLASS_NAMES.index(thing.class_name) for thing in scene.things])
    overlap = geometry.iou(rois.boxes, wanted)  # [R, things]
    free, right = np.ones(len(wanted), np.bool_), np.zeros(len(rois.boxes), np.bool_)
    for number in np.argsort(-rois.scores, kind="stable"):
        fits = overlap[number] * (free & (classes == rois.label_ids[number, 0]))
        best = int(fits.argmax())
        if fits[best] >= LEAST_IOU:
            free[best], right[number] = False, True
    return right


def average_precision(scores: Array, right: Array, total: int) -> float:
    """Return the area under the curve of precision over recall, 0..1, of one class with `total` things.

    scores, right: [m], of the RoIs of that class. Source: PASCAL VOC, development kit of 2010: at each recall the best
    precision at that recall or above.
    """
    hits = np.cumsum(right[np.argsort(-scores, kind="stable")])
    recall, precision = hits / total, hits / np.arange(1, len(hits) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * best_from_here))
