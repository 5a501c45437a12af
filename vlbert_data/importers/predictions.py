"""Predictions of scene_graph_benchmark: RoIs as JSON objects with names for classes. Promise: no name is guessed at."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.importers.base import LabelConvention
from vlbert_data.importers.encoded import MOST_ROIS
from vlbert_data.types import Array

LABEL_SPACE = "vg1594-vinvl"
NUM_CLASSES = 1594


def convention_of(class_names: tuple[str, ...] | None, evidence: str) -> LabelConvention:
    """Return the convention of classes that are written as names.

    Raises:
        ConfigError: the names' order, which makes them ids, is not known.
    """
    if class_names is None:
        raise ConfigError(
            f"classes are written as names ({evidence}); give the list that numbers them with --class-names FILE "
            "(a name a line, or the label map JSON of the detector), or leave classes out with --no-labels."
        )
    return LabelConvention(
        targets="hard",
        num_classes=len(class_names),
        background="none",
        space=LABEL_SPACE if len(class_names) == NUM_CLASSES else None,
        evidence=f"{evidence}; {len(class_names)} names are given, VinVL has {NUM_CLASSES}",
    )


def parse_json_column(column: bytes | memoryview) -> dict[str, Any]:
    """Return the JSON object in a column.

    Raises:
        RecordRejectedError: "bad JSON".
    """
    try:
        value = json.loads(bytes(column))
    except (ValueError, RecursionError) as error:
        raise RecordRejectedError("bad JSON", str(error)[:200]) from error
    if not isinstance(value, dict):
        raise RecordRejectedError("bad JSON", f"a {type(value).__name__}; expected an object")
    return value


def objects_in(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the RoIs of a prediction.

    Raises:
        RecordRejectedError: "bad record": no list of objects, or too many.
    """
    objects = record.get("objects")
    if not isinstance(objects, list) or not all(isinstance(entry, dict) for entry in objects):
        raise RecordRejectedError("bad record", "no list of objects")
    if not 1 <= len(objects) <= MOST_ROIS:
        raise RecordRejectedError("bad record", f"{len(objects)} objects; expected 1 to {MOST_ROIS}")
    return objects


def rects_of(objects: list[dict[str, Any]]) -> Array:
    """Return float64 [R, 4], xyxy pixels of the original image.

    Raises:
        RecordRejectedError: "bad box": a rect is not four numbers.
    """
    for entry in objects:
        rect = entry.get("rect")
        if not isinstance(rect, list) or len(rect) != 4 or not all(map(_is_number, rect)):
            raise RecordRejectedError("bad box", f"a rect is {str(rect)[:80]}; expected [x0, y0, x1, y1]")
    return np.array([entry["rect"] for entry in objects], np.float64)


def classes_of(objects: list[dict[str, Any]], ids: Mapping[str, int]) -> tuple[Array, Array]:
    """Return class ids int64 [R] and confidences float64 [R].

    Raises:
        RecordRejectedError: "unknown class": a name that the list has not, or "bad label".
    """
    return np.array([_id_of(entry.get("class"), ids) for entry in objects], np.int64), confidences_of(objects)


def _id_of(name: Any, ids: Mapping[str, int]) -> int:
    """Return a class's number; a list of names is read in small letters and without synonyms, see `read_names`."""
    found = None
    if isinstance(name, str):
        found = ids.get(name, ids.get(name.split(",")[0].strip().lower()))
    if found is None:
        raise RecordRejectedError("unknown class", f"{str(name)[:80]!r} is not among the class names")
    return found


def confidences_of(objects: list[dict[str, Any]]) -> Array:
    """Return confidences float64 [R].

    Raises:
        RecordRejectedError: "bad label": a `conf` is no number.
    """
    for entry in objects:
        if not _is_number(entry.get("conf")):
            raise RecordRejectedError("bad label", f"conf is {str(entry.get('conf'))[:40]}; expected a number")
    return np.array([entry["conf"] for entry in objects], np.float64)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63)
