"""Runs: stopped, killed, split and spread in every way, they end where the plain run ends."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from limits import files_end_at
from safetensors.torch import load_file
from tiny_run import NO_DROPOUT, Data, lines_of, make_data
from torch import Tensor

from vlbert_data.errors import ConfigError, VlbError
from vlbert_train import checkpoint, trainer
from vlbert_train.batch import Batch
from vlbert_train.checkpoint import CheckpointError
from vlbert_train.config import PretrainConfig
from vlbert_train.distributed import World
from vlbert_train.examples import open_supply
from vlbert_train.learner import Learner, own_counts
from vlbert_train.loss import asked_counts, loss_sums
from vlbert_train.metrics import TASKS, NonFiniteError
from vlbert_train.model import VLBertForPreTraining, config_of
from vlbert_train.trainer import Outcome, Progress, Watch

WORLD = World()
# So that a process finds the modules that this one finds.
SEARCH = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plain run that others are compared with."""
    out = tmp_path_factory.mktemp("whole") / "run"
    trainer.start(out, data.config(), WORLD, Watch())
    return out


def same(config: PretrainConfig) -> PretrainConfig:
    return config


def changed(*changes: str):  # type: ignore[no-untyped-def]
    return lambda config: config.assigned(changes)


def weights(run: Path, step: int = 12) -> dict[str, Tensor]:
    folder = run / "checkpoints" / checkpoint.checkpoint_name(step)
    tensors: dict[str, Tensor] = {**load_file(folder / "model.safetensors"), **checkpoint.read_optimizer(folder)}
    return tensors


def assert_bit_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def new_model(config: PretrainConfig) -> VLBertForPreTraining:
    supply = open_supply(config)
    torch.manual_seed(0)
    return VLBertForPreTraining(
        config_of(
            config.model,
            vocab_size=supply.vocab_size,
            feature_dim=supply.feature_dim,
            num_labels=supply.num_labels,
            pad_id=supply.pad_id,
        )
    )


def take(config: PretrainConfig, batches: list[Batch]) -> tuple[dict[str, Tensor], trainer.Learner]:
    """Take one step from fresh weights and return the gradients and the learner."""
    model = new_model(config)
    learner = Learner(model, config, WORLD)
    learner.step(0, batches, own_counts(batches))
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, learner


# One step


def test_eight_micro_batches_give_the_step_of_one(data: Data) -> None:
    config = data.config(*NO_DROPOUT, "data.caption_batch=8", "data.text_batch=8", "optim.clip_norm=none")
    supply = open_supply(config)
    one, learner = take(config, supply.batches(0, micro_batches=1))
    parts = supply.batches(0, micro_batches=8)
    assert len(parts) == 8
    eight, other = take(config, parts)
    for name, gradient in one.items():
        torch.testing.assert_close(eight[name], gradient, rtol=1e-6, atol=1e-6)
    for left, right in zip(learner.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)


def test_gradients_are_those_of_sums_divided_once_by_the_counts_of_the_step(data: Data) -> None:
    config = data.config(*NO_DROPOUT)
    parts = open_supply(config).batches(0, micro_batches=3)
    found, _ = take(config, parts)
    model = new_model(config).train()
    totals, counts = [torch.zeros(()) for _ in TASKS], [0, 0, 0]
    for part in parts:
        sums = loss_sums(model(part), part).sums
        for task in range(3):
            totals[task] = totals[task] + sums[task]
            counts[task] += asked_counts(part)[task]
    assert all(counts)
    torch.stack([total / count for total, count in zip(totals, counts, strict=True)]).sum().backward()
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-7)


def test_dropout_depends_on_the_step_and_not_on_what_was_done_before(data: Data) -> None:
    config = data.config()
    batches = open_supply(config).batches(5)
    counts = own_counts(batches)
    results = []
    for noise in (0, 1):
        learner = Learner(new_model(config), config, WORLD)
        torch.rand(100 * noise)
        results.append(learner.step(5, batches, counts).loss_sums)
    other = Learner(new_model(config), config, WORLD).step(6, batches, counts).loss_sums
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], other)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_not_taken_and_no_later_one_is(data: Data, where: str) -> None:
    config = data.config()
    batches = open_supply(config).batches(0)
    model = new_model(config)
    learner = Learner(model, config, WORLD)
    learner.step(0, batches, own_counts(batches))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    poisoned = [_poisoned(batch) for batch in batches]
    if where == "gradient":
        handle = next(model.parameters()).register_hook(lambda gradient: gradient * math.nan)
        learner.step(1, batches, own_counts(batches))
        handle.remove()
    else:
        learner.step(1, poisoned, own_counts(poisoned))
    learner.step(2, batches, own_counts(batches))
    assert learner.refused == 1
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def _poisoned(batch: Batch) -> Batch:
    return replace(batch, image_features=torch.full_like(batch.image_features, math.nan))


