"""From foreign keys to image ids, and which of them occur twice. Promise: 8 bytes a key, however many there are."""

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.ids import id_hash
from vlbert_data.types import Array, is_unicode

LONGEST_ID_CHARACTERS = 1000
HASHES_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class KeyPattern:
    """The regular expression that finds the image id in a key, its first group if it has one; None keeps keys."""

    pattern: re.Pattern[str] | None = None

    @staticmethod
    def of(text: str | None) -> "KeyPattern":
        """Return the pattern that `text` writes.

        Raises:
            ConfigError: not a regular expression.
        """
        try:
            return KeyPattern(None if text is None else re.compile(text))
        except re.error as error:
            raise ConfigError(f"--key-pattern {text!r}: not a regular expression: {error}.") from error

    def image_id(self, key: str) -> str:
        """Return the image id in `key`.

        Raises:
            RecordRejectedError: "bad key": the pattern does not match, or an id that cannot be stored.
        """
        found = key
        if self.pattern is not None:
            match = self.pattern.search(key)
            if match is None:
                raise RecordRejectedError("bad key", f"{key[:80]!r}: --key-pattern does not match")
            found = match.group(1 if self.pattern.groups else 0) or ""
        found = found.strip()
        if not found or len(found) > LONGEST_ID_CHARACTERS or not is_unicode(found) or "\0" in found:
            raise RecordRejectedError("bad key", f"{found[:80]!r} cannot be an image id")
        return found


def hash_keys(keys: Iterator[str], pattern: KeyPattern) -> Array:
    """Return uint64 [n]: a hash of the image id in each key; of a key without one, a hash that no other has."""
    hashes = array("Q", (_hash(key, number, pattern) for number, key in enumerate(keys)))
    return np.frombuffer(hashes, np.uint64)


def any_common(some: Array, rising: Array) -> bool:
    """Return whether a number of `some`, uint64 [n], is in `rising`, uint64 [m]; in little memory."""
    for start in range(0, len(some), HASHES_AT_ONCE):
        part = some[start : start + HASHES_AT_ONCE]
        places = np.minimum(np.searchsorted(rising, part), len(rising) - 1)
        if len(rising) and (rising[places] == part).any():
            return True
    return False


def holds(rising: Array, image_id: str) -> bool:
    """Return whether the hash of an image id is in `rising`, uint64 [m]."""
    wanted = np.uint64(id_hash(image_id))
    place = int(np.searchsorted(rising, wanted))
    return place < len(rising) and bool(rising[place] == wanted)


def _hash(key: str, number: int, pattern: KeyPattern) -> int:
    try:
        return id_hash(pattern.image_id(key))
    except RecordRejectedError:
        return id_hash(f"\0{number}")  # no image id holds a zero


@dataclass(frozen=True, slots=True)
class Repeats:
    """Which inputs repeat an earlier one's image id. numbers: int64 [d], rising; earlier: the one before, for each."""

    numbers: Array
    earlier: Array

    @staticmethod
    def among(hashes: Array) -> "Repeats":
        """Return the repeats among image ids with these hashes, uint64 [n]."""
        order = np.argsort(hashes, kind="stable")  # [n]
        ordered = hashes[order]
        same = np.flatnonzero(ordered[1:] == ordered[:-1])
        later = order[same + 1]
        rising = np.argsort(later)
        return Repeats(later[rising].astype(np.int64), order[same][rising].astype(np.int64))

    def before(self, number: int) -> Iterator[int]:
        """Yield the inputs that have the image id of input `number`, from the nearest before it to the first."""
        while len(self.numbers):
            place = int(np.searchsorted(self.numbers, number))
            if place == len(self.numbers) or int(self.numbers[place]) != number:
                return
            number = int(self.earlier[place])
            yield number
