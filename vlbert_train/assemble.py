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
from vlbert_data.compiled import compiled
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
    position_ids, segment_ids = _positions(text_lengths, lengths)
    texts, text_borders = _text_rows(words, text_lengths, starts, sequence, has_image)
    roi_rows, roi_borders = _roi_rows(rois, layout, (starts + text_lengths)[has_image], sequence[has_image])
    asked_words = words.masked.asked
    rows: dict[str, Array] = {
        **texts,
        **roi_rows,
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


def _text_rows(
    words: Words, text_lengths: Array, starts: Array, sequence: Array, has_image: Array
) -> tuple[dict[str, Array], Array]:
    """Return the rows of text tokens and of asked words, and the text tokens before each sequence, int64 [B + 1]."""
    borders, asked = runs.borders(text_lengths), words.masked.asked
    token_ids, token_slots, token_sequence = np.empty((3, int(borders[-1])), np.int64)
    target_slots, with_image = np.empty(len(asked), np.int64), np.empty(len(asked), np.bool_)
    _fill_texts(
        (token_ids, token_slots, token_sequence, target_slots, with_image),
        (words.masked.shown, words.tokens.cu_lengths, asked),
        (starts, sequence, has_image),
        (words.cls_id, words.sep_id),
    )
    rows = {
        "token_ids": token_ids,
        "token_slots": token_slots,
        "token_sequence": token_sequence,
        "word_targets": words.tokens.ids[asked],
        "word_target_slots": target_slots,
        "word_target_with_image": with_image,
    }
    return rows, borders


@compiled
def _fill_texts(
    rows: tuple[Array, ...],
    tokens: tuple[Array, Array, Array],
    sequences: tuple[Array, Array, Array],
    ids: tuple[int, int],
) -> None:
    """Fill rows: ids, slots and sequences of tokens, slots of asked words and whether they have an image.

    tokens: shown, cu_lengths and asked. sequences: starts, numbers and has_image. ids: CLS, SEP.
    """
    token_ids, token_slots, token_sequence, target_slots, with_image = rows
    shown, cu_lengths, asked = tokens
    starts, numbers, has_image = sequences
    row = target = 0
    for sequence in range(len(starts)):
        first, first_row, start = cu_lengths[sequence], row, starts[sequence]
        if has_image[sequence]:
            token_ids[row] = ids[0]
            row += 1
        while target < len(asked) and asked[target] < cu_lengths[sequence + 1]:
            target_slots[target] = start + row - first_row + asked[target] - first
            with_image[target] = has_image[sequence]
            target += 1
        for place in range(cu_lengths[sequence + 1] - first):
            token_ids[row + place] = shown[first + place]
        row += cu_lengths[sequence + 1] - first
        if has_image[sequence]:
            token_ids[row] = ids[1]
            row += 1
        for place in range(row - first_row):
            token_slots[first_row + place] = start + place
            token_sequence[first_row + place] = numbers[sequence]


def _roi_rows(rois: Rois, layout: Layout, starts: Array, sequence: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the rows of RoIs with whole images and of asked RoIs, and the borders of both.

    starts, sequence: int64 [C], the slot of each whole image and the number of its sequence, both in its batch.
    """
    first = runs.borders(rois.lengths)
    num = len(rois.hidden) + len(sequence)
    rows: dict[str, Array] = {
        "roi_geometry": np.empty((num, 4), np.float32),
        "roi_hidden": np.empty(num, np.bool_),
        "roi_slots": np.empty(num, np.int64),
        "roi_sequence": np.empty(num, np.int64),
        "roi_target_slots": np.empty(len(rois.asked), np.int64),
    }
    _fill_rois(
        tuple(rows.values()),
        (rois.geometry, rois.hidden, rois.asked),
        (rois.lengths, starts, sequence),
        layout.captions,
    )
    rows |= {"roi_target_ids": rois.target_ids, "roi_target_probs": rois.target_probs}
    borders = first[layout.captions]  # [D + 1], RoIs before each batch
    return rows, {"rois": borders + layout.captions, "asked RoIs": np.searchsorted(rois.asked, borders)}


@compiled
def _fill_rois(
    rows: tuple[Array, ...], stored: tuple[Array, Array, Array], images: tuple[Array, Array, Array], cuts: Array
) -> None:
    """Fill rows: geometry, hidden, slots, sequences, and slots of asked RoIs.

    stored: geometry and hidden of all RoIs, without whole images, and asked, int64 rising. images: int64 [C] each, the
    number of RoIs, the whole image's slot and the number of the sequence.
    """
    geometry, hidden, slots, sequences, target_slots = rows
    stored_geometry, stored_hidden, asked = stored
    lengths, starts, sequence = images
    row = roi = target = 0
    for batch in range(len(cuts) - 1):
        for image in range(cuts[batch], cuts[batch + 1]):
            num = lengths[image]
            hidden[row : row + num] = stored_hidden[roi : roi + num]
            sequences[row : row + num] = sequence[image]
            for place in range(num):
                slots[row + place] = starts[image] + 1 + place
                for corner in range(4):
                    geometry[row + place, corner] = stored_geometry[roi + place, corner]
            while target < len(asked) and asked[target] < roi + num:
                target_slots[target] = starts[image] + 1 + asked[target] - roi
                target += 1
            row, roi = row + num, roi + num
        for image in range(cuts[batch], cuts[batch + 1]):
            hidden[row], slots[row], sequences[row] = False, starts[image], sequence[image]
            for corner in range(4):
                geometry[row, corner] = WHOLE_IMAGE[corner]
            row += 1


def _positions(text_lengths: Array, lengths: Array) -> tuple[Array, Array]:
    """Return (position_ids, segment_ids), int64 [S] each, of sequences of `lengths` that begin with text.

    Positions run over the text; all RoIs share the next one and [END] has the one after, also where there is no RoI.
    Source: VL-BERT's released code.
    """
    positions, segments = np.empty((2, int(lengths.sum())), np.int64)
    _fill_positions(positions, segments, text_lengths, lengths)
    return positions, segments


@compiled
def _fill_positions(positions: Array, segments: Array, text_lengths: Array, lengths: Array) -> None:
    slot = 0
    for text, length in np.stack((text_lengths, lengths), axis=1):
        for place in range(length):
            positions[slot + place] = min(place, text)
            segments[slot + place] = TEXT_SEGMENT if place < text else ROI_SEGMENT
        slot += length
        positions[slot - 1] = text + 1