# Whole runs


def test_a_run_leaves_settings_figures_and_checkpoints_that_load(whole: Path, data: Data) -> None:
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == [
        "step-00000004",
        "step-00000008",
        "step-00000012",
    ]
    lines = lines_of(whole)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 13))
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [6, 12]
    for task in TASKS:
        assert {f"{task}_loss", f"{task}_accuracy"} <= lines[0].keys()
    assert {"words_with_image_accuracy", "rois_accuracy"} <= lines[-1].keys()
    model = VLBertForPreTraining.from_pretrained(whole / "checkpoints" / "step-00000012")
    stored = load_file(whole / "checkpoints" / "step-00000012" / "model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items() if name in stored)
    state = checkpoint.load_state(whole / "checkpoints" / "step-00000012")
    assert state.counters["examples"] == 12 * (6 + 4)


def test_the_same_settings_give_the_same_bits_and_another_seed_others(whole: Path, data: Data, tmp_path: Path) -> None:
    trainer.start(tmp_path / "again", data.config("data.loader_threads=3"), WORLD, Watch())
    assert_bit_equal(weights(tmp_path / "again"), weights(whole))
    trainer.start(tmp_path / "other", data.config("run.seed=1", "run.steps=1"), WORLD, Watch())
    assert lines_of(tmp_path / "other")[0]["loss"] != lines_of(whole)[0]["loss"]


def test_loss_falls(data: Data, tmp_path: Path) -> None:
    trainer.start(tmp_path / "run", data.config("run.steps=60", "run.log_every=10", *NO_DROPOUT), WORLD, Watch())
    losses = [line["loss"] for line in lines_of(tmp_path / "run") if line["kind"] == "train"]
    assert losses[-1] < 0.9 * losses[0]


def test_a_run_killed_at_random_steps_ends_bit_equal_to_one_never_interrupted(data: Data, tmp_path: Path) -> None:
    settings = ["run.steps=60", "run.checkpoint_every=7", "run.log_every=2"]
    trainer.start(tmp_path / "whole", data.config(*settings), WORLD, Watch())
    out, rng, kills = tmp_path / "killed", random.Random(0), 0
    for _ in range(3):
        child = run_child(data, out, settings)
        wait_for_step(child, out, last_step(out) + rng.randint(3, 18))
        time.sleep(rng.uniform(0, 0.01))
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
    assert kills >= 2
    trainer.resume(out, same, WORLD, Watch())
    assert_bit_equal(weights(out, 60), weights(tmp_path / "whole", 60))
    assert lines_of(out) == lines_of(tmp_path / "whole")


def run_child(data: Data, out: Path, settings: list[str]) -> subprocess.Popen[bytes]:
    script = str(Path(__file__).with_name("tiny_run.py"))
    env = {
        **os.environ,
        "PYTHONPATH": SEARCH,
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen([sys.executable, script, str(data.shards.parent), str(out), *settings], env=env)


def last_step(out: Path) -> int:
    try:
        lines = (out / "metrics.jsonl").read_text().splitlines()
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except (FileNotFoundError, ValueError):
        return 0


def wait_for_step(child: subprocess.Popen[bytes], out: Path, step: int) -> None:
    deadline = time.monotonic() + 60
    while child.poll() is None and last_step(out) < step and time.monotonic() < deadline:
        time.sleep(0.002)


@pytest.mark.parametrize("at", [1, 5, 8])
def test_a_run_asked_to_stop_saves_says_where_and_goes_on_bit_equal(
    at: int, whole: Path, data: Data, tmp_path: Path
) -> None:
    asked: list[Progress] = []
    watch = Watch(should_stop=lambda: len(asked) >= at - 1, on_progress=asked.append)
    outcome = trainer.start(tmp_path / "run", data.config(), WORLD, watch)
    stopped_at = tmp_path / "run" / "checkpoints" / checkpoint.checkpoint_name(at)
    assert outcome == Outcome(run=tmp_path / "run", step=at, new=at, steps=12, checkpoint=stopped_at, stopped=True)
    assert stopped_at.is_dir()
    assert trainer.resume(tmp_path / "run", same, WORLD, Watch()).stopped is False
    assert_bit_equal(weights(tmp_path / "run"), weights(whole))


def test_a_finished_run_is_left_alone_and_goes_on_with_more_steps(whole: Path, data: Data, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = (run / "metrics.jsonl").read_bytes()
    outcome = trainer.resume(run, same, WORLD, Watch())
    assert (outcome.step, outcome.stopped) == (12, False)
    assert (run / "metrics.jsonl").read_bytes() == before
    trainer.resume(run, changed("run.steps=15", "optim.schedule=constant"), WORLD, Watch())
    assert lines_of(run)[-1]["step"] == 15
    assert json.loads((run / "config.json").read_text())["run"]["steps"] == 15


def test_an_older_checkpoint_goes_on_and_later_ones_step_aside(whole: Path, data: Data, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    trainer.resume(run / "checkpoints" / "step-00000004", same, WORLD, Watch())
    assert_bit_equal(weights(run), weights(whole))
    assert lines_of(run) == lines_of(whole)
    assert (run / "checkpoints" / "aside-step-00000008").is_dir()


def test_a_run_without_a_checkpoint_begins_again(whole: Path, data: Data, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints")
    trainer.resume(run, same, WORLD, Watch())
    assert_bit_equal(weights(run), weights(whole))
    assert lines_of(run) == lines_of(whole)


def test_progress_is_told_after_every_step_with_new_figures_only(data: Data, tmp_path: Path) -> None:
    told: list[Progress] = []
    config = data.config("run.log_every=5", "run.checkpoint_every=100")
    trainer.start(tmp_path / "run", config, WORLD, Watch(on_progress=told.append))
    assert [progress.step for progress in told] == list(range(1, 13))
    assert [progress.step for progress in told if progress.train] == [5, 6, 10, 12]
    assert [progress.step for progress in told if progress.validation] == [6, 12]
    assert told[-1].seconds_left == 0.0
    assert all(0 <= progress.train["data_wait"] <= 1 for progress in told if progress.train)


# Trouble


def test_a_loss_that_is_not_finite_stops_before_its_step_and_the_run_goes_on_with_another_rate(
    data: Data, tmp_path: Path
) -> None:
    # Such a decay multiplies every weight by a million at each step.
    config = data.config("optim.peak_lr=1000", "optim.weight_decay=1000", "run.checkpoint_every=1")
    with pytest.raises(NonFiniteError) as caught:
        trainer.start(tmp_path / "run", config, WORLD, Watch())
    last = checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints")
    step = max(last)
    message = str(caught.value)
    assert message.startswith(f"step {step}: loss or gradient is not finite (losses: words_with_image ")
    assert f"This step was not taken. Its examples: {data.shards} image " in message
    assert f"{data.corpus} window " in message
    assert message.endswith(f"The last checkpoint is {last[step]}.")
    trainer.resume(last[min(last)], changed("optim.peak_lr=1e-4", "optim.weight_decay=0"), WORLD, Watch())


def test_settings_that_would_make_it_another_run_are_refused_by_name(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot change in it: data\.caption_batch was 6, is 8; run\.seed was 0"):
        trainer.resume(whole, changed("run.seed=1", "data.caption_batch=8"), WORLD, Watch())


def test_other_data_are_refused_and_moved_data_taken(whole: Path, data: Data, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    other = make_data(tmp_path / "other", num_images=25)
    with pytest.raises(ConfigError, match="not the data that this run learns from"):
        trainer.resume(run, changed(f"data.shards={other.shards}", "run.steps=13"), WORLD, Watch())
    shutil.copytree(data.shards, tmp_path / "moved")
    outcome = trainer.resume(run, changed(f"data.shards={tmp_path / 'moved'}", "run.steps=13"), WORLD, Watch())
    assert outcome.step == 13


def test_a_damaged_checkpoint_is_named_with_the_way_out(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    path = run / "checkpoints" / "step-00000012" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"it was cut short.*--resume .*step-00000008 goes on from there"):
        trainer.resume(run, changed("run.steps=13"), WORLD, Watch())
    trainer.resume(run / "checkpoints" / "step-00000008", same, WORLD, Watch())
    assert_bit_equal(weights(run), weights(whole))


def test_a_run_folder_in_use_is_refused(data: Data, tmp_path: Path) -> None:
    def again(progress: Progress) -> None:
        if progress.step == 1:
            with pytest.raises(ConfigError, match="in use by process"):
                trainer.resume(tmp_path / "run", same, WORLD, Watch())

    trainer.start(tmp_path / "run", data.config("run.steps=2"), WORLD, Watch(on_progress=again))


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_later(whole: Path, data: Data, tmp_path: Path) -> None:
    out = tmp_path / "run"
    size = (whole / "checkpoints" / "step-00000004" / "model.safetensors").stat().st_size
    with files_end_at(size - 100), pytest.raises(VlbError, match=r"cannot be written: .*vlb pretrain --resume"):
        trainer.start(out, data.config(), WORLD, Watch())
    trainer.resume(out, same, WORLD, Watch())
    assert_bit_equal(weights(out), weights(whole))


def test_a_failed_start_leaves_a_folder_that_the_next_start_takes(data: Data, tmp_path: Path) -> None:
    with pytest.raises(VlbError, match="there is no such folder"):
        trainer.start(tmp_path / "run", data.config(f"data.shards={tmp_path / 'nowhere'}"), WORLD, Watch())
    trainer.start(tmp_path / "run", data.config("run.steps=1"), WORLD, Watch())
