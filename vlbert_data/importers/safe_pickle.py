"""Pickles read without unpickling. Promise: data comes out or an error does; nothing named in a pickle is ever called.

A pickle is a program for a small stack machine, and Python's own reader runs it: it imports what the file names and
calls it. This module is another machine for the same bytes. It keeps plain values (None, bool, int, float, str, bytes,
list, tuple, dict, set, frozenset, numpy arrays and numpy scalars) and treats every name as a word: a few dozen of them
it knows how to answer by itself, all others end the reading. Memory is bounded by a multiple of the input's size.

Source: the opcodes as documented in Python's `pickletools`, protocols 0 to 5.
"""

import mmap
import struct
from codecs import escape_decode
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlbert_data.importers.flat_pickle import MOST_STEPS, read_flat
from vlbert_data.importers.plain_arrays import NotPlainError, RefusedDataError, Sliceable
from vlbert_data.importers.safe_pickle_values import (
    PLAIN_TYPES,
    ArrayDraft,
    Symbol,
    build_draft,
    call_symbol,
    check_key,
    check_plain,
    known_symbol,
)


class PickleRefusedError(RefusedDataError):
    """A pickle that is damaged, too large, or holds more than plain data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PickleLimits:
    """How much a pickle may hold: bytes of input, steps of the stack machine, and containers inside each other."""

    max_bytes: int = 8 * 2**30
    max_steps: int = 20_000_000
    max_depth: int = 32


DEFAULT_LIMITS = PickleLimits()


def load_plain(path: Path, *, limits: PickleLimits = DEFAULT_LIMITS) -> Any:
    """Return the plain data in the pickle file `path`, which is mapped and not copied as a whole.

    Raises:
        PickleRefusedError: the file cannot be read, is damaged, exceeds `limits`, or holds more than plain data.
    """
    try:
        with path.open("rb") as stream:
            if path.stat().st_size == 0:
                raise PickleRefusedError(f"{path}: empty; expected a pickle.")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
                return loads_plain(view, what=str(path), limits=limits)
    except OSError as error:
        raise PickleRefusedError(f"{path}: cannot be read: {error.strerror}.") from error


def loads_plain(
    data: bytes | Sliceable, *, what: str, limits: PickleLimits = DEFAULT_LIMITS, views: bool = False
) -> Any:
    """Return the plain data in a pickle. Arrays are read-only; 8-bit strings of Python 2 come as latin-1 text.

    what: names the pickle in errors. views: long bytes may come as views of `data`, see `read_flat`.

    Raises:
        PickleRefusedError: damaged, beyond `limits`, bytes after its end, or more than plain data.
    """
    if len(data) > limits.max_bytes:
        raise PickleRefusedError(f"{what}: {len(data)} bytes; at most {limits.max_bytes} are read.")
    if type(data) is bytes and limits.max_steps >= MOST_STEPS and limits.max_depth >= 1:
        flat = read_flat(data, views=views)
        if flat is not None:
            return flat
    # The view of a mapped file must be given back before the file can be closed.
    with memoryview(data) if isinstance(data, bytes | memoryview) else nullcontext(data) as view:
        machine = _Machine(view, limits)
        try:
            return machine.run()
        except (NotPlainError, UnicodeError, ValueError, OverflowError, MemoryError) as error:
            place = f"at byte {machine.position}"
            raise PickleRefusedError(
                f"{what}: {error or 'out of memory'} ({place}); only plain data is read."
            ) from error


class _Machine:
    """The stack machine: one pickle, read once."""

    __slots__ = ("budget", "data", "limits", "marks", "memo", "position", "stack")

    def __init__(self, data: Sliceable, limits: PickleLimits) -> None:
        self.data, self.limits = data, limits
        self.position = 0
        self.budget = CALL_COST_FLOOR + CALL_COST_AN_INPUT_BYTE * len(data)
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Return the value that the program leaves."""
        for _ in range(self.limits.max_steps):
            code = self.byte()
            if code == STOP:
                return self.finish()
            step = STEPS.get(code)
            if step is None:
                raise NotPlainError(f"unknown or forbidden opcode {code:#04x}")
            step(self)
        raise NotPlainError(f"more than {self.limits.max_steps} steps")

    def finish(self) -> Any:
        """Return the one value left, checked to be plain all through."""
        if len(self.stack) != 1 or self.marks:
            raise NotPlainError(f"ends with {len(self.stack)} values instead of one")
        if self.position != len(self.data):
            raise NotPlainError(f"{len(self.data) - self.position} bytes after the end")
        check_plain(self.stack[0], self.limits.max_depth)
        return self.stack[0]

    def take(self, size: int) -> memoryview:
        """Return the next `size` bytes, not copied."""
        end = self.position + size
        if size < 0 or end > len(self.data):
            raise NotPlainError("truncated")
        part = self.data[self.position : end]
        self.position = end
        return part

    def line(self) -> bytes:
        """Return the bytes up to the next line feed, which is passed over."""
        step = 4096
        for start in range(self.position, len(self.data), step):
            found = bytes(self.data[start : start + step]).find(b"\n")
            if found >= 0:
                text = bytes(self.take(start + found - self.position))
                self.position += 1
                return text
        raise NotPlainError("truncated")

    def byte(self) -> int:
        """Return the next byte."""
        part = bytes(self.data[self.position : self.position + 1])
        if not part:
            raise NotPlainError("truncated")
        self.position += 1
        return part[0]

    def number(self, code: str) -> Any:
        """Return the next number, `code` as in `struct`."""
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def sized(self, code: str) -> memoryview:
        """Return the bytes behind a length of format `code`."""
        return self.take(self.number(code))

    def long_integer(self) -> None:
        """Push an int whose length is written in four bytes; Python does not even print the longest of these."""
        size = self.number("<i")
        if size > LONGEST_INT_BYTES:
            raise NotPlainError(f"an integer of {size} bytes; at most {LONGEST_INT_BYTES} are read")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Return the topmost value, taken off; never one below the last mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise NotPlainError("takes a value where there is none")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        """Return the topmost value, left there, which must be of exactly this type."""
        value = self.pop()
        if type(value) is not kind:
            raise NotPlainError(f"a {kind.__name__} expected, a {type(value).__name__} found")
        self.stack.append(value)
        return value

    def pop_mark(self) -> list[Any]:
        """Return the values above the last mark, both taken off."""
        if not self.marks:
            raise NotPlainError("no mark where one is needed")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def spend(self, *arguments: Any) -> None:
        """Count what a call may copy: one large kept value given to many calls must not fill the memory."""
        self.budget -= 64 + sum(len(value) for value in arguments if type(value) in (str, bytes, list, tuple))
        if self.budget < 0:
            raise NotPlainError("makes far more data than it holds")

    def remember(self, index: int) -> None:
        """Keep the topmost value in the memo."""
        value = self.pop()
        self.stack.append(value)
        self.memo[index] = value
        if type(value) is ArrayDraft:
            value.memo_index = index

    def recall(self, index: int) -> None:
        """Push a value of the memo."""
        if index not in self.memo:
            raise NotPlainError(f"refers to value {index}, which was never kept")
        self.push(self.memo[index])

    def build(self) -> None:
        """Give the topmost array or dtype draft its state; the finished value takes the draft's place."""
        state, draft = self.pop(), self.pop()
        self.spend(*state) if type(state) is tuple else self.spend()
        value = build_draft(draft, state)
        if draft.memo_index is not None:
            self.memo[draft.memo_index] = value
        self.push(value)

    def set_items(self, pairs: list[Any]) -> None:
        """Put keys and values, taking turns, into the dict on top."""
        if len(pairs) % 2:
            raise NotPlainError("a key without value")
        target = self.top(dict)
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[check_key(key)] = value

    def add_items(self, values: list[Any]) -> None:
        """Put values into the set on top."""
        self.top(set).update([check_key(value) for value in values])

    def text_integer(self) -> None:
        """Push an int or, by the old way of writing them, a bool."""
        text = self.line()
        self.push({b"00": False, b"01": True}[text] if text in (b"00", b"01") else int(text))

    def text_string(self) -> None:
        """Push a quoted 8-bit string of Python 2."""
        text = self.line().strip()
        if len(text) < 2 or text[0] != text[-1] or text[0] not in b"\"'":
            raise NotPlainError("a string without its quotes")
        self.push(escape_decode(text[1:-1])[0].decode("latin-1"))


