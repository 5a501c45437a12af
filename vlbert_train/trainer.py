"""A run from its settings to its last checkpoint. Promise: stopped anyhow and resumed, it ends with the same weights.

Everything that step k does follows from the settings, the data, k and the state after step k - 1; see `learner`.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vlbert_data.errors import ConfigError, VlbError
from vlbert_data.shards.files import blake2b_json
from vlbert_train import checkpoint, run_folder
from vlbert_train.batch import Batch
from vlbert_train.checkpoint import TrainingState
from vlbert_train.config import PretrainConfig, from_json
from vlbert_train.distributed import World, check_agreement, sum_numbers
from vlbert_train.evaluate import measure
from vlbert_train.examples import open_supply
from vlbert_train.learner import Learner, no_bars, own_counts
from vlbert_train.loader import Loader
from vlbert_train.metrics import FigureFiles, NonFiniteError, Window
from vlbert_train.model import VLBertForPreTraining, config_of
from vlbert_train.pretrained import describe, init_from
from vlbert_train.run_folder import RunFolder
from vlbert_train.supply import Supply

DIFFERENCES_SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a run stands after `step` of `steps`. train, validation: new figures, where there are any just now."""

    step: int
    steps: int
    seconds_left: float
    train: Mapping[str, float] | None = None
    validation: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Watch:
    """Who looks on: `should_stop` is asked once a step on every rank, the others are told on the first rank only.

    on_captions: told (done, total) while captions that no run has met before are tokenised. on_notice: told what a
    person should know of this run, once, in a sentence.
    """

    should_stop: Callable[[], bool] = lambda: False
    on_progress: Callable[[Progress], None] = lambda _: None
    on_captions: Callable[[int, int], None] = lambda done, total: None
    on_notice: Callable[[str], None] = lambda sentence: None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How far a run came: `step` steps are done, `new` of them now. stopped: asked to, before the last step."""

    run: Path
    step: int
    new: int
    steps: int
    checkpoint: Path
    stopped: bool


def start(out: Path, config: PretrainConfig, world: World, watch: Watch) -> Outcome:
    """Make the run folder `out` and train in it.

    Raises:
        ConfigError: the folder holds something, or settings and data do not fit together.
        ShardError: data that are not whole.
        NonFiniteError: a loss or gradient that is not a number.
        VlbError: the disk is full, or the like.
    """
    with contextlib.ExitStack() as stack:
        _first_only(world, lambda: stack.enter_context(run_folder.locked(run_folder.new_run(out))))
        session = _Session.open(RunFolder(path=out), config, world, watch)
        learner = session.new_learner(init=True)
        return session.train(learner, step=0, counters={})


def resume(path: Path, changes: Callable[[PretrainConfig], PretrainConfig], world: World, watch: Watch) -> Outcome:
    """Go on with the run at `path`, from its newest checkpoint, or from the checkpoint that `path` is.

    changes: gives the settings to go on with from those the run has. Later checkpoints of an older one are set aside.

    Raises:
        ConfigError: no run there, or settings or data that would make it another run.
        CheckpointError: the checkpoint is damaged; the message names a sound one.
        Others: as `start`.
    """
    run, chosen = run_folder.find_run(path)
    with contextlib.ExitStack() as stack:
        _first_only(world, lambda: stack.enter_context(run_folder.locked(run)))
        before = run.read_config()
        config = changes(before)
        _refuse_another_run(run, before.identity(), config.identity())
        session = _Session.open(run, config, world, watch)
        chosen = chosen or run.newest_checkpoint()
        if chosen is None:
            return session.train(session.new_learner(init=True), step=0, counters={})
        state = checkpoint.load_state(chosen)
        _refuse_another_run(run, from_json(state.config).identity(), config.identity())
        _refuse_other_data(run, state.data, session.supply.identity())
        if state.step >= config.run.steps:
            return Outcome(
                run=run.path, step=state.step, new=0, steps=config.run.steps, checkpoint=chosen, stopped=False
            )
        learner = session.new_learner(init=False, weights=chosen)
        learner.load_optimizer(checkpoint.read_optimizer(chosen))
        return session.train(learner, step=state.step, counters=dict(state.counters))


def _refuse_another_run(run: RunFolder, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if differences := _differences(before, now):
        raise ConfigError(
            f"{run.path}: these settings decide what a run learns and cannot change in it: {differences}. "
            "Start another run with --out, from this one's weights with --init-from if wanted."
        )


def _refuse_other_data(run: RunFolder, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if differences := _differences(before, now):
        raise ConfigError(
            f"{run.path}: not the data that this run learns from: {differences}. Give the same shards, corpus and "
            "tokenizer (they may have moved), or start another run with --out."
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    shown = [f"{name} was {_short(before.get(name))}, is {_short(now.get(name))}" for name in names[:DIFFERENCES_SHOWN]]
    return "; ".join(shown)


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) > 40 else text


def _first_only(world: World, work: Callable[[], object]) -> None:
    """Do `work` on rank 0 while the others wait; where it fails, all ranks fail."""
    trouble: VlbError | None = None
    if world.is_first:
        try:
            work()
        except VlbError as error:
            trouble = error
    if sum_numbers(world, [int(trouble is not None)])[0]:
        raise trouble or VlbError(f"rank {world.rank}: rank 0 failed, and says why.")


@dataclass(kw_only=True)
class _Session:
    """A run on this rank while this process lasts."""

    run: RunFolder
    config: PretrainConfig
    world: World
    watch: Watch
    supply: Supply
    _began: float = field(default_factory=time.monotonic)

    @staticmethod
    def open(run: RunFolder, config: PretrainConfig, world: World, watch: Watch) -> "_Session":
        """Open the data and check that all ranks see the same."""
        supply = open_supply(config, advance=watch.on_captions if world.is_first else lambda done, total: None)
        facts = {"config": config.identity(), "data": dict(supply.identity())}
        check_agreement(world, blake2b_json(facts), "settings or data")
        if world.is_first and supply.num_caption_examples and not supply.has_roi_targets:
            watch.on_notice(
                "These shards store features only, no classes of RoIs: words are learned, RoIs are only seen."
            )
        return _Session(run=run, config=config, world=world, watch=watch, supply=supply)

    def new_learner(self, *, init: bool, weights: Path | None = None) -> Learner:
        """Return a learner: from a checkpoint's weights, or from the beginning of the run."""
        supply = self.supply
        torch.manual_seed(self.config.run.seed)
        shape = config_of(
            self.config.model,
            vocab_size=supply.vocab_size,
            feature_dim=supply.feature_dim,
            num_labels=supply.num_labels,
            pad_id=supply.pad_id,
        )
        if weights is not None:
            with no_bars():
                model = VLBertForPreTraining.from_pretrained(weights, config=shape)
        else:
            model = VLBertForPreTraining(shape)
            if init and self.config.model.init_from:
                account = init_from(model, self.config.model.init_from)
                if self.world.is_first:
                    self.watch.on_notice(f"{self.config.model.init_from}: {'; '.join(describe(account))}.")
        return Learner(model, self.config, self.world)

    def train(self, learner: Learner, *, step: int, counters: dict[str, float]) -> Outcome:
        """Take all steps from `step` on."""
        _first_only(self.world, lambda: self._prepare_folder(step))
        with contextlib.ExitStack() as stack:
            files = None
            if self.world.is_first:
                writer = FigureFiles(self.run, first_step=step, tensorboard=self.config.run.tensorboard)
                files = stack.enter_context(writer)
            loader = stack.enter_context(self._loader(step))
            loop = _Loop(session=self, learner=learner, files=files, first_step=step, counters=counters)
            return loop.run(loader)

    def _prepare_folder(self, step: int) -> None:
        with run_folder.explain_disk(self.run.path):
            checkpoint.set_aside(self.run.checkpoints, step)
        self.run.cut_metrics(step)
        self.run.write_config(self.config)

    def _loader(self, step: int) -> Loader:
        data = self.config.data
        return Loader(
            self.supply,
            first_step=step,
            last_step=self.config.run.steps,
            rank=self.world.rank,
            world_size=self.world.size,
            micro_batches=self.config.optim.micro_batches,
            threads=data.loader_threads,
            prefetch_steps=data.prefetch_steps,
            pin_memory=self.world.device.type == "cuda",
        )

    def seconds_left(self, first_step: int, done: int) -> float:
        """Return how long the rest takes if it goes on as since this process began to train."""
        return (time.monotonic() - self._began) / max(1, done - first_step) * (self.config.run.steps - done)


