"""Numbers written as base64 text. Promise: a length that does not fit, or one foreign character, is a reject."""

import binascii
import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pybase64

from vlbert_data.errors import RecordRejectedError
from vlbert_data.types import Array

Text = bytes | memoryview
# Bytes of one number -> how it was written. Old writers on other systems give int32, numpy 2 gives float64 boxes.
Widths = dict[int, np.dtype[Any]]
FLOATS: Widths = {4: np.dtype("<f4"), 8: np.dtype("<f8")}
INTEGERS: Widths = {4: np.dtype("<i4"), 8: np.dtype("<i8")}
# More RoIs than any detector keeps; it bounds what a damaged count can ask for.
MOST_ROIS = 10_000
# Bytes of a RoI's numbers in the arrays of a `TextRecord`, as nearly all writers have them: boxes float32, ids int64,
# scores float32, twice, and features float32.
SMALL_BYTES, FEATURE_BYTES = (16, 8, 4, 8, 4), 4
# A record with more RoIs is decoded at once: ordering undecoded ones compares each RoI with each.
MOST_TEXT_ROIS = 512
_DIGITS = re.compile(rb"\d{1,9}")


def decode_base64(text: bytes | memoryview | str, what: str) -> bytes:
    """Return the bytes that `text` encodes.

    Raises:
        RecordRejectedError: "bad base64": cut short, or a character that base64 has not.
    """
    try:
        return pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RecordRejectedError("bad base64", f"{what}: {len(text)} characters: {error}") from error


def decode_rows(text: bytes | memoryview | str, num_rows: int, what: str, widths: Widths) -> Array:
    """Return [num_rows] numbers, one a row, whose width in bytes follows from the length.

    Raises:
        RecordRejectedError: "bad base64" or "wrong length".
    """
    return decode_table(text, (num_rows, 1), what, widths)[:, 0]


def decode_table(
    text: bytes | memoryview | str,
    shape: tuple[int, int | None],
    what: str,
    widths: Widths,
) -> Array:
    """Return numbers of this shape, read-only; their width in bytes, one of `widths`, follows from the length.

    shape: (rows, columns); where columns are None, numbers are float32 and as many in a row as there are.

    Raises:
        RecordRejectedError: "bad base64" or "wrong length".
    """
    data = decode_base64(text, what)
    num_rows, num_columns = shape
    if num_columns is None:
        num_columns, widths = _columns(len(data), num_rows, what), {4: FLOATS[4]}
    numbers = num_rows * num_columns
    dtype = widths.get(len(data) // numbers) if numbers and len(data) % numbers == 0 else None
    if dtype is None:
        expected = " or ".join(str(numbers * width) for width in widths)
        raise RecordRejectedError("wrong length", f"{what}: {len(data)} bytes for {num_rows} RoIs; expected {expected}")
    return np.frombuffer(data, dtype).reshape(num_rows, num_columns)


def lengths_fit(num_rois: int, feature_dim: int, features: Text, small: Sequence[Text]) -> bool:
    """Return whether texts are as long as those of a `TextRecord` of so many RoIs; small: the first 3 or all 5."""
    if not 1 <= num_rois <= MOST_TEXT_ROIS:
        return False
    lengths = _text_lengths(num_rois, feature_dim)
    return len(features) == lengths[-1] and tuple(map(len, small)) == lengths[: len(small)]


@functools.lru_cache(MOST_TEXT_ROIS)
def _text_lengths(num_rois: int, feature_dim: int) -> tuple[int, ...]:
    """Return how many characters of base64 write each of the small arrays of so many RoIs, and their features."""
    return tuple(-(-num_rois * size // 3) * 4 for size in (*SMALL_BYTES, FEATURE_BYTES * feature_dim))


def count_columns(text: bytes | memoryview | str, num_rows: int, what: str) -> int:
    """Return how many float32 numbers each of `num_rows` rows has.

    Raises:
        RecordRejectedError: "bad base64" or "wrong length": not the same number for each row.
    """
    return _columns(len(decode_base64(text, what)), num_rows, what)


def _columns(num_bytes: int, num_rows: int, what: str) -> int:
    if num_rows < 1 or num_bytes == 0 or num_bytes % (4 * num_rows):
        raise RecordRejectedError("wrong length", f"{what}: {num_bytes} bytes do not divide into {num_rows} RoIs")
    return num_bytes // (4 * num_rows)


def parse_count(text: bytes | memoryview, what: str, most: int = 2**31 - 1) -> int:
    """Return the positive integer that `text` states.

    Raises:
        RecordRejectedError: "bad number": not digits alone, zero, or more than `most`.
    """
    digits = bytes(text[:20])
    if not _DIGITS.fullmatch(digits) or not 1 <= int(digits) <= most:
        raise RecordRejectedError("bad number", f"{what} is {digits!r}; expected an integer from 1 to {most}")
    return int(digits)
