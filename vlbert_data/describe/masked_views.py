"""Masked views: an image described again with some RoIs' pixels zeroed. Promise: what is hidden was never seen.

The paper masks pixels before features are computed, so that neither an overlapping RoI nor the whole image can show
a masked one (VL-BERT, arXiv 1908.08530, section 3.3). Features stored offline get the same by storing such views.
"""

import hashlib

import numpy as np

from vlbert_data.describe.base import Describer
from vlbert_data.types import Array, MaskedViews, to_float16

# The share of RoIs that pretraining masks (arXiv 1908.08530, section 3.3).
MASKED_SHARE = 0.15


def choose_rois(image_id: str, num_rois: int, *, num_views: int, seed: int, share: float = MASKED_SHARE) -> Array:
    """Return bool [V, R]: each RoI is chosen with probability `share`, at least one in every view if there is any.

    A pure function of its arguments. Where chance chose none, the RoI with the smallest draw is taken.
    """
    digest = hashlib.blake2b(f"{seed}:{image_id}".encode(), digest_size=16).digest()
    draws = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random((num_views, num_rois))
    chosen: Array = draws < share
    if num_rois:
        chosen[np.arange(num_views), draws.argmin(axis=1)] = True
    return chosen


def zero_pixels(pixels: Array, boxes: Array) -> Array:
    """Return a copy of uint8 [H, W, 3] in which every pixel that a box [n, 4] touches is 0 (black)."""
    masked = pixels.copy()
    height, width = pixels.shape[:2]
    for x0, y0, x1, y1 in boxes:
        left, top = max(int(np.floor(x0)), 0), max(int(np.floor(y0)), 0)
        masked[top : min(int(np.ceil(y1)), height), left : min(int(np.ceil(x1)), width)] = 0
    return masked


def describe_masked_views(
    describer: Describer,
    pixels: Array,
    boxes: Array,
    *,
    image_id: str,
    num_views: int,
    seed: int,
    described_boxes: Array | None = None,
) -> MaskedViews:
    """Return `num_views` views of an image: uint8 [H, W, 3] with boxes float32 [R, 4] in its pixels.

    described_boxes: float32 [R, 4], what is described, where it is not `boxes`; a chosen RoI loses the pixels of both.

    Raises:
        RecordRejectedError: a feature that float16 cannot hold.
    """
    chosen = choose_rois(image_id, len(boxes), num_views=num_views, seed=seed)  # [V, R]
    described_boxes = boxes if described_boxes is None else described_boxes
    both = np.stack([boxes, described_boxes], axis=1)  # [R, 2, 4]
    images = [zero_pixels(pixels, both[of_view].reshape(-1, 4)) for of_view in chosen]
    described = describer.describe(images, [described_boxes] * num_views)
    return MaskedViews(
        chosen=chosen,
        features=to_float16(np.stack([view.features for view in described]), what="features of masked views"),
        image_features=to_float16(
            np.stack([view.image_feature for view in described]), what="features of masked views"
        ),
    )
