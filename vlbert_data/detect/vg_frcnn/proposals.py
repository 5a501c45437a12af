"""From RPN maps to proposals: anchors, decoding, and the best boxes without near duplicates. Promise: pure functions.

Boxes are (x0, y0, x1, y1) in pixels of the preprocessed image, continuous: a box's width is x1 - x0.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vlbert_data.detect.nms import nms

ANCHOR_SIZES_PX = (64.0, 128.0, 256.0, 512.0)
ANCHOR_RATIOS = (0.5, 1.0, 2.0)
RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
ROI_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
# No box grows by more than from 16 to 1000 pixels; larger deltas would overflow `exp`. Source: Detectron2's decoder.
MAX_LOG_SCALE = math.log(1000 / 16)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProposalRule:
    """How many proposals, and how alike. before_nms, after_nms: at most so many. min_side_px: shorter ones leave.

    Source of the numbers: the test settings of the published Caffe network.
    """

    before_nms: int = 6000
    after_nms: int = 300
    nms_iou: float = 0.7
    min_side_px: float = 0.0


def cell_anchors() -> Tensor:
    """Return the anchors float32 [12, 4] of the position (0, 0): sizes in turn, for each the ratios height / width."""
    boxes = []
    for size in ANCHOR_SIZES_PX:
        for ratio in ANCHOR_RATIOS:
            width = math.sqrt(size * size / ratio)
            height = ratio * width
            boxes.append((-width / 2, -height / 2, width / 2, height / 2))
    return torch.tensor(boxes, dtype=torch.float32)


def grid_anchors(cell: Tensor, height: int, width: int, *, stride_px: int) -> Tensor:
    """Return the anchors [height * width * A, 4] of a whole map, by row, column and anchor; cell: [A, 4]."""
    x = torch.arange(width, device=cell.device, dtype=torch.float32) * stride_px
    y = torch.arange(height, device=cell.device, dtype=torch.float32) * stride_px
    y, x = torch.meshgrid(y, x, indexing="ij")  # [height, width] each
    shifts = torch.stack([x, y, x, y], dim=-1)  # [height, width, 4]
    return (shifts[:, :, None] + cell).reshape(-1, 4)


def decode(deltas: Tensor, boxes: Tensor, *, weights: tuple[float, float, float, float]) -> Tensor:
    """Return boxes [R, 4] moved and scaled by deltas [R, 4], which are (dx, dy, log w, log h) times `weights`.

    Source: Girshick et al., R-CNN, CVPR 2014, appendix C.
    """
    x0, y0, x1, y1 = boxes.unbind(1)
    width, height = x1 - x0, y1 - y0
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas.unbind(1), weights, strict=True))
    x = dx * width + (x0 + 0.5 * width)
    y = dy * height + (y0 + 0.5 * height)
    new_width = dw.clamp(max=MAX_LOG_SCALE).exp() * width
    new_height = dh.clamp(max=MAX_LOG_SCALE).exp() * height
    return torch.stack([x - 0.5 * new_width, y - 0.5 * new_height, x + 0.5 * new_width, y + 0.5 * new_height], dim=1)


def clip(boxes: Tensor, *, height: int, width: int) -> Tensor:
    """Return boxes [R, 4] with every edge moved into an image of that size."""
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))


def nonempty(boxes: Tensor, *, min_side_px: float = 0.0) -> Tensor:
    """Return True [R] where both sides of a box [R, 4] are longer than `min_side_px`."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return (sides > min_side_px).all(dim=1)


def propose(
    logits: Tensor, deltas: Tensor, cell: Tensor, *, image_size: tuple[int, int], stride_px: int, rule: ProposalRule
) -> tuple[Tensor, Tensor]:
    """Return proposals [P, 4] of one image, best first, and their objectness logits [P]; P <= rule.after_nms.

    logits: float32 [A, H, W]. deltas: float32 [A * 4, H, W]. cell: [A, 4]. image_size: (height, width) in pixels.
    """
    num_anchors, height, width = logits.shape
    flat = logits.permute(1, 2, 0).flatten()  # [H * W * A]
    each = deltas.view(num_anchors, 4, height, width).permute(2, 3, 0, 1).reshape(-1, 4)  # [H * W * A, 4]
    order = flat.argsort(descending=True, stable=True)[: rule.before_nms]
    anchors = grid_anchors(cell, height, width, stride_px=stride_px)
    boxes = clip(decode(each[order], anchors[order], weights=RPN_WEIGHTS), height=image_size[0], width=image_size[1])
    large = nonempty(boxes, min_side_px=rule.min_side_px)
    boxes, scores = boxes[large], flat[order][large]
    kept = nms(boxes, scores, rule.nms_iou, max_kept=rule.after_nms)
    return boxes[kept], scores[kept]
