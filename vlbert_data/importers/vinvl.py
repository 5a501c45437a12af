"""The features.tsv of VinVL and Oscar: 2,048 numbers and the normalised box of each RoI; classes are in another file.

A row is key TAB number of RoIs TAB base64, or key TAB JSON of the two. `predictions_gt.tsv` or `predictions.tsv`
beside it, where there is one, brings classes and image sizes; its RoIs must be the same. The `lineidx` files beside
count characters, not bytes, and are not used.

Source: microsoft/Oscar, oscar/datasets; pzzhang/VinVL, DOWNLOAD.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.ids import id_hash
from vlbert_data.importers import predictions
from vlbert_data.importers.base import ABSENT, FormatOptions, RawRecord, Traits
from vlbert_data.importers.encoded import FLOATS, MOST_ROIS, count_columns, decode_table, parse_count
from vlbert_data.importers.row_importer import RowImporter, decode_key, most_common, split_columns, try_rows
from vlbert_data.importers.rows import Rows, index_rows, sniff_lines
from vlbert_data.sources.files import relative_names
from vlbert_data.sources.records import size_of
from vlbert_data.types import Array

NAME = "vinvl"
BOX_NUMBERS = 6
PREDICTIONS = ("predictions_gt.tsv", "predictions.tsv")
# Boxes of both files come from one detector, but one is rounded to float32 shares of a side.
SAME_BOX_PX = 2.0


def sniff(path: Path) -> str | None:
    """Return what shows that the file has this format; None where it has not."""
    return sniff_lines(path, _look)


def _look(line: bytes) -> str | None:
    try:
        num, text = _split(line.split(b"\t")[1:])
        columns = count_columns(text, num, "features")
    except RecordRejectedError:
        return None
    return f"a key, {num} RoIs, base64 of {columns} numbers each" if columns > BOX_NUMBERS else None


def open_importer(paths: Sequence[Path], options: FormatOptions) -> "VinvlRows":
    """Return the importer of these files; see `base.Format`."""
    names = relative_names(paths)
    files = tuple(index_rows(path, _first_column, name=name) for path, name in zip(paths, names, strict=True))
    beside = {path: found for path in paths if (found := _open_predictions(path)) is not None}
    feature_dim = most_common(try_rows(files, _columns, NAME)) - BOX_NUMBERS
    labels = ABSENT
    if 0 < len(beside) < len(paths):
        raise ConfigError(f"{len(beside)} of {len(paths)} files have predictions beside them; import them apart.")
    if options.labels and beside:
        labels = predictions.convention_of(options.class_names, f"in {beside[paths[0]].rows.path}")
    traits = Traits(
        format=NAME,
        feature_dim=feature_dim,
        labels=labels,
        box_units="normalised",
        has_image_sizes=bool(beside) and all(found.has_image_sizes for found in beside.values()),
        has_confidence=labels == ABSENT and bool(beside),
    )
    ids = {name: number for number, name in enumerate(options.class_names or ())}
    return VinvlRows(traits=traits, files=files, beside=beside, class_ids=ids)


@dataclass(frozen=True, slots=True)
class PredictionRows:
    """A predictions file beside features: its rows, and in which of them a key is.

    hashes: uint64 [n], rising; order: int64 [n], the row that has each.
    """

    rows: Rows
    hashes: Array
    order: Array
    has_image_sizes: bool

    def find(self, key: str) -> dict[str, Any]:
        """Return the prediction of an image.

        Raises:
            RecordRejectedError: "no prediction", or it cannot be read.
        """
        wanted = np.uint64(id_hash(key))
        place = int(np.searchsorted(self.hashes, wanted))
        if place == len(self.hashes) or self.hashes[place] != wanted:
            raise RecordRejectedError("no prediction", f"{self.rows.path} has no row of {key[:80]!r}")
        _, column = split_columns(self.rows.read(int(self.order[place])), 2)
        return predictions.parse_json_column(column)


@dataclass(frozen=True, kw_only=True)
class VinvlRows(RowImporter):
    """An `Importer` of such tables. beside: the predictions beside a table, by its path."""

    beside: dict[Path, PredictionRows]
    class_ids: dict[str, int]

    def parse(self, rows: Rows, index: int) -> RawRecord:
        """Return the record in a row."""
        row = rows.read(index)
        columns = row.split(b"\t")
        key = decode_key(columns[0])
        num, text = _split(columns[1:])
        table = decode_table(text, (num, self.traits.feature_dim + BOX_NUMBERS), "features", {4: FLOATS[4]})
        boxes = table[:, -BOX_NUMBERS:]
        # x0, y0, x1, y1, then width and height, which must be theirs.
        sides = boxes[:, 2:4] - boxes[:, 0:2]
        if not (np.abs(sides - boxes[:, 4:6]) <= 1e-2).all():
            raise RecordRejectedError("bad box", "the last 6 numbers of a RoI are not x0, y0, x1, y1 and its sides")
        beside = self.beside.get(rows.path)
        prediction = None if beside is None else beside.find(key)
        size = None if prediction is None else size_of(prediction, ("image_w", "image_h"))
        labels = _Labels() if prediction is None else self._labels(prediction, boxes[:, :4], size)
        return RawRecord(
            key=key,
            where=rows.where(index),
            num_bytes=len(row),
            width_px=size and size[0],
            height_px=size and size[1],
            boxes=boxes[:, :4],
            features=table[:, :-BOX_NUMBERS],
            class_ids=labels.class_ids,
            class_scores=labels.class_scores,
            confidence=labels.confidence,
        )

    def files_beside(self) -> Sequence[Rows]:
        """Return the files of predictions."""
        return [found.rows for found in self.beside.values()]

    def _labels(self, prediction: dict[str, Any], boxes: Array, size: tuple[int, int] | None) -> "_Labels":
        """Return class ids and scores, or confidences, of RoIs that are those of the features."""
        objects = predictions.objects_in(prediction)
        rects = predictions.rects_of(objects)
        if len(rects) != len(boxes):
            raise RecordRejectedError("labels disagree", f"{len(boxes)} RoIs have features, {len(rects)} have classes")
        if size is not None and not (np.abs(boxes * [*size, *size] - rects) <= SAME_BOX_PX).all():
            raise RecordRejectedError("labels disagree", "the boxes of features and classes are not the same")
        if self.traits.labels == ABSENT:
            return _Labels(confidence=predictions.confidences_of(objects))
        ids, scores = predictions.classes_of(objects, self.class_ids)
        return _Labels(class_ids=ids, class_scores=scores)


@dataclass(frozen=True, slots=True)
class _Labels:
    """What a prediction says of the RoIs."""

    class_ids: Array | None = None
    class_scores: Array | None = None
    confidence: Array | None = None


def _open_predictions(features: Path) -> PredictionRows | None:
    """Return the predictions beside a file of features, None for none."""
    path = next((found for name in PREDICTIONS if (found := features.parent / name).is_file()), None)
    if path is None or path == features:
        return None
    rows = index_rows(path, _first_column, name=path.name)
    keys = np.fromiter((id_hash(rows.key(index)) for index in range(len(rows))), np.uint64, len(rows))
    order = np.argsort(keys, kind="stable")
    try:
        first = predictions.parse_json_column(split_columns(rows.read(0), 2)[1]) if len(rows) else {}
    except RecordRejectedError:
        first = {}
    return PredictionRows(rows, keys[order], order, size_of(first, ("image_w", "image_h")) is not None)


def _first_column(head: bytes, tabs: int) -> bytes:
    return head.partition(b"\t")[0] if tabs in (1, 2) else b""


def _columns(rows: Rows, index: int) -> int:
    """Return how many numbers a RoI has in a row."""
    num, text = _split(rows.read(index).split(b"\t")[1:])
    columns = count_columns(text, num, "features")
    if columns <= BOX_NUMBERS:
        raise RecordRejectedError("wrong length", f"{columns} numbers a RoI; a box alone takes {BOX_NUMBERS}")
    return columns


def _split(columns: list[bytes]) -> tuple[int, bytes | str]:
    """Return the number of RoIs and the base64 text that the columns behind the key hold."""
    if len(columns) == 2:
        return parse_count(columns[0], "num_boxes", MOST_ROIS), columns[1]
    if len(columns) != 1:
        raise RecordRejectedError("wrong columns", f"{len(columns) + 1} tab-separated columns; expected 2 or 3")
    record = predictions.parse_json_column(columns[0])
    num, text = record.get("num_boxes"), record.get("features")
    if not isinstance(num, int) or isinstance(num, bool) or not 1 <= num <= MOST_ROIS or not isinstance(text, str):
        raise RecordRejectedError("bad record", "JSON without num_boxes and features in base64")
    return num, text
