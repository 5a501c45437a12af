"""Copying many runs of bytes by their addresses. Promise: one call of the C library for each run, no Python between.

What the addresses point to must stay where it is until the copy is done; nothing here can check that.
"""

from vlbert_data.compiled import compiled, memmove, prefetch
from vlbert_data.types import Array

# So many runs before it is copied, the beginning of a run is asked for.
AHEAD = 8


@compiled
def copy_runs(targets: Array, sources: Array, sizes: Array) -> None:
    """Copy `sizes` bytes from the addresses `sources` to the addresses `targets`, int64 [n] each.

    Other threads run while it copies.
    """
    for number in range(len(sizes)):
        if number + AHEAD < len(sizes):
            prefetch(sources[number + AHEAD])
        memmove(targets[number], sources[number], sizes[number])
