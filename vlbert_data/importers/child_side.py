"""The other end of `child`: what every helper process does. Promise: it answers, or it dies; it never waits for more.

Nothing here is imported by the process that asks.
"""

import json
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vlbert_data.types import Array

# Memory that the process may write to, mapped files not counted.
MEMORY_BYTES = 4 << 30
# Longer than anybody waits for an answer, see `child`.
LONGEST_ANSWER_S = 2000
Answer = tuple[dict[str, Any], list[Array]]


class UnreadableError(Exception):
    """What is wrong with the file, in words for the user."""


def state_of(path: str) -> tuple[str, int, int, int]:
    """Return what tells a file from another that takes its place under the same name."""
    state = Path(path).stat()
    return path, state.st_ino, state.st_size, state.st_mtime_ns


def serve(answer: Callable[[dict[str, Any]], Answer], troubles: tuple[type[Exception], ...]) -> None:
    """Answer requests until there are no more.

    answer: from a request to a head and arrays. troubles: what the library raises for a file that it cannot read.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    out = sys.stdout.buffer
    _send(out, {"ready": True}, [])
    for line in sys.stdin.buffer:
        # Who asked may be gone, and then nobody ends a library that hangs.
        signal.alarm(LONGEST_ANSWER_S)
        try:
            head, arrays = answer(json.loads(line))
        except UnreadableError as error:
            head, arrays = {"error": str(error)}, []
        except troubles as error:
            head, arrays = (
                {"error": f"damaged, or not what it should be: {str(error)[:300] or type(error).__name__}."},
                [],
            )
        signal.alarm(0)
        _send(out, head, arrays)


def _send(out: BinaryIO, head: dict[str, Any], arrays: list[Array]) -> None:
    plain = [np.ascontiguousarray(array).reshape(array.shape) for array in arrays]
    stated = [{"dtype": array.dtype.str, "shape": list(array.shape), "bytes": array.nbytes} for array in plain]
    raw = json.dumps({**head, "arrays": stated}).encode()
    out.write(len(raw).to_bytes(8, "little") + raw)
    for array in plain:
        out.write(array.reshape(-1).view(np.uint8).data if array.nbytes else b"")
    out.flush()
