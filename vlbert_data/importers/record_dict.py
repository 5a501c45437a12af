"""Images stored as named values, as ViLBERT, VOLTA, MMF, VL-T5 and MILVLG store them under slightly different names.

Promise: a record is what the named values say, or a reject that says which of them disagree; no value is guessed.

A value is an array, or the base64 text of one (str, bytes or a view of bytes), as the scripts that convert TSV files
leave it. Text has no dtype: features are float32, ids int64 or int32, boxes float32 or float64, told apart by length.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlbert_data.errors import RecordRejectedError
from vlbert_data.importers.base import RawRecord, TextRecord, Traits
from vlbert_data.importers.encoded import FLOATS, INTEGERS, MOST_ROIS, decode_rows, decode_table, lengths_fit
from vlbert_data.importers.lxmert import NUM_ATTRIBUTES, NUM_CLASSES
from vlbert_data.types import Array

NAMES = {
    "key": ("image_id", "img_id"),
    "width": ("image_w", "img_w", "image_width"),
    "height": ("image_h", "img_h", "image_height"),
    "count": ("num_boxes", "num_bbox"),
    "boxes": ("boxes", "bbox"),
    "features": ("features", "x"),
    "class_ids": ("objects_id", "obj_id", "objects"),
    "class_scores": ("objects_conf", "obj_conf"),
    "class_probs": ("cls_prob",),
    "attribute_ids": ("attrs_id", "attr_id"),
    "attribute_scores": ("attrs_conf", "attr_conf"),
    "attribute_probs": ("attr_scores", "attrs"),
}
MEANINGS = tuple((meaning, name) for meaning, names in NAMES.items() for name in names)
# The arrays of a `TextRecord` beside its features, in its order.
TEXTS = ("boxes", "class_ids", "class_scores", "attribute_ids", "attribute_scores")
TEXT_TYPES = frozenset({bytes, memoryview})
SOFT_LABELS = ("class_probs", "attribute_probs")
# What VinVL's extractor appends to its 2048 features: normalised corners, width and height of the box.
VINVL_DIM, GEOMETRY_DIM = 2054, 6
MAX_SIDE_PX = 2**31
# What float16 may add to a confidence of 1.
ROUNDING = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordPlace:
    """Where a record is: see `RawRecord`."""

    key: str
    where: str
    num_bytes: int


def record_of(fields: Mapping[Any, Any], place: RecordPlace, *, count_holds: bool = True) -> RawRecord:
    """Return the record that named values make, with soft labels where it has them and hard ones elsewhere.

    count_holds: whether the stated number of boxes must be that of the rows; MMF's writers state other numbers.

    Raises:
        RecordRejectedError: a value is missing, is no array of the right shape, or disagrees with another.
    """
    named = _by_meaning(fields)
    stated = None if "count" not in named else whole_number(named["count"], "number of boxes", 0, MOST_ROIS)
    num_rois = _num_rois(named, stated)
    features = rows(named["features"], "features", num_rois, None)
    boxes = rows(named["boxes"], "boxes", num_rois, 4)
    if count_holds and stated is not None and stated != num_rois:
        raise RecordRejectedError("wrong length", f"{stated} boxes stated, {num_rois} rows of features")
    if features.shape[1] == VINVL_DIM:
        features = features[:, :-GEOMETRY_DIM]
    class_probs, class_ids, class_scores = _class_labels(named, num_rois)
    attribute_probs, attribute_ids, attribute_scores = _labels(named, "attribute", num_rois)
    return RawRecord(
        key=place.key,
        where=place.where,
        num_bytes=place.num_bytes,
        boxes=boxes,
        features=features,
        width_px=_side(named, "width"),
        height_px=_side(named, "height"),
        class_probs=class_probs,
        class_ids=class_ids,
        class_scores=class_scores,
        attribute_probs=attribute_probs,
        attribute_ids=attribute_ids,
        attribute_scores=attribute_scores,
    )


def text_record_of(fields: Mapping[Any, Any], place: RecordPlace, traits: Traits) -> TextRecord | None:
    """Return the record that `record_of` would decode, its text as it is; None where that is not all there is to do.

    That is: where arrays are not all text of the usual lengths, labels are soft or missing, or anything is wrong.
    """
    try:
        named = _by_meaning(fields)
        num_rois = whole_number(named.get("count"), "number of boxes", 0, MOST_ROIS)
        width, height = _side(named, "width"), _side(named, "height")
    except RecordRejectedError:
        return None
    has_attributes = traits.attributes.targets != "absent"
    wanted = TEXTS if has_attributes else TEXTS[:-2]
    features: Any = named["features"]
    small: tuple[Any, ...] = tuple([named.get(meaning) for meaning in wanted])
    if width is None or height is None or not {type(features), *map(type, small)} <= TEXT_TYPES:
        return None
    others = SOFT_LABELS if has_attributes else (*SOFT_LABELS, *TEXTS[-2:])
    if not named.keys().isdisjoint(others) or not lengths_fit(num_rois, traits.feature_dim, features, small):
        return None
    return TextRecord(place.key, place.where, place.num_bytes, num_rois, width, height, features, small)


def _by_meaning(fields: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the values by what they mean; what a writer left None counts as missing."""
    texts = {str(name, "latin-1") if isinstance(name, bytes) else name: value for name, value in fields.items()}
    named: dict[str, Any] = {}
    for meaning, name in MEANINGS:
        if meaning not in named and (value := texts.get(name)) is not None:
            named[meaning] = value
    for meaning in ("features", "boxes"):
        if meaning not in named:
            known = ", ".join(sorted(str(name)[:40] for name in texts)[:20])
            raise RecordRejectedError("field missing", f"no {meaning} among the fields {known}")
    return named


