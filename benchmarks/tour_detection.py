"""What a detector's training needs: matching and losses. Plain PyTorch, no scipy.

Boxes are (centre x, centre y, width, height) as shares of the picture's sides. Letters: n scenes, P proposals of each,
C classes; a scene has at most four things, a class of -1 stands for none.
"""

import torch
from torch import Tensor
from torch.nn import functional

CLASS_COST, L1_COST, GIOU_COST = 2.0, 5.0, 2.0


def corners(boxes: Tensor) -> Tensor:
    """Return boxes [..., 4] of centres and sides as (x0, y0, x1, y1)."""
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], dim=-1)


def iou_and_giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and generalised IoU of boxes that broadcast, [...] each. Source: Rezatofighi et al., CVPR 2019."""
    a, b = corners(a), corners(b)
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    areas = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    union = areas - shared
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    iou = shared / union.clamp(min=1e-9)
    return iou, iou - (hull - union) / hull.clamp(min=1e-9)


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, classes: Tensor, wanted: Tensor, *, rounds: int) -> tuple[Tensor, ...]:
    """Return (scene, proposal, thing), i64 [m] each: the cheapest pairs first, a proposal for one thing only.

    logits: [n, P, C]. boxes: [n, P, 4]. classes, wanted: of the things, [n, 4] and [n, 4, 4]. rounds: proposals that
    each thing gets.
    """
    of_things = classes.clamp(min=0)[:, None, :].expand(-1, logits.shape[1], -1)  # [n, P, 4]
    probs = logits.sigmoid().gather(2, of_things)
    spread = (boxes[:, :, None] - wanted[:, None]).abs().sum(-1)
    cost = -CLASS_COST * probs + L1_COST * spread - GIOU_COST * iou_and_giou(boxes[:, :, None], wanted[:, None])[1]
    never = torch.finfo(cost.dtype).max
    cost = cost.masked_fill((classes < 0)[:, None], never)
    rows = torch.arange(len(cost))
    found = []
    for _ in range(rounds):
        left = cost.clone()
        for _ in range(cost.shape[2]):
            best, place = left.flatten(1).min(1)
            proposal, thing = place // cost.shape[2], place % cost.shape[2]
            valid = best < never
            found.append(torch.stack([rows[valid], proposal[valid], thing[valid]]))
            left[rows, :, thing] = never
            left[rows[valid], proposal[valid]] = never
            cost[rows[valid], proposal[valid]] = never
    scene, proposal, thing = torch.cat(found, dim=1)
    return scene, proposal, thing


def detection_loss(logits: Tensor, boxes: Tensor, classes: Tensor, wanted: Tensor, *, rounds: int) -> Tensor:
    """Return focal loss of classes plus L1 and GIoU losses of matched boxes, for each matched thing on average."""
    scene, proposal, thing = match(logits, boxes, classes, wanted, rounds=rounds)
    count = max(1, len(scene))
    giou = iou_and_giou(boxes[scene, proposal], wanted[scene, thing])[1]
    target = torch.zeros_like(logits)
    target[scene, proposal, classes[scene, thing]] = 1.0
    probs = logits.sigmoid()
    # Lin et al., Focal loss, ICCV 2017, with the authors' exponent; both sides weigh the same.
    weight = (target - probs).abs() ** 2
    focal = (weight.detach() * functional.binary_cross_entropy_with_logits(logits, target, reduction="none")).sum()
    l1 = (boxes[scene, proposal] - wanted[scene, thing]).abs().sum()
    return (CLASS_COST * focal + L1_COST * l1 + GIOU_COST * (1 - giou).sum()) / count
