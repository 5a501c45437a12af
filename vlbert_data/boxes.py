"""Geometry of boxes. Promise: a box is (x0, y0, x1, y1) in pixels, continuous edges, x1 and y1 exclusive.

All functions are pure numpy, vectorised, and keep the dtype of their first argument unless they say otherwise.
"""

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.floating]


def area(boxes: Boxes) -> Boxes:
    """Return the areas [R] in square pixels of boxes [R, 4]; an inverted box has area 0."""
    sides = np.maximum(boxes[:, 2:4] - boxes[:, 0:2], 0)  # [R, 2]
    product: Boxes = sides[:, 0] * sides[:, 1]
    return product


def clip(boxes: Boxes, *, width_px: int, height_px: int) -> Boxes:
    """Return boxes [R, 4] with every edge moved into the image, x to 0..width_px and y to 0..height_px."""
    limits = np.array([width_px, height_px, width_px, height_px], dtype=boxes.dtype)
    clipped: Boxes = np.clip(boxes, 0, limits)
    return clipped


def intersection(a: Boxes, b: Boxes) -> Boxes:
    """Return the shared areas [A, B] in square pixels of boxes a [A, 4] and b [B, 4]."""
    low = np.maximum(a[:, None, 0:2], b[None, :, 0:2])  # [A, B, 2]
    high = np.minimum(a[:, None, 2:4], b[None, :, 2:4])  # [A, B, 2]
    sides = np.maximum(high - low, 0)
    shared: Boxes = sides[..., 0] * sides[..., 1]
    return shared


def iou(a: Boxes, b: Boxes) -> Boxes:
    """Return intersection over union [A, B] in 0..1; a pair of empty boxes has 0."""
    shared = intersection(a, b)
    union = area(a)[:, None] + area(b)[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def overlap(a: Boxes, b: Boxes) -> Boxes:
    """Return the share [A, B] in 0..1 of each box of `a` inside each box of `b`; an empty box of `a` has 0."""
    shared = intersection(a, b)
    own = np.broadcast_to(area(a)[:, None], shared.shape)
    return np.divide(shared, own, out=np.zeros_like(shared), where=own > 0)


def degenerate(boxes: Boxes, *, min_side_px: float = 1.0) -> NDArray[np.bool_]:
    """Return True [R] where a box has a side shorter than `min_side_px` pixels, or a coordinate that is not finite."""
    sides = boxes[:, 2:4] - boxes[:, 0:2]
    bad: NDArray[np.bool_] = np.logical_not((sides >= min_side_px).all(axis=1) & np.isfinite(boxes).all(axis=1))
    return bad
