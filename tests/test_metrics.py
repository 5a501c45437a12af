"""Figures: sums and one division, non-finite numbers named, files that TensorBoard and jq read."""

import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from limits import files_end_at

from vlbert_data.errors import VlbError
from vlbert_train import metrics
from vlbert_train.distributed import World
from vlbert_train.metrics import FigureFiles, NonFiniteError, StepRecord, Window
from vlbert_train.run_folder import RunFolder


def _record(step: int, losses: list[float], counts: tuple[int, int, int], norm: float = 1.0) -> StepRecord:
    return StepRecord(
        step=step,
        loss_sums=torch.tensor(losses),
        correct=torch.tensor([1.0, 0.0, 2.0]),
        norm=torch.tensor(norm),
        counts=counts,
        example_ids=[10 * step, 10 * step + 1],
        positions=50,
        wait_s=0.25,
    )


def _ticks() -> Iterator[float]:
    yield from range(100)


def test_a_line_is_sums_over_its_steps_divided_once() -> None:
    clock = _ticks()
    window = Window(World(), clock=lambda: next(clock) * 2.0)
    window.add(_record(0, [3.0, 0.0, 8.0], (1, 0, 4)))
    window.add(_record(1, [9.0, 0.0, 2.0], (3, 0, 6)))
    figures = window.close()
    assert figures == {
        "loss": 12 / 4 + 10 / 10,
        "words_with_image_loss": 3.0,
        "words_with_image_accuracy": 2 / 4,
        "rois_loss": 1.0,
        "rois_accuracy": 4 / 10,
        "grad_norm": 1.0,
        "examples_per_s": 4 / 2,
        "tokens_per_s": 100 / 2,
        "data_wait": 0.5 / 2,
    }
    assert len(window) == 0


def test_time_between_lines_that_is_not_training_does_not_count() -> None:
    times = iter([0.0, 100.0, 101.0])
    window = Window(World(), clock=lambda: next(times))
    window.restart()
    window.add(_record(0, [1.0, 1.0, 1.0], (1, 1, 1)))
    assert window.close()["examples_per_s"] == 2.0


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan)])
def test_the_first_step_that_is_not_finite_is_named_with_losses_and_examples(loss: float, norm: float) -> None:
    window = Window(World())
    window.add(_record(6, [1.0, 1.0, 1.0], (1, 1, 1)))
    window.add(_record(7, [3.0, loss, 1.0], (2, 1, 0), norm))
    window.add(_record(8, [math.nan] * 3, (1, 1, 1), math.nan))
    with pytest.raises(NonFiniteError) as caught:
        window.close()
    assert str(caught.value).startswith("step 7: loss or gradient is not finite")
    assert f"words_with_image 1.5, words_of_text {loss:.6g}, rois 0; gradient norm {norm:.6g}" in str(caught.value)
    assert "Its examples: 70, 71." in str(caught.value)


def test_lines_are_read_back_by_json_and_tensorboard_and_a_resumed_run_voids_later_ones(tmp_path: Path) -> None:
    run = RunFolder(path=tmp_path)
    with FigureFiles(run, first_step=0, tensorboard=True) as files:
        for step in (10, 20, 30):
            files.write("train", step, {"loss": step / 7})
    with FigureFiles(run, first_step=20, tensorboard=True) as files:
        files.write("train", 40, {"loss": 1.0})
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert lines[0] == {"kind": "train", "step": 10, "loss": 10 / 7}
    assert [line["step"] for line in lines] == [10, 20, 30, 40]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(run.tensorboard)).Reload().Scalars("train/loss")
    assert [(event.step, pytest.approx(event.value)) for event in events] == [(10, 10 / 7), (20, 20 / 7), (40, 1.0)]


def test_figures_for_people_fit_one_line() -> None:
    figures = {
        "loss": 9.3111,
        "words_with_image_accuracy": 0.3149,
        "rois_accuracy": 1.0,
        "examples_per_s": 1234.5,
        "tokens_per_s": 45678.9,
        "data_wait": 0.004,
    }
    assert metrics.one_line(figures) == (
        "loss 9.311 | words with image 31.5% | rois 100.0% | 1,234 examples/s | 45,679 tokens/s | data wait 0.4%"
    )
    assert [metrics.duration(s) for s in (0, 59.6, 309, 7509)] == ["0:00", "1:00", "5:09", "2:05:09"]


def test_a_disk_that_is_full_is_reported_where_it_is_met(tmp_path: Path) -> None:
    with FigureFiles(RunFolder(path=tmp_path), first_step=0, tensorboard=False) as files:
        files.write("train", 1, {"loss": 1.0})
        with files_end_at(1), pytest.raises(VlbError, match=r"cannot be written: File too large\. What is there stays"):
            files.write("train", 2, {"loss": 1.0})