def _global(m: _Machine) -> None:
    m.push(known_symbol(m.line().decode(), m.line().decode()))


def _stack_global(m: _Machine) -> None:
    name, module = m.pop(), m.pop()
    if type(name) is not str or type(module) is not str:
        raise NotPlainError("a name that is no text")
    m.push(known_symbol(module, name))


def _reduce(m: _Machine) -> None:
    arguments, symbol = m.pop(), m.pop()
    if type(symbol) is not Symbol or type(arguments) is not tuple:
        raise NotPlainError("calls something that is no name")
    m.spend(*arguments)
    m.push(call_symbol(symbol, arguments))


def _dict(m: _Machine) -> None:
    pairs = m.pop_mark()
    m.push({})
    m.set_items(pairs)


def _set_item(m: _Machine) -> None:
    value, key = m.pop(), m.pop()
    m.set_items([key, value])


def _append(m: _Machine) -> None:
    value = m.pop()
    m.top(list).append(value)


def _append_all(m: _Machine) -> None:
    values = m.pop_mark()
    m.top(list).extend(values)


def _pop(m: _Machine) -> None:
    if m.marks and m.marks[-1] == len(m.stack):
        m.marks.pop()
    else:
        m.pop()


def _duplicate(m: _Machine) -> None:
    value = m.pop()
    m.stack += [value, value]


