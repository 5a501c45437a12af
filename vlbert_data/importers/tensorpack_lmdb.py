"""Conceptual Captions as ViLBERT and VOLTA train on it: tensorpack's LMDB files, in any number of parts.

Promise: the codec is told by the bytes, not guessed, pickles are not executed, and what an interrupted writer lost is
told.

Keys number the records, `00000000` and on. A value is a list, in MessagePack or pickled: ViLBERT's has 8 parts
(features, class distributions, boxes, number of boxes, height, width, id, caption), VOLTA's 13 (features, class
distributions, class ids and scores, attribute ids and scores, attribute distributions, boxes, number of boxes, height,
width, id, caption), or it is one of VOLTA's dicts. Distributions have the background first.

Source: facebookresearch/vilbert-multi-task vilbert/datasets/concept_cap_dataset.py; e-bug/volta
data/conceptual_captions/preprocess_cc_train.py, features_extraction/h5_to_td-lmdb.py; tensorpack serialize.py.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlbert_data.errors import RecordRejectedError
from vlbert_data.importers.base import FormatOptions, RawRecord
from vlbert_data.importers.lmdb_inputs import MAX_RECORD_BYTES, LmdbImporter, is_numbering, sniff_values
from vlbert_data.importers.lmdb_records import LmdbRecords
from vlbert_data.importers.msgpack import MsgpackLimits, loads_msgpack
from vlbert_data.importers.plain_arrays import RefusedDataError, Sliceable
from vlbert_data.importers.record_dict import RecordPlace, record_of
from vlbert_data.importers.safe_pickle import PickleLimits, loads_plain

NAME = "tensorpack-lmdb"
PICKLE_LIMITS = PickleLimits(max_bytes=MAX_RECORD_BYTES, max_steps=100_000, max_depth=8)
MSGPACK_LIMITS = MsgpackLimits(max_bytes=MAX_RECORD_BYTES, max_values=10_000, max_depth=6)
KEY = re.compile(rb"[0-9]{8,12}")
# A pickle of protocol 2 and on begins with its number; as MessagePack these bytes would be an empty map and a number.
PICKLE_STARTS = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
ARROW_START = b"\xff\xff\xff\xff"
VILBERT = ("features", "cls_prob", "boxes", "num_boxes", "image_h", "image_w", "image_id", "caption")
VOLTA = (
    *("features", "cls_prob", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "attr_scores", "boxes"),
    *("num_boxes", "image_h", "image_w", "image_id", "caption"),
)
LONGEST_CAPTION = 100_000
MAX_GAPS_TOLD = 20


def sniff(path: Path) -> str | None:
    """Return what shows that the file has this format; None where it has not."""
    return sniff_values(path, _look)


def _look(key: bytes, value: bytes) -> str | None:
    fields = named_values(value, "a value") if is_numbering(key) else {}
    if not {"features", "boxes"} <= set(fields):
        return None
    return f"an LMDB database of numbered {_codec(value)} values with {len(fields)} parts"


def _codec(value: bytes) -> str:
    return "pickled" if value.startswith(PICKLE_STARTS) else "MessagePack"


def open_importer(paths: Sequence[Path], options: FormatOptions) -> "TensorpackLmdb":
    """Return the importer of these databases, which may be the parts of one data set; see `base.Format`."""
    return TensorpackLmdb(paths)


class TensorpackLmdb(LmdbImporter):
    """Numbered records, with the ids and captions that stand in them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(paths)
        for index in self.indexes:
            self._damages += [(index.path, gap) for gap in _gaps(LmdbRecords(index), len(index.nodes))]
        self.settle(NAME)

    def keys(self) -> Iterator[str]:
        """Yield the id in each record, whose arrays are not read; the databases' own keys only number them."""
        for file, index in enumerate(self.indexes):
            for row in range(len(index.nodes)):
                try:
                    value = self.records(file).read_sparse(row, max_bytes=MAX_RECORD_BYTES)
                    yield _image_id(named_values(value, str(index.path)))
                except (RecordRejectedError, RefusedDataError):
                    yield ""
        yield from [""] * len(self._damages)

    def decode(self, file: int, value: bytes, place: RecordPlace) -> RawRecord:
        """Return the record in a list or dict."""
        fields = named_values(value, place.where)
        inner = RecordPlace(key=_image_id(fields), where=place.where, num_bytes=place.num_bytes)
        return replace(record_of(fields, inner), captions=_captions(fields.get("caption")))


def _image_id(fields: dict[str, Any]) -> str:
    """Return the id in a record.

    Raises:
        RecordRejectedError: "bad key": neither text nor a number.
    """
    key = fields.get("image_id", fields.get("img_id"))
    if isinstance(key, bytes):
        key = key.decode("utf-8", "backslashreplace")
    if isinstance(key, bool) or not isinstance(key, str | int) or key == "":
        raise RecordRejectedError("bad key", f"the image's id is {str(key)[:40]!r}; expected text or a number")
    return str(key)


def named_values(value: bytes | Sliceable, what: str) -> dict[str, Any]:
    """Return the parts of a value by name.

    Raises:
        RefusedDataError: damaged, too large, or more than plain data.
        RecordRejectedError: neither of the two lists, nor a dict.
    """
    start = bytes(value[:4])
    if start == ARROW_START:
        raise RecordRejectedError("bad record", "a value of pyarrow's old serializer, which no pyarrow reads any more")
    if start.startswith(PICKLE_STARTS):
        found = loads_plain(value, what=what, limits=PICKLE_LIMITS)
    else:
        found = loads_msgpack(value, what=what, limits=MSGPACK_LIMITS)
    if isinstance(found, dict):
        return {name.decode("latin-1") if isinstance(name, bytes) else str(name): part for name, part in found.items()}
    for names in (VILBERT, VOLTA):
        if isinstance(found, list | tuple) and len(found) == len(names):
            return dict(zip(names, found, strict=True))
    size = f" of {len(found)} parts" if isinstance(found, list | tuple) else ""
    raise RecordRejectedError(
        "bad record", f"a {type(found).__name__}{size}; expected {len(VILBERT)} parts (ViLBERT) or {len(VOLTA)} (VOLTA)"
    )


def _captions(value: Any) -> tuple[str, ...]:
    """Return the captions of a record, which has none, one, or a list of them.

    Raises:
        RecordRejectedError: "bad caption".
    """
    values = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    texts = [text.decode("utf-8", "replace") if isinstance(text, bytes) else text for text in values]
    for text in texts:
        if not isinstance(text, str) or len(text) > LONGEST_CAPTION:
            raise RecordRejectedError("bad caption", f"{str(text)[:40]!r}; expected text")
    return tuple(text for text in texts if text.strip())


def _gaps(records: LmdbRecords, count: int) -> list[str]:
    """Return a sentence for each run of numbers that are missing among the keys, at most MAX_GAPS_TOLD of them.

    tensorpack's writer loses up to a commit's records when its map is full and it has to begin again.
    """
    numbers = (int(key) for key in records.keys(0, count) if KEY.fullmatch(key))
    gaps = (
        f"records {before + 1} to {after - 1} are missing: lost when the file was written"
        for before, after in itertools.pairwise(itertools.chain([-1], numbers))
        if after > before + 1
    )
    found = list(itertools.islice(gaps, MAX_GAPS_TOLD))
    records.close()
    return found
