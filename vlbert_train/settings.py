"""Trees of frozen dataclasses as settings. Promise: what is unknown, of another type or out of range is refused.

A field made by `setting` carries its range and its meaning. `build` makes a tree from TOML or JSON types;
`parse_assignment` reads `section.name=value` as typed on a command line.
Types of fields: bool, int, float, str, Literal, X | None, tuple[X, ...].
"""

import math
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, field, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from vlbert_data.errors import ConfigError

T = TypeVar("T")


def setting(default: T, about: str, *, low: float | None = None, high: float | None = None) -> T:
    """Return a dataclass field: its default, what it means (in one sentence), and the range it must lie in."""
    made: T = field(default=default, metadata={"about": about, "low": low, "high": high})
    return made


def check_ranges(section: str, config: Any) -> None:
    """Check every field of a section against its type and range.

    Raises:
        ConfigError: the first field that does not fit, with its meaning.
    """
    hints = get_type_hints(type(config))
    for entry in fields(config):
        name, value = f"{section}.{entry.name}", getattr(config, entry.name)
        convert(name, hints[entry.name], value)
        for number in value if isinstance(value, tuple) else (value,):
            _check_range(name, number, entry.metadata)


def _check_range(name: str, value: Any, facts: Mapping[str, Any]) -> None:
    if isinstance(value, (bool, str)) or value is None:
        return
    low, high = facts.get("low"), facts.get("high")
    if math.isfinite(value) and (low is None or value >= low) and (high is None or value <= high):
        return
    if low is not None and high is not None:
        wanted = f"from {low} to {high}"
    else:
        wanted = f"at least {low}" if low is not None else "a finite number"
    raise ConfigError(f"{name} is {value}; it must be {wanted}. It is: {facts['about']}")


def build(kind: type[T], facts: Mapping[str, Any], base: T | None = None, *, where: str = "") -> T:
    """Return a tree of type `kind` holding `facts`; what they leave out is as in `base`, or the default.

    Raises:
        ConfigError: a name that is no setting (the nearest is named), a value of another type, or out of range.
    """
    hints = get_type_hints(kind)
    made: dict[str, Any] = {}
    for name, value in facts.items():
        if name not in hints:
            raise ConfigError(f"there is no setting {where}{name}. {_nearest(paths(kind, where), where + name)}")
        inner = hints[name]
        if is_dataclass(inner):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}{name} is a section, not a value; write {where}{name}.NAME = VALUE.")
            section: Any = inner
            made[name] = build(section, value, getattr(base, name) if base else None, where=f"{where}{name}.")
        else:
            made[name] = convert(f"{where}{name}", inner, value)
    return replace(base, **made) if base is not None else kind(**made)  # type: ignore[type-var]


def parse_assignment(kind: type, text: str) -> dict[str, Any]:
    """Return the JSON types that `section.name=value` stands for, for `build`; lists as `a,b`, nothing as `none`.

    Raises:
        ConfigError: not of that form, a name that is no setting, or a value that its type cannot be read from.
    """
    path, equals, value = (part.strip() for part in text.partition("="))
    known = paths(kind)
    if not equals or not path:
        raise ConfigError(f"--set {text!r} is not of the form SECTION.NAME=VALUE, such as --set run.steps=300.")
    inside = [name for name in known if name.startswith(f"{path}.")]
    if inside:
        raise ConfigError(f"{path} is a section; name one of {', '.join(inside)}.")
    if path not in known:
        raise ConfigError(f"there is no setting {path}. {_nearest(known, path)}")
    inner: Any = kind
    for part in path.split("."):
        inner = get_type_hints(inner)[part]
    facts: Any = _parse(path, inner, value)
    for part in reversed(path.split(".")):
        facts = {part: facts}
    nested: dict[str, Any] = facts
    return nested


def paths(kind: type, where: str = "") -> dict[str, Any]:
    """Return every setting of a tree as `section.name` to its dataclass field."""
    found: dict[str, Any] = {}
    hints = get_type_hints(kind)
    for entry in fields(kind):
        if is_dataclass(hints[entry.name]):
            found |= paths(hints[entry.name], f"{where}{entry.name}.")
        else:
            found[f"{where}{entry.name}"] = entry
    return found


def describe(kind: type) -> list[tuple[str, str, str]]:
    """Return (name, default, meaning) of every setting, in order."""
    rows = []
    for name, entry in paths(kind).items():
        default = "" if entry.default is MISSING else show(entry.default)
        rows.append((name, default, str(entry.metadata.get("about", ""))))
    return rows


def show(value: Any) -> str:
    """Return a value as `parse_assignment` reads it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(show(part) for part in value)
    return str(value)


def _nearest(known: Iterable[str], name: str) -> str:
    names = list(known)
    near = get_close_matches(name, names, n=1)
    if not near:  # the right name without its section, or in another one
        lasts = {path.rpartition(".")[2]: path for path in names}
        near = [lasts[last] for last in get_close_matches(name.rpartition(".")[2], lasts, n=1)]
    if near:
        return f"Did you mean {near[0]}?"
    section = name.partition(".")[0]
    inside = [path for path in names if path.startswith(f"{section}.")]
    return f"There are: {', '.join(inside or dict.fromkeys(path.partition('.')[0] for path in names))}."


def convert(name: str, kind: Any, value: Any) -> Any:
    """Return `value` as type `kind`: an int may stand for a float, a list for a tuple; nothing else is bent.

    Raises:
        ConfigError: another type, or a word that is not one of the choices (the nearest is named).
    """
    origin = get_origin(kind)
    if origin in (types.UnionType, Union):
        if value is None:
            return None
        return convert(name, next(part for part in get_args(kind) if part is not type(None)), value)
    if origin is Literal:
        choices = get_args(kind)
        if value in choices:
            return value
        near = get_close_matches(str(value), choices, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(choices)}.{hint}")
    if origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(convert(name, get_args(kind)[0], part) for part in value)
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
        return value
    raise ConfigError(f"{name} is {value!r}; it must be {_type_name(kind)}.")


def _parse(name: str, kind: Any, text: str) -> Any:
    """Return the JSON value that `text` stands for where type `kind` is expected."""
    origin = get_origin(kind)
    if origin in (types.UnionType, Union):
        if text.lower() == "none":
            return None
        return _parse(name, next(part for part in get_args(kind) if part is not type(None)), text)
    if origin is tuple:
        return [_parse(name, get_args(kind)[0], part.strip()) for part in text.split(",") if part.strip()]
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    if kind in (bool, int, float):
        raise ConfigError(f"{name} is {text!r}; it must be {_type_name(kind)}.")
    return text


def _type_name(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"a list, each {_type_name(get_args(kind)[0])}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return names.get(kind, str(kind))
