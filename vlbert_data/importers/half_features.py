"""An image's features as float16, and their mean. Promise: the very bits that numpy gives, in one compiled pass."""

import numpy as np

from vlbert_data.compiled import compiled, float_to_half
from vlbert_data.halves import FIRST_TOO_LARGE_BITS
from vlbert_data.types import Array, to_float16

WITHOUT_SIGN = np.uint32(0x7FFFFFFF)


def halve(features: Array) -> tuple[Array, Array]:
    """Return float16 [R, F] and [F]: features [R, F], R at least 1, and their mean over RoIs, computed in float32.

    Raises:
        RecordRejectedError: see `types.to_float16`.
    """
    if features.dtype == np.float32 and features.flags.c_contiguous:
        half, mean = np.empty(features.shape, np.uint16), np.empty(features.shape[1], np.uint16)
        sums = np.empty(features.shape[1], np.float32)
        if _halve(features, features.view(np.uint32), sums, half, mean) < FIRST_TOO_LARGE_BITS:
            return half.view(np.float16), mean.view(np.float16)
    half = to_float16(features, what="features")
    return half, to_float16(features.mean(axis=0, dtype=np.float32), what="the mean of the features")


@compiled
def _halve(features: Array, bits: Array, sums: Array, half: Array, mean: Array) -> int:
    """Fill `half` and `mean`, uint16 bits of float16; return the largest of all `bits`, those of `features`, unsigned.

    features: float32 [R, F]. sums: float32 [F], overwritten; added up row after row, as numpy does.
    """
    num_rows, width = features.shape
    largest = np.uint32(0)
    sums[:] = 0
    for row in range(num_rows):
        for column in range(width):
            largest = max(largest, bits[row, column] & WITHOUT_SIGN)
            half[row, column] = float_to_half(features[row, column])
            sums[column] += features[row, column]
    for column in range(width):
        mean[column] = float_to_half(sums[column] / np.float32(num_rows))
    return int(largest)
