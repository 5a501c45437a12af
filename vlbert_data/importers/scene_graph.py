"""The predictions TSV of scene_graph_benchmark with features: key TAB JSON of objects, each with its feature in base64.

Classes are names, or distributions (`scores_all`) with background first. Image sizes are rarely in it. The `lineidx`
beside it counts characters, not bytes, and is not used.

Source: microsoft/scene_graph_benchmark, maskrcnn_benchmark/engine/inference.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlbert_data.errors import RecordRejectedError
from vlbert_data.importers import predictions
from vlbert_data.importers.base import ABSENT, FormatOptions, LabelConvention, RawRecord, Traits
from vlbert_data.importers.encoded import FLOATS, decode_rows
from vlbert_data.importers.row_importer import RowImporter, decode_key, most_common, split_columns, try_rows
from vlbert_data.importers.rows import Rows, index_files, sniff_lines
from vlbert_data.sources.records import size_of
from vlbert_data.types import Array

NAME = "scene-graph"
FLOAT32 = {4: FLOATS[4]}


def sniff(path: Path) -> str | None:
    """Return what shows that the file has this format; None where it has not."""
    return sniff_lines(path, _look)


def _look(line: bytes) -> str | None:
    columns = line.split(b"\t")
    if len(columns) != 2 or not columns[1].startswith(b"{"):
        return None
    try:
        first = predictions.objects_in(predictions.parse_json_column(columns[1]))[0]
    except RecordRejectedError:
        return None
    return "a key, then JSON of objects with rect and feature" if {"rect", "feature"} <= first.keys() else None


def open_importer(paths: Sequence[Path], options: FormatOptions) -> "SceneGraphRows":
    """Return the importer of these files; see `base.Format`."""
    files = index_files(paths, 2)
    shape = most_common(try_rows(files, _shape, NAME))
    labels = ABSENT
    if options.labels and shape.num_scores:
        settled = shape.num_scores == predictions.NUM_CLASSES + 1
        labels = LabelConvention(
            targets="soft",
            num_classes=shape.num_scores,
            background="first",
            space=predictions.LABEL_SPACE if settled else None,
            evidence=f"scores_all has {shape.num_scores} columns; VinVL's has {predictions.NUM_CLASSES + 1}, "
            "background first",
        )
    elif options.labels and shape.has_classes:
        labels = predictions.convention_of(options.class_names, f"as `class` in {paths[0]}")
    traits = Traits(
        format=NAME,
        feature_dim=shape.feature_dim,
        labels=labels,
        has_image_sizes=shape.has_size,
        has_confidence=labels == ABSENT and shape.has_confidence,
    )
    ids = {name: number for number, name in enumerate(options.class_names or ())}
    return SceneGraphRows(traits=traits, files=files, class_ids=ids)


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a row shows that all rows have: numbers of a RoI's feature and of its distribution (0 for none)."""

    feature_dim: int
    num_scores: int
    has_classes: bool
    has_confidence: bool
    has_size: bool


def _shape(rows: Rows, index: int) -> _Shape:
    record = predictions.parse_json_column(split_columns(rows.read(index), 2)[1])
    first = predictions.objects_in(record)[0]
    return _Shape(
        feature_dim=len(_floats(first, "feature", None)),
        num_scores=len(_floats(first, "scores_all", None)) if "scores_all" in first else 0,
        has_classes="class" in first,
        has_confidence="conf" in first,
        has_size=size_of(record, ("image_w", "image_h")) is not None,
    )


@dataclass(frozen=True, kw_only=True)
class SceneGraphRows(RowImporter):
    """An `Importer` of such tables. class_ids: by name, for classes that are names."""

    class_ids: dict[str, int]

    def parse(self, rows: Rows, index: int) -> RawRecord:
        """Return the record in a row."""
        row = rows.read(index)
        key, column = split_columns(row, 2)
        record = predictions.parse_json_column(column)
        objects = predictions.objects_in(record)
        size = size_of(record, ("image_w", "image_h"))
        class_ids = class_scores = None
        if self.traits.labels.targets == "hard":
            class_ids, class_scores = predictions.classes_of(objects, self.class_ids)
        is_soft = self.traits.labels.targets == "soft"
        return RawRecord(
            key=decode_key(key),
            where=rows.where(index),
            num_bytes=len(row),
            width_px=size and size[0],
            height_px=size and size[1],
            boxes=predictions.rects_of(objects),
            features=_table(objects, "feature", self.traits.feature_dim),
            class_probs=_table(objects, "scores_all", self.traits.labels.num_classes) if is_soft else None,
            class_ids=class_ids,
            class_scores=class_scores,
            confidence=predictions.confidences_of(objects) if self.traits.has_confidence else None,
        )


def _table(objects: Sequence[dict[str, Any]], name: str, columns: int) -> Array:
    """Return float32 [R, columns]."""
    return np.stack([_floats(entry, name, columns) for entry in objects])


def _floats(entry: dict[str, Any], name: str, columns: int | None) -> Array:
    """Return the float32 numbers in a field of an object: `columns` of them, or as many as there are."""
    text = entry.get(name)
    if not isinstance(text, str) or not text:
        raise RecordRejectedError("bad record", f"an object without {name} in base64")
    padding = text[-2:].count("=")
    return decode_rows(text, columns or (len(text) // 4 * 3 - padding) // 4, name, FLOAT32)
