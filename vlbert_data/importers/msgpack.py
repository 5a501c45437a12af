"""MessagePack with numpy arrays. Promise: plain data comes out or an error does; memory is bounded by the input's size.

Arrays come as the package msgpack-numpy writes them, which UNITER and older tensorpack use: a map that says under "nd"
whether it is an array or a scalar, with its dtype, shape and bytes. That package unpickles arrays of objects when it
reads; here they are refused.

Source: the MessagePack specification; msgpack-numpy 0.4 for the maps.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vlbert_data.importers.plain_arrays import NotPlainError, RefusedDataError, Sliceable, plain_array, plain_dtype


class MsgpackRefusedError(RefusedDataError):
    """MessagePack bytes that are damaged, too large, or hold more than plain data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MsgpackLimits:
    """How much a message may hold: bytes of input, values, and containers inside each other."""

    max_bytes: int = 256 * 2**20
    max_values: int = 1_000_000
    max_depth: int = 16


DEFAULT_LIMITS = MsgpackLimits()
# First byte of a message that is a whole array or map, see `_Reader.value`.
FIXED_SIZES = {0xC0: None, 0xC2: False, 0xC3: True}
NUMBER_CODES = {
    **{0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"},
    **{0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"},
}
BYTES_CODES = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
TEXT_CODES = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
LIST_CODES = {0xDC: ">H", 0xDD: ">I"}
MAP_CODES = {0xDE: ">H", 0xDF: ">I"}
# What a map of msgpack-numpy holds besides "nd"; "kind" is empty for all but objects and structures.
ARRAY_FIELDS = ("type", "shape", "data")


def loads_msgpack(data: bytes | Sliceable, *, what: str, limits: MsgpackLimits = DEFAULT_LIMITS) -> Any:
    """Return the plain data in one MessagePack message. Arrays are read-only and their bytes are not copied.

    Text that is no UTF-8 comes as bytes, which is how messages of the old specification store bytes.
    what: names the message in errors.

    Raises:
        MsgpackRefusedError: damaged, beyond `limits`, bytes after its end, or more than plain data.
    """
    if len(data) > limits.max_bytes:
        raise MsgpackRefusedError(f"{what}: {len(data)} bytes; at most {limits.max_bytes} are read.")
    reader = _Reader(memoryview(data) if isinstance(data, bytes) else data, limits)
    try:
        value = reader.value(limits.max_depth)
        if reader.position != len(data):
            raise NotPlainError(f"{len(data) - reader.position} bytes after the end")
    except (NotPlainError, ValueError) as error:
        raise MsgpackRefusedError(f"{what}: {error} (at byte {reader.position}); only plain data is read.") from error
    return _as_bytes(value)


class _Reader:
    """One message, read once."""

    __slots__ = ("data", "position", "values_left")

    def __init__(self, data: Sliceable, limits: MsgpackLimits) -> None:
        self.data = data
        self.position = 0
        self.values_left = limits.max_values

    def take(self, size: int) -> memoryview:
        """Return the next `size` bytes, not copied."""
        end = self.position + size
        if end > len(self.data):
            raise NotPlainError("truncated")
        part = self.data[self.position : end]
        self.position = end
        return part

    def number(self, code: str) -> Any:
        """Return the next number, `code` as in `struct`."""
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def value(self, room: int) -> Any:
        """Return the next value, in which at most `room` containers stand inside each other."""
        self.values_left -= 1
        if self.values_left < 0:
            raise NotPlainError("more values than are read")
        first = self.take(1)[0]
        if first < 0x80 or first >= 0xE0:
            return first if first < 0x80 else first - 0x100
        if first < 0xC0:
            size = first & (0x1F if first >= 0xA0 else 0x0F)
            return (self.text if first >= 0xA0 else self.items if first >= 0x90 else self.map)(size, room)
        if first in FIXED_SIZES:
            return FIXED_SIZES[first]
        if first in NUMBER_CODES:
            return self.number(NUMBER_CODES[first])
        reads: tuple[tuple[dict[int, str], Callable[[int, int], Any]], ...] = (
            (BYTES_CODES, lambda size, _: self.take(size)),
            (TEXT_CODES, self.text),
            (LIST_CODES, self.items),
            (MAP_CODES, self.map),
        )
        for codes, read in reads:
            if first in codes:
                return read(self.number(codes[first]), room)
        raise NotPlainError(f"type {first:#04x}: an extension, or none at all")

    def text(self, size: int, _room: int) -> str | memoryview:
        """Return text of `size` bytes."""
        raw = self.take(size)
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            return raw

    def items(self, count: int, room: int) -> list[Any]:
        """Return a list of `count` values."""
        self.enter(count, room)
        return [_as_bytes(self.value(room - 1)) for _ in range(count)]

    def map(self, count: int, room: int) -> Any:
        """Return a map of `count` keys and values, or the array or scalar that such a map stands for."""
        self.enter(2 * count, room)
        pairs: dict[str | int | bytes, Any] = {}
        for _ in range(count):
            key = self.value(0)
            key = bytes(key) if isinstance(key, memoryview) else key
            if type(key) not in (str, int, bytes):
                raise NotPlainError(f"a key that is a {type(key).__name__}")
            if key in pairs:
                raise NotPlainError(f"the key {str(key)[:40]!r} twice")
            pairs[key] = self.value(room - 1)
        marked = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in pairs.items()}
        if "nd" in marked:
            return _numpy_value(marked)
        return {key: _as_bytes(value) for key, value in pairs.items()}

    def enter(self, least_bytes: int, room: int) -> None:
        """Refuse a container that is nested too deeply, or has more values than bytes are left."""
        if room <= 0:
            raise NotPlainError("containers nested too deeply, or used as a key")
        if least_bytes > len(self.data) - self.position:
            raise NotPlainError("truncated")


def _as_bytes(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


def _numpy_value(fields: dict[Any, Any]) -> Any:
    """Return the array or scalar that a map of msgpack-numpy stands for."""
    is_array = fields["nd"]
    names = ARRAY_FIELDS if is_array is True else ("type", "data")
    if not isinstance(is_array, bool) or any(name not in fields for name in names):
        raise NotPlainError("a map that says it is an array, without what an array needs")
    if set(fields) - {"nd", "kind", *names} or fields.get("kind", "") not in ("", b""):
        raise NotPlainError("an array of objects or structures")
    code, raw, shape = _text(fields["type"]), fields["data"], fields.get("shape", [])
    if isinstance(raw, str):  # bytes of the old specification that happen to be UTF-8
        raw = raw.encode()
    if code is None or not isinstance(raw, bytes | memoryview) or not isinstance(shape, list):
        raise NotPlainError("a map that says it is an array, with fields that are none of an array")
    array = plain_array(plain_dtype(code), tuple(shape), raw, "C")
    return array if is_array else array[()]


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    return bytes(value).decode("latin-1") if isinstance(value, bytes | memoryview) else None
