"""Memory for features, used again and again. Promise: never while anything still refers to what lies in it.

A batch's features fill megabytes. Fresh memory of that size costs as much as copying into it, since the kernel zeroes
and maps every page when it is first written to.
"""

import threading
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlbert_data.addresses import address

Bytes = NDArray[np.uint8]

# Whole huge pages, which numpy asks the kernel for: fewer of them are touched by a copy.
ROUND_BYTES = 2 << 20
ALIGNMENT = 64
# Buffers that wait for their next use; more are given back.
IDLE_KEPT = 8


class Buffers:
    """Buffers of one process; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Bytes] = []
        self._returned: deque[Bytes] = deque()

    def empty(self, rows: int, width: int) -> Tensor:
        """Return an uninitialised f16 [rows, width]; once no tensor refers to its memory, the next call may get it."""
        num_bytes = rows * width * 2
        with self._lock:
            while self._returned:
                self._idle.append(self._returned.popleft())
            del self._idle[:-IDLE_KEPT]
            # The one used last lies in the cache, perhaps.
            fitting = [place for place, buffer in enumerate(self._idle) if len(buffer) - ALIGNMENT >= num_bytes]
            buffer = self._idle.pop(fitting[-1]) if fitting else None
            if buffer is None and self._idle:
                # One that is too small gives way, so there are never more buffers than were in use at once.
                self._idle.pop(min(range(len(self._idle)), key=lambda place: len(self._idle[place])))
        if buffer is None:
            # An eighth more: the next batch is a little larger, perhaps.
            wanted = num_bytes + num_bytes // 8 + ALIGNMENT
            buffer = np.empty(-(-wanted // ROUND_BYTES) * ROUND_BYTES, np.uint8)
        loan = _Loan(self, buffer, (rows, width))
        return torch.from_numpy(np.asarray(loan))

    def take_back(self, buffer: Bytes) -> None:
        """Keep a buffer for its next use. Without the lock: a loan may end anywhere, even inside `empty`."""
        self._returned.append(buffer)


class _Loan:
    """What arrays and tensors over a buffer hold on to; when the last one lets go, the buffer is free again."""

    def __init__(self, owner: Buffers, buffer: Bytes, shape: tuple[int, int]) -> None:
        self._owner, self._buffer = owner, buffer
        place = address(buffer)
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": "<f2",
            "data": (-(-place // ALIGNMENT) * ALIGNMENT, False),
        }

    def __del__(self) -> None:
        self._owner.take_back(self._buffer)
