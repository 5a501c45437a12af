"""Arrays of numbers and fixed-width strings from bytes. Promise: an array never takes more memory than its bytes do."""

import math
import re
from typing import Any, Protocol

import numpy as np

from vlbert_data.errors import VlbError
from vlbert_data.types import Array

# Kinds whose items are numbers, truth values or fixed-width strings; never object, void, or dates with metadata.
DTYPE_CODE = re.compile(r"[?]|b1|[iu][1248]|f[248]|[SU][1-9][0-9]{0,5}")
MAX_SIDE = 2**40
MAX_DIMENSIONS = 32
LAST_CHARACTER = 0x10FFFF


class RefusedDataError(VlbError):
    """Foreign bytes that are damaged, too large, or hold more than plain data."""


class Sliceable(Protocol):
    """Bytes that are read by slices."""

    def __len__(self) -> int:
        """Return how many bytes there are."""
        ...

    def __getitem__(self, part: slice, /) -> memoryview:
        """Return a stretch of them."""
        ...


class NotPlainError(Exception):
    """Something else than plain data, in words."""


def plain_dtype(code: str) -> np.dtype[Any]:
    """Return the dtype of a code such as "f4", which may begin with its byte order ("<f4").

    Raises:
        NotPlainError: anything but numbers, truth values and fixed-width strings.
    """
    order, kind = (code[0], code[1:]) if code[:1] in ("<", ">", "|", "=") else ("=", code)
    if not DTYPE_CODE.fullmatch(kind):
        raise NotPlainError(f"an array of dtype {code[:40]!r}; numbers and fixed-width strings are read")
    return np.dtype(f"{order}{kind}")


def plain_array(dtype: np.dtype[Any], shape: tuple[Any, ...], raw: bytes | memoryview, order: Any) -> Array:
    """Return a read-only array over `raw`; `order` is "C" or "F".

    Raises:
        NotPlainError: objects, a shape that is none, another number of bytes than shape and dtype need, or text with
            characters that do not exist.
    """
    if dtype.hasobject:
        raise NotPlainError("an array of objects")
    if len(shape) > MAX_DIMENSIONS or not all(type(side) is int and 0 <= side < MAX_SIDE for side in shape):
        raise NotPlainError(f"an array of shape {str(shape)[:80]}")
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise NotPlainError(f"an array of shape {list(shape)} and dtype {dtype} with {len(raw)} bytes")
    if not raw and math.prod(side for side in shape if side) >= MAX_SIDE:
        raise NotPlainError(f"an empty array of shape {list(shape)}")
    array: Array = np.frombuffer(raw, dtype).reshape(shape, order=order) if raw else np.zeros(shape, dtype)
    if dtype.kind == "U" and raw:
        characters = np.frombuffer(raw, np.dtype("u4").newbyteorder(dtype.byteorder))
        if int(characters.max()) > LAST_CHARACTER:
            raise NotPlainError("an array of text with impossible characters")
    array.flags.writeable = False
    return array
