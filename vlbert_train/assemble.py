"""Putting batches together. Promise: every row knows its place; nothing is padded and no feature is copied again.

A group is several batches whose rows are made at once, because the same arithmetic on many short arrays would cost
several times as much as on few long ones. A batch is then a slice of every array.

Letters as in `batch`, here of the whole group; D batches, C caption sequences. In each batch the caption sequences come
first, then the text-only ones. Rows of RoIs: all RoIs of the batch, then its whole images, each at the first RoI
position of its sequence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlbert_data import runs
from vlbert_data.token_file import TokenRuns
from vlbert_data.types import Array
from vlbert_train.batch import Batch
from vlbert_train.masking import MaskedWords
from vlbert_train.rois import Rois

TEXT_SEGMENT, ROI_SEGMENT = 0, 2
WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Which sequences are in which batch.

    captions, texts: int64 [D + 1], the number of sequences of that kind before each batch.
    """

    captions: Array
    texts: Array

    @staticmethod
    def of(num_captions: Sequence[int], num_texts: Sequence[int]) -> "Layout":
        """Return the layout of batches with so many captions and texts each; none is empty."""
        return Layout(captions=runs.borders(np.array(num_captions)), texts=runs.borders(np.array(num_texts)))

    def __len__(self) -> int:
        return len(self.captions) - 1

    @property
    def sequences(self) -> Array:
        """Return int64 [D + 1]: the number of sequences before each batch."""
        return self.captions + self.texts

    def has_image(self) -> Array:
        """Return bool [B]: which sequences are captions."""
        sizes = np.stack([np.diff(self.captions), np.diff(self.texts)], axis=1)  # [D, 2]
        return np.repeat(np.tile([True, False], len(self)), sizes.ravel())


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """The words of all B sequences, without [CLS] and [SEP], and what is asked of them."""

    tokens: TokenRuns
    masked: MaskedWords
    cls_id: int
    sep_id: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """A group without its features. rows: the arrays of `Batch` by name, batch after batch.

    borders: for each kind of rows, those before each batch, D + 1 numbers. max_seqlens: D numbers.
    """

    rows: Mapping[str, Array]
    borders: Mapping[str, Sequence[int]]
    max_seqlens: Sequence[int]

    def batch(self, number: int, features: Tensor, step: int) -> Batch:
        """Return batch `number`. features: f16 [N + t, F], its rows of RoIs, then t rows of text-only sequences."""
        parts = {kind: slice(*borders[number : number + 2]) for kind, borders in self.borders.items()}
        tensors = {name: torch.from_numpy(self.rows[name][parts[kind]]) for name, kind in KINDS.items()}
        num_rows = len(tensors["roi_slots"])
        return Batch(
            roi_features=features[:num_rows],
            image_features=features[len(features) - len(tensors["has_image"]) :],
            max_seqlen=self.max_seqlens[number],
            step=step,
            **tensors,
        )


# The kind of rows that each array of a batch has.
KINDS = {
    "token_ids": "tokens",
    "token_slots": "tokens",
    "token_sequence": "tokens",
    "roi_geometry": "rois",
    "roi_slots": "rois",
    "roi_sequence": "rois",
    "roi_hidden": "rois",
    "has_image": "sequences",
    "end_slots": "sequences",
    "example_ids": "sequences",
    "cu_seqlens": "cu_seqlens",
    "position_ids": "slots",
    "segment_ids": "slots",
    "word_targets": "asked words",
    "word_target_slots": "asked words",
    "word_target_with_image": "asked words",
    "roi_target_ids": "asked RoIs",
    "roi_target_probs": "asked RoIs",
    "roi_target_slots": "asked RoIs",
}


def pack(words: Words, rois: Rois, layout: Layout, examples: Array) -> Packed:
    """Return the group of these words and RoIs. examples: int64 [B], the numbers of the sequences' examples."""
    has_image, cuts = layout.has_image(), layout.sequences
    batch = runs.owners(np.diff(cuts))  # [B]
    word_lengths = np.diff(words.tokens.cu_lengths)  # [B]
    text_lengths = word_lengths + 2 * has_image  # with [CLS] and [SEP]
    lengths = text_lengths + 1  # [END]
    lengths[has_image] += rois.lengths + 1  # the whole image
    slots = runs.borders(lengths)
    starts = slots[:-1] - slots[cuts][batch]  # [B], all places from here on count from their batch's first one
    sequence = np.arange(len(batch)) - cuts[batch]  # [B]
    cu_seqlens = np.zeros(len(batch) + len(layout), np.int32)
    cu_seqlens[np.arange(len(batch)) + batch + 1] = starts + lengths
    position_ids, segment_ids = _positions(text_lengths, lengths, slots)
    texts, text_borders = _text_rows(words, text_lengths, starts, has_image)
    roi_rows, roi_borders = _roi_rows(rois, layout, (starts + text_lengths)[has_image], sequence[has_image])
    asked_words = words.masked.asked
    rows: dict[str, Array] = {
        **texts,
        **roi_rows,
        "token_sequence": np.repeat(sequence, text_lengths),
        "has_image": has_image,
        "end_slots": starts + lengths - 1,
        "example_ids": examples,
        "cu_seqlens": cu_seqlens,
        "position_ids": position_ids,
        "segment_ids": segment_ids,
    }
    borders = {
        "sequences": cuts,
        "cu_seqlens": cuts + np.arange(len(cuts)),
        "slots": slots[cuts],
        "tokens": text_borders[cuts],
        "asked words": np.searchsorted(asked_words, words.tokens.cu_lengths[cuts]),
        **roi_borders,
    }
    return Packed(
        rows=rows,
        borders={kind: border.tolist() for kind, border in borders.items()},
        max_seqlens=np.maximum.reduceat(lengths, cuts[:-1]).tolist(),
    )


