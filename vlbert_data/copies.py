"""Copying many runs of bytes by their addresses. Promise: one call of the C library for each run, no Python between.

What the addresses point to must stay where it is until the copy is done; nothing here can check that.
"""

import ctypes
from collections import deque
from typing import Any

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