def _num_rois(named: Mapping[str, Any], stated: int | None) -> int:
    """Return the number of rows: of the features' array, or, where they are text, as stated."""
    features = named["features"]
    if isinstance(features, np.ndarray) and features.ndim >= 1:
        return int(features.shape[0])
    if stated is None:
        raise RecordRejectedError("field missing", "features without shape, and no number of boxes")
    return stated


# Distributions, ids, scores.
Labels = tuple[Array | None, Array | None, Array | None]


def _class_labels(named: Mapping[str, Any], num_rois: int) -> Labels:
    probs = named.get("class_probs")
    if isinstance(probs, np.ndarray) and probs.ndim == 1:
        # MMF's Faster R-CNN script keeps the score of the best class under the name of the distribution.
        named = {**named, "class_scores": probs, "class_probs": None}
    return _labels(named, "class", num_rois)


def _labels(named: Mapping[str, Any], what: str, num_rois: int) -> Labels:
    """Return soft labels where there are any, else hard ones where both their parts are there."""
    probs, ids, scores = (named.get(f"{what}_{part}") for part in ("probs", "ids", "scores"))
    # ViLBERT's and MMF's scripts write ids without scores; ViLBERT's are those of other RoIs. They are not read.
    has_hard = ids is not None and scores is not None
    hard_ids = whole_rows(ids, f"{what} ids", num_rois) if has_hard else None
    if probs is None:
        return None, hard_ids, rows(scores, f"{what} scores", num_rois, 0) if has_hard else None
    distributions = rows(probs, f"{what} probabilities", num_rois, None)
    if hard_ids is not None:
        check_agreement(distributions, hard_ids, what)
    return distributions, None, None


def check_agreement(probs: Array, ids: Array, what: str) -> None:
    """Refuse ids, counted from the first class, that are not the most probable ones of the distributions.

    These have the background in front, unless they are as wide as Visual Genome has classes or attributes. So a file
    of another convention is not read as if it had this one.

    Raises:
        RecordRejectedError: "labels disagree".
    """
    named = probs if probs.shape[1] in (NUM_CLASSES, NUM_ATTRIBUTES) else probs[:, 1:]
    if ids.size and int(ids.max()) >= named.shape[1]:
        raise RecordRejectedError(
            "labels disagree", f"{what} ids reach {int(ids.max())}; the distributions name {named.shape[1]}"
        )
    stated: Array = np.take_along_axis(named, ids[:, None], axis=1)[:, 0]
    if (stated < named.max(axis=1, initial=0)).any():
        raise RecordRejectedError("labels disagree", f"{what} ids are not the most probable of the distributions")


