"""Copying many runs of bytes by their addresses. Promise: one call of the C library for each run, no Python between.

What the addresses point to must stay where it is until the copy is done; nothing here can check that.
"""

from vlbert_data.compiled import compiled, memmove
from vlbert_data.types import Array


@compiled
def copy_runs(targets: Array, sources: Array, sizes: Array) -> None:
    """Copy `sizes` bytes from the addresses `sources` to the addresses `targets`, int64 [n] each.

    Other threads run while it copies.
    """
    for number in range(len(sizes)):
        memmove(targets[number], sources[number], sizes[number])
