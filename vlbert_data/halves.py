"""float32 to float16. Promise: the very bits that numpy gives, to nearest with ties to even, many times as fast.

numpy 2 converts one number at a time. Here the processor's addition rounds. A float16 has 10 bits behind its first one,
a float32 23. So where 2^e <= x < 2^(e+1), adding c = 2^(e+13) leaves room for just the 10 bits: the sum's last bits are
x in float16's steps, rounded to nearest with ties to even, as IEEE 754 says that additions are. Below the smallest
normal float16, 2^-14, its steps no longer shrink, and neither does c.

With m for those last bits, 0 to 2^11, the float16 is m + 2^10 (e + 14). That is right too where m was rounded up to the
next power of two, and below 2^-14, where e counts as -14.

Source: IEEE 754-2019, sections 3.4 and 4.3.1.
"""

import numpy as np
from numpy.typing import NDArray

SIGN_BIT = 0x80000000
EXPONENT_BITS = np.uint32(0x7F800000)
# Bits of the smallest float32 that rounds beyond the largest float16: 65520.
FIRST_TOO_LARGE_BITS = 0x477FF000
# Numbers converted at once, so that what is computed on the way stays in a processor's cache of its own.
BLOCK = 5 << 13
# The smallest normal float16, 2^-14, as a float32's bits. An array, since numpy's `maximum` is slow with one number.
SMALLEST_NORMAL_BITS = np.full(BLOCK, 0x38800000, np.uint32)
DROPPED_BITS = np.uint32(13)
# What takes 2^e to 2^(e+13).
RAISED = np.uint32(13 << 23)
# c's exponent, e + 13, counts from 127: c's bits without the last 13 are 2^10 (e + 14) and this. Its last 16 bits.
OFFSET = np.uint16(((13 + 127 - 14) << 10) % 2**16)


def to_half(values: NDArray[np.float32]) -> NDArray[np.float16] | None:
    """Return C-contiguous float32 numbers as float16; None where one is infinite, no number, or too large."""
    bits = values.view(np.uint32).reshape(-1)
    signed = int(bits.max(initial=0)) >= SIGN_BIT
    size = np.bitwise_and(bits, np.uint32(SIGN_BIT - 1)) if signed else bits
    if int(size.max(initial=0)) >= FIRST_TOO_LARGE_BITS:
        return None
    half = np.empty(bits.size, np.uint16)
    work = np.empty((2, min(BLOCK, bits.size)), np.uint32)
    for start in range(0, bits.size, BLOCK):
        part = size[start : start + BLOCK]
        _convert(part, half[start : start + BLOCK], work[:, : len(part)])
    if signed:
        half |= np.right_shift(bits, np.uint32(16)).astype(np.uint16) & np.uint16(0x8000)
    return half.view(np.float16).reshape(values.shape)


def _convert(size: NDArray[np.uint32], half: NDArray[np.uint16], work: NDArray[np.uint32]) -> None:
    """Write into `half` the bits of float16 numbers from those of float32 numbers, none of them negative.

    size, half: [n], n at most BLOCK. work: [2, n], overwritten.
    """
    raised, rounded = work
    np.bitwise_and(size, EXPONENT_BITS, out=raised)
    np.maximum(raised, SMALLEST_NORMAL_BITS[: len(raised)], out=raised)
    raised += RAISED
    np.add(size.view(np.float32), raised.view(np.float32), out=rounded.view(np.float32))
    raised >>= DROPPED_BITS
    rounded += raised
    half[:] = rounded  # the last 16 bits
    half -= OFFSET
