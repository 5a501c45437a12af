"""Arrow files of the LXMERT research project of Hugging Face: a row an image, boxes as shares of the photo.

Promise: boxes that the project's own script divided by another image's size are refused, and `sizes`, which is the
size of the resized image, is not taken for the photo's.

Columns: `roi_features` [36, 2048], `boxes` [36, 4], `obj_ids` and `attr_ids` counted from the first class and written
as floating numbers, `obj_probs`, `attr_probs`, `sizes` (height and width of the resized image), `preds_per_image` (how
many of the 36 are RoIs; the rest is zeros), `img_id`. Written two images at a time, the script divides left and top
edges by the sizes of the first image, right and bottom ones by those of the second.

Source: huggingface/transformers-research-projects lxmert/extracting_data.py, modeling_frcnn.py (`norm_box`).
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.importers.base import FormatOptions, RawRecord
from vlbert_data.importers.child import SECONDS_A_SURVEY, shared_child
from vlbert_data.importers.numbered import NumberedImporter, hash_files, place_in
from vlbert_data.importers.plain_arrays import RefusedDataError
from vlbert_data.importers.record_dict import rows, whole_number, whole_rows
from vlbert_data.types import Array

NAME = "lxmert-arrow"
COLUMNS = (
    "roi_features",
    "boxes",
    "obj_ids",
    "obj_probs",
    "attr_ids",
    "attr_probs",
    "sizes",
    "preds_per_image",
    "img_id",
)
STARTS = (b"ARROW1", b"\xff\xff\xff\xff")
MAX_CELL_BYTES = 64 << 20
# Shares may pass 1 by what float32 rounds, no more: boxes are clipped to the image before they are divided.
SHARE_SLACK = 1e-4
# The number of images a batch for which `norm_box` divides by the wrong sizes without failing.
MIXED_BATCH = 2


def arrow_files(path: Path) -> list[Path]:
    """Return the Arrow files that a path names: itself, or those of a folder that `datasets` saved."""
    return sorted(path.glob("*.arrow")) if path.is_dir() else [path]


def sniff(path: Path) -> str | None:
    """Return what shows that the file or folder has this format; None where it has not."""
    files = arrow_files(path)
    try:
        if not files or not files[0].is_file():
            return None
        with files[0].open("rb") as stream:
            if not stream.read(8).startswith(STARTS):
                return None
        head, _ = shared_child("arrow").ask(files[0], {"op": "describe"}, seconds=SECONDS_A_SURVEY)
    except (OSError, RefusedDataError):
        return None
    columns = head.get("columns")
    if not isinstance(columns, dict) or not {"roi_features", "boxes", "img_id"} <= set(columns):
        return None
    return "an Arrow file with the columns roi_features, boxes and img_id"


def open_importer(paths: Sequence[Path], options: FormatOptions) -> "LxmertArrow":
    """Return the importer of these files; see `base.Format`."""
    return LxmertArrow([file for path in paths for file in arrow_files(path)])


class LxmertArrow(NumberedImporter):
    """The rows of Arrow files, one file after the other; then what is damaged."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Find the batches of all files.

        Raises:
            ConfigError: no file, a column is missing, or no row that can be read. ChildRefusedError: unreadable.
        """
        if not files:
            raise ConfigError(f"{NAME}: no file that ends in .arrow in the folder.")
        self._files = list(files)
        self._file_facts = hash_files(files)
        self._damages: list[tuple[Path, str]] = []
        counts = [self._count(file) for file in self._files]
        self._ends = list(accumulate(counts))
        self.settle(NAME, box_units="normalised")

    def _count(self, file: Path) -> int:
        """Return the number of rows of a file that has the columns."""
        head, arrays = shared_child("arrow").ask(file, {"op": "describe"}, seconds=SECONDS_A_SURVEY)
        missing = [name for name in COLUMNS if name not in head.get("columns", {})]
        if missing or len(arrays) != 1:
            raise ConfigError(f"{file}: no column {', '.join(missing)}. Expected those of the format {NAME}.")
        if head.get("damage"):
            self._damages.append((file, str(head["damage"])[:300]))
        return int(arrays[0].sum())

    def __len__(self) -> int:
        """Return the number of rows and damages."""
        return self._ends[-1] + len(self._damages)

    def keys(self) -> Iterator[str]:
        """Yield the ids of the images."""
        for number in range(len(self)):
            try:
                yield self._key(self._ask(number, ["img_id"])[1][0])
            except (RecordRejectedError, RefusedDataError):
                yield ""

    def where(self, number: int) -> str:
        """Return file and row of an image."""
        if number >= self._ends[-1]:
            return str(self._damages[number - self._ends[-1]][0])
        file, row = place_in(self._ends, number)
        return f"{self._files[file]}!row {row}"

    def load(self, number: int) -> RawRecord:
        """Return the record of a row, without the rows of zeros that fill it up."""
        other, arrays = self._ask(number, list(COLUMNS))
        cells = dict(zip(COLUMNS, arrays, strict=True))
        total = len(cells["roi_features"]) if cells["roi_features"].ndim else 0
        count = whole_number(cells["preds_per_image"], "preds_per_image", 0, total)
        boxes = rows(cells["boxes"], "boxes", total, 4)[:count]
        if other is not None:
            self._check_pair(cells["sizes"], other)
        _check_shares(boxes)
        return RawRecord(
            key=self._key(cells["img_id"]),
            where=self.where(number),
            num_bytes=sum(array.nbytes for array in arrays),
            boxes=boxes,
            features=rows(cells["roi_features"], "roi_features", total, None)[:count],
            class_ids=whole_rows(cells["obj_ids"], "obj_ids", total)[:count],
            class_scores=rows(cells["obj_probs"], "obj_probs", total, 0)[:count],
            attribute_ids=whole_rows(cells["attr_ids"], "attr_ids", total)[:count],
            attribute_scores=rows(cells["attr_probs"], "attr_probs", total, 0)[:count],
        )

    def _ask(self, number: int, columns: list[str]) -> tuple[int | None, list[Array]]:
        """Return the other row of a batch of two, None in a batch of another size, and the cells of a row."""
        if number >= self._ends[-1]:
            raise RecordRejectedError("damaged file", self._damages[number - self._ends[-1]][1])
        file, row = place_in(self._ends, number)
        request = {"op": "read", "row": row, "columns": columns, "max_bytes": MAX_CELL_BYTES}
        head, arrays = shared_child("arrow").ask(self._files[file], request)
        if len(arrays) != len(columns):
            raise RecordRejectedError("damaged file", "an answer that makes no sense")
        is_pair = head.get("batch_rows") == MIXED_BATCH
        return (number + 1 if head.get("row_in_batch") == 0 else number - 1) if is_pair else None, arrays

    @staticmethod
    def _key(cell: Array) -> str:
        return str(whole_number(cell, "img_id", 0, 2**31 - 1))

    def _check_pair(self, sizes: Array, other: int) -> None:
        """Refuse an image that was written together with one of another size: their boxes are mixed up."""
        if not np.array_equal(self._ask(other, ["sizes"])[1][0], sizes):
            raise RecordRejectedError(
                "boxes of mixed sizes",
                f"written together with {self.where(other)}, an image of another size; the script divides boxes of "
                "both by a mixture of their sizes. Extract again with a batch size of 1",
            )


def _check_shares(boxes: Array) -> None:
    if boxes.size and not (float(boxes.min()) >= -SHARE_SLACK and float(boxes.max()) <= 1 + SHARE_SLACK):
        raise RecordRejectedError(
            "box outside image",
            f"boxes range over {float(boxes.min()):.4g}..{float(boxes.max()):.4g}; expected shares of the image, 0..1. "
            "The script that made the file divides by another image's size where it takes several at a time",
        )
