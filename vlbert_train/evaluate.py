"""What a model has learned. Promise: sums over all asked positions, the same for any number of ranks but for rounding.

Visual gain is the accuracy on masked words with the right image minus that with another example's image: the part that
comes from looking. The RoI baseline is what always answering the most frequent class would give.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlbert_data.errors import ConfigError
from vlbert_train import checkpoint, run_folder
from vlbert_train.batch import Batch
from vlbert_train.config import from_json, with_data
from vlbert_train.distributed import World, choose_device, sum_tensor
from vlbert_train.examples import open_evaluation
from vlbert_train.learner import Forward, no_bars
from vlbert_train.loss import asked_counts
from vlbert_train.metrics import TASKS, task_figures
from vlbert_train.model import VLBertForPreTraining
from vlbert_train.supply import Supply
from vlbert_train.tokens import Advance
from vlbert_train.word_groups import GroupResult, WordGroup, count_guesses, group_results, named_tokens, read_groups


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """accuracy: 0..1, loss: mean, in nats; both none where nothing was asked. count: asked positions."""

    accuracy: float | None
    loss: float | None
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Sums over batches and ranks, float64: loss_sums, correct, counts [3] in the order of TASKS.

    roi_classes: [C], how many asked RoIs have each class as their likeliest.
    """

    loss_sums: Tensor
    correct: Tensor
    counts: Tensor
    roi_classes: Tensor

    def figures(self) -> dict[str, float]:
        """Return losses and accuracies by name, as lines of figures have them."""
        return task_figures(self.loss_sums.tolist(), self.correct.tolist(), self.counts.tolist())

    def task(self, name: str) -> TaskResult:
        """Return what one of TASKS gave."""
        at = TASKS.index(name)
        count = int(self.counts[at])
        if not count:
            return TaskResult(accuracy=None, loss=None, count=0)
        return TaskResult(accuracy=float(self.correct[at]) / count, loss=float(self.loss_sums[at]) / count, count=count)


def measure(forward: Forward, batches: Iterable[Batch], world: World, *, num_labels: int) -> Measured:
    """Return the sums over `batches`, this rank's share, and those of all other ranks. num_labels: C."""
    found = torch.zeros(2, len(TASKS), dtype=torch.float64, device=forward.device)
    counts = torch.zeros(len(TASKS), dtype=torch.float64)
    classes = torch.zeros(num_labels, dtype=torch.float64)
    with forward.evaluating():
        for batch in batches:
            asked = asked_counts(batch)
            if not any(asked):
                continue
            counts += torch.tensor(asked)
            classes += likeliest_classes(batch, num_labels)
            losses = forward(batch)
            found += torch.stack([losses.sums, losses.correct]).double()
    own = torch.cat([found.flatten(), counts.to(forward.device), classes.to(forward.device)])
    total = sum_tensor(world, own).cpu()
    size = len(TASKS)
    return Measured(
        loss_sums=total[:size],
        correct=total[size : 2 * size],
        counts=total[2 * size : 3 * size],
        roi_classes=total[3 * size :],
    )


