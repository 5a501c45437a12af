"""In which options a build differs from the one that was begun. Promise: options and what was typed, never hashes.

What decides a build, its identity, holds hashes of files; beside it stands what was asked for: for each part of the
identity the options that decide it and their values as typed. Those do not decide anything: data may move.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlbert_data.errors import ConfigError

SHOWN = 5
LONGEST_CHARACTERS = 60
_HASH = re.compile(r'"[0-9a-f]{16,}"')
# Part of an identity -> option -> value as typed, None where it was not given.
Asked = Mapping[str, Mapping[str, str | None]]


def several(typed: Sequence[str]) -> str:
    """Return what was typed for the input, the first of many."""
    more = f" and {len(typed) - SHOWN} more" if len(typed) > SHOWN else ""
    return " ".join(map(str, typed[:SHOWN])) + more


def refuse_differences(
    folder: object, old: Mapping[str, Any], new: Mapping[str, Any], asked: tuple[Asked, Asked], names: Mapping[str, str]
) -> None:
    """Compare two identities, JSON types. asked: of both, the old one {} where it is not known. names: see `told`.

    Raises:
        ConfigError: they differ; the message says in which options.
    """
    found = list(dict.fromkeys(told(old, new, asked, names)))
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise ConfigError(
            f"{folder}: begun with other settings: {'; '.join(found[:SHOWN])}{more}. Give the same again, or another "
            "--out."
        )


def told(
    old: Mapping[str, Any], new: Mapping[str, Any], asked: tuple[Asked, Asked], names: Mapping[str, str]
) -> Iterator[str]:
    """Yield in words where two identities differ, such as `--shard-size was 1000, is now 500`.

    names: what people call a setting of the identity that is decided by itself, such as settings.shard_size.
    """
    for part in sorted(old.keys() | new.keys()):
        before, now = old.get(part), new.get(part)
        if before == now:
            continue
        if part in asked[1]:
            yield from _told_of_part(asked[0].get(part), asked[1][part], list(difference(before, now)))
        else:
            yield from (names.get(name, name) + change for name, change in difference(before, now, part))


def _told_of_part(
    before: Mapping[str, str | None] | None, now: Mapping[str, str | None], changes: list[tuple[str, str]]
) -> Iterator[str]:
    given = " ".join(f"{option} {value}" for option, value in now.items() if value is not None)
    if before is not None and dict(before) != dict(now):
        for option in dict.fromkeys((*before, *now)):
            if before.get(option) != now.get(option):
                yield f"{option} was {before.get(option) or 'not given'}, is now {now.get(option) or 'not given'}"
        return
    plain = [name + change for name, change in changes if name and not _HASH.search(change)]
    if plain:
        yield f"{given or ' and '.join(now)}: {', '.join(plain)}"
    elif before is not None:
        yield f"what {given or ' and '.join(now)} stands for has changed since"
    else:
        yield f"{given or ' and '.join(now)}: not what it was made with"


def difference(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield (name, change) of each place where two JSON values differ, such as `shard_size`, ` was 9, is now 5`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from difference(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield name, f" was {_short(old)}, is now {_short(new)}"


def _short(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_CHARACTERS else f"{text[: LONGEST_CHARACTERS - 3]}..."