@dataclass(kw_only=True)
class _Loop:
    """The steps of a session."""

    session: _Session
    learner: Learner
    files: FigureFiles | None
    first_step: int
    counters: dict[str, float]
    _window: Window = field(init=False)

    def __post_init__(self) -> None:
        self._window = Window(self.session.world, name_of=self.session.supply.example_name)

    def run(self, loader: Loader) -> Outcome:
        """Return how it ended."""
        session, steps = self.session, self.session.config.run.steps
        session._began = time.monotonic()
        self._window.restart()
        done, stopped, saved = self.first_step, False, None
        try:
            for number, batches in enumerate(loader, self.first_step):
                stopped = self._step(number, batches, loader.take_wait())
                done = number + 1
                saved = self._after(done, stopped=stopped)
                if stopped:
                    break
        except NonFiniteError as error:
            last = session.run.newest_checkpoint()
            where = f"The last checkpoint is {last}." if last else "There is no checkpoint yet."
            raise NonFiniteError(f"{error} {where}") from error
        assert saved is not None, "the last step makes a checkpoint"
        return Outcome(
            run=session.run.path,
            step=done,
            new=done - self.first_step,
            steps=steps,
            checkpoint=saved,
            stopped=stopped and done < steps,
        )

    def _step(self, number: int, batches: list[Batch], wait_s: float) -> bool:
        """Take a step and return whether some rank was asked to stop."""
        world = self.session.world
        own = own_counts(batches)
        sizes = [sum(batch.num_sequences for batch in batches), sum(batch.num_slots for batch in batches)]
        *counts, examples, positions, stops = sum_numbers(world, [*own, *sizes, int(self.session.watch.should_stop())])
        self._window.add(self.learner.step(number, batches, counts, wait_s=wait_s))
        if world.device.type == "cpu" and self.learner.refused:
            self._window.check()
        for name, value in (("examples", examples), ("positions", positions)):
            self.counters[name] = self.counters.get(name, 0) + value
        return stops > 0

    def _after(self, done: int, *, stopped: bool) -> Path | None:
        """Write figures, validate and save where it is time; return the checkpoint, if one was made."""
        session, run = self.session, self.session.config.run
        is_last = done == run.steps
        saves = is_last or stopped or done % run.checkpoint_every == 0
        validates = self._has_validation() and not stopped and (is_last or done % run.validate_every == 0)
        train = validation = saved = None
        if saves or validates or done % run.log_every == 0:
            train = self._window.close()
            train["lr"] = self.learner.learning_rate(done - 1)
            self._write("train", done, train)
        if validates:
            validation = self._validate()
            self._write("validation", done, validation)
        if saves:
            saved = self._save(done)
        if saves or validates:
            self._window.restart()
        if session.world.is_first:
            left = session.seconds_left(self.first_step, done)
            session.watch.on_progress(
                Progress(step=done, steps=run.steps, seconds_left=left, train=train, validation=validation)
            )
        return saved

    def _has_validation(self) -> bool:
        return self.session.supply.num_validation_examples > 0

    def _validate(self) -> dict[str, float]:
        session = self.session
        batches = session.supply.validation_batches(rank=session.world.rank, world_size=session.world.size)
        found = measure(self.learner.forward, batches, session.world, num_labels=session.supply.num_labels)
        return found.figures()

    def _write(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        files = self.files
        _first_only(self.session.world, lambda: files.write(kind, step, figures) if files else None)

    def _save(self, done: int) -> Path:
        session = self.session
        state = TrainingState(
            step=done,
            config=session.config.as_json(),
            data=dict(session.supply.identity()),
            counters=self.counters,
            world_size=session.world.size,
        )
        _first_only(
            session.world,
            lambda: checkpoint.save(
                session.run.checkpoints,
                state,
                save_model=self.learner.save_model,
                optimizer=self.learner.optimizer_tensors(),
                keep=session.config.run.keep_checkpoints,
            ),
        )
        return session.run.checkpoints / checkpoint.checkpoint_name(done)
