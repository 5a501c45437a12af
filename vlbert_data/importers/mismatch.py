"""Why two lists of images have none in common. Promise: a pattern is proposed only if it finds some."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

from vlbert_data.errors import RecordRejectedError
from vlbert_data.importers.keys import KeyPattern

KEYS_SHOWN = 3
KEYS_TRIED = 100_000
# Usual ways from one project's name of an image to another's, the plainest first: the number at the end, with and
# without its zeros; the file's name without folder and ending; the first number.
USUAL = (r"0*(\d+)$", r"(\d+)$", r"([^/]+)$", r"([^/]+?)(?:\.\w+)?$", r"0*(\d+)(?:\.\w+)?$", r"0*(\d+)", r"(\d+)")


def explain_mismatch(
    keys: Callable[[], Iterator[str]], pattern: KeyPattern, names: Sequence[str], fits: Callable[[str], bool]
) -> str:
    """Return a few ids of both sides, as they were compared, and a pattern that would find more, if there is one.

    keys: the features' keys, from the first on at each call. names: some that the file beside has. fits: whether the
    file beside has an id.
    """
    shown = [_id_or_key(key, pattern) for key in islice(keys(), KEYS_SHOWN)]
    known = ", ".join(repr(name) for name in names)
    tried = list(islice(keys(), KEYS_TRIED))
    advice = _advice(pattern, lambda other: _count(tried, other, fits), f"of {len(tried):,} images are found")
    if advice is None:
        advice = (
            "No usual --key-pattern makes them equal. Give one that does, or the file that belongs to these features."
        )
    return f"{_called(shown, pattern)}; the file has {known}. {advice}"


def explain_disjoint(sets: Mapping[str, Callable[[], Iterator[str]]], pattern: KeyPattern) -> str:
    """Return a few ids of two sets, as they were compared, and a pattern that finds images of both, if there is one.

    sets: the keys of each by its name, from the first on at each call. pattern: the one that both were read with.
    """
    called = [
        _called([_id_or_key(key, pattern) for key in islice(keys(), KEYS_SHOWN)], pattern, where=f" in {name}")
        for name, keys in sets.items()
    ]
    first, second = (list(islice(keys(), KEYS_TRIED)) for keys in sets.values())
    fewest = min(len(first), len(second))
    advice = _advice(pattern, lambda other: _count_common(first, second, other), f"of {fewest:,} images are in both")
    if advice is None:
        advice = "No usual --key-pattern makes some equal. Give one that does, or features of the same images."
    return f"{'. '.join(called)}. {advice}"


def _id_or_key(key: str, pattern: KeyPattern) -> tuple[str, bool]:
    """Return the id in a key, or the key, and whether there is one."""
    try:
        return pattern.image_id(key), True
    except RecordRejectedError:
        return key[:80], False


def _called(shown: list[tuple[str, bool]], pattern: KeyPattern, *, where: str = "") -> str:
    listed = ", ".join(repr(name) for name, _ in shown)
    if pattern.pattern is None:
        return f"Images{where} are called {listed}"
    given = f"--key-pattern '{pattern.pattern.pattern}'"
    if not any(found for _, found in shown):
        return f"{given} finds nothing in {listed}{where}"
    marked = ", ".join(repr(name) if found else f"{name!r} (not found)" for name, found in shown)
    return f"By {given} images{where} are called {marked}"


def _advice(given: KeyPattern, count: Callable[[KeyPattern], int], found: str) -> str | None:
    """Return which pattern finds most images, by `count`, in words that end in `found`; None where none finds any."""
    tried = [KeyPattern(re.compile(text)) for text in USUAL]
    if given.pattern is not None:
        tried.insert(0, KeyPattern())
    counts = [count(pattern) for pattern in tried]
    best = tried[counts.index(max(counts))]
    if not max(counts):
        return None
    how = "Without --key-pattern" if best.pattern is None else f"With --key-pattern '{best.pattern.pattern}'"
    return f"{how} {max(counts):,} {found}."


def _count(keys: list[str], pattern: KeyPattern, fits: Callable[[str], bool]) -> int:
    """Return how many different ids the pattern finds in keys that fit; 0 where it calls different keys the same."""
    pairs = (_id_or_key(key, pattern) for key in keys)
    found = [name for name, is_id in pairs if is_id and fits(name)]
    return len(found) if len(set(found)) == len(found) else 0


def _count_common(first: list[str], second: list[str], pattern: KeyPattern) -> int:
    """Return how many ids the pattern finds in keys of both; 0 where it calls different keys of one the same."""
    found = [[name for key in keys for name, is_id in [_id_or_key(key, pattern)] if is_id] for keys in (first, second)]
    common = set(found[0]) & set(found[1])
    return len(common) if all(sum(name in common for name in names) == len(common) for names in found) else 0
