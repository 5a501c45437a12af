"""Non-maximum suppression. Promise: the boxes that torchvision keeps, in its order, without needing torchvision.

Boxes are taken most confident first, equal scores in the order given; a box is dropped when its IoU with a kept one,
in float32, is more than the threshold, in float64. Source: the greedy rule of torchvision.ops.nms.
"""

import numpy as np
import torch
from torch import Tensor

# Boxes compared at once: large enough that the matrix work is vectorised, small enough to stop early. On CUDA each step
# waits for the processor once, so the steps are fewer and larger.
BLOCK_CPU = 512
BLOCK_CUDA = 4096


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, *, max_kept: int | None = None) -> Tensor:
    """Return which boxes survive, int64 [n], most confident first; at most `max_kept` of them.

    boxes: float [N, 4] xyxy. scores: float [N]. Two boxes without area have no IoU and do not suppress each other.
    """
    order = scores.argsort(descending=True, stable=True)
    ranked = boxes.float()[order]
    limit = len(order) if max_kept is None else max_kept
    kept = order.new_zeros(0)  # ranks
    size = BLOCK_CUDA if boxes.is_cuda else BLOCK_CPU
    for start in range(0, len(order), size):
        if len(kept) >= limit:
            break
        block = ranked[start : start + size]
        alive = ~overlap_more(ranked[kept], block, iou_threshold).any(dim=0)  # [block]
        candidates = alive.nonzero().squeeze(1)  # [c]
        among = overlap_more(block[candidates], block[candidates], iou_threshold)  # [c, c]
        kept = torch.cat([kept, start + candidates[_greedy(among)]])
    return order[kept[:limit]]


def _greedy(overlaps: Tensor) -> Tensor:
    """Return int64 [n]: in turn, each index that no kept earlier one overlaps; overlaps: bool [c, c]."""
    rows = ~overlaps.cpu().numpy()
    alive = np.ones(len(rows), np.bool_)
    kept = []
    for index, row in enumerate(rows):
        if alive[index]:
            kept.append(index)
            alive &= row  # itself too, which is past
    return torch.tensor(kept, dtype=torch.long, device=overlaps.device)


def overlap_more(a: Tensor, b: Tensor, iou_threshold: float) -> Tensor:
    """Return bool [A, B]: whether the IoU of a [A, 4] and b [B, 4] is more than the threshold."""
    low = torch.maximum(a[:, None, :2], b[None, :, :2])  # [A, B, 2]
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = (high - low).clamp_(min=0)
    shared = sides[..., 0] * sides[..., 1]  # [A, B]
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    # 0 / 0 is NaN, which is not more than anything.
    iou = shared / (area_a[:, None] + area_b[None, :] - shared)
    return iou.double() > iou_threshold
