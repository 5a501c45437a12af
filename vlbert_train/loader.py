"""Batches made ahead by threads. Promise: they come in the order of steps, whatever the threads do.

Threads suffice: most of the work is copying and arithmetic on arrays, during which other threads run. Steps are planned
in groups (see `supply`); while some threads copy the features of one group, another one plans the next group.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from types import TracebackType
from typing import TypeVar

from vlbert_train.batch import Batch
from vlbert_train.supply import Supply

Result = TypeVar("Result")


@dataclass(eq=False)
class Loader:
    """Gives for each step first_step .. last_step - 1 the batches of one rank. A context manager; iterate it once.

    threads: so many work at once. prefetch_steps: so many steps at most are ready or in work ahead of the one in use.
    pin_memory: batches in page-locked memory. What goes wrong in a thread is raised at the step that it belongs to.
    """

    supply: Supply
    _: KW_ONLY
    first_step: int
    last_step: int
    rank: int = 0
    world_size: int = 1
    micro_batches: int = 1
    threads: int = 2
    prefetch_steps: int = 4
    pin_memory: bool = False

    def __post_init__(self) -> None:
        self._steps = iter(range(self.first_step, self.last_step))
        self._threads = [Thread(target=self._work, name=f"loader-{number}") for number in range(self.threads)]
        # What threads are to do, none: end. Both queues are written in C, which futures are not: 3 % of a batch.
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._made: SimpleQueue[tuple[int, list[Batch] | BaseException]] = SimpleQueue()
        # What was made before it was its turn, by step.
        self._early: dict[int, list[Batch] | BaseException] = {}
        # The first step whose group nobody was asked to plan.
        self._unplanned = self.first_step
        self._wait_s = 0.0

    def __enter__(self) -> "Loader":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with contextlib.suppress(Empty):
            while True:
                self._tasks.get_nowait()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        self._early.clear()

    def __iter__(self) -> Iterator[list[Batch]]:
        for _ in range(self.prefetch_steps):
            self._send()
        for step in range(self.first_step, self.last_step):
            # Held in no variable here: a batch that its user has let go of gives its memory to the next one.
            yield self._next(step)

    def _next(self, step: int) -> list[Batch]:
        begin = time.perf_counter()
        while step not in self._early:
            number, outcome = self._made.get()
            self._early[number] = outcome
        self._wait_s += time.perf_counter() - begin
        outcome = self._early.pop(step)
        self._send()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def take_wait(self) -> float:
        """Return the seconds spent waiting for batches since the last call."""
        waited, self._wait_s = self._wait_s, 0.0
        return waited

    def _send(self) -> None:
        step = next(self._steps, None)
        if step is None:
            return
        if step >= self._unplanned:
            self._unplanned = self.supply.next_group(step, **self._share)
            if self._unplanned < self.last_step:
                self._tasks.put(partial(self._plan, self._unplanned))
        self._tasks.put(partial(self._make, step))

    def _work(self) -> None:
        """Do what there is to do, until there is None."""
        while (task := self._tasks.get()) is not None:
            task()

    def _plan(self, step: int) -> None:
        # What goes wrong here goes wrong again where it belongs: at the first step that needs it.
        _outcome(lambda: self.supply.prepare(step, rank=self.rank, **self._share))

    def _make(self, step: int) -> None:
        self._made.put((step, _outcome(lambda: self._batches(step))))

    def _batches(self, step: int) -> list[Batch]:
        batches = self.supply.batches(step, rank=self.rank, pin_memory=self.pin_memory, **self._share)
        # The features lie in page-locked memory already; this moves the small arrays.
        return [batch.pin_memory() for batch in batches] if self.pin_memory else batches

    @property
    def _share(self) -> dict[str, int]:
        return {"world_size": self.world_size, "micro_batches": self.micro_batches}


def _outcome(work: Callable[[], Result]) -> Result | BaseException:
    """Return what `work` returns or raises: a thread hands both to the one that waits."""
    try:
        return work()
    except BaseException as error:  # noqa: BLE001  (nothing is swallowed: it is raised where its step is due)
        return error
