"""Putting a Batch together. Promise: every row knows its place; nothing is padded and no feature is copied again.

Letters as in `batch`; n caption sequences come first, then the text-only ones. Rows of RoIs: all RoIs, then the n whole
images, each at the first RoI position of its sequence.
"""

from dataclasses import dataclass

import numpy as np
import torch

from vlbert_data import runs
from vlbert_data.token_file import TokenRuns
from vlbert_data.types import Array
from vlbert_train.batch import Batch
from vlbert_train.masking import MaskedWords
from vlbert_train.rois import Rois

TEXT_SEGMENT, ROI_SEGMENT = 0, 2
WHOLE_IMAGE = np.array([[0.0, 0.0, 1.0, 1.0]], np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """The words of all B sequences, without [CLS] and [SEP], and what is asked of them."""

    tokens: TokenRuns
    masked: MaskedWords
    cls_id: int
    sep_id: int


def assemble(words: Words, rois: Rois, examples: Array, step: int) -> Batch:
    """Return the batch of these words and RoIs. examples: int64 [B], the numbers of the sequences' examples."""
    num = len(rois.lengths)
    word_lengths = np.diff(words.tokens.cu_lengths)  # [B]
    text_lengths, roi_lengths = word_lengths.copy(), np.zeros_like(word_lengths)
    text_lengths[:num] += 2  # [CLS] and [SEP]
    roi_lengths[:num] = rois.lengths + 1  # the whole image
    lengths = text_lengths + roi_lengths + 1  # [END]
    cu_lengths = runs.borders(lengths)
    starts = cu_lengths[:-1]
    token_starts = runs.borders(text_lengths)[:-1]
    token_slots = runs.places(starts, text_lengths)  # [T]
    token_sequence = runs.owners(text_lengths)  # [T]
    # Where each word token stands among the T text tokens.
    places = runs.places(token_starts + (np.arange(len(lengths)) < num), word_lengths)
    token_ids = np.empty(len(token_slots), np.int64)
    token_ids[places] = words.masked.shown
    token_ids[token_starts[:num]] = words.cls_id
    token_ids[token_starts[:num] + text_lengths[:num] - 1] = words.sep_id
    asked = places[words.masked.asked]  # [M]
    roi_starts = (starts + text_lengths)[:num]  # [n], the slots of whole images
    roi_slots = runs.places(roi_starts + 1, rois.lengths)  # [R]
    num_rois = len(roi_slots)
    position_ids, segment_ids = _positions(text_lengths, lengths, cu_lengths)
    arrays = {
        "token_ids": token_ids,
        "token_slots": token_slots,
        "token_sequence": token_sequence,
        "roi_geometry": np.concatenate([rois.geometry, np.repeat(WHOLE_IMAGE, num, axis=0)]),
        "roi_slots": np.concatenate([roi_slots, roi_starts]),
        "roi_sequence": np.concatenate([runs.owners(rois.lengths), np.arange(num)]),
        "roi_hidden": np.concatenate([rois.hidden, np.zeros(num, np.bool_)]),
        "has_image": np.arange(len(lengths)) < num,
        "end_slots": cu_lengths[1:] - 1,
        "position_ids": position_ids,
        "segment_ids": segment_ids,
        "cu_seqlens": cu_lengths.astype(np.int32),
        "word_targets": words.tokens.ids[words.masked.asked],
        "word_target_slots": token_slots[asked],
        "word_target_with_image": token_sequence[asked] < num,
        "roi_target_ids": rois.target_ids,
        "roi_target_probs": rois.target_probs,
        "roi_target_slots": roi_slots[rois.asked],
        "example_ids": examples,
    }
    return Batch(
        roi_features=rois.features[: num_rois + num],
        image_features=rois.features[num_rois:],
        max_seqlen=int(lengths.max()),
        step=step,
        **{name: torch.from_numpy(array) for name, array in arrays.items()},
    )


def _positions(text_lengths: Array, lengths: Array, cu_lengths: Array) -> tuple[Array, Array]:
    """Return (position_ids, segment_ids), int64 [S] each, of sequences of `lengths` that begin with text.

    Positions run over the text; all RoIs share the next one and [END] has the one after, also where there is no RoI.
    Source: VL-BERT's released code.
    """
    text_lengths_s = np.repeat(text_lengths, lengths)  # [S]
    within = runs.places(np.zeros_like(lengths), lengths)  # [S]
    positions = np.minimum(within, text_lengths_s)
    positions[cu_lengths[1:] - 1] = text_lengths + 1
    return positions, np.where(within < text_lengths_s, TEXT_SEGMENT, ROI_SEGMENT)
