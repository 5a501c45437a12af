"""UNITER's LMDB databases: a hundred RoIs an image, in MessagePack or packed as .npz, of which a file counts the first.

Promise: RoIs are those that UNITER would train on, and pixels are never made up: the files do not know the photos'
sizes, which the user gives.

Key: the name of the file that the extraction wrote, such as `coco_train2014_000000000009.npz`. Value: `norm_bb`
[M, 6], corners, width and height as shares of the image; `features` [M, 2048]; `conf` [M, 1], the best foreground
class's score after suppression; `soft_labels` [M, 1601], background first. All float16, most confident first.

Source: ChenRocks/UNITER scripts/convert_imgdir.py, data/data.py; ChenRocks/BUTD-UNITER-NLVR2 tools/generate_npz.py.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.importers.base import FormatOptions, RawRecord
from vlbert_data.importers.lmdb_inputs import MAX_RECORD_BYTES, LmdbImporter, first_value
from vlbert_data.importers.lmdb_pages import lmdb_file, looks_like_lmdb
from vlbert_data.importers.msgpack import MsgpackLimits, loads_msgpack
from vlbert_data.importers.npy import ZIP_MAGIC, NpyLimits, loads_npz
from vlbert_data.importers.plain_arrays import RefusedDataError
from vlbert_data.importers.record_dict import RecordPlace, confidences, rows
from vlbert_data.sources.files import FileFacts, hash_file, read_start, unreadable

NAME = "uniter-lmdb"
FIELDS = ("norm_bb", "features", "conf", "soft_labels")
MSGPACK_LIMITS = MsgpackLimits(max_bytes=MAX_RECORD_BYTES, max_values=1000, max_depth=4)
NPY_LIMITS = NpyLimits(max_bytes=MAX_RECORD_BYTES)
MAX_COUNT_FILE_BYTES = 512 << 20
COUNT_FILES = "nbb_*.json"
# feat_th0.2_max100_min10 and feat_numbb36, each perhaps with _compressed.
THRESHOLD_NAME = re.compile(r"feat_th([0-9.]{1,8})_max(\d{1,4})_min(\d{1,4})")
FIXED_NAME = re.compile(r"feat_numbb(\d{1,4})")


@dataclass(frozen=True, kw_only=True, slots=True)
class CountRule:
    """How many RoIs of an image count: those of more than `least_confidence`, but within `fewest` and `most`.

    The defaults are those of UNITER's scripts.
    """

    least_confidence: float = 0.2
    fewest: int = 10
    most: int = 100

    def count(self, confidence: Any) -> int:
        """Return the number of RoIs that count, for float [M] confidences."""
        return min(max(self.fewest, int((confidence > self.least_confidence).sum())), self.most)


def sniff(path: Path) -> str | None:
    """Return what shows that the file or folder has this format; None where it has not."""
    if not looks_like_lmdb(path):
        return None
    try:
        found = first_value(path)
        fields = None if found is None else unpack(found[1], str(path))
    except (RefusedDataError, RecordRejectedError):
        return None
    if found is None or fields is None or not set(FIELDS) <= set(fields):
        return None
    kind = ".npz" if found[1].startswith(ZIP_MAGIC) else "MessagePack"
    return f"an LMDB database of {kind} values with norm_bb, features, conf and soft_labels"


def open_importer(paths: Sequence[Path], options: FormatOptions) -> "UniterLmdb":
    """Return the importer of these databases; see `base.Format`."""
    return UniterLmdb(paths)


class UniterLmdb(LmdbImporter):
    """Rows of UNITER's databases, cut to those that count."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(paths)
        self._counted = [_counts(path) for path in paths]
        self.settle(NAME, box_units="normalised")

    def facts(self) -> dict[str, Any]:
        """Return format, count, files, and by what rule or file the RoIs that count were told."""
        return {**super().facts(), "roi_counts": [counts.facts for counts in self._counted]}

    def decode(self, file: int, value: bytes, place: RecordPlace) -> RawRecord:
        """Return the RoIs of a value that count."""
        fields = unpack(value, place.where)
        missing = [name for name in FIELDS if name not in fields]
        if missing:
            raise RecordRejectedError("field missing", f"no {', '.join(missing)}")
        features = fields["features"]
        total = features.shape[0] if isinstance(features, np.ndarray) and features.ndim else 0
        confidence = confidences(fields["conf"], "conf", total)
        count = self._counted[file].count(place.key, confidence)
        if count > total:
            raise RecordRejectedError("wrong length", f"{count} RoIs counted, {total} stored")
        return RawRecord(
            key=place.key,
            where=place.where,
            num_bytes=place.num_bytes,
            boxes=rows(fields["norm_bb"], "norm_bb", total, 6)[:count, :4],
            features=rows(features, "features", total, None)[:count],
            class_probs=rows(fields["soft_labels"], "soft_labels", total, None)[:count],
            confidence=confidence[:count],
        )


