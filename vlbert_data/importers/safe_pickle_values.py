"""The few things besides plain literals that a data pickle holds. Promise: each is built here, by code of this file.

A name in a pickle becomes a `Symbol`, which is a word and nothing that could be called. `call_symbol` answers for the
known ones; numpy arrays and dtypes first become drafts, which `build_draft` turns into the value.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vlbert_data.importers.plain_arrays import NotPlainError, plain_array, plain_dtype

PLAIN_TYPES = frozenset({type(None), bool, int, float, str, bytes})
# The dtype code of object arrays: known only so that the one form that is read, a single dict, can be told.
OBJECT_CODE = "O8"
# Dict keys and set elements: int keys are bounded because equal hashes could be made from larger ones at will.
MAX_INT_KEY = 2**60


@dataclass(frozen=True, slots=True)
class Symbol:
    """A known name, by the short word that this module uses for it."""

    word: str


@dataclass(slots=True)
class ArrayDraft:
    """An array (dtype None) or a dtype announced and not yet filled. memo_index: where the machine keeps it."""

    dtype: np.dtype[Any] | None = None
    memo_index: int | None = None


_NUMPY = {
    "_reconstruct": ("numpy.core.multiarray", "numpy._core.multiarray"),
    "scalar": ("numpy.core.multiarray", "numpy._core.multiarray"),
    "_frombuffer": ("numpy.core.numeric", "numpy._core.numeric"),
    "ndarray": ("numpy", "numpy.core.multiarray", "numpy._core.multiarray"),
    "dtype": ("numpy", "numpy.core.multiarray", "numpy._core.multiarray"),
}
_BUILTIN = dict.fromkeys(("set", "frozenset", "bytes", "bytearray", "dict"), ("builtins", "__builtin__"))
KNOWN = {
    (module, name): Symbol(name)
    for name, modules in {
        **_NUMPY,
        **_BUILTIN,
        "OrderedDict": ("collections",),
        "encode": ("_codecs",),
    }.items()
    for module in modules
}


def known_symbol(module: str, name: str) -> Symbol:
    """Return the symbol for a name.

    Raises:
        NotPlainError: a name that plain data does not need.
    """
    symbol = KNOWN.get((module, name))
    if symbol is None:
        raise NotPlainError(f"names {module[:80]}.{name[:80]}, which is not plain data")
    return symbol


def call_symbol(symbol: Symbol, arguments: tuple[Any, ...]) -> Any:
    """Return what the named constructor would make of these arguments.

    Raises:
        NotPlainError: arguments that data pickles do not have.
    """
    answer = _call_numpy if symbol.word in _NUMPY else _call_builtin
    return answer(symbol.word, arguments)


def _call_numpy(word: str, arguments: tuple[Any, ...]) -> Any:
    match word, arguments:
        case "_reconstruct", (Symbol(word="ndarray"), tuple() as shape, bytes() | str() as code):
            if len(shape) == 1 and code in (b"b", "b"):
                return ArrayDraft()
        case "dtype", (str() as code, *_) if len(arguments) <= 3:
            return ArrayDraft(dtype=np.dtype("O") if code == OBJECT_CODE else plain_dtype(code))
        case "scalar", (np.dtype() as dtype, bytes() | str() as raw):
            return plain_array(dtype, (), _raw(raw), "C")[()]
        case "_frombuffer", (bytes() as raw, np.dtype() as dtype, tuple() as shape, "C" | "F" as order, *rest):
            if _absent(rest):
                return plain_array(dtype, shape, raw, order)
        case "_frombuffer", (bytes() as raw, np.dtype() as dtype, tuple() as shape, "K", tuple() as axes):
            array = plain_array(dtype, shape, raw, "C")
            if all(type(axis) is int for axis in axes) and sorted(axes) == list(range(array.ndim)):
                return array.transpose(axes)
    raise NotPlainError(f"numpy's {word} with arguments that plain data does not have")


def _call_builtin(word: str, arguments: tuple[Any, ...]) -> Any:
    match word, arguments:
        case (("encode" | "bytearray"), (str() as text, "latin1" | "latin-1")):
            return text.encode("latin-1")
        case (("bytes" | "bytearray"), ()):
            return b""
        case (("bytes" | "bytearray"), (bytes() as raw,)):
            return raw
        case "set", (list() as values,):
            return {check_key(value) for value in values}
        case "frozenset", (list() as values,):
            return frozenset(check_key(value) for value in values)
        case (("OrderedDict" | "dict"), ()):
            return {}
        case "OrderedDict", (list() as pairs,) if all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
            return {check_key(key): value for key, value in pairs}
    raise NotPlainError(f"{word} with arguments that plain data does not have")


def _absent(rest: list[Any]) -> bool:
    """Return whether an optional last field is missing or None."""
    return not rest or (len(rest) == 1 and rest[0] is None)


def build_draft(draft: Any, state: Any) -> Any:
    """Return the array or dtype that `state` completes; an array of no dimension that holds one dict comes as the dict.

    That form is how `numpy.save` stores a dict, and the only array of objects there is.

    Raises:
        NotPlainError: not a draft, or a state of something else than plain numbers and strings.
    """
    if type(draft) is not ArrayDraft or type(state) is not tuple:
        raise NotPlainError("sets the state of something that is no array")
    if draft.dtype is not None:
        match state:
            case (int(), "<" | ">" | "|" | "=" as order, None, None, None, int(), int(), int(), *rest):
                if _absent(rest):
                    return draft.dtype.newbyteorder(order)
        raise NotPlainError("a dtype with fields or metadata")
    match state:
        case (int(), tuple() as shape, np.dtype() as dtype, bool() as is_fortran, bytes() | str() as raw):
            return plain_array(dtype, shape, _raw(raw), "F" if is_fortran else "C")
        case (int(), (), np.dtype(kind="O"), bool(), [dict() as only]):
            return only
    raise NotPlainError("an array of objects, or without dtype")


def check_key(key: Any) -> Any:
    """Return a dict key or set element.

    Raises:
        NotPlainError: neither text, nor bytes, nor an integer below 2^60.
    """
    if type(key) in (str, bytes) or (type(key) is int and abs(key) < MAX_INT_KEY):
        return key
    raise NotPlainError(f"a key that is neither text nor a small integer but a {type(key).__name__}")


def check_plain(value: Any, max_depth: int) -> None:
    """Check that a value and all that it holds is plain, not nested too deeply, and no part of itself.

    Raises:
        NotPlainError: the first thing that is not so.
    """
    _height(value, max_depth, {})


def _height(value: Any, room: int, heights: dict[int, int | None]) -> int:
    """Return how deep containers are nested in `value`; `heights` knows those seen, None for those being looked at."""
    if type(value) in PLAIN_TYPES or isinstance(value, np.ndarray | np.generic):
        return 0
    if type(value) not in (list, tuple, dict, set, frozenset):
        raise NotPlainError(f"a {type(value).__name__} is not plain data")
    known = heights.get(id(value), 0)
    if known is None:
        raise NotPlainError("a container that holds itself")
    if known == 0:
        heights[id(value)] = None
        parts = value.values() if type(value) is dict else value
        odd = [part for part in parts if type(part) not in PLAIN_TYPES]
        known = 1 + max((_height(part, room - 1, heights) for part in odd), default=0) if room > 0 else room + 1
        heights[id(value)] = known
    if known > room:
        raise NotPlainError("containers nested too deeply")
    return known


def _raw(raw: bytes | str) -> bytes:
    """Return array bytes; Python 2 wrote them as an 8-bit string."""
    return raw if isinstance(raw, bytes) else raw.encode("latin-1")
