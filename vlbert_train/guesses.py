"""Single examples with what a model guesses of them, for people to look at.

Promise: the same words and RoIs are masked as where the whole set is measured, and each guess stands beside the truth.
Letters as in `batch`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlbert_data.tokenizer import TextTokenizer
from vlbert_data.types import Array, ImageRois
from vlbert_train.batch import Batch, Predictions
from vlbert_train.captions import CaptionSet
from vlbert_train.evaluate import OpenedRun
from vlbert_train.supply import Supply

GUESSES_KEPT = 5
BATCH = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Guess:
    """A word piece or a class, and its probability, 0..1."""

    name: str
    probability: float


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedWord:
    """A word piece that was asked. place: among the caption's pieces. shown: the piece that stood there instead.

    guesses: the likeliest with the right image, other_guesses: with another one, empty where there is none; likeliest
    first. probability, other_probability: the truth's. is_right, is_other_right: the truth is the likeliest guess.
    """

    place: int
    truth: str
    shown: str
    guesses: tuple[Guess, ...]
    other_guesses: tuple[Guess, ...]
    probability: float
    other_probability: float | None
    is_right: bool
    is_other_right: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedRoi:
    """A RoI that was asked, by its number in the image. truth: its stored classes, likeliest first, adding up to 1.

    is_right: the likeliest guess is its likeliest class.
    """

    roi: int
    truth: tuple[Guess, ...]
    guesses: tuple[Guess, ...]
    is_right: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class GuessedExample:
    """A caption with its image. name: for people. pieces: (text, whether it begins a word) of the caption, truncated.

    hidden: the RoIs that the model did not see, asked or not. num_rois: how many RoIs of the image it was given at all.
    other: the image that was shown instead of the right one.
    """

    name: str
    image: ImageRois
    pieces: tuple[tuple[str, bool], ...]
    words: tuple[MaskedWord, ...]
    rois: tuple[MaskedRoi, ...]
    hidden: tuple[int, ...]
    num_rois: int
    other: ImageRois | None


def guess_examples(opened: OpenedRun, examples: Array) -> Iterator[GuessedExample]:
    """Yield measured captions, int64 [n], in order, each with the model's guesses."""
    captions = opened.supply.measured.captions
    if captions is None:
        return
    with opened.forward.evaluating():
        for first in range(0, len(examples), BATCH):
            yield from _guess_batch(opened, captions, examples[first : first + BATCH])


def _guess_batch(opened: OpenedRun, captions: CaptionSet, examples: Array) -> Iterator[GuessedExample]:
    supply = opened.supply
    right = _answers(opened, supply.measured_batch(examples))
    other = None
    if captions.num_images > 1:
        other = _answers(opened, supply.measured_batch(examples, other_image=True))
    for example in examples.tolist():
        yield _describe(supply, captions, example, (right, other))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answers:
    """A batch on the CPU, what was answered to it as probabilities, and the sequence of each example."""

    batch: Batch
    words: Tensor
    rois: Tensor
    sequences: Mapping[int, int]

    def bounds(self, example: int) -> tuple[int, int]:
        """Return the slots of an example: the first, and the one after the last."""
        sequence = self.sequences[example]
        begin, end = self.batch.cu_seqlens[sequence : sequence + 2].tolist()
        return begin, end

    def asked_words(self, example: int) -> dict[int, int]:
        """Return place among the caption's pieces -> row of `words` of what was asked."""
        begin, end = self.bounds(example)
        slots = self.batch.word_target_slots
        rows = torch.nonzero((slots >= begin) & (slots < end))[:, 0].tolist()
        return {int(slots[row]) - begin - 1: row for row in rows}  # [CLS] stands first


def _answers(opened: OpenedRun, batch: Batch) -> _Answers:
    predictions: Predictions = opened.forward.predict(batch)
    return _Answers(
        batch=batch,
        words=predictions.word_logits.float().softmax(dim=1).cpu(),
        rois=predictions.roi_logits.float().softmax(dim=1).cpu(),
        sequences={example: number for number, example in enumerate(batch.example_ids.tolist())},
    )


