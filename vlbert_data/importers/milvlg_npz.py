"""Folders of .npz files, one an image, as bottom-up-attention.pytorch (MILVLG) extracts them.

Promise: only the members that are needed are unpacked, within limits, and nothing in them is executed.

Members: `x` [R, 2048], `bbox` [R, 4] in pixels, `num_bbox`, `image_h`, `image_w`, and `info`, a pickled dict with
`objects_id` and `objects_conf`, perhaps `attrs_id` and `attrs_conf`, counted from the first class.

Source: MILVLG/bottom-up-attention.pytorch utils/extract_utils.py.
"""

from collections.abc import Sequence
from pathlib import Path

from vlbert_data.errors import RecordRejectedError
from vlbert_data.importers.base import FormatOptions, RawRecord
from vlbert_data.importers.loose_files import MAX_FILE_BYTES, LooseFiles, read_small, sniff_files
from vlbert_data.importers.npy import NpyLimits, loads_npz
from vlbert_data.importers.record_dict import RecordPlace, record_of

NAME = "milvlg-npz"
FIELDS = ("x", "bbox", "num_bbox", "image_h", "image_w")
INFO = "info"
LIMITS = NpyLimits(max_bytes=MAX_FILE_BYTES)


def sniff(path: Path) -> str | None:
    """Return what shows that the folder has this format; None where it has not."""
    return sniff_files(path, ".npz", _look)


def _look(file: Path) -> str | None:
    found = loads_npz(read_small(file), what=str(file), names=FIELDS, limits=LIMITS)
    return f"a folder of .npz files with the members {', '.join(FIELDS)}" if set(found) == set(FIELDS) else None


def open_importer(paths: Sequence[Path], options: FormatOptions) -> "MilvlgNpz":
    """Return the importer of this folder; see `base.Format`."""
    return MilvlgNpz(paths)


class MilvlgNpz(LooseFiles):
    """The images of one folder."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(paths, NAME, ".npz")
        self.settle(NAME)

    def load(self, number: int) -> RawRecord:
        """Return the record in a file; what `info` repeats of the other members is not read from it."""
        path = Path(self.where(number))
        raw = read_small(path)
        members = loads_npz(raw, what=str(path), names=(*FIELDS, INFO), limits=LIMITS)
        info = members.pop(INFO, {})
        if not isinstance(info, dict):
            raise RecordRejectedError("bad record", f"the member {INFO} is an array; expected a dict")
        labels = {name: value for name, value in info.items() if str(name).startswith(("objects_", "attrs_"))}
        key = self.names[number].removesuffix(".npz")
        place = RecordPlace(key=key, where=str(path), num_bytes=len(raw))
        return record_of({**labels, **members}, place)
