"""How many of the RoIs that UNITER stored for an image count. Promise: by its file if there is one, else by its rule.

The file is one JSON map from names to numbers, millions of them; it is read in pieces and kept as 10 bytes a name.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.ids import id_hash
from vlbert_data.sources.files import hash_file, unreadable
from vlbert_data.types import Array, is_unicode

COUNT_FILES = "nbb_*.json"
# feat_th0.2_max100_min10 and feat_numbb36, each perhaps with _compressed.
THRESHOLD_NAME = re.compile(r"feat_th([0-9]{1,2}(?:\.[0-9]{1,8})?)_max([0-9]{1,4})_min([0-9]{1,4})")
FIXED_NAME = re.compile(r"feat_numbb([0-9]{1,4})")
READ_BYTES = 1 << 20
# A name and its number, as `json.dump` writes them, and what stands between two of them.
ENTRY = re.compile(rb'\s*("(?:[^"\\]|\\.){1,1000}")\s*:\s*([0-9]{1,5})\s*([,}])')
LONGEST_ENTRY_BYTES = 1 << 12


@dataclass(frozen=True, kw_only=True, slots=True)
class CountRule:
    """How many RoIs of an image count: those of more than `least_confidence`, but within `fewest` and `most`.

    The defaults are those of UNITER's scripts.
    """

    least_confidence: float = 0.2
    fewest: int = 10
    most: int = 100

    def count(self, confidence: Array) -> int:
        """Return the number of RoIs that count, for float [M] confidences."""
        return min(max(self.fewest, int((confidence > self.least_confidence).sum())), self.most)


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """The counts of one database.

    name_hashes: uint64 [n], rising, and numbers: uint16 [n], where a file has them; both None where the rule counts.
    facts: what the manifest keeps of file or rule.
    """

    rule: CountRule
    facts: dict[str, Any]
    name_hashes: Array | None = None
    numbers: Array | None = None

    @staticmethod
    def by_rule(rule: CountRule) -> "Counts":
        """Return counts that follow a rule."""
        return Counts(rule=rule, facts={"rule": asdict(rule)})

    def count(self, name: str, confidence: Array) -> int:
        """Return the number of RoIs of the image of that name that count.

        Raises:
            RecordRejectedError: "field missing": the file has no number for it.
        """
        if self.name_hashes is None or self.numbers is None:
            return self.rule.count(confidence)
        place = int(np.searchsorted(self.name_hashes, np.uint64(id_hash(name))))
        if place == len(self.name_hashes) or int(self.name_hashes[place]) != id_hash(name):
            raise RecordRejectedError("field missing", f"{self.facts['file']['name']} has no count for it")
        return int(self.numbers[place])


def find_counts(folder: Path) -> Counts:
    """Return the counts of the database in a folder: by its file of counts, else by the rule that the name states.

    Raises:
        ConfigError: several files of counts, or one that is none.
    """
    found = sorted(folder.glob(COUNT_FILES))
    if len(found) > 1:
        raise ConfigError(f"{folder}: {len(found)} files {COUNT_FILES}; keep the one that belongs to this database.")
    if found:
        facts = {"file": hash_file(found[0], name=found[0].name).as_json()}
        hashes, numbers = read_counts(found[0])
        return Counts(rule=CountRule(), facts=facts, name_hashes=hashes, numbers=numbers)
    return Counts.by_rule(rule_of(folder.absolute().name))


def rule_of(name: str) -> CountRule:
    """Return the rule that a folder's name states; of `feat_numbbN` the first N, as UNITER's reader takes them."""
    if found := THRESHOLD_NAME.match(name):
        return CountRule(least_confidence=float(found[1]), most=int(found[2]), fewest=int(found[3]))
    if found := FIXED_NAME.match(name):
        return CountRule(fewest=int(found[1]), most=int(found[1]))
    return CountRule()


def read_counts(path: Path) -> tuple[Array, Array]:
    """Return uint64 [n] hashes of names, rising, and uint16 [n] numbers.

    Raises:
        ConfigError: unreadable, no map of names to numbers, or two numbers for one name.
    """
    entries = np.fromiter(_entries(path), np.dtype([("name", "u8"), ("number", "u2")]))  # 10 bytes each
    entries.sort(order="name")
    if (entries["name"][1:] == entries["name"][:-1]).any():
        raise ConfigError(f"{path}: two numbers for one name. Restore the file that belongs to this database.")
    return entries["name"].copy(), entries["number"].copy()


def _entries(path: Path) -> Iterator[tuple[int, int]]:
    """Yield (hash of the name, number) of every entry."""
    try:
        with path.open("rb") as stream:
            waiting = stream.read(READ_BYTES).lstrip()
            if not waiting.startswith(b"{"):
                raise _no_counts(path)
            waiting, end = waiting[1:], b","
            while end == b",":
                place = 0
                while end == b"," and (found := ENTRY.match(waiting, place)):
                    place, end = found.end(), found[3]
                    yield _entry(path, found[1], int(found[2]))
                waiting = waiting[place:]
                if end == b",":
                    more = stream.read(READ_BYTES)
                    if not more or len(waiting) > LONGEST_ENTRY_BYTES:
                        raise _no_counts(path)
                    waiting += more
            if waiting.strip() or stream.read(READ_BYTES).strip():
                raise _no_counts(path)
    except OSError as error:
        raise unreadable(path, error) from error


def _entry(path: Path, name: bytes, number: int) -> tuple[int, int]:
    try:
        text = json.loads(name)
    except ValueError as error:  # a bad escape
        raise _no_counts(path) from error
    # An escape may also name half of a character.
    if not is_unicode(text) or not 1 <= number < 2**16:
        raise _no_counts(path)
    return id_hash(text), number


def _no_counts(path: Path) -> ConfigError:
    return ConfigError(f"{path}: expected a JSON map from names to numbers of boxes; copy it again.")
