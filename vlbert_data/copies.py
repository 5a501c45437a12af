"""Copying many runs of bytes by their addresses. Promise: one call of the C library for each run, no Python between.

What the addresses point to must stay where it is until the copy is done; nothing here can check that.
"""

import ctypes
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vlbert_data.types import Array


def address(array: Array) -> int:
    """Return where the first byte of an array lies in memory."""
    place: Any = array.__array_interface__["data"]
    return int(place[0])


def copy_runs(targets: Array, sources: Array, sizes: Array) -> None:
    """Copy `sizes` bytes from the addresses `sources` to the addresses `targets`, int64 [n] each.

    Other threads run while a copy does.
    """
    # A bounded deque runs the copies one after another without keeping their results.
    deque(map(ctypes.memmove, targets.tolist(), sources.tolist(), sizes.tolist()), maxlen=0)


class Origins:
    """A row of numbers for each of many files, its mapping's address first; found when a file is first needed.

    find: returns the row of a file. Safe to use from several threads.
    """

    def __init__(self, num_files: int, width: int, find: Callable[[int], Sequence[int]]) -> None:
        self._table = np.zeros((num_files, width), np.int64)
        self._find = find

    def of(self, files: Array) -> Array:
        """Return int64 [n, width]: the rows of files, int [n]."""
        found: Array = self._table[files]
        if not found[:, 0].all():
            for number in np.unique(files[found[:, 0] == 0]).tolist():
                # At once, so that no other thread sees half a row; two that find it find the same.
                self._table[number] = self._find(number)
            found = self._table[files]
        return found
