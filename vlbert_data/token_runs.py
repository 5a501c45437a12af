"""Runs of tokens read out of token files. Promise: all runs are read at once, without Python between them."""

from typing import Any

import numpy as np

from vlbert_data import runs
from vlbert_data.addresses import address
from vlbert_data.compiled import compiled
from vlbert_data.copies import copy_runs
from vlbert_data.token_file import TokenFile, TokenRuns
from vlbert_data.types import Array


def gather(file: TokenFile, starts: Array, stops: Array) -> TokenRuns:
    """Return the runs [starts[i], stops[i]) of a file's tokens, one after another, as copies with int64 ids.

    starts, stops: int64 [n], 0 <= starts <= stops <= T.
    """
    cu_lengths = runs.borders(stops - starts)
    ids, starts_word = np.empty(cu_lengths[-1], np.int64), np.empty(cu_lengths[-1], np.bool_)
    _gather(file.ids, file.word_bits, starts, (ids, starts_word, cu_lengths))
    return TokenRuns(ids=ids, starts_word=starts_word, cu_lengths=cu_lengths)


@compiled
def _gather(stored: Array, word_bits: Array, starts: Array, found: tuple[Array, Array, Array]) -> None:
    ids, starts_word, cu_lengths = found
    for run in range(len(starts)):
        first = cu_lengths[run]
        for place in range(cu_lengths[run + 1] - first):
            token = starts[run] + place
            ids[first + place] = stored[token]
            starts_word[first + place] = (word_bits[token >> 3] >> (token & 7)) & 1


def read_runs(dtype: np.dtype[Any], origins: Array, starts: Array, sizes: Array) -> TokenRuns:
    """Return runs of tokens of several mapped files, as copies with int64 ids.

    dtype: that of the stored ids. origins: int64 [n, 2 or more], where ids and word bits of each run's file begin in
    memory. starts, sizes: int64 [n], tokens [start, start + size) of the file, which must be there.
    """
    cu_lengths = runs.borders(sizes)
    ids, size = np.empty(cu_lengths[-1], dtype), dtype.itemsize
    copy_runs(address(ids) + size * cu_lengths[:-1], origins[:, 0] + size * starts, size * sizes)
    first = starts >> 3
    num_bytes = ((starts + sizes + 7) >> 3) - first
    borders = runs.borders(num_bytes)
    data = np.empty(borders[-1], np.uint8)
    copy_runs(address(data) + borders[:-1], origins[:, 1] + first, num_bytes)
    bits = np.unpackbits(data, bitorder="little").view(np.bool_)
    words = bits[runs.places(8 * borders[:-1] + (starts & 7), sizes)]
    return TokenRuns(ids=ids.astype(np.int64), starts_word=words, cu_lengths=cu_lengths)