def unpack(value: bytes, what: str) -> dict[str, Any]:
    """Return the named arrays of a value, told by its first bytes.

    A member `allow_pickle` that some versions of numpy stored by mistake is left out.

    Raises:
        RefusedDataError: damaged, too large, or more than arrays. RecordRejectedError: no named values.
    """
    if value.startswith(ZIP_MAGIC):
        return loads_npz(value, what=what, names=FIELDS, limits=NPY_LIMITS)
    fields = loads_msgpack(value, what=what, limits=MSGPACK_LIMITS)
    if not isinstance(fields, Mapping):
        raise RecordRejectedError("bad record", f"a {type(fields).__name__}; expected named arrays")
    return {str(name): part for name, part in fields.items()}


@dataclass(frozen=True, slots=True)
class _Counts:
    """How many RoIs count: by name where a file says so, else by a rule."""

    rule: CountRule
    by_name: dict[str, int] | None
    facts: dict[str, Any]

    def count(self, name: str, confidence: Any) -> int:
        """Return the number of RoIs of the image that count."""
        if self.by_name is None:
            return self.rule.count(confidence)
        if name not in self.by_name:
            raise RecordRejectedError("field missing", f"{self.facts['file']['name']} has no count for it")
        return self.by_name[name]


def _counts(path: Path) -> _Counts:
    """Return the counts of a database: of its file of counts, else of the rule that its folder's name states.

    Raises:
        ConfigError: several files of counts, or one that is none.
    """
    folder = lmdb_file(path).parent
    found = sorted(folder.glob(COUNT_FILES))
    if len(found) > 1:
        raise ConfigError(f"{folder}: {len(found)} files {COUNT_FILES}; keep the one that belongs to this database.")
    if found:
        facts: FileFacts = hash_file(found[0], name=found[0].name)
        return _Counts(rule=CountRule(), by_name=_read_counts(found[0]), facts={"file": facts.as_json()})
    rule = _rule(folder.name)
    stated = {"least_confidence": rule.least_confidence, "fewest": rule.fewest, "most": rule.most}
    return _Counts(rule=rule, by_name=None, facts={"rule": stated})


def _rule(name: str) -> CountRule:
    """Return the rule that a folder's name states; of `feat_numbbN` the first N, as UNITER's reader takes them."""
    if found := THRESHOLD_NAME.match(name):
        try:
            return CountRule(least_confidence=float(found[1]), most=int(found[2]), fewest=int(found[3]))
        except ValueError:
            return CountRule()
    if found := FIXED_NAME.match(name):
        return CountRule(fewest=int(found[1]), most=int(found[1]))
    return CountRule()


def _read_counts(path: Path) -> dict[str, int]:
    try:
        if path.stat().st_size > MAX_COUNT_FILE_BYTES:
            raise ConfigError(f"{path}: {path.stat().st_size} bytes; at most {MAX_COUNT_FILE_BYTES} are read.")
        counts = json.loads(read_start(path, MAX_COUNT_FILE_BYTES))
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON: {error}. Expected the number of boxes by name; copy it again.") from error
    if not isinstance(counts, dict) or not all(type(count) is int and count >= 1 for count in counts.values()):
        raise ConfigError(f"{path}: expected a map from names to numbers of boxes; copy it again.")
    return counts
