"""MessagePack as UNITER's and tensorpack's scripts write it: plain values, and numpy arrays as maps."""

import struct
from typing import Any

import numpy as np


def numpy_map(value: Any) -> dict[bytes, Any]:
    """Return the map that stands for an array or a numpy scalar."""
    if isinstance(value, np.ndarray):
        return {
            b"nd": True,
            b"type": value.dtype.str,
            b"kind": b"",
            b"shape": list(value.shape),
            b"data": value.tobytes(),
        }
    return {b"nd": False, b"type": value.dtype.str, b"data": value.tobytes()}


def packb(value: Any) -> bytes:
    """Return one message."""
    match value:
        case None:
            return b"\xc0"
        case bool():
            return b"\xc3" if value else b"\xc2"
        case np.ndarray() | np.generic():
            return packb(numpy_map(value))
        case int():
            return _integer(value)
        case float():
            return b"\xcb" + struct.pack(">d", value)
        case str():
            raw = value.encode()
            return (bytes([0xA0 | len(raw)]) if len(raw) < 32 else b"\xdb" + struct.pack(">I", len(raw))) + raw
        case bytes():
            return b"\xc6" + struct.pack(">I", len(value)) + value
        case list() | tuple():
            head = bytes([0x90 | len(value)]) if len(value) < 16 else b"\xdc" + struct.pack(">H", len(value))
            return head + b"".join(packb(part) for part in value)
        case dict():
            head = bytes([0x80 | len(value)]) if len(value) < 16 else b"\xde" + struct.pack(">H", len(value))
            return head + b"".join(packb(key) + packb(part) for key, part in value.items())
    raise TypeError(type(value).__name__)


def _integer(value: int) -> bytes:
    if 0 <= value < 128:
        return bytes([value])
    return b"\xd3" + struct.pack(">q", value) if value < 2**63 else b"\xcf" + struct.pack(">Q", value)
