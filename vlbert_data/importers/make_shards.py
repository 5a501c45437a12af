"""Making shards of an import, one range of inputs each. Promise: a shard is made whole by one process, or not at all.

One process writes what it reads, so arrays never travel: several processes make several shards.
"""

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from typing import Any

from vlbert_data.build.processes import follow_parent, spawn_context
from vlbert_data.build.state import BuildState, ShardOutcome
from vlbert_data.build.writer import reject_line
from vlbert_data.errors import RecordRejectedError, VlbError
from vlbert_data.importers.reading import Outcome, Reading
from vlbert_data.memory import keep_freed_memory
from vlbert_data.shards.job import BackgroundCloser, ShardJob, WrittenShard
from vlbert_data.sources.base import SourceReject

# Inputs between two words on progress.
TELL_EVERY = 16
# Inputs that a thread reads at once.
PIECE = 8
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Done:
    """Work since the last word: inputs, bytes read and rejects."""

    inputs: int = 0
    num_bytes: int = 0
    rejects: int = 0


Tell = Callable[[Done], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardMaker:
    """Makes shards of `reading` into the folder of `state`; picklable."""

    reading: Reading
    state: BuildState
    container: str
    shard_size: int

    def make_all(self, shards: Sequence[int], tell: Tell) -> None:
        """Make shards here, one after another; the disk works on one while the next is read.

        Raises:
            VlbError, OSError: reading or writing failed; shards finished before are kept.
        """
        closer = BackgroundCloser()
        try:
            for shard in shards:
                self._make(shard, tell, closer)
        finally:
            closer.wait()

    def _make(self, shard: int, tell: Tell, closer: BackgroundCloser) -> None:
        job = ShardJob(self.state.folder, shard, self.reading.meaning.schema(), self.container)
        rejects: list[SourceReject] = []
        counts: Counter[str] = Counter()
        try:
            for outcome in _telling(self._outcomes(shard), tell):
                if outcome.counts:
                    counts.update(outcome.counts)
                reject = outcome.reject or _add(job, outcome)
                if reject is not None:
                    rejects.append(reject)
        except BaseException:
            job.abort()
            raise
        kept = ShardOutcome(
            rejects=tuple(reject_line(reject) for reject in rejects),
            reject_counts=dict(Counter(reject.reason for reject in rejects)),
            left_out=dict(counts),
        )

        def save(written: WrittenShard) -> None:
            self.state.save_shard(shard, written, kept)

        closer.close(job, save)

    def _outcomes(self, shard: int) -> Iterator[Outcome]:
        start = shard * self.shard_size
        stop = min(start + self.shard_size, len(self.reading.importer))
        return outcomes_of(self.reading, start, stop)


def outcomes_of(reading: Reading, start: int, stop: int) -> Iterator[Outcome]:
    """Yield what comes of inputs `start` to `stop` - 1, in order; threads read a few ahead where that pays."""
    threads = reading.importer.reading_threads
    if not threads:
        yield from reading.outcomes(start, stop)
        return
    pieces = iter([(first, min(first + PIECE, stop)) for first in range(start, stop, PIECE)])

    def read(piece: tuple[int, int]) -> list[Outcome]:
        return list(reading.outcomes(*piece))

    with ThreadPoolExecutor(threads) as pool:
        waiting = deque(pool.submit(read, piece) for piece in itertools.islice(pieces, threads + 1))
        try:
            while waiting:
                outcomes = waiting.popleft().result()
                waiting.extend(pool.submit(read, piece) for piece in itertools.islice(pieces, 1))
                yield from outcomes
        finally:
            for late in waiting:
                late.cancel()


def _add(job: ShardJob, outcome: Outcome) -> SourceReject | None:
    """Append the image of an outcome, if it has one; return why it could not be."""
    if outcome.sealed is not None:
        job.add_sealed(outcome.sealed)
    elif outcome.image is not None:
        try:
            job.add(outcome.image)
        except RecordRejectedError as error:
            return SourceReject(number=outcome.number, where=outcome.where, reason=error.reason, detail=error.detail)
    return None


def _telling(outcomes: Iterator[Outcome], tell: Tell) -> Iterator[Outcome]:
    """Yield the outcomes and tell about them now and then, and at the end."""
    inputs = num_bytes = rejects = 0
    for outcome in outcomes:
        yield outcome
        inputs, num_bytes, rejects = inputs + 1, num_bytes + outcome.num_bytes, rejects + (outcome.reject is not None)
        if inputs == TELL_EVERY:
            tell(Done(inputs, num_bytes, rejects))
            inputs = num_bytes = rejects = 0
    tell(Done(inputs, num_bytes, rejects))


def make_in_processes(maker: ShardMaker, shards: Sequence[int], workers: int, tell: Tell) -> None:
    """Make shards in `workers` processes.

    Raises:
        VlbError, OSError: the first failure; shards finished before are kept.
    """
    context = spawn_context()
    words: SimpleQueue[Done] = context.SimpleQueue()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(maker, words))
    futures: set[Future[None]] = {pool.submit(_make_one, shard) for shard in shards}
    try:
        while futures:
            finished, futures = wait(futures, timeout=POLL_S, return_when=FIRST_EXCEPTION)
            while not words.empty():
                tell(words.get())
            for future in finished:
                future.result()
    except BrokenProcessPool as error:
        raise VlbError("a process that makes shards died; was memory short? Run the same command again.") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_here: dict[str, Any] = {}


def _start(maker: ShardMaker, words: "SimpleQueue[Done]") -> None:
    """Prepare a worker process."""
    follow_parent()
    keep_freed_memory()
    _here.update(maker=maker, words=words)


def _make_one(shard: int) -> None:
    _here["maker"].make_all([shard], _here["words"].put)
