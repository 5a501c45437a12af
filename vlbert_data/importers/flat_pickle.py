"""The commonest data pickle, a dict of text, bytes and numbers, read in one pass. Promise: what `safe_pickle` gives.

Feature databases hold a million pickles built alike: a dict put together in one go, its values bytes, text, ints or
None. For these the stack machine's general steps cost as much as all else that an import does. This is the same
reading for that one grammar; anything outside it, a damaged pickle above all, is None here, and the machine's to judge.
"""

from typing import Any

PROTOCOL, FRAME, STOP = 0x80, 0x95, ord(".")
EMPTY_DICT, MARK, SET_ITEMS = ord("}"), ord("("), ord("u")
MEMOIZE, PUT, LONG_PUT = 0x94, ord("q"), ord("r")
# Opcodes of values that are bytes long as the number before them says, and how many bytes that number has.
TEXTS = {ord("X"): 4, 0x8C: 1}
BYTES = {ord("B"): 4, ord("C"): 1}
# Opcodes of ints, by the bytes these take; those of four are signed.
INTS = {ord("K"): 1, ord("M"): 2, ord("J"): 4}
CONSTANTS = {ord("N"): None, 0x88: True, 0x89: False}
LAST_PROTOCOL = 5
FRAME_BYTES, MEMO_BYTES = 9, {MEMOIZE: 1, PUT: 2, LONG_PUT: 5}
SKIPPED = frozenset({FRAME, *MEMO_BYTES})
# Fields of a dict, and steps of the stack machine for these, that are read this way.
MOST_FIELDS, MOST_STEPS = 64, 1000
# Bytes of a value that is viewed rather than copied, where views are wanted.
LONG_BYTES = 4096


def read_flat(data: bytes, *, views: bool = False) -> dict[str, Any] | None:
    """Return the dict in a pickle of the plainest kind, None for any other pickle, or one with a fault.

    At most MOST_FIELDS fields, within MOST_STEPS steps of the stack machine and containers nested once.
    views: give bytes values of LONG_BYTES or more as views of `data`.
    """
    try:
        if data[0] != PROTOCOL or data[1] > LAST_PROTOCOL:
            return None
        start = _past_frame(data, 2)
        mark = _past_memo(data, start + 1)
        if data[start] != EMPTY_DICT or data[mark] != MARK:
            return None
        return _fields(data, _past_frame(data, mark + 1), LONG_BYTES if views else len(data))
    except (IndexError, UnicodeError):
        return None


def _fields(data: bytes, at: int, viewed: int) -> dict[str, Any] | None:
    """Return the fields from byte `at` to the pickle's end; values of `viewed` bytes or more as views.

    Raises:
        IndexError, UnicodeError: cut short, or text that is none.
    """
    fields: dict[str, Any] = {}
    for _ in range(MOST_FIELDS):
        width = TEXTS.get(data[at])
        if width is None:
            break
        start = at + 1 + width
        at = start + int.from_bytes(data[at + 1 : start], "little")
        name = str(data[start:at], "utf-8", "surrogatepass")
        at += data[at] == MEMOIZE  # what nearly always comes; anything else takes a call
        if data[at] in SKIPPED:
            at = _past_memo(data, at)
        code = data[at]
        if width := BYTES.get(code):
            start = at + 1 + width
            at = start + int.from_bytes(data[at + 1 : start], "little")
            fields[name] = (data if at - start < viewed else memoryview(data))[start:at]
        elif width := TEXTS.get(code):
            start = at + 1 + width
            at = start + int.from_bytes(data[at + 1 : start], "little")
            fields[name] = str(data[start:at], "utf-8", "surrogatepass")
        elif width := INTS.get(code):
            start, at = at + 1, at + 1 + width
            fields[name] = int.from_bytes(data[start:at], "little", signed=width == 4)
        elif code in CONSTANTS:
            fields[name] = CONSTANTS[code]
            at += 1
        else:
            return None
        at += data[at] == MEMOIZE
        if data[at] in SKIPPED:
            at = _past_memo(data, at)
    end = _past_memo(data, at + 1)
    return fields if data[at] == SET_ITEMS and data[end] == STOP and end + 1 == len(data) else None


def _past_frame(data: bytes, at: int) -> int:
    """Return the place of the opcode at `at`, or behind it where it announces a frame."""
    return at + FRAME_BYTES if data[at] == FRAME else at


def _past_memo(data: bytes, at: int) -> int:
    """Return the place behind the opcode at `at` that keeps a value, if it does, and behind a frame before and after.

    So steps are bounded by the number of fields; a pickle that keeps a value twice is not of the plainest kind.
    """
    at = _past_frame(data, at)
    at += MEMO_BYTES.get(data[at], 0)
    return _past_frame(data, at)