def _side(named: Mapping[str, Any], meaning: str) -> int | None:
    return whole_number(named[meaning], f"image {meaning}", 1, MAX_SIDE_PX) if meaning in named else None


def rows(value: Any, what: str, num_rois: int, num_columns: int | None) -> Array:
    """Return float [num_rois, num_columns]; None for as many columns as there are, 0 for [num_rois].

    Raises:
        RecordRejectedError: no array of floating numbers of that shape.
    """
    array = value if isinstance(value, np.ndarray) else _floats(value, what, num_rois, num_columns)
    if array.dtype.kind != "f":
        raise RecordRejectedError("bad field", f"{what} are {array.dtype}; expected floating numbers")
    if num_columns == 0 and array.shape == (num_rois, 1):
        array = array[:, 0]
    shape = (num_rois,) if num_columns == 0 else (num_rois, num_columns)
    fits = array.ndim == len(shape) and array.shape[0] == num_rois
    if not fits or (num_columns and array.shape[1] != num_columns) or 0 in array.shape[1:]:
        expected = " x ".join("any" if side is None else str(side) for side in shape)
        raise RecordRejectedError("wrong length", f"{what} are {list(array.shape)}; expected {expected}")
    return array


def confidences(value: Any, what: str, num_rois: int) -> Array:
    """Return float [num_rois], each in 0..1 but for what rounding adds.

    Raises:
        RecordRejectedError: no array of floating numbers of that length, or a number that is no confidence.
    """
    array = rows(value, what, num_rois, 0)
    if not np.isfinite(array).all():
        raise RecordRejectedError("not finite", f"{what} holds NaN or infinity")
    if array.size and (float(array.min()) < 0 or float(array.max()) > 1 + ROUNDING):
        raise RecordRejectedError(
            "not a probability",
            f"{what} ranges over {float(array.min()):.4g} .. {float(array.max()):.4g}; expected 0 to 1",
        )
    return array


def whole_rows(value: Any, what: str, num_rois: int) -> Array:
    """Return int64 [num_rois]; whole numbers written as floating ones count.

    Raises:
        RecordRejectedError: no array of whole numbers of that length.
    """
    text = value if isinstance(value, np.ndarray) else _base64_text(value, what)
    array = text if isinstance(text, np.ndarray) else decode_rows(text, num_rois, what, INTEGERS)
    if array.shape not in ((num_rois,), (num_rois, 1)):
        raise RecordRejectedError("wrong length", f"{what} are {list(array.shape)}; expected {num_rois}")
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.floor(array)).all()):
        raise RecordRejectedError("bad field", f"{what} are not whole numbers")
    if array.dtype.kind not in "iuf" or (array.size and (float(array.min()) < 0 or float(array.max()) >= 2**31)):
        raise RecordRejectedError("bad field", f"{what} are no ids, but {array.dtype} numbers out of range")
    return array.reshape(num_rois).astype(np.int64)


def _floats(value: Any, what: str, num_rois: int, num_columns: int | None) -> Array:
    text = _base64_text(value, what)
    if num_columns == 0:
        return decode_rows(text, num_rois, what, FLOATS)
    return decode_table(text, (num_rois, num_columns), what, FLOATS)


def _base64_text(value: Any, what: str) -> str | bytes | memoryview:
    if not isinstance(value, str | bytes | memoryview):
        raise RecordRejectedError("bad field", f"{what} are a {type(value).__name__}; expected an array or base64 text")
    return value


def whole_number(value: Any, what: str, low: int, high: int) -> int:
    """Return a number that may come as int, float, text, or an array of one.

    Raises:
        RecordRejectedError: not a whole number in low..high.
    """
    if type(value) is int and low <= value <= high:
        return value
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    if isinstance(value, bytes | memoryview):
        value = str(value, "latin-1")
    if isinstance(value, str) and value.strip().isdecimal() and len(value) <= 20:
        value = int(value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise RecordRejectedError("bad field", f"{what}: {str(value)[:40]!r}; expected a whole number")
    if not low <= value <= high or value != int(value):
        raise RecordRejectedError("bad field", f"{what}: {value}; expected a whole number in {low}..{high}")
    return int(value)
