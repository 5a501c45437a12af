"""Data parallel training. Promise: gradients are sums over ranks; a world of one takes the same steps without messages.

Losses are sums divided by counts of the whole step, so what ranks must exchange is a sum, not DistributedDataParallel's
mean of means. With several ranks every gradient lives in one of a few flat buffers. In the last micro-batch a buffer is
sent as soon as its gradients are complete, always in the same order on every rank, so sending runs beside the rest of
the backward pass and a rank whose slice holds no RoI cannot get out of step.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vlbert_data.errors import ConfigError, VlbError

CPU = torch.device("cpu")
BUFFER_BYTES = 32 * 2**20
# Other ranks wait while rank 0 writes a checkpoint or measures; a slow disk must not look like a lost rank.
TIMEOUT = timedelta(minutes=60)


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Who takes part. `rank` 0..size-1, `local_rank` on this machine; `device` is where this rank computes."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def is_first(self) -> bool:
        """Return whether this rank writes files and speaks."""
        return self.rank == 0


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """Return the device that `run.device` names for a rank; `auto` is CUDA where there is one.

    Raises:
        ConfigError: CUDA was asked for and is not there, or has fewer devices than ranks on this machine.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("run.device is cuda, but this torch finds no CUDA device. Use --set run.device=cpu.")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"rank {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}. "
            "Start as many processes as there are GPUs (torchrun --nproc-per-node)."
        )
    return torch.device("cuda", local_rank)


@contextlib.contextmanager
def join(wanted_device: str) -> Iterator[World]:
    """Give the world that torchrun's environment describes, or a world of one; leave it at the end.

    Raises:
        ConfigError: see `choose_device`.
    """
    size, local_rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    device = choose_device(wanted_device, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        yield World(device=device)
        return
    # Numbers that live on the CPU (counts, the wish to stop) go through gloo on every machine.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield World(rank=dist.get_rank(), local_rank=local_rank, size=dist.get_world_size(), device=device)
    finally:
        dist.destroy_process_group()


def sum_numbers(world: World, numbers: Sequence[int]) -> list[int]:
    """Return the sums over all ranks of each rank's whole numbers."""
    if world.size == 1:
        return list(numbers)
    total = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(total)
    return [int(number) for number in total]


def sum_tensor(world: World, values: Tensor) -> Tensor:
    """Return `values` added over all ranks, on the same device."""
    if world.size == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def barrier(world: World) -> None:
    """Wait until every rank is here."""
    sum_numbers(world, [0])


def check_agreement(world: World, digest: str, what: str) -> None:
    """Check that every rank has the same hex `digest`.

    Raises:
        VlbError: ranks differ in `what`.
    """
    number = int(digest[:12], 16)  # 48 bits: sums of a million ranks stay exact
    if sum_numbers(world, [number])[0] != number * world.size:
        raise VlbError(
            f"rank {world.rank}: {what} differ between ranks. "
            "Every machine must see the same files and run the same command."
        )


def broadcast_from_first(world: World, tensors: Iterable[Tensor]) -> None:
    """Overwrite `tensors` on all ranks with rank 0's."""
    if world.size > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


class Gradients:
    """The gradients of all parameters. A parameter that a step does not use has gradient 0.

    One step is: `clear`, backward passes (all but the last inside `hold`), `finish`. buffers: where gradients lie that
    are sent; none for one rank, which sends nothing and so need not add every gradient into memory of another.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], world: World, *, buffer_bytes: int = BUFFER_BYTES) -> None:
        self.world = world
        self._parameters = list(parameters)
        self._spoilt: Tensor | None = None
        self.buffers: list[Tensor] = []
        self._waiting: list[int] = []  # for each buffer: parameters whose gradient is not complete yet
        self._members: list[int] = []  # for each buffer: its parameters
        self._sent: list[dist.Work] = []
        self._holding = False
        if world.size == 1:
            return
        # Backward passes complete the last layers first.
        group: list[nn.Parameter] = []
        for parameter in reversed(self._parameters):
            if group and (_bytes([*group, parameter]) > buffer_bytes or group[0].dtype != parameter.dtype):
                self._add_buffer(group)
                group = []
            group.append(parameter)
        self._add_buffer(group)

    def _add_buffer(self, group: list[nn.Parameter]) -> None:
        buffer = torch.zeros(sum(p.numel() for p in group), dtype=group[0].dtype, device=group[0].device)
        number, start = len(self.buffers), 0
        for parameter in group:
            # Autograd adds into a gradient that is already there, so these views stay.
            parameter.grad = buffer[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
            hook = partial(self._complete, number)
            parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        self.buffers.append(buffer)
        self._members.append(len(group))
        self._waiting.append(len(group))

    def clear(self) -> None:
        """Set all gradients to 0."""
        self._spoilt = None
        for buffer in self.buffers:
            buffer.zero_()
        if not self.buffers:
            for parameter in self._parameters:
                parameter.grad = None
        self._waiting = list(self._members)
        self._sent = []

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Send nothing inside: more micro-batches will add to the gradients."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False

    def spoil(self, value: Tensor) -> None:
        """Let the norm on every rank be no number where `value` f32 [], else 0, is none; before the last backward."""
        if self.buffers:
            self.buffers[0][:1].add_(value)
        else:
            self._spoilt = value

    def finish(self) -> Tensor:
        """Return the global norm f32 [] of the gradients, after adding them over all ranks."""
        if not self.buffers:
            return self._finish_alone()
        while len(self._sent) < len(self.buffers):
            self._send_next()
        for work in self._sent:
            work.wait()
        norms = torch.stack([torch.linalg.vector_norm(buffer) for buffer in self.buffers])
        norm: Tensor = torch.linalg.vector_norm(norms)
        return norm

    def _finish_alone(self) -> Tensor:
        gradients = []
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        norm: Tensor = torch.nn.utils.get_total_norm(gradients)
        return norm if self._spoilt is None else norm + self._spoilt

    def _complete(self, number: int, _: Tensor) -> None:
        if self._holding:
            return
        self._waiting[number] -= 1
        while len(self._sent) < len(self.buffers) and self._waiting[len(self._sent)] == 0:
            self._send_next()

    def _send_next(self) -> None:
        work = dist.all_reduce(self.buffers[len(self._sent)], async_op=True)
        assert work is not None, "an asynchronous all-reduce gives a handle"
        self._sent.append(work)


def _bytes(parameters: list[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)
