"""Batches made ahead by threads. Promise: they come in the order of steps, whatever the threads do.

Threads suffice: most of the work is copying and arithmetic on arrays, during which other threads run. Steps are planned
in groups (see `supply`); while some threads copy the features of one group, another one plans the next group.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from types import TracebackType

from vlbert_train.batch import Batch
from vlbert_train.supply import Supply


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
        self._pool = ThreadPoolExecutor(self.threads, "loader")
        self._waiting: deque[Future[list[Batch]]] = deque()
        # The first step whose group nobody was asked to plan.
        self._unplanned = self.first_step
        self._wait_s = 0.0

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._waiting.clear()

    def __iter__(self) -> Iterator[list[Batch]]:
        for _ in range(self.prefetch_steps):
            self._send()
        while self._waiting:
            # Held in no variable here: a batch that its user has let go of gives its memory to the next one.
            yield self._next()

    def _next(self) -> list[Batch]:
        begin = time.perf_counter()
        batches = self._waiting.popleft().result()
        self._wait_s += time.perf_counter() - begin
        self._send()
        return batches

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
                # What goes wrong there goes wrong again where it belongs: at the first step that needs it.
                self._pool.submit(self.supply.prepare, self._unplanned, rank=self.rank, **self._share)
        self._waiting.append(self._pool.submit(self._make, step))

    def _make(self, step: int) -> list[Batch]:
        batches = self.supply.batches(step, rank=self.rank, pin_memory=self.pin_memory, **self._share)
        # The features lie in page-locked memory already; this moves the small arrays.
        return [batch.pin_memory() for batch in batches] if self.pin_memory else batches

    @property
    def _share(self) -> dict[str, int]:
        return {"world_size": self.world_size, "micro_batches": self.micro_batches}