def _text_rows(words: Words, text_lengths: Array, starts: Array, has_image: Array) -> tuple[dict[str, Array], Array]:
    """Return the rows of text tokens and of asked words, and the text tokens before each sequence, int64 [B + 1]."""
    borders = runs.borders(text_lengths)
    token_slots = runs.places(starts, text_lengths)  # [T]
    # Where each word's tokens stand among the T text tokens.
    places = runs.places(borders[:-1] + has_image, np.diff(words.tokens.cu_lengths))
    token_ids = np.empty(len(token_slots), np.int64)
    token_ids[places] = words.masked.shown
    token_ids[borders[:-1][has_image]] = words.cls_id
    token_ids[borders[1:][has_image] - 1] = words.sep_id
    asked = words.masked.asked  # [M]
    owner = np.searchsorted(words.tokens.cu_lengths, asked, side="right") - 1  # [M]
    rows = {
        "token_ids": token_ids,
        "token_slots": token_slots,
        "word_targets": words.tokens.ids[asked],
        "word_target_slots": token_slots[places[asked]],
        "word_target_with_image": has_image[owner],
    }
    return rows, borders


def _roi_rows(rois: Rois, layout: Layout, starts: Array, sequence: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the rows of RoIs with whole images and of asked RoIs, and the borders of both.

    starts, sequence: int64 [C], the slot of each whole image and the number of its sequence, both in its batch.
    """
    cuts = layout.captions
    borders = runs.borders(rois.lengths)[cuts]  # [D + 1], RoIs before each batch
    batch = runs.owners(np.diff(cuts))  # [C]
    num = len(rois.hidden) + len(batch)
    # Before a RoI stand the whole images of earlier batches, before a whole image all RoIs up to its own batch's last.
    row = np.arange(len(rois.hidden)) + np.repeat(cuts[batch], rois.lengths)  # [R]
    image_row = np.arange(len(batch)) + borders[batch + 1]  # [C]
    geometry, hidden = np.empty((num, 4), np.float32), np.zeros(num, np.bool_)
    slots, sequences = np.empty(num, np.int64), np.empty(num, np.int64)
    roi_slots = runs.places(starts + 1, rois.lengths)  # [R]
    geometry[row], geometry[image_row] = rois.geometry, WHOLE_IMAGE
    slots[row], slots[image_row] = roi_slots, starts
    sequences[row], sequences[image_row] = np.repeat(sequence, rois.lengths), sequence
    hidden[row] = rois.hidden
    rows: dict[str, Array] = {
        "roi_geometry": geometry,
        "roi_slots": slots,
        "roi_sequence": sequences,
        "roi_hidden": hidden,
        "roi_target_ids": rois.target_ids,
        "roi_target_probs": rois.target_probs,
        "roi_target_slots": roi_slots[rois.asked],
    }
    return rows, {"rois": borders + cuts, "asked RoIs": np.searchsorted(rois.asked, borders)}


def _positions(text_lengths: Array, lengths: Array, slots: Array) -> tuple[Array, Array]:
    """Return (position_ids, segment_ids), int64 [S] each, of sequences of `lengths` that begin with text.

    Positions run over the text; all RoIs share the next one and [END] has the one after, also where there is no RoI.
    slots: int64 [B + 1], the borders of the sequences. Source: VL-BERT's released code.
    """
    text_lengths_s = np.repeat(text_lengths, lengths)  # [S]
    within = np.arange(slots[-1]) - np.repeat(slots[:-1], lengths)  # [S]
    segments = np.where(within < text_lengths_s, TEXT_SEGMENT, ROI_SEGMENT)
    positions = np.minimum(within, text_lengths_s)
    positions[slots[1:] - 1] = text_lengths + 1
    return positions, segments
