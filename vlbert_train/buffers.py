"""Memory for features, used again and again. Promise: never while anything still refers to what lies in it.

A batch's features fill megabytes. Fresh memory of that size costs as much as copying into it, since the kernel zeroes
and maps every page when it is first written to.
"""

import contextlib
import mmap
import threading
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlbert_data.addresses import address

Bytes = NDArray[np.uint8]

# A huge page, as most machines have them.
PAGE_BYTES = 2 << 20
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
            fitting = [place for place, buffer in enumerate(self._idle) if len(buffer) >= num_bytes]
            buffer = self._idle.pop(fitting[-1]) if fitting else None
            if buffer is None and self._idle:
                # One that is too small gives way, so there are never more buffers than were in use at once.
                self._idle.pop(min(range(len(self._idle)), key=lambda place: len(self._idle[place])))
        if buffer is None:
            # An eighth more: the next batch is a little larger, perhaps.
            buffer = huge_pages(num_bytes + num_bytes // 8)
        loan = _Loan(self, buffer, (rows, width))
        return torch.from_numpy(np.asarray(loan))

    def take_back(self, buffer: Bytes) -> None:
        """Keep a buffer for its next use. Without the lock: a loan may end anywhere, even inside `empty`."""
        self._returned.append(buffer)


class _Loan:
    """What arrays and tensors over a buffer hold on to; when the last one lets go, the buffer is free again."""

    def __init__(self, owner: Buffers, buffer: Bytes, shape: tuple[int, int]) -> None:
        self._owner, self._buffer = owner, buffer
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": "<f2",
            "data": (address(buffer), False),
        }

    def __del__(self) -> None:
        self._owner.take_back(self._buffer)


def huge_pages(num_bytes: int) -> Bytes:
    """Return uint8 [num_bytes or more], uninitialised, in huge pages where the system has them.

    What is spread over thousands of small pages is copied to at two thirds of the speed. The C library would give huge
    pages to the first thread only.
    """
    size = -(-max(num_bytes, 1) // PAGE_BYTES) * PAGE_BYTES
    # Private memory: what is shared between processes comes in small pages. Windows knows no such flags.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, size + PAGE_BYTES, **private)
    begin = -address(np.frombuffer(memory, np.uint8)) % PAGE_BYTES
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Kernels without huge pages refuse.
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE, begin, size)
    return np.frombuffer(memory, np.uint8, size, begin)