def _describe(
    supply: Supply, captions: CaptionSet, example: int, answers: tuple[_Answers, _Answers | None]
) -> GuessedExample:
    right, other = answers
    begin, end = right.bounds(example)
    located = captions.locate(np.array([example]))
    image = captions.folders[int(located.folder[0])].read(int(located.image[0]))
    hidden, first_roi = _hidden_rois(right.batch, begin, end)
    num_pieces = first_roi - begin - 2  # [CLS] before, [SEP] and then the whole image behind
    tokens = captions.tokens(located, np.array([num_pieces]))
    pieces = [
        (supply.tokenizer.piece(token), starts) for token, starts in zip(tokens.ids, tokens.starts_word, strict=True)
    ]
    return GuessedExample(
        name=captions.name(example),
        image=image,
        pieces=tuple((text, bool(starts)) for text, starts in pieces),
        words=tuple(_words(supply.tokenizer, example, right, other)),
        rois=tuple(_rois(supply, right, (begin, end), first_roi)),
        hidden=tuple(hidden),
        num_rois=end - 1 - first_roi - 1,
        other=None if other is None else _other_image(captions, example),
    )


def _other_image(captions: CaptionSet, example: int) -> ImageRois:
    folder, image = captions.other_images(np.array([example]))
    return captions.folders[int(folder[0])].read(int(image[0]))


def _hidden_rois(batch: Batch, begin: int, end: int) -> tuple[list[int], int]:
    """Return the numbers of hidden RoIs of the sequence in these slots, and the slot of its whole image."""
    own = (batch.roi_slots >= begin) & (batch.roi_slots < end)
    first = int(batch.roi_slots[own].min())
    hidden = batch.roi_slots[own & batch.roi_hidden]
    return sorted((hidden - first - 1).tolist()), first


def _words(tokenizer: TextTokenizer, example: int, right: _Answers, other: _Answers | None) -> Iterator[MaskedWord]:
    begin, _ = right.bounds(example)
    rows_of_other = {} if other is None else other.asked_words(example)
    shown = dict(zip(right.batch.token_slots.tolist(), right.batch.token_ids.tolist(), strict=True))
    for place, row in sorted(right.asked_words(example).items()):
        target = int(right.batch.word_targets[row])
        also = None if other is None else other.words[rows_of_other[place]]
        yield MaskedWord(
            place=place,
            truth=tokenizer.piece(target),
            shown=tokenizer.piece(shown[begin + 1 + place]),
            guesses=_best_words(tokenizer, right.words[row]),
            other_guesses=() if also is None else _best_words(tokenizer, also),
            probability=float(right.words[row, target]),
            other_probability=None if also is None else float(also[target]),
            is_right=int(right.words[row].argmax()) == target,
            is_other_right=also is not None and int(also.argmax()) == target,
        )


def _best_words(tokenizer: TextTokenizer, probabilities: Tensor) -> tuple[Guess, ...]:
    best = probabilities.topk(min(GUESSES_KEPT, len(probabilities)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple(Guess(name=tokenizer.piece(token), probability=share) for token, share in pairs)


def _rois(supply: Supply, right: _Answers, bounds: tuple[int, int], first_roi: int) -> Iterator[MaskedRoi]:
    slots = right.batch.roi_target_slots
    for row in torch.nonzero((slots >= bounds[0]) & (slots < bounds[1]))[:, 0].tolist():
        ids, shares = right.batch.roi_target_ids[row], right.batch.roi_target_probs[row]
        stored = sorted(zip(ids.tolist(), (shares / shares.sum()).tolist(), strict=True), key=lambda pair: -pair[1])
        best = right.rois[row].topk(min(GUESSES_KEPT, right.rois.shape[1]))
        guessed = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        yield MaskedRoi(
            roi=int(slots[row]) - first_roi - 1,
            truth=_named(supply, stored[:GUESSES_KEPT]),
            guesses=_named(supply, guessed),
            is_right=guessed[0][0] == stored[0][0],
        )


def _named(supply: Supply, pairs: list[tuple[int, float]]) -> tuple[Guess, ...]:
    assert supply.label_space is not None, "a RoI was asked, so classes have names"
    names = supply.label_space.class_names
    return tuple(Guess(name=names[label], probability=share) for label, share in pairs)
