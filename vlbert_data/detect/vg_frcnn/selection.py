"""Which proposals become RoIs, by the two published rules. Promise: pure functions of boxes and probabilities.

`caffe-perclass` is the rule of the original detector and of VL-BERT: suppression within each class, on the proposals as
they are; a RoI counts for the best class in which it survived. `maxnms` is the rule of LXMERT's port: each proposal
becomes the box of its best class, and all boxes compete in one suppression, which is loosened until enough are left.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vlbert_data.build.config import PUBLISHED_ROIS
from vlbert_data.detect.nms import nms, overlap_more
from vlbert_data.errors import ConfigError

# Bits used of each int64: half of them, so that no shift meets the sign.
BITS_A_WORD = 32
LIMITS_TAKEN = {"caffe-perclass": "exactly one", "maxnms": "one or more, tried in turn"}


@dataclass(frozen=True, kw_only=True, slots=True)
class RoiRule:
    """A selection rule with its numbers.

    name: `caffe-perclass` or `maxnms`. min_rois, max_rois: how many RoIs; equal for a fixed number. nms_ious: boxes
    that overlap more suppress each other; `maxnms` tries these in turn until `min_rois` are left. score_threshold:
    least confidence of the RoIs beyond `min_rois`; `maxnms` has none.
    """

    name: str
    min_rois: int
    max_rois: int
    nms_ious: tuple[float, ...]
    score_threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in LIMITS_TAKEN:
            raise ConfigError(f"selection rule {self.name!r}; it is one of {' and '.join(LIMITS_TAKEN)}.")
        if not 0 <= self.min_rois <= self.max_rois or self.max_rois < 1:
            raise ConfigError(
                f"min_rois {self.min_rois}, max_rois {self.max_rois}; expected 0 <= min_rois <= max_rois."
            )
        if not self.nms_ious or (self.name == "caffe-perclass" and len(self.nms_ious) > 1):
            raise ConfigError(f"{self.name} with IoU limits {self.nms_ious}; it takes {LIMITS_TAKEN[self.name]}.")

    def facts(self) -> dict[str, Any]:
        """Return the rule as JSON types, for the manifest."""
        return {**asdict(self), "nms_ious": list(self.nms_ious)}


# Source: Anderson et al. 2018, `generate_tsv.py` of bottom-up-attention (10 to 100 RoIs, confidence 0.2).
CAFFE_PERCLASS = RoiRule(name="caffe-perclass", min_rois=10, max_rois=100, nms_ious=(0.3,), score_threshold=0.2)
MAXNMS = RoiRule(name="maxnms", nms_ious=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), **PUBLISHED_ROIS["maxnms"])
RULES = {rule.name: rule for rule in (CAFFE_PERCLASS, MAXNMS)}


def select_per_class(boxes: Tensor, probs: Tensor, rule: RoiRule) -> tuple[Tensor, Tensor]:
    """Return the chosen RoIs, int64 [n], best first, and their confidence [n].

    boxes: [R, 4], the proposals. probs: [R, C], the foreground classes. Ties: the earlier proposal first.
    """
    confidence = surviving_confidence(boxes, probs, rule.nms_ious[0])
    order = confidence.argsort(descending=True, stable=True)
    num = int((confidence >= rule.score_threshold).sum())
    chosen = order[: min(max(num, rule.min_rois), rule.max_rois)]
    return chosen, confidence[chosen]


def select_max_nms(boxes: Tensor, probs: Tensor, rule: RoiRule) -> Tensor:
    """Return the chosen RoIs, int64 [n], best first: the first IoU limit that leaves `min_rois` decides.

    boxes: [R, 4], each proposal's box by its best class, clipped. probs: [R], of that class. Where no limit leaves
    enough, the last one's RoIs are all there are.
    """
    chosen = torch.zeros(0, dtype=torch.long, device=boxes.device)
    for nms_iou in rule.nms_ious:
        chosen = nms(boxes, probs, nms_iou, max_kept=rule.max_rois)
        if len(chosen) >= rule.min_rois:
            break
    return chosen


def surviving_confidence(boxes: Tensor, probs: Tensor, nms_iou: float) -> Tensor:
    """Return [R]: each RoI's highest probability among the classes in which no better RoI suppresses it; 0 for none.

    boxes: [R, 4]. probs: [R, C]. Equal to suppression class by class, for all classes at once: step k decides in every
    class about its k-th best RoI. Who is suppressed is kept in bits, so that a step touches little memory.
    """
    if not probs.numel():
        return probs.new_zeros(len(probs))
    over = _as_bits(overlap_more(boxes, boxes, nms_iou).fill_diagonal_(False))  # [R, words]
    suppressed = over.new_zeros(probs.shape[1], over.shape[1])  # [C, words]
    order = probs.argsort(dim=0, descending=True, stable=True)  # [R, C]
    for best in order:  # [C]: in each class the RoI whose turn it is
        word = suppressed.gather(1, (best // BITS_A_WORD)[:, None])  # [C, 1]
        survives = 1 - (word >> (best % BITS_A_WORD)[:, None] & 1)  # [C, 1], 0 or 1
        suppressed |= over[best] * survives
    bits = torch.arange(BITS_A_WORD, device=boxes.device)
    out = (suppressed[:, :, None] >> bits & 1).flatten(1)[:, : len(boxes)].bool()  # [C, R]
    return probs.masked_fill(out.T, 0).amax(dim=1)


def _as_bits(rows: Tensor) -> Tensor:
    """Return int64 [n, words] that hold the bits of bool [n, R], BITS_A_WORD in each."""
    padded = functional.pad(rows, (0, -rows.shape[1] % BITS_A_WORD))
    bits = torch.arange(BITS_A_WORD, device=rows.device)
    return (padded.reshape(len(rows), -1, BITS_A_WORD).long() << bits).sum(dim=2)
