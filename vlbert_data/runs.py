"""Arithmetic of packed runs: n runs of any lengths, one after another. Promise: a handful of numpy calls, no loop."""

import numpy as np

from vlbert_data.types import Array


def borders(lengths: Array) -> Array:
    """Return int64 [n + 1]: run i of these lengths, int [n], is [borders[i], borders[i + 1])."""
    found = np.empty(len(lengths) + 1, np.int64)
    found[0] = 0
    np.cumsum(lengths, out=found[1:])
    return found


def owners(lengths: Array) -> Array:
    """Return int64 [sum of lengths]: for each item the number of its run."""
    return np.repeat(np.arange(len(lengths)), lengths)


def places(starts: Array, lengths: Array) -> Array:
    """Return int64 [sum of lengths]: starts[i], starts[i] + 1, ... for each run i, one run after another.

    starts, lengths: int [n].
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    found: Array = np.arange(total) + np.repeat(starts - (ends - lengths), lengths)
    return found
