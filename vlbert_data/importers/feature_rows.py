"""Tables of features in text, an image a row, arrays as base64. Promise: what columns say of each other must agree.

The layouts of bottom-up attention (6 columns), LXMERT (10) and VOLTA (13) differ in their columns alone; each has a
module that names them. There is no quoting: a row is split at tabs, whatever it holds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.importers.base import ABSENT, LabelConvention, RawRecord, TextRecord, Traits
from vlbert_data.importers.encoded import (
    FLOATS,
    INTEGERS,
    MOST_ROIS,
    count_columns,
    decode_rows,
    decode_table,
    lengths_fit,
    parse_count,
)
from vlbert_data.importers.row_importer import RowImporter, decode_key, most_common, split_columns, try_rows
from vlbert_data.importers.rows import Rows, index_files
from vlbert_data.types import Array

Columns = dict[str, memoryview]
# The columns of a `TextRecord` beside its features, in its order.
TEXTS = ("boxes", "class_ids", "class_scores", "attribute_ids", "attribute_scores")


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A table: its format's name, and the columns in their order, by the names that `parse_columns` knows."""

    format: str
    columns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Widths:
    """Numbers a RoI in each column of a table; 0 where there is no such column."""

    features: int
    class_probs: int = 0
    attribute_probs: int = 0


@dataclass(frozen=True, kw_only=True)
class FeatureRows(RowImporter):
    """An `Importer` of such tables."""

    layout: Layout
    widths: Widths

    def parse(self, rows: Rows, index: int) -> RawRecord:
        """Return the record in a row."""
        row = rows.read(index)
        return self._decoded(split_row(row, self.layout), rows.where(index), len(row))

    def parse_text(self, rows: Rows, index: int) -> RawRecord | TextRecord:
        """Return the record in a row, its arrays as text where labels are hard and lengths the usual ones."""
        row, where = rows.read(index), rows.where(index)
        columns = split_row(row, self.layout)
        return self._as_text(columns, where, len(row)) or self._decoded(columns, where, len(row))

    def _decoded(self, columns: Columns, where: str, num_bytes: int) -> RawRecord:
        record = parse_columns(columns, self.widths, with_attributes=self.traits.attributes != ABSENT)
        return RawRecord(key=decode_key(columns["key"]), where=where, num_bytes=num_bytes, **record)

    def _as_text(self, columns: Columns, where: str, num_bytes: int) -> TextRecord | None:
        wanted = TEXTS if self.traits.attributes != ABSENT else TEXTS[:-2]
        if "class_probs" in columns or not columns.keys() >= {*wanted, "width"}:
            return None
        try:
            num_rois = parse_count(columns["num_boxes"], "num_boxes", MOST_ROIS)
            width, height = (parse_count(columns[name], f"the image's {name}") for name in ("width", "height"))
            key = decode_key(columns["key"])
        except RecordRejectedError:
            return None
        features, small = columns["features"], tuple([columns[name] for name in wanted])
        if not lengths_fit(num_rois, self.widths.features, features, small):
            return None
        return TextRecord(key, where, num_bytes, num_rois, width, height, features, small)


def open_rows(
    paths: Sequence[Path],
    layout: Layout,
    describe: Callable[[Widths, Sequence[dict[str, Any]]], tuple[LabelConvention, LabelConvention]],
) -> FeatureRows:
    """Return the importer of the tables in `paths`.

    describe: from the widths of the table and its first good records to its conventions of classes and attributes.

    Raises:
        ConfigError: a file is unreadable or empty, or none of the first rows is of this layout.
    """
    files = index_files(paths, len(layout.columns))
    widths, tried = _try_rows(files, layout)
    labels, attributes = describe(widths, tried)
    traits = Traits(format=layout.format, feature_dim=widths.features, labels=labels, attributes=attributes)
    return FeatureRows(layout=layout, traits=traits, widths=widths, files=files)


def _try_rows(files: Sequence[Rows], layout: Layout) -> tuple[Widths, list[dict[str, Any]]]:
    """Return the widths that most of the first rows have, so that a damaged one does not set them, and those rows."""

    def measure(rows: Rows, index: int) -> tuple[Widths, Columns]:
        columns = split_row(rows.read(index), layout)
        return _measure(columns), columns

    tried = try_rows(files, measure, layout.format)
    widths = most_common(found for found, _ in tried)
    good: list[dict[str, Any]] = []
    complaint = ""
    for _, columns in tried:
        try:
            good.append(parse_columns(columns, widths, with_attributes=True))
        except RecordRejectedError as error:
            complaint = complaint or str(error)
    if not good:
        raise ConfigError(f"{files[0].path}: no sound row of {layout.format} among the first; {complaint}.")
    return widths, good


def split_row(row: bytes, layout: Layout) -> Columns:
    """Return the columns of a row by name.

    Raises:
        RecordRejectedError: "wrong columns".
    """
    return dict(zip(layout.columns, split_columns(row, len(layout.columns)), strict=True))


def _measure(columns: Columns) -> Widths:
    num_rois = parse_count(columns["num_boxes"], "num_boxes", MOST_ROIS)
    count = {
        name: count_columns(columns[name], num_rois, name) if name in columns else 0
        for name in ("features", "class_probs", "attribute_probs")
    }
    return Widths(**count)


def parse_columns(columns: Columns, widths: Widths, *, with_attributes: bool) -> dict[str, Any]:
    """Return the fields of a `RawRecord` that the columns hold.

    Raises:
        RecordRejectedError: a number or an array is not what the other columns ask for.
    """
    num = parse_count(columns["num_boxes"], "num_boxes", MOST_ROIS)
    record: dict[str, Any] = {
        "width_px": parse_count(columns["width"], "the image's width"),
        "height_px": parse_count(columns["height"], "the image's height"),
        "boxes": decode_table(columns["boxes"], (num, 4), "boxes", FLOATS),
        "features": decode_table(columns["features"], (num, widths.features), "features", {4: FLOATS[4]}),
    }
    if "class_ids" in columns:
        record["class_ids"] = decode_rows(columns["class_ids"], num, "objects_id", INTEGERS)
        record["class_scores"] = decode_rows(columns["class_scores"], num, "objects_conf", FLOATS)
    if "attribute_ids" in columns and with_attributes:
        record["attribute_ids"] = decode_rows(columns["attribute_ids"], num, "attrs_id", INTEGERS)
        record["attribute_scores"] = decode_rows(columns["attribute_scores"], num, "attrs_conf", FLOATS)
    if "class_probs" in columns:
        shape = (num, widths.class_probs)
        record["class_probs"] = decode_table(columns["class_probs"], shape, "cls_prob", {4: FLOATS[4]})
        _check_agreement(record)
    return record


def _check_agreement(record: dict[str, Any]) -> None:
    """Refuse ids that are not the most probable classes behind a background in front.

    Raises:
        RecordRejectedError: "labels disagree".
    """
    probs, ids = record["class_probs"], record["class_ids"]
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= probs.shape[1] - 1):
        raise RecordRejectedError("labels disagree", f"objects_id reaches {int(ids.max())}, cls_prob has fewer classes")
    stated: Array = np.take_along_axis(probs, ids[:, None].astype(np.int64) + 1, axis=1)[:, 0]
    if (stated < probs[:, 1:].max(axis=1)).any():
        raise RecordRejectedError("labels disagree", "objects_id is not the most probable class of cls_prob[:, 1:]")
