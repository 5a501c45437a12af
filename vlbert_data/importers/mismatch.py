"""Why a file beside the features has nothing of their images. Promise: a pattern is proposed only if it finds some."""

import re
from collections.abc import Callable, Iterator, Sequence
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
    return (
        f"{_called(shown, pattern)}; the file has {known}. {_advice(list(islice(keys(), KEYS_TRIED)), pattern, fits)}"
    )


def _id_or_key(key: str, pattern: KeyPattern) -> tuple[str, bool]:
    """Return the id in a key, or the key, and whether there is one."""
    try:
        return pattern.image_id(key), True
    except RecordRejectedError:
        return key[:80], False


def _called(shown: list[tuple[str, bool]], pattern: KeyPattern) -> str:
    listed = ", ".join(repr(name) for name, _ in shown)
    if pattern.pattern is None:
        return f"Images are called {listed}"
    given = f"--key-pattern '{pattern.pattern.pattern}'"
    if not any(found for _, found in shown):
        return f"{given} finds nothing in {listed}"
    marked = ", ".join(repr(name) if found else f"{name!r} (not found)" for name, found in shown)
    return f"By {given} images are called {marked}"


def _advice(keys: list[str], given: KeyPattern, fits: Callable[[str], bool]) -> str:
    tried = [KeyPattern(re.compile(text)) for text in USUAL]
    if given.pattern is not None:
        tried.insert(0, KeyPattern())
    counts = [_count(keys, pattern, fits) for pattern in tried]
    best = tried[counts.index(max(counts))]
    if not max(counts):
        return (
            "No usual --key-pattern makes them equal. Give one that does, or the file that belongs to these features."
        )
    found = f"{max(counts):,} of {len(keys):,} images"
    if best.pattern is None:
        return f"Without --key-pattern {found} are found."
    return f"With --key-pattern '{best.pattern.pattern}' {found} are found."


def _count(keys: list[str], pattern: KeyPattern, fits: Callable[[str], bool]) -> int:
    """Return how many different ids the pattern finds in keys that fit; 0 where it calls different keys the same."""
    pairs = (_id_or_key(key, pattern) for key in keys)
    found = [name for name, is_id in pairs if is_id and fits(name)]
    return len(found) if len(set(found)) == len(found) else 0
