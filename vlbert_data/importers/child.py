"""Foreign files read in a process of their own. Promise: a file that crashes or stalls its library costs one answer.

HDF5's and Arrow's libraries are C and C++ that read numbers from the file and trust many of them. A helper process (see
`hdf5_child`, `arrow_child`) opens the file and sends numbers over a pipe: a request is a line of JSON, an answer a
length, a JSON head and the bytes of arrays. It gets no more memory than `MEMORY_BYTES`, and what it sends is checked
like any other foreign data. It ends when its parent does, because its input ends.
"""

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import vlbert_data
from vlbert_data.errors import VlbError
from vlbert_data.importers.plain_arrays import NotPlainError, RefusedDataError, plain_array, plain_dtype
from vlbert_data.types import Array

SECONDS_AN_ANSWER = 120.0
# Questions about all of a file, such as the names in it, of which there may be millions on a slow disk.
SECONDS_A_SURVEY = 1800.0
SECONDS_TO_START = 60.0
MAX_HEAD_BYTES = 64 << 20
MAX_ANSWER_BYTES = 2 << 30
# A file that has ended its reader so often is not tried again: each start takes half a second.
MAX_DEATHS = 10
MODULES = {"hdf5": "vlbert_data.importers.hdf5_child", "arrow": "vlbert_data.importers.arrow_child"}


class ChildRefusedError(RefusedDataError):
    """A foreign file that its library could not read, or did not survive."""


class Child:
    """A helper process for files of one kind, "hdf5" or "arrow", started when it is first asked."""

    def __init__(self, kind: str, *, seconds_an_answer: float = SECONDS_AN_ANSWER) -> None:
        self._kind = kind
        self._seconds = seconds_an_answer
        self._process: subprocess.Popen[bytes] | None = None
        self._deaths: Counter[Path] = Counter()
        self._lock = threading.Lock()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None, "both ends were asked for"
                pipe.close()

    def ask(
        self, path: Path, request: dict[str, Any], *, seconds: float | None = None
    ) -> tuple[dict[str, Any], list[Array]]:
        """Return the head of the answer to a request about a file, and its arrays.

        seconds: how long to wait for it, where that is not the usual time.

        Raises:
            ChildRefusedError: the file cannot be read, or reading it ended the process or took too long.
            VlbError: no process can be started.
        """
        with self._lock:
            return self._ask(path, request, self._seconds if seconds is None else seconds)

    def _ask(self, path: Path, request: dict[str, Any], seconds: float) -> tuple[dict[str, Any], list[Array]]:
        if self._deaths[path] >= MAX_DEATHS:
            raise ChildRefusedError(f"{path}: reading it ended {self._deaths[path]} processes; it is not tried again.")
        process = self._started()
        try:
            assert process.stdin is not None, "asked for"
            process.stdin.write(json.dumps({**request, "path": str(path)}).encode() + b"\n")
            process.stdin.flush()
            head, arrays = self._answer(process, time.monotonic() + seconds)
        except (_EndedError, BrokenPipeError) as error:
            how = self._end(process, path)
            raise ChildRefusedError(
                f"{path}: reading it {how}: the file is damaged, or made to do that. Copy it again from where it came."
            ) from error
        except TimeoutError as error:
            self._end(process, path)
            raise ChildRefusedError(
                f"{path}: no answer within {seconds:g} s: the file is damaged, or its disk is very slow."
            ) from error
        if "error" in head:
            raise ChildRefusedError(f"{path}: {head['error']}")
        return head, arrays

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            root = str(Path(vlbert_data.__file__).parents[1])
            paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
            quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ARROW_IO_THREADS": "1"}
            # "::" keeps HDF5 from loading filters that lie about as libraries.
            hdf5 = {"HDF5_PLUGIN_PRELOAD": "::", "HDF5_USE_FILE_LOCKING": "FALSE"}
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", MODULES[self._kind]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **quiet, **hdf5, "PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,
            )
            self._wait_for_start(self._process)
        return self._process

    def _wait_for_start(self, process: "subprocess.Popen[bytes]") -> None:
        try:
            ready, _ = self._answer(process, time.monotonic() + SECONDS_TO_START)
        except (_EndedError, TimeoutError) as error:
            self.close()
            raise VlbError(
                f"the process that reads {self._kind} files did not start. Is memory short, or a package missing? Try "
                f"python -m {MODULES[self._kind]} < /dev/null"
            ) from error
        assert ready == {"ready": True}, "a helper says first that it is ready"

    def _end(self, process: "subprocess.Popen[bytes]", path: Path) -> str:
        """End a process for good; return how it ended."""
        self._deaths[path] += 1
        try:
            code = process.wait(0.5)
        except subprocess.TimeoutExpired:
            code = 0
        self.close()
        if code < 0:
            return f"ended the process that tried ({signal.Signals(-code).name})"
        return "ended the process that tried" if code else "gave no sense"

    def _answer(self, process: "subprocess.Popen[bytes]", deadline: float) -> tuple[dict[str, Any], list[Array]]:
        assert process.stdout is not None, "asked for"
        pipe = process.stdout.fileno()
        size = int.from_bytes(_receive(pipe, 8, deadline), "little")
        if size > MAX_HEAD_BYTES:
            raise _EndedError
        try:
            head = json.loads(bytes(_receive(pipe, size, deadline)))
            arrays = [self._array(pipe, stated, deadline) for stated in head.pop("arrays", [])]
        except (ValueError, KeyError, TypeError, AttributeError, NotPlainError, RecursionError) as error:
            raise _EndedError from error
        return head, arrays

    @staticmethod
    def _array(pipe: int, stated: dict[str, Any], deadline: float) -> Array:
        size = stated["bytes"]
        if type(size) is not int or not 0 <= size <= MAX_ANSWER_BYTES:
            raise _EndedError
        raw = memoryview(_receive(pipe, size, deadline))
        return plain_array(plain_dtype(stated["dtype"]), tuple(stated["shape"]), raw, "C")


_shared: dict[str, Child] = {}
_sharing = threading.Lock()


def shared_child(kind: str) -> Child:
    """Return this process's helper for files of one kind, which all that read such files share."""
    with _sharing:
        if kind not in _shared:
            _shared[kind] = Child(kind)
            atexit.register(_shared[kind].close)
        return _shared[kind]


class _EndedError(Exception):
    """The other side is gone or talks nonsense."""


def _receive(pipe: int, size: int, deadline: float) -> bytearray:
    """Return the next `size` bytes of a pipe.

    Raises:
        _EndedError: the pipe ended before. TimeoutError: the deadline passed before.
    """
    found = bytearray(size)
    view, done = memoryview(found), 0
    while done < size:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            raise TimeoutError
        got = os.readv(pipe, [view[done:]])
        if not got:
            raise _EndedError
        done += got
    view.release()
    return found