def _tuple_of(count: int) -> Callable[[_Machine], None]:
    def step(m: _Machine) -> None:
        values = [m.pop() for _ in range(count)]
        m.push(tuple(reversed(values)))

    return step


def _protocol(m: _Machine) -> None:
    version = m.number("<B")
    if version > 5:
        raise NotPlainError(f"pickle protocol {version}; 0 to 5 are read")


STOP = ord(".")
LONGEST_INT_BYTES = 1024
# A call of a data pickle copies at most its own arguments, each of which the input holds; a call is 3 bytes or more.
CALL_COST_AN_INPUT_BYTE = 32
CALL_COST_FLOOR = 2**16
# Opcode -> what it does. Absent on purpose: whatever makes objects of classes (NEWOBJ, NEWOBJ_EX, INST, OBJ),
# persistent ids, the extension registry and out-of-band buffers.
STEPS: dict[int, Callable[[_Machine], None]] = {
    ord(code): step
    for code, step in {
        "\x80": _protocol,
        "\x95": lambda m: m.take(8) and None,  # a frame's length: a hint for readers of streams
        "0": _pop,
        "1": lambda m: m.pop_mark() and None,
        "2": _duplicate,
        "(": lambda m: m.marks.append(len(m.stack)),
        "N": lambda m: m.push(None),
        "\x88": lambda m: m.push(True),
        "\x89": lambda m: m.push(False),
        "I": _Machine.text_integer,
        "L": lambda m: m.push(int(m.line().rstrip(b"L"))),
        "J": lambda m: m.push(m.number("<i")),
        "K": lambda m: m.push(m.byte()),
        "M": lambda m: m.push(m.number("<H")),
        "\x8a": lambda m: m.push(int.from_bytes(m.take(m.byte()), "little", signed=True)),
        "\x8b": _Machine.long_integer,
        "F": lambda m: m.push(float(m.line())),
        "G": lambda m: m.push(m.number(">d")),
        "S": _Machine.text_string,
        "T": lambda m: m.push(str(m.sized("<i"), "latin-1")),
        "U": lambda m: m.push(str(m.take(m.byte()), "latin-1")),
        "V": lambda m: m.push(m.line().decode("raw-unicode-escape")),
        "X": lambda m: m.push(str(m.sized("<I"), "utf-8", "surrogatepass")),
        "\x8c": lambda m: m.push(str(m.take(m.byte()), "utf-8", "surrogatepass")),
        "\x8d": lambda m: m.push(str(m.sized("<Q"), "utf-8", "surrogatepass")),
        "B": lambda m: m.push(bytes(m.sized("<I"))),
        "C": lambda m: m.push(bytes(m.take(m.byte()))),
        "\x8e": lambda m: m.push(bytes(m.sized("<Q"))),
        "\x96": lambda m: m.push(bytes(m.sized("<Q"))),  # a bytearray comes as bytes
        "]": lambda m: m.push([]),
        ")": lambda m: m.push(()),
        "}": lambda m: m.push({}),
        "\x8f": lambda m: m.push(set()),
        "l": lambda m: m.push(m.pop_mark()),
        "t": lambda m: m.push(tuple(m.pop_mark())),
        "\x85": _tuple_of(1),
        "\x86": _tuple_of(2),
        "\x87": _tuple_of(3),
        "d": _dict,
        "a": _append,
        "e": _append_all,
        "s": _set_item,
        "u": lambda m: m.set_items(m.pop_mark()),
        "\x90": lambda m: m.add_items(m.pop_mark()),
        "\x91": lambda m: m.push(frozenset(check_key(value) for value in m.pop_mark())),
        "p": lambda m: m.remember(int(m.line())),
        "q": lambda m: m.remember(m.byte()),
        "r": lambda m: m.remember(m.number("<I")),
        "\x94": lambda m: m.remember(len(m.memo)),
        "g": lambda m: m.recall(int(m.line())),
        "h": lambda m: m.recall(m.byte()),
        "j": lambda m: m.recall(m.number("<I")),
        "c": _global,
        "\x93": _stack_global,
        "R": _reduce,
        "b": _Machine.build,
    }.items()
}

__all__ = ["DEFAULT_LIMITS", "PLAIN_TYPES", "PickleLimits", "PickleRefusedError", "load_plain", "loads_plain"]
