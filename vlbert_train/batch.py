"""The waist between supply and model. Promise: packed, no padding; only asked positions have targets.

Letters: B sequences, S all their positions, T text tokens, N RoIs, F feature width, M asked words, Q asked RoIs,
K classes kept for each RoI. A caption sequence is `[CLS] words [SEP] RoIs [END]`, a text-only one `words [END]`.

The first RoI of a caption sequence is the whole image, as in the released code: its box is (0, 0, 1, 1), its feature
is that of `image_features`, it is never hidden and never asked, and it counts in N. Rows of RoIs and of text tokens may
stand in any order; `*_slots` and `*_sequence` say where they belong.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One packed batch; every `*_slots` holds positions 0..S-1 of the packed sequence.

    token_ids i64 [T], token_slots i64 [T]. roi_features f16 [N, F], roi_geometry f32 [N, 4] (box corners divided by
    the image's width and height, 0..1), roi_slots i64 [N], roi_hidden bool [N] (True: the learned mask embedding stands
    in for the feature). image_features f16 [B, F] with has_image bool [B] (False: a text-only sequence, its row is
    zero). token_sequence i64 [T] and roi_sequence i64 [N]: which sequence each belongs to, 0..B-1. end_slots i64 [B].
    position_ids, segment_ids i64 [S]. cu_seqlens i32 [B+1]: sequence b fills cu_seqlens[b]..cu_seqlens[b+1].
    word_targets i64 [M] at word_target_slots i64 [M]; word_target_with_image bool [M]: its sequence
    has an image.
    roi_target_ids i64 [Q, K], roi_target_probs f32 [Q, K] at roi_target_slots i64 [Q]. example_ids i64 [B]: the numbers
    that the schedule knows the examples by, for error messages. step: the global step this batch belongs to.
    """

    token_ids: Tensor
    token_slots: Tensor
    token_sequence: Tensor
    roi_features: Tensor
    roi_geometry: Tensor
    roi_slots: Tensor
    roi_sequence: Tensor
    roi_hidden: Tensor
    image_features: Tensor
    has_image: Tensor
    end_slots: Tensor
    position_ids: Tensor
    segment_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    word_targets: Tensor
    word_target_slots: Tensor
    word_target_with_image: Tensor
    roi_target_ids: Tensor
    roi_target_probs: Tensor
    roi_target_slots: Tensor
    example_ids: Tensor
    step: int

    @property
    def num_sequences(self) -> int:
        """Return B."""
        return int(self.cu_seqlens.shape[0]) - 1

    @property
    def num_slots(self) -> int:
        """Return S."""
        return int(self.position_ids.shape[0])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """Return this batch with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Return this batch in page-locked memory, from which copies to a GPU run beside computation."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        tensors: dict[str, Any] = {
            entry.name: change(value)
            for entry in fields(self)
            if isinstance(value := getattr(self, entry.name), Tensor)
        }
        return replace(self, **tensors)


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """What the model answers to a Batch. word_logits: [M, V] over the vocabulary. roi_logits: [Q, C] over classes.

    relation_logits: [captions, 2], column 1: caption and image belong together; none where the model has no such head.
    """

    word_logits: Tensor
    roi_logits: Tensor
    relation_logits: Tensor | None = None
