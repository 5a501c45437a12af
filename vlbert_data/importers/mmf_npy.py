"""Folders of .npy files as MMF and ViLBERT extract them: features and a file of what else is known, or both in one.

Promise: the dict that numpy pickled into a file is read and never executed.

MMF writes `NAME.npy`, [R, 2048] float32, and `NAME_info.npy`, a dict of `bbox` in pixels, `num_boxes`, `objects`,
`cls_prob`, `image_width` and `image_height`. ViLBERT writes `NAME.npy`, a dict with `features` too. Distributions of
1601 columns have the background first, those of 1600 have none and sum to less than 1.

Source: facebookresearch/mmf tools/scripts/features; vilbert-multi-task script/extract_features.py.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vlbert_data.errors import RecordRejectedError
from vlbert_data.importers.base import FormatOptions, RawRecord
from vlbert_data.importers.loose_files import MAX_FILE_BYTES, LooseFiles, read_small, sniff_files
from vlbert_data.importers.mmf_records import mmf_record
from vlbert_data.importers.npy import NpyLimits, loads_npy
from vlbert_data.importers.record_dict import RecordPlace

NAME = "mmf-npy"
INFO_ENDING = "_info.npy"
LIMITS = NpyLimits(max_bytes=MAX_FILE_BYTES)


def sniff(path: Path) -> str | None:
    """Return what shows that the folder has this format; None where it has not."""
    return sniff_files(path, ".npy", _look)


def _look(file: Path) -> str | None:
    info = file if file.name.endswith(INFO_ENDING) else _info_of(file)
    if info.is_file():
        return f"a folder of .npy files, of which {info.name} says what {file.name} does not"
    found = loads_npy(read_small(file), what=str(file), limits=LIMITS)
    is_dict = isinstance(found, dict) and {"features", "bbox"} <= set(found)
    return f"a folder of .npy files with a dict of features and bbox, such as {file.name}" if is_dict else None


def _info_of(file: Path) -> Path:
    return file.with_name(file.name.removesuffix(".npy") + INFO_ENDING)


def open_importer(paths: Sequence[Path], options: FormatOptions) -> "MmfNpy":
    """Return the importer of this folder; see `base.Format`."""
    return MmfNpy(paths)


class MmfNpy(LooseFiles):
    """The images of one folder."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(paths, NAME, ".npy")
        self.settle(NAME)

    def is_input(self, name: str) -> bool:
        """Return whether a file holds features, not what else is known."""
        return not name.endswith(INFO_ENDING)

    def load(self, number: int) -> RawRecord:
        """Return the record in one file or two."""
        path = Path(self.where(number))
        raw = read_small(path)
        found, num_bytes = loads_npy(raw, what=str(path), limits=LIMITS), len(raw)
        if isinstance(found, np.ndarray):
            extra = read_small(_info_of(path))
            fields = loads_npy(extra, what=str(_info_of(path)), limits=LIMITS)
            if not isinstance(fields, dict):
                raise RecordRejectedError("bad record", f"{_info_of(path)}: an array; expected a dict")
            found, num_bytes = {**fields, "features": found}, num_bytes + len(extra)
        key = self.names[number].removesuffix(".npy")
        return mmf_record(found, RecordPlace(key=key, where=str(path), num_bytes=num_bytes))
