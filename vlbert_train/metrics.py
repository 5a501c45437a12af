"""Figures of training. Promise: they are summed where they arise and fetched once a window, never in between.

A window is the steps between two lines of figures. Every line goes to metrics.jsonl and, if wanted, TensorBoard.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from vlbert_data.errors import VlbError
from vlbert_train.distributed import World, sum_tensor
from vlbert_train.run_folder import RunFolder, explain_disk

# What is asked: masked words of captions, masked words of text-only examples, masked RoIs.
TASKS = ("words_with_image", "words_of_text", "rois")

# Of a step that was refused; the others follow from the step's number.
EXAMPLES_NAMED = 16


class NonFiniteError(VlbError):
    """A loss or a gradient that is not a number; training stops before the step is taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """One step of this rank. Tensors stay on the device.

    loss_sums, correct: [3], in the order of TASKS. norm: [], the gradient's over all ranks. counts: asked positions.
    example_ids: the examples of this rank. positions: of all its sequences. wait_s: seconds spent waiting for data.
    """

    step: int
    loss_sums: Tensor
    correct: Tensor
    norm: Tensor
    counts: tuple[int, int, int]
    example_ids: Sequence[int]
    positions: int
    wait_s: float


class Window:
    """Sums steps until `close` makes a line of them. name_of: what a person calls an example, by its number."""

    def __init__(
        self, world: World, clock: Callable[[], float] = time.perf_counter, name_of: Callable[[int], str] = str
    ) -> None:
        self._world = world
        self._name_of = name_of
        self._clock = clock
        self._records: list[StepRecord] = []
        self._begin = clock()

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: StepRecord) -> None:
        """Take in a step."""
        self._records.append(record)

    def restart(self) -> None:
        """Begin to measure time now; what was done since the last line (saving, validating) is not training."""
        self._begin = self._clock()

    def check(self) -> None:
        """Check that everything since the last line is finite; this waits for the device.

        Raises:
            NonFiniteError: the first step that is not, with its losses and its examples.
        """
        if not self._records:
            return
        losses = torch.stack([record.loss_sums for record in self._records]).cpu()  # [steps, 3]
        norms = torch.stack([record.norm for record in self._records]).cpu()  # [steps]
        bad = ~(losses.isfinite().all(dim=1) & norms.isfinite())
        if bad.any():
            first = int(bad.int().argmax())
            raise NonFiniteError(self._describe(self._records[first], losses[first].tolist(), float(norms[first])))

    def _describe(self, record: StepRecord, losses: Sequence[float], norm: float) -> str:
        pairs = zip(TASKS, losses, record.counts, strict=True)
        means = ", ".join(f"{name} {loss / count if count else 0.0:.6g}" for name, loss, count in pairs)
        names = [self._name_of(number) for number in record.example_ids[:EXAMPLES_NAMED]]
        more = f" and {len(record.example_ids) - len(names)} more" if len(record.example_ids) > len(names) else ""
        rank = f" on rank {self._world.rank}" if self._world.size > 1 else ""
        return (
            f"step {record.step}{rank}: loss or gradient is not finite (losses: {means}; gradient norm {norm:.6g}). "
            f"This step was not taken. Its examples: {', '.join(names)}{more}. "
            "Look at their features with vlb inspect-shard, or lower optim.peak_lr."
        )

    def close(self) -> dict[str, float]:
        """Return the figures of the steps since the last line, over all ranks, and begin anew.

        loss: the sum of the tasks' means. rates are of all ranks together; data_wait is a share of the time, 0..1.

        Raises:
            NonFiniteError: see `check`.
        """
        assert self._records, "a line of figures needs at least one step"
        self.check()
        records, now = self._records, self._clock()
        device = records[0].loss_sums.device
        sums = torch.stack([torch.cat([r.loss_sums, r.correct]) for r in records]).double().sum(dim=0)  # [6]
        own = [[*r.counts, len(r.example_ids), r.positions, r.wait_s] for r in records]
        counted = torch.tensor(own, dtype=torch.float64, device=device).sum(dim=0)  # [6]
        total = sum_tensor(self._world, torch.cat([sums, counted])).tolist()
        elapsed = max(now - self._begin, 1e-9)
        figures = task_figures(total[0:3], total[3:6], total[6:9])
        figures["grad_norm"] = float(records[-1].norm)
        figures["examples_per_s"] = total[9] / elapsed
        figures["tokens_per_s"] = total[10] / elapsed
        figures["data_wait"] = min(1.0, total[11] / elapsed / self._world.size)
        self._records, self._begin = [], now
        return figures


def task_figures(loss_sums: Sequence[float], correct: Sequence[float], counts: Sequence[float]) -> dict[str, float]:
    """Return loss, and for each task that asked anything its mean loss and accuracy (0..1)."""
    figures = {"loss": 0.0}
    for name, loss, right, count in zip(TASKS, loss_sums, correct, counts, strict=True):
        if count:
            figures["loss"] += loss / count
            figures[f"{name}_loss"] = loss / count
            figures[f"{name}_accuracy"] = right / count
    return figures


class FigureFiles:
    """Writes lines of figures to a run folder: metrics.jsonl, and TensorBoard where wanted. A context manager."""

    def __init__(self, run: RunFolder, *, first_step: int, tensorboard: bool) -> None:
        self._run = run
        with explain_disk(run.path):
            self._lines = run.metrics.open("ab")
            self._events = _Events(run.tensorboard, first_step) if tensorboard else None

    def __enter__(self) -> "FigureFiles":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._lines.close()
        if self._events:
            self._events.close()

    def write(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        """Append a line: `kind` is train or validation, `step` the steps done."""
        line = {"kind": kind, "step": step, **figures}
        with explain_disk(self._run.path):
            self._lines.write((json.dumps(line) + "\n").encode())
            self._lines.flush()
            if self._events:
                self._events.write(step, {f"{kind}/{name}": value for name, value in figures.items()})


class _Events:
    """A TensorBoard event file, written here and not by a thread, so that a full disk is met where it is reported."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard takes files whose name holds `tfevents`, in the order of their names.
        number = 1 + len(list(folder.glob("*.tfevents.*")))
        self._file: BinaryIO = (folder / f"run.{number:06d}.tfevents.vlb").open("xb")
        self._records: Any = RecordWriter(self._file)
        self._put(Event(wall_time=time.time(), file_version="brain.Event:2"))
        # What earlier files say of later steps is void: the run was stopped and goes on from here.
        start = SessionLog(status=SessionLog.START)
        self._put(Event(wall_time=time.time(), step=first_step + 1, session_log=start))
        self._file.flush()

    def _put(self, event: Any) -> None:
        self._records.write(event.SerializeToString())

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]
        self._put(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def one_line(figures: Mapping[str, float]) -> str:
    """Return figures for people, such as `loss 9.31 | words with image 31.0 % | ... | data wait 0.4 %`."""
    parts = [f"loss {figures['loss']:.3f}"]
    accuracies = {name: figures.get(f"{name}_accuracy") for name in TASKS}
    parts += [f"{name.replace('_', ' ')} {share:.1%}" for name, share in accuracies.items() if share is not None]
    if "examples_per_s" in figures:
        parts.append(f"{figures['examples_per_s']:,.0f} examples/s")
        parts.append(f"{figures['tokens_per_s']:,.0f} tokens/s")
        parts.append(f"data wait {figures['data_wait']:.1%}")
    return " | ".join(parts)


def duration(seconds: float) -> str:
    """Return a time for people: `2:05:09` or `5:09`."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
