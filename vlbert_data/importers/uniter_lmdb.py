"""UNITER's LMDB databases: a hundred RoIs an image, in MessagePack or packed as .npz, of which a file counts the first.

Promise: RoIs are those that UNITER would train on, and pixels are never made up: the files do not know the photos'
sizes, which the user gives.

Key: the name of the file that the extraction wrote, such as `coco_train2014_000000000009.npz`. Value: `norm_bb`
[M, 6], corners, width and height as shares of the image; `features` [M, 2048]; `conf` [M, 1], the best foreground
class's score after suppression; `soft_labels` [M, 1601], background first. All float16, most confident first.

Source: ChenRocks/UNITER scripts/convert_imgdir.py, data/data.py; ChenRocks/BUTD-UNITER-NLVR2 tools/generate_npz.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlbert_data.errors import RecordRejectedError
from vlbert_data.importers.base import FormatOptions, RawRecord
from vlbert_data.importers.lmdb_inputs import MAX_RECORD_BYTES, LmdbImporter, sniff_values
from vlbert_data.importers.lmdb_pages import lmdb_file
from vlbert_data.importers.msgpack import MsgpackLimits, loads_msgpack
from vlbert_data.importers.npy import ZIP_MAGIC, NpyLimits, loads_npz
from vlbert_data.importers.record_dict import RecordPlace, confidences, rows
from vlbert_data.importers.uniter_counts import Counts, find_counts

NAME = "uniter-lmdb"
FIELDS = ("norm_bb", "features", "conf", "soft_labels")
MSGPACK_LIMITS = MsgpackLimits(max_bytes=MAX_RECORD_BYTES, max_values=1000, max_depth=4)
NPY_LIMITS = NpyLimits(max_bytes=MAX_RECORD_BYTES)


def sniff(path: Path) -> str | None:
    """Return what shows that the file or folder has this format; None where it has not."""
    return sniff_values(path, _look)


def _look(_key: bytes, value: bytes) -> str | None:
    if not set(FIELDS) <= set(unpack(value, "a value")):
        return None
    kind = ".npz" if value.startswith(ZIP_MAGIC) else "MessagePack"
    return f"an LMDB database of {kind} values with norm_bb, features, conf and soft_labels"


def open_importer(paths: Sequence[Path], options: FormatOptions) -> "UniterLmdb":
    """Return the importer of these databases; see `base.Format`."""
    return UniterLmdb(paths)


class UniterLmdb(LmdbImporter):
    """Rows of UNITER's databases, cut to those that count."""

    reading_threads = 2  # many of these databases are compressed

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(paths)
        self._counted = [find_counts(lmdb_file(path).parent) for path in paths]
        self.settle(NAME, box_units="normalised")

    def facts(self) -> dict[str, Any]:
        """Return format, count, files, and by what rule or file the RoIs that count were told."""
        return {**super().facts(), "roi_counts": [counts.facts for counts in self._counted]}

    def decode(self, file: int, value: bytes, place: RecordPlace) -> RawRecord:
        """Return the RoIs of a value that count."""
        return uniter_record(unpack(value, place.where), self._counted[file], place)


def uniter_record(fields: Mapping[str, Any], counts: Counts, place: RecordPlace) -> RawRecord:
    """Return the RoIs of one image's arrays that count.

    Raises:
        RecordRejectedError: an array is missing or disagrees with another, or fewer RoIs are stored than count.
    """
    missing = [name for name in FIELDS if name not in fields]
    if missing:
        raise RecordRejectedError("field missing", f"no {', '.join(missing)}")
    features = fields["features"]
    total = features.shape[0] if isinstance(features, np.ndarray) and features.ndim else 0
    confidence = confidences(fields["conf"], "conf", total)
    count = counts.count(place.key, confidence)
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
