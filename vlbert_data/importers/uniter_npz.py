"""Folders of .npz files as UNITER's extraction writes them, before they go into its LMDB; see `uniter_lmdb`.

Promise: the RoIs that come out are those that come out of the database made of these files with UNITER's own settings.

Source: ChenRocks/BUTD-UNITER-NLVR2 tools/generate_npz.py; ChenRocks/UNITER scripts/convert_imgdir.py.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlbert_data.importers.base import FormatOptions, RawRecord
from vlbert_data.importers.loose_files import LooseFiles, read_small, sniff_files
from vlbert_data.importers.npy import ZIP_MAGIC
from vlbert_data.importers.record_dict import RecordPlace
from vlbert_data.importers.uniter_counts import CountRule, Counts
from vlbert_data.importers.uniter_lmdb import FIELDS, uniter_record, unpack

NAME = "uniter-npz"
COUNTS = Counts.by_rule(CountRule())


def sniff(path: Path) -> str | None:
    """Return what shows that the folder has this format; None where it has not."""
    return sniff_files(path, ".npz", _look)


def _look(file: Path) -> str | None:
    raw = read_small(file)
    found = set(unpack(raw, str(file))) if raw.startswith(ZIP_MAGIC) else set()
    return f"a folder of .npz files with the members {', '.join(FIELDS)}" if found == set(FIELDS) else None


def open_importer(paths: Sequence[Path], options: FormatOptions) -> "UniterNpz":
    """Return the importer of this folder; see `base.Format`."""
    return UniterNpz(paths)


class UniterNpz(LooseFiles):
    """The images of one folder."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(paths, NAME, ".npz")
        self.settle(NAME, box_units="normalised")

    def keys(self) -> Iterator[str]:
        """Yield the paths of the files in the folder: UNITER's databases have the ending in their keys."""
        return iter(self.names)

    def facts(self) -> dict[str, Any]:
        """Return format, count, a digest of the files, and the rule that counts RoIs."""
        return {**super().facts(), "roi_counts": [COUNTS.facts]}

    def load(self, number: int) -> RawRecord:
        """Return the RoIs of a file that count."""
        path = Path(self.where(number))
        raw = read_small(path)
        place = RecordPlace(key=self.names[number], where=str(path), num_bytes=len(raw))
        return uniter_record(unpack(raw, str(path)) if raw.startswith(ZIP_MAGIC) else {}, COUNTS, place)
