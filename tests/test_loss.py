"""Losses against a slow obvious version: one asked position after another, in float64."""

import math
from dataclasses import replace

import pytest
import torch
from golden_vlbert import golden_batch
from torch import Tensor

from vlbert_train.batch import Batch, Predictions
from vlbert_train.loss import asked_counts, loss_sums

VOCABULARY, CLASSES = 120, 13


def sparse_batch() -> Batch:
    """The golden batch with three kept classes of each asked RoI, whose probabilities add up to less than 1."""
    batch, generator = golden_batch(), torch.Generator().manual_seed(0)
    num = len(batch.roi_target_slots)
    ids = torch.stack([torch.randperm(CLASSES, generator=generator)[:3] for _ in range(num)])
    probs = torch.rand(num, 3, generator=generator) / 3
    probs[0] = torch.tensor([0.0, 0.7, 0.0])  # one class kept, the other places empty
    return replace(batch, roi_target_ids=ids, roi_target_probs=probs)


def random_predictions(batch: Batch) -> Predictions:
    generator = torch.Generator().manual_seed(1)
    words = torch.randn(len(batch.word_targets), VOCABULARY, generator=generator)
    rois = torch.randn(len(batch.roi_target_slots), CLASSES, generator=generator)
    words[3, batch.word_targets[3]] = 50.0  # at least one right guess of each kind
    words[-1, batch.word_targets[-1]] = 50.0
    rois[0, batch.roi_target_ids[0, batch.roi_target_probs[0].argmax()]] = 50.0
    return Predictions(word_logits=words.requires_grad_(), roi_logits=rois.requires_grad_())


def log_softmax(logits: list[float]) -> list[float]:
    total = math.log(math.fsum(math.exp(value) for value in logits))
    return [value - total for value in logits]


def slow(predictions: Predictions, batch: Batch) -> tuple[list[float], list[int]]:
    sums, correct = [0.0, 0.0, 0.0], [0, 0, 0]
    rows = predictions.word_logits.double().tolist()
    for row, target, seen in zip(rows, batch.word_targets.tolist(), batch.word_target_with_image.tolist(), strict=True):
        task = 0 if seen else 1
        sums[task] -= log_softmax(row)[target]
        correct[task] += row.index(max(row)) == target
    rows = predictions.roi_logits.double().tolist()
    for row, ids, probs in zip(rows, batch.roi_target_ids.tolist(), batch.roi_target_probs.tolist(), strict=True):
        log_probs, kept = log_softmax(row), sum(probs)
        sums[2] -= sum(prob / kept * log_probs[label] for label, prob in zip(ids, probs, strict=True))
        correct[2] += row.index(max(row)) == ids[probs.index(max(probs))]
    return sums, correct


@pytest.mark.parametrize("make", [golden_batch, sparse_batch])
def test_sums_and_right_guesses_are_those_of_one_position_after_another(make) -> None:  # type: ignore[no-untyped-def]
    batch = make()
    predictions = random_predictions(batch)
    found, (sums, correct) = loss_sums(predictions, batch), slow(random_predictions(batch), batch)
    torch.testing.assert_close(found.sums.double(), torch.tensor(sums, dtype=torch.float64), rtol=1e-5, atol=0)
    assert found.correct.tolist() == correct
    assert all(correct)
    assert not found.correct.requires_grad


def test_counts_tell_words_with_an_image_from_words_of_text() -> None:
    batch = golden_batch()
    assert asked_counts(batch) == (8, 8, 4)
    assert len(batch.word_targets) == 16


def test_halves_of_a_batch_add_up() -> None:
    batch = golden_batch()
    predictions = random_predictions(batch)
    whole = loss_sums(predictions, batch)

    def part(words: slice, rois: slice) -> Tensor:
        names = ("word_targets", "word_target_slots", "word_target_with_image")
        own = replace(
            batch,
            **{name: getattr(batch, name)[words] for name in names},
            roi_target_ids=batch.roi_target_ids[rois],
            roi_target_probs=batch.roi_target_probs[rois],
            roi_target_slots=batch.roi_target_slots[rois],
        )
        logits = Predictions(word_logits=predictions.word_logits[words], roi_logits=predictions.roi_logits[rois])
        return loss_sums(logits, own).sums

    parts = part(slice(0, 5), slice(0, 4)) + part(slice(5, None), slice(4, None))
    torch.testing.assert_close(parts, whole.sums)


def test_probability_that_was_cut_off_is_not_taught() -> None:
    batch = sparse_batch()
    halved = replace(batch, roi_target_probs=batch.roi_target_probs / 2)
    predictions = random_predictions(batch)
    torch.testing.assert_close(loss_sums(predictions, halved).sums[2], loss_sums(predictions, batch).sums[2])


def test_half_precision_predictions_are_summed_in_single_precision() -> None:
    batch = golden_batch()
    exact = random_predictions(batch)
    half = Predictions(word_logits=exact.word_logits.bfloat16(), roi_logits=exact.roi_logits.bfloat16())
    found = loss_sums(half, batch).sums
    assert found.dtype == torch.float32
    rounded = Predictions(word_logits=half.word_logits.float(), roi_logits=half.roi_logits.float())
    assert torch.equal(found, loss_sums(rounded, batch).sums)


def test_a_task_that_is_not_asked_is_0_and_leaves_the_others_alone() -> None:
    batch = golden_batch()
    predictions = random_predictions(batch)
    texts = replace(batch, word_target_with_image=torch.zeros_like(batch.word_target_with_image))
    poisoned = predictions.word_logits.detach().clone()
    poisoned[0] = math.nan
    found = loss_sums(predictions, texts)
    assert found.sums[0] == 0
    mixed = loss_sums(Predictions(word_logits=poisoned, roi_logits=predictions.roi_logits), batch).sums
    assert mixed.isnan().tolist() == [True, False, False]
