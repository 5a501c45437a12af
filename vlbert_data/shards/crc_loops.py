"""CRC-32 of many records' arrays in one compiled call. Promise: zlib's numbers, while other threads run.

zlib is as fast, but a call of it a record hands Python's lock over as often, and waiting for that takes longer.

Sixteen bytes are looked up at once, in tables of what each does to the sum from so far away. As each step waits for the
one before, three stretches of bytes are summed side by side; a sum is carried past a stretch by tables too.

Source: Kounavis and Berry, A Systematic Approach to Building High Performance, Software-based, CRC Generators, 2005.
"""

from typing import Any

import numpy as np

from vlbert_data.compiled import compiled, inlined
from vlbert_data.types import Array

# The polynomial of zlib, Ethernet and PNG, its lowest bit first.
POLYNOMIAL = np.uint32(0xEDB88320)
ALL_ONES = np.uint32(0xFFFFFFFF)
STEP_BYTES = 16
STRETCH_DOUBLINGS = 12
STRETCH_BYTES = 1 << STRETCH_DOUBLINGS


def _byte_table() -> Array:
    """Return uint32 [256]: what becomes of a sum that is one byte, when this byte has been shifted out."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ POLYNOMIAL, table >> 1)
    return table


def _step_tables(byte_table: Array) -> Array:
    """Return uint32 [STEP_BYTES, 256]: what a byte does to a sum when so many bytes come behind it."""
    tables = [byte_table]
    for _ in range(STEP_BYTES - 1):
        tables.append((tables[-1] >> 8) ^ byte_table[tables[-1] & 255])
    return np.array(tables)


def _stretch_tables(byte_table: Array) -> Array:
    """Return uint32 [4, 256]: what becomes of a sum, byte for byte of it, when STRETCH_BYTES zeros come behind it."""
    sums = np.arange(256, dtype=np.uint32) << (8 * np.arange(4, dtype=np.uint32))[:, None]
    tables: Array = (sums >> 8) ^ byte_table[sums & 255]
    for _ in range(STRETCH_DOUBLINGS):
        places = [tables >> 8 * byte & 255 for byte in range(4)]
        tables = tables[0][places[0]] ^ tables[1][places[1]] ^ tables[2][places[2]] ^ tables[3][places[3]]
    return tables


STEPS = _step_tables(_byte_table())
STRETCHES = _stretch_tables(_byte_table())


@compiled
def crcs(columns: Any, borders: Array, sums: Array) -> None:
    """Carry on each of `sums`, uint32 [n], as `zlib.crc32` does, with a record's stretch of every column in turn.

    columns: a tuple of c arrays, uint8. borders: int64 [c, n + 1], where in each column the records begin and end.
    """
    for record in range(len(sums)):
        for column in range(len(columns)):
            part = columns[column][borders[column, record] : borders[column, record + 1]]
            sums[record] = crc32(part, sums[record])


@compiled
def crc32(data: Array, value: Any) -> Any:
    """Return what `zlib.crc32` returns for uint8 `data`, as uint32; value: an int."""
    one = np.uint32(value ^ ALL_ONES)
    start = 0
    while len(data) - start >= 3 * STRETCH_BYTES:
        two = three = np.uint32(0)
        for at in range(start, start + STRETCH_BYTES, STEP_BYTES):
            one = _step(data, at, one)
            two = _step(data, at + STRETCH_BYTES, two)
            three = _step(data, at + 2 * STRETCH_BYTES, three)
        one = np.uint32(_past_stretch(np.uint32(_past_stretch(one) ^ two)) ^ three)
        start += 3 * STRETCH_BYTES
    while len(data) - start >= STEP_BYTES:
        one = _step(data, start, one)
        start += STEP_BYTES
    for at in range(start, len(data)):
        one = np.uint32(STEPS[0, (one ^ data[at]) & 255] ^ (one >> 8))
    return one ^ ALL_ONES


@inlined
def _step(data: Array, at: int, value: np.uint32) -> np.uint32:
    """Return the sum `value` carried on with the STEP_BYTES bytes from `at` on."""
    return np.uint32(
        STEPS[15, (value ^ data[at]) & 255]
        ^ STEPS[14, (value >> 8 ^ data[at + 1]) & 255]
        ^ STEPS[13, (value >> 16 ^ data[at + 2]) & 255]
        ^ STEPS[12, (value >> 24 ^ data[at + 3]) & 255]
        ^ STEPS[11, data[at + 4]]
        ^ STEPS[10, data[at + 5]]
        ^ STEPS[9, data[at + 6]]
        ^ STEPS[8, data[at + 7]]
        ^ STEPS[7, data[at + 8]]
        ^ STEPS[6, data[at + 9]]
        ^ STEPS[5, data[at + 10]]
        ^ STEPS[4, data[at + 11]]
        ^ STEPS[3, data[at + 12]]
        ^ STEPS[2, data[at + 13]]
        ^ STEPS[1, data[at + 14]]
        ^ STEPS[0, data[at + 15]]
    )


@inlined
def _past_stretch(value: np.uint32) -> np.uint32:
    """Return the sum `value` carried on with STRETCH_BYTES zeros."""
    low = STRETCHES[0, value & 255] ^ STRETCHES[1, value >> 8 & 255]
    return np.uint32(low ^ STRETCHES[2, value >> 16 & 255] ^ STRETCHES[3, value >> 24 & 255])
