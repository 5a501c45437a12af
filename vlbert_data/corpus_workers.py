"""The processes that build units. Promise: none outlives the build, and one that dies is noticed.

Each worker has a pipe on which it is told a task and tells what comes of it; the parent never waits for one alone.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from vlbert_data.build.processes import follow_parent, spawn_context
from vlbert_data.corpus_inputs import InputFile, Unit, measure
from vlbert_data.corpus_unit import UnitSettings, build_unit
from vlbert_data.errors import VlbError
from vlbert_data.tokenizer import from_serialised

TELL_EVERY_S = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What all units of a build have in common. tokenizer: `TextTokenizer.serialised`."""

    folder: Path
    settings: UnitSettings
    tokenizer: str


@dataclass(frozen=True, slots=True)
class _Advanced:
    num_bytes: int


@dataclass(frozen=True, slots=True)
class _Done:
    number: int
    result: Any


@dataclass(frozen=True, slots=True)
class _Failed:
    error: VlbError | OSError


Task = tuple[int, Unit | InputFile]


class Workers:
    """Worker processes for tasks of a build; leaving the context ends them at once, whatever they do."""

    def __init__(self, job: Job, count: int) -> None:
        self._job = job
        self._count = count
        self._processes: dict[Connection, SpawnProcess] = {}

    def __enter__(self) -> "Workers":
        context = spawn_context()
        for _ in range(self._count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._processes[ours] = process
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for pipe, process in self._processes.items():
            process.terminate()
            pipe.close()
        for process in self._processes.values():
            process.join()

    def build(self, units: Mapping[int, Unit]) -> Iterator[int]:
        """Build all units, yielding the bytes of text done so far whenever that changed.

        Raises:
            VlbError: a worker died, or failed for a reason of its own.
            OSError: the disk is full, or the like.
        """
        done = 0
        for message in self._run(list(units.items())):
            if isinstance(message, _Advanced):
                done += message.num_bytes
                yield done

    def measure(self, files: Sequence[InputFile]) -> Iterator[tuple[int, int | None]]:
        """Yield (number in `files`, decompressed bytes or None) in any order."""
        for message in self._run(list(enumerate(files))):
            if isinstance(message, _Done):
                yield message.number, message.result

    def _run(self, tasks: list[Task]) -> Iterator[_Advanced | _Done]:
        tasks.reverse()
        busy = 0
        for pipe in self._processes:
            # Not as an argument of the process: that one died before it read a long argument would never be noticed.
            self._send(pipe, self._job)
        for pipe in self._processes:
            if tasks:
                self._send(pipe, tasks.pop())
                busy += 1
        while busy:
            for ready in wait(list(self._processes)):
                pipe = cast("Connection", ready)
                message = self._receive(pipe)
                if isinstance(message, _Done):
                    busy -= 1
                    if tasks:
                        self._send(pipe, tasks.pop())
                        busy += 1
                yield message

    def _receive(self, pipe: Connection) -> _Advanced | _Done:
        try:
            message = pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._death(pipe) from error
        if isinstance(message, _Failed):
            raise message.error
        assert isinstance(message, _Advanced | _Done), "workers say nothing else"
        return message

    def _send(self, pipe: Connection, message: Job | Task) -> None:
        try:
            pipe.send(message)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._death(pipe) from error

    def _death(self, pipe: Connection) -> VlbError:
        process = self._processes[pipe]
        process.join()
        return VlbError(
            f"a process that tokenises died (exit code {process.exitcode}); was memory short? Run the same command "
            "again, perhaps with fewer --workers; finished corpus files are kept."
        )


def _work(pipe: Connection) -> None:
    """Carry out tasks until the pipe ends; a worker's whole life."""
    follow_parent()
    # One thread each: the processes already fill the cores. The library reads this when it first runs.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        job = pipe.recv()
    except EOFError:
        return
    tokenizer = from_serialised(job.tokenizer)
    while True:
        try:
            number, task = pipe.recv()
        except EOFError:
            return
        try:
            if isinstance(task, InputFile):
                pipe.send(_Done(number, measure(task)))
                continue
            teller = _Teller(pipe.send)
            build_unit(job.folder, number, task, job.settings, tokenizer, teller.add)
            teller.tell()
            pipe.send(_Done(number, None))
        except (VlbError, OSError) as error:
            pipe.send(_Failed(error))


class _Teller:
    """Tells progress, not too often."""

    def __init__(self, send: Callable[[_Advanced], None]) -> None:
        self._send = send
        self._bytes = 0
        self._told = time.monotonic()

    def add(self, num_bytes: int) -> None:
        self._bytes += num_bytes
        if time.monotonic() - self._told >= TELL_EVERY_S:
            self.tell()

    def tell(self) -> None:
        self._send(_Advanced(self._bytes))
        self._bytes, self._told = 0, time.monotonic()
