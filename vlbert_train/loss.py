"""Losses. Promise: sums over asked positions; whoever holds the counts of the whole step divides, once.

Letters as in `batch`. Tasks stand in the order of `metrics.TASKS`: masked words with an image, masked words of text,
masked RoIs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from vlbert_train.batch import Batch, Predictions


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSums:
    """Of each task, f32 [3]: the sum of losses, in nats, and how many guesses were right (no gradient)."""

    sums: Tensor
    correct: Tensor


def asked_counts(batch: Batch) -> tuple[int, int, int]:
    """Return how many positions of each task a batch asks for. On a GPU this would wait; ask before it goes there."""
    with_image = int(batch.word_target_with_image.sum())
    return with_image, len(batch.word_targets) - with_image, len(batch.roi_target_ids)


def loss_sums(predictions: Predictions, batch: Batch) -> LossSums:
    """Return the losses of all asked positions, summed by task, in float32 whatever the model computes in."""
    logits = predictions.word_logits.float()  # [M, V]
    losses = cross_entropy(logits, batch.word_targets, reduction="none")  # [M]
    right = (logits.detach().argmax(dim=1) == batch.word_targets).float()
    has_image = batch.word_target_with_image
    roi_losses, roi_right = _rois(predictions.roi_logits.float(), batch)
    sums = [_where(has_image, losses), _where(~has_image, losses), roi_losses]
    correct = [_where(has_image, right), _where(~has_image, right), roi_right]
    return LossSums(sums=torch.stack(sums), correct=torch.stack(correct))


def _where(chosen: Tensor, values: Tensor) -> Tensor:
    """Return the sum of the chosen values; what is not chosen, NaN too, does not count."""
    return torch.where(chosen, values, 0.0).sum()


def _rois(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return (sum of losses, right guesses) of masked RoIs with `logits` [Q, C]; right: the likeliest class is guessed.

    The loss is the cross-entropy to the stored distribution, whose K kept classes are scaled to add up to 1. What was
    cut off at build time (the residual) is not spread over the other classes: nobody knows where it lay, and a model
    should not be taught that it was everywhere. With all classes stored this is the released code's soft
    cross-entropy; with one class it is the usual cross-entropy.
    Source: VL-BERT, section 3.3 (masked RoI classification); soft targets as in its released code.
    """
    if not len(batch.roi_target_ids):
        nothing = logits.sum()  # 0, and still a part of the graph
        return nothing, nothing.detach()
    ids, probs = batch.roi_target_ids, batch.roi_target_probs
    targets = probs / probs.sum(dim=1, keepdim=True)  # [Q, K]
    log_probs = logits.log_softmax(dim=1).gather(1, ids)  # [Q, K]
    likeliest = ids.gather(1, probs.argmax(dim=1, keepdim=True))[:, 0]  # [Q]
    right = (logits.detach().argmax(dim=1) == likeliest).float().sum()
    return -(targets * log_probs).sum(), right
