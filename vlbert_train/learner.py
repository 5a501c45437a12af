"""One optimizer step. Promise: micro-batches and ranks change it by rounding only, and it is taken whole or not at all.

A task's loss is the sum over all its asked positions of the step, on all ranks, divided once by their number. Dropout
is seeded for each (seed, step, rank, micro-batch), so a step does not depend on the steps that this process has done.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import logging

from vlbert_train import optim
from vlbert_train.batch import Batch, Predictions
from vlbert_train.config import PretrainConfig, RunConfig
from vlbert_train.distributed import Gradients, World, broadcast_from_first
from vlbert_train.hashing import stream_key, words
from vlbert_train.loss import LossSums, asked_counts, loss_sums
from vlbert_train.metrics import TASKS, StepRecord
from vlbert_train.model import VLBertForPreTraining

MAX_SEED = 2**63 - 1


class Forward:
    """Batches to sums of losses, on one device, in the precision that the settings name."""

    def __init__(self, model: nn.Module, run: RunConfig, device: torch.device) -> None:
        on_cuda = device.type == "cuda"
        self.model = model.to(device)
        self.device = device
        self._autocast = run.precision == "bf16" or (run.precision == "auto" and on_cuda)
        is_compiled = run.compile == "on" or (run.compile == "auto" and on_cuda)
        # Packed batches differ in every length, which must not mean compiling again.
        self._predict = torch.compile(model, dynamic=True) if is_compiled else model

    def __call__(self, batch: Batch) -> LossSums:
        """Return the losses of a batch that lies anywhere."""
        batch = batch.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            return loss_sums(self._predict(batch), batch)

    def predict(self, batch: Batch) -> Predictions:
        """Return what the model answers to a batch that lies anywhere."""
        batch = batch.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            predictions: Predictions = self._predict(batch)
        return predictions

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Compute without dropout and without gradients inside."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(was_training)


class Learner:
    """A model on this rank with its gradients and its AdamW. A parameter of all ranks begins as rank 0 has it."""

    def __init__(self, model: VLBertForPreTraining, config: PretrainConfig, world: World) -> None:
        own_memory(model)
        self.forward = Forward(model, config.run, world.device)
        self.model = model.train()
        self._config = config
        self._world = world
        self._names = [name for name, _ in model.named_parameters()]
        self._adamw = optim.make_adamw(model.parameters(), config.optim)
        self._gradients = Gradients(model.parameters(), world)
        # 1 from the first step with a loss or gradient that is not finite: neither it nor any later one is taken.
        self.refused = torch.zeros((), device=world.device)
        broadcast_from_first(world, [*model.parameters(), *model.buffers()])

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 0."""
        return optim.learning_rate(step, self._config.optim, self._config.run.steps)

    def save_model(self, folder: Path) -> None:
        """Write what `VLBertForPreTraining.from_pretrained` reads."""
        with no_bars():
            self.model.save_pretrained(folder)

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Return AdamW's state by parameter names; see `optim.adamw_tensors`."""
        return optim.adamw_tensors(self._adamw, self._names)

    def load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with what `optimizer_tensors` gave.

        Raises:
            VlbError: it is of another model.
        """
        optim.load_adamw(self._adamw, self._names, tensors)

    def step(self, step: int, batches: Sequence[Batch], counts: Sequence[int], *, wait_s: float = 0.0) -> StepRecord:
        """Take step `step` on this rank's micro-batches and return its figures.

        counts: asked positions of the step on all ranks together, in the order of TASKS. wait_s: noted in the record.
        """
        device = self._world.device
        weights = torch.tensor([1.0 / count if count else 0.0 for count in counts]).to(device, non_blocking=True)
        sums, correct = torch.zeros(len(TASKS), device=device), torch.zeros(len(TASKS), device=device)
        asking = [(number, batch) for number, batch in enumerate(batches) if any(asked_counts(batch))]
        self._gradients.clear()
        for number, batch in asking:
            is_last = number == asking[-1][0]
            with contextlib.nullcontext() if is_last else self._gradients.hold():
                torch.manual_seed(self._dropout_seed(step, number, len(batches)))
                found = self.forward(batch)
                sums += found.sums.detach()
                correct += found.correct
                if is_last:
                    # 0 where all losses are finite, else not a number: so every rank will see it in the norm.
                    self._gradients.spoil(0.0 * sums.sum())
                torch.autograd.backward((found.sums * weights).sum())
        norm = self._gradients.finish()
        self.refused = torch.maximum(self.refused, (~norm.isfinite()).float())
        optim.safe_step(
            self._adamw,
            lr=self.learning_rate(step),
            norm=norm,
            clip_norm=self._config.optim.clip_norm,
            refused=self.refused,
        )
        return StepRecord(
            step=step,
            loss_sums=sums,
            correct=correct,
            norm=norm,
            counts=own_counts(batches),
            example_ids=[number for batch in batches for number in batch.example_ids.tolist()],
            positions=sum(batch.num_slots for batch in batches),
            wait_s=wait_s,
        )

    def _dropout_seed(self, step: int, number: int, micro_batches: int) -> int:
        key = words(stream_key(self._config.run.seed, "dropout"), np.array([step]))
        return int(words(key, np.array([self._world.rank * micro_batches + number]))[0]) & MAX_SEED


def own_memory(model: nn.Module) -> None:
    """Move every parameter to memory of its own.

    What was read from a file lies in the mapped file, at any address. CPU kernels round differently where memory is not
    aligned, so a run that was resumed would drift from one that was not.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Keep transformers from drawing progress bars inside; the run draws its own."""
    were_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_on:
            logging.enable_progress_bar()


def own_counts(batches: Sequence[Batch]) -> tuple[int, int, int]:
    """Return how many positions the batches of this rank ask, in the order of TASKS."""
    counts = [asked_counts(batch) for batch in batches]
    return sum(c[0] for c in counts), sum(c[1] for c in counts), sum(c[2] for c in counts)
