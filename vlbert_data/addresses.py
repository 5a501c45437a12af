"""Where mapped files lie in memory. Promise: an address is found once for a file, then only looked up.

What lies at an address must stay there while the address is used; nothing here can check that.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vlbert_data.types import Array


def address(array: Array) -> int:
    """Return where the first byte of an array lies in memory."""
    place: Any = array.__array_interface__["data"]
    return int(place[0])


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
