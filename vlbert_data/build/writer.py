"""The process that writes shards. Promise: it works beside the model, takes in order, and reports every trouble.

Orders go down a pipe whose other end only the build holds: when the build dies the pipe ends, and so does the writer.
"""

import errno
import json
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from vlbert_data.build.processes import follow_parent, spawn_context
from vlbert_data.build.state import BuildState, ShardOutcome
from vlbert_data.errors import RecordRejectedError, VlbError
from vlbert_data.shards.job import BackgroundCloser, ShardJob, WrittenShard
from vlbert_data.shards.schema import ShardSchema
from vlbert_data.sources.base import SourceReject
from vlbert_data.types import ImageRois

NOT_FOR_WANT_OF_ROOM = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR)
# Orders that may wait: at 36 RoIs of 2048 float16 numbers about 5 MB, at 100 RoIs with 4 views about 70 MB.
ORDERS_WAITING = 32


@dataclass(frozen=True, slots=True)
class Begin:
    """Start shard number `shard`."""

    shard: int


@dataclass(frozen=True, slots=True)
class Add:
    """Append a record; `number` and `where` name its input should it be refused."""

    number: int
    where: str
    record: ImageRois


@dataclass(frozen=True, slots=True)
class Finish:
    """Close the shard; `left_out` is what the detector left out of its images."""

    left_out: Mapping[str, int]


Order = Begin | Add | SourceReject | Finish


@dataclass(frozen=True, slots=True)
class Report:
    """A shard was finished."""

    shard: int
    images: int
    rejects: int


class WriterProcess:
    """The build's end: `send` orders, `reports` to collect; `close` waits until all is on disk."""

    def __init__(self, state: BuildState, schema: ShardSchema, container: str) -> None:
        context = spawn_context()
        receive, self._pipe = context.Pipe(duplex=False)
        self._answers, answer = context.Pipe(duplex=False)
        self._process = context.Process(target=_run, args=(receive, answer, state, schema, container), daemon=True)
        self._process.start()
        receive.close()
        answer.close()
        self._orders: queue.Queue[Order | None] = queue.Queue(ORDERS_WAITING)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._feed, daemon=True)
        self._thread.start()

    def send(self, order: Order) -> None:
        """Queue an order; waits while too many are queued.

        Raises:
            VlbError: the writer has failed, for the reason given.
        """
        while True:
            self._raise_failure()
            try:
                return self._orders.put(order, timeout=0.5)
            except queue.Full:
                continue

    def reports(self) -> list[Report]:
        """Return the reports that came since the last call."""
        found = []
        while self._answers.poll():
            found.append(self._receive())
        return found

    def close(self) -> list[Report]:
        """Wait until every order is carried out and return the last reports."""
        self.send_end()
        found = []
        while (report := self._receive()) is not None:
            found.append(report)
        self._process.join()
        return found

    def send_end(self) -> None:
        """Say that no order follows."""
        self._orders.put(None)

    def abort(self) -> None:
        """End the writer now; the unfinished shard is thrown away."""
        self._process.terminate()
        self._process.join()

    def _receive(self) -> Any:
        try:
            answer = self._answers.recv()
        except EOFError as error:
            raise VlbError(
                "the process that writes shards died; was memory short? Run the same command again."
            ) from error
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _raise_failure(self) -> None:
        if self._failure is not None:
            # The pipe broke because the writer stopped: its own last words say why.
            self.reports()
            raise VlbError("the process that writes shards died.") from self._failure

    def _feed(self) -> None:
        try:
            while (order := self._orders.get()) is not None:
                self._pipe.send(order)
            self._pipe.send(None)
        except OSError as error:
            self._failure = error


def _run(orders: Connection, answers: Connection, state: BuildState, schema: ShardSchema, container: str) -> None:
    """Carry out orders until the end; the writer process's whole life."""
    follow_parent()
    writer = _Writer(state, schema, container, answers.send)
    try:
        while (order := orders.recv()) is not None:
            writer.carry_out(order)
        writer.wait()
        answers.send(None)
        return
    except EOFError:
        writer.abort()
    except VlbError as error:
        writer.abort()
        answers.send(error)
    except OSError as error:
        writer.abort()
        answers.send(disk_error(error, state.folder))
    # At once: libraries that could not write would try again at an ordinary exit, and complain.
    os._exit(1)


def disk_error(error: OSError, folder: Path) -> VlbError:
    """Return what an error of the file system means for the build in `folder`, in one sentence and the next move."""
    where, why = error.filename or folder, error.strerror or error
    move = "mend this" if error.errno in NOT_FOR_WANT_OF_ROOM else "make room or mend this,"
    return VlbError(f"{where}: {why}. Finished shards are kept; {move} and run the same command.")


class _Writer:
    def __init__(self, state: BuildState, schema: ShardSchema, container: str, tell: Callable[[Report], None]) -> None:
        self._state = state
        self._schema = schema
        self._container = container
        self._tell = tell
        self._closer = BackgroundCloser()
        self._job: ShardJob | None = None
        self._shard = 0
        self._rejects: list[SourceReject] = []

    def carry_out(self, order: Order) -> None:
        """Do what an order says."""
        match order:
            case Begin(shard):
                self._shard, self._rejects = shard, []
                self._job = ShardJob(self._state.folder, shard, self._schema, self._container)
            case SourceReject():
                self._rejects.append(order)
            case Add():
                self._add(order)
            case Finish(left_out):
                self._finish(left_out)

    def wait(self) -> None:
        """Return when all finished shards are on disk."""
        self._closer.wait()

    def abort(self) -> None:
        """Throw the unfinished shard away, and let one that is being closed become whole or go."""
        if self._job is not None:
            self._job.abort()
        self._closer.settle()

    def _add(self, order: Add) -> None:
        assert self._job is not None, "a shard is begun before records are added"
        try:
            self._job.add(order.record)
        except RecordRejectedError as error:
            self._rejects.append(
                SourceReject(number=order.number, where=order.where, reason=error.reason, detail=error.detail)
            )

    def _finish(self, left_out: Mapping[str, int]) -> None:
        assert self._job is not None, "a shard is begun before it is finished"
        shard, job, self._job = self._shard, self._job, None
        rejects = sorted(self._rejects, key=lambda reject: reject.number)
        outcome = ShardOutcome(
            rejects=tuple(reject_line(reject) for reject in rejects),
            reject_counts=dict(Counter(reject.reason for reject in rejects)),
            left_out=left_out,
        )

        def keep(written: WrittenShard) -> None:
            self._state.save_shard(shard, written, outcome)
            self._tell(Report(shard=shard, images=written.entry.images, rejects=len(rejects)))

        self._closer.close(job, keep)


def reject_line(reject: SourceReject) -> str:
    """Return a reject as its line of `rejects.jsonl`."""
    facts = {"number": reject.number, "where": reject.where, "reason": reject.reason, "detail": reject.detail}
    return json.dumps(facts, ensure_ascii=False)
