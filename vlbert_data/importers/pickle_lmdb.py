"""LMDB databases of ViLBERT, VOLTA and MMF: a pickled dict an image, under the image's name.

Promise: pickles are read and never executed, and sizes that are those of a resized image are not taken for the photo's.

ViLBERT's dicts have boxes and features only. VOLTA's have LXMERT's fields, as base64 text or arrays, and distributions
where the script that made them kept these. MMF's have `bbox`, `objects` and a distribution without background, or, by
its Faster R-CNN script, only the best class's score; that script also states the size of the resized image.

Source: vilbert-multi-task script/convert_to_lmdb.py; e-bug/volta data/*/convert_*_lmdb.py, features_extraction;
facebookresearch/mmf tools/scripts/features.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlbert_data.errors import RecordRejectedError
from vlbert_data.importers.base import FormatOptions, RawRecord, TextRecord
from vlbert_data.importers.lmdb_inputs import MAX_RECORD_BYTES, LmdbImporter, is_numbering, sniff_values
from vlbert_data.importers.mmf_records import is_mmf, mmf_record
from vlbert_data.importers.record_dict import RecordPlace, record_of, text_record_of
from vlbert_data.importers.safe_pickle import PickleLimits, loads_plain

NAME = "pickle-lmdb"
LIMITS = PickleLimits(max_bytes=MAX_RECORD_BYTES, max_steps=100_000, max_depth=8)


def sniff(path: Path) -> str | None:
    """Return what shows that the file or folder has this format; None where it has not."""
    return sniff_values(path, _look)


def _look(key: bytes, value: bytes) -> str | None:
    fields = None if is_numbering(key) else loads_plain(value, what="a value", limits=LIMITS)
    if not isinstance(fields, dict) or "features" not in fields:
        return None
    writer = "MMF" if is_mmf(fields) else "VOLTA" if "img_id" in fields else "ViLBERT"
    return f"an LMDB database of pickled dicts with the fields of {writer}"


def open_importer(paths: Sequence[Path], options: FormatOptions) -> "PickleLmdb":
    """Return the importer of these databases; see `base.Format`."""
    return PickleLmdb(paths)


class PickleLmdb(LmdbImporter):
    """Pickled dicts by the image's name."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(paths)
        self.settle(NAME)

    def decode(self, file: int, value: bytes, place: RecordPlace) -> RawRecord:
        """Return the record in a pickled dict."""
        return _record(_fields(value, place), place)

    def decode_text(self, file: int, value: bytes, place: RecordPlace) -> RawRecord | TextRecord:
        """Return the record in a pickled dict, its arrays as text where that is what they are."""
        fields = _fields(value, place)
        text = None if is_mmf(fields) else text_record_of(fields, place, self.traits)
        return _record(fields, place) if text is None else text


def _fields(value: bytes, place: RecordPlace) -> Mapping[Any, Any]:
    fields = loads_plain(value, what=place.where, limits=LIMITS, views=True)
    if not isinstance(fields, Mapping):
        raise RecordRejectedError("bad record", f"a {type(fields).__name__}; expected a dict of named values")
    return fields


def _record(fields: Mapping[Any, Any], place: RecordPlace) -> RawRecord:
    return mmf_record(fields, place) if is_mmf(fields) else record_of(fields, place)