def likeliest_classes(batch: Batch, num_labels: int) -> Tensor:
    """Return int64 [num_labels]: of how many asked RoIs each class is the likeliest, by their targets."""
    if not len(batch.roi_target_ids):
        return torch.zeros(num_labels, dtype=torch.int64)
    top = batch.roi_target_probs.argmax(dim=1, keepdim=True)  # [Q, 1]
    likeliest = batch.roi_target_ids.gather(1, top).flatten()  # [Q]
    return torch.bincount(likeliest.cpu(), minlength=num_labels)


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What `vlb evaluate` found of a checkpoint, and on how many examples, with so many draws of masks.

    roi_baseline: share of asked RoIs whose likeliest class is `roi_baseline_class`, the most frequent one.
    visual_gain: accuracy of words_with_image minus that of words_with_other_image. None: nothing to measure it on.
    named_words: a result for each group of named words, then one for all; empty where none were named or found.
    """

    checkpoint: str
    step: int
    caption_examples: int
    text_examples: int
    draws: int
    words_with_image: TaskResult
    words_of_text: TaskResult
    rois: TaskResult
    words_with_other_image: TaskResult
    visual_gain: float | None
    roi_baseline: float | None
    roi_baseline_class: str | None
    named_words: tuple[GroupResult, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        facts = asdict(self)
        assert all(math.isfinite(value) for value in facts.values() if isinstance(value, float)), "means are finite"
        return facts


def gain(right: TaskResult, other: TaskResult) -> float | None:
    """Return the visual gain, none where no word with an image was asked."""
    if right.accuracy is None or other.accuracy is None:
        return None
    return right.accuracy - other.accuracy


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationData:
    """What to measure on. tokenizer: where it lies, none: where the run found it. words: see `read_groups`.

    limit: of more captions or texts than that, so many are measured, always the same ones; none: all. draws: how often
    each is measured, with masks of its own each time; draws 0 .. n - 1 are the same at every call.
    """

    shards: tuple[str, ...]
    corpus: str | None = None
    tokenizer: str | None = None
    words: Path | None = None
    limit: int | None = None
    draws: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedRun:
    """A checkpoint's model and the data that it is to be measured on, so many draws of masks.

    named: words to be measured by themselves, once.
    """

    forward: Forward
    supply: Supply
    checkpoint: Path
    step: int
    draws: int = 1
    named: tuple[WordGroup, ...] = ()


def evaluate(path: Path, data: EvaluationData, *, changes: Sequence[str] = ()) -> Report:
    """Return what the run at `path`, or the checkpoint that `path` is, makes of all of `data`; see `open_run`."""
    return report(open_run(path, data, changes=changes))


def open_run(path: Path, data: EvaluationData, *, changes: Sequence[str] = ()) -> OpenedRun:
    """Return the run at `path`, or the checkpoint that `path` is, and what is to be measured, opened.

    changes: settings as in `PretrainConfig.assigned`, over those of the run.

    Raises:
        ConfigError: no run there, or data that the model was not made for.
        CheckpointError: a damaged checkpoint; the message names a sound one.
        ShardError: data that are not whole.
    """
    run, chosen = run_folder.find_run(path)
    chosen = chosen or run.newest_checkpoint()
    if chosen is None:
        raise ConfigError(f"{path}: has no checkpoint yet. Go on with vlb pretrain --resume {path}")
    state = checkpoint.load_state(chosen)
    config = from_json(state.config).assigned(changes)
    if data.tokenizer is not None:
        config = with_data(config, tokenizer=data.tokenizer)
    supply = open_evaluation(data.shards, data.corpus, config, limit=data.limit)
    _refuse_other_meaning(chosen, state.data, supply)
    groups = read_groups(data.words, supply.tokenizer) if data.words is not None else ()
    with no_bars():
        model = VLBertForPreTraining.from_pretrained(chosen)
    forward = Forward(model, config.run, choose_device(config.run.device, 0))
    return OpenedRun(forward=forward, supply=supply, checkpoint=chosen, step=state.step, draws=data.draws, named=groups)


def _refuse_other_meaning(chosen: Path, learned: Mapping[str, Any], supply: Supply) -> None:
    """Raise a ConfigError where a token, a class or a feature means something else than what the model has learned."""
    names = ["tokenizer", "feature_dim", "describer"]
    if supply.label_space is not None:
        names.insert(2, "label_space")
    now = supply.identity()
    differences = [name for name in names if learned[name] != now[name]]
    if differences:
        name = differences[0]
        raise ConfigError(
            f"{chosen}: learned from other data: {name} was {learned[name][:12]}, is {now[name][:12]}. "
            "Measure on shards made with the same detector and describer, and with the run's tokenizer."
        )


def report(opened: OpenedRun, *, advance: Advance = lambda done, total: None) -> Report:
    """Return the figures of an opened run. advance: told (done, total) examples while it measures."""
    forward, supply = opened.forward, opened.supply
    world = World(device=forward.device)
    told = _Told(opened.draws * (2 * supply.num_validation_examples + supply.num_validation_texts), advance)
    batches = (supply.validation_batches(draw=draw) for draw in range(opened.draws))
    right = measure(forward, told.count(itertools.chain.from_iterable(batches)), world, num_labels=supply.num_labels)
    others = (supply.validation_batches(other_image=True, text=False, draw=draw) for draw in range(opened.draws))
    swapped = told.count(itertools.chain.from_iterable(others))
    other = measure(forward, swapped, world, num_labels=supply.num_labels)
    frequent = int(right.roi_classes.argmax()) if right.roi_classes.sum() else None
    names = None if supply.label_space is None else supply.label_space.class_names
    return Report(
        checkpoint=str(opened.checkpoint),
        step=opened.step,
        caption_examples=supply.num_validation_examples,
        text_examples=supply.num_validation_texts,
        draws=opened.draws,
        words_with_image=right.task("words_with_image"),
        words_of_text=right.task("words_of_text"),
        rois=right.task("rois"),
        words_with_other_image=other.task("words_with_image"),
        visual_gain=gain(right.task("words_with_image"), other.task("words_with_image")),
        roi_baseline=None if frequent is None else float(right.roi_classes[frequent] / right.roi_classes.sum()),
        roi_baseline_class=None if frequent is None or names is None else names[frequent],
        named_words=_named_words(opened) if opened.named else (),
    )


class _Told:
    """Counts the examples that pass and tells it on."""

    def __init__(self, total: int, advance: Advance) -> None:
        self._done, self._total, self._advance = 0, total, advance

    def count(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield batch
            self._done += batch.num_sequences
            self._advance(self._done, self._total)


def _named_words(opened: OpenedRun) -> tuple[GroupResult, ...]:
    forward, supply = opened.forward, opened.supply
    named = named_tokens(opened.named, supply.vocab_size)
    right, other = (
        count_guesses(forward, supply.named_word_batches(named, other_image=is_other), supply.vocab_size)
        for is_other in (False, True)
    )
    return group_results(opened.named, right, other)
