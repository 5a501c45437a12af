"""From what people write about an image to a checked `SourceItem`. Promise: what cannot be used says why."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from vlbert_data.errors import RecordRejectedError
from vlbert_data.sources.base import SourceItem, SourceReject
from vlbert_data.types import Array, is_unicode

CAPTION_NAMES = ("caption", "captions")
# Longer texts beside an image (EXIF dumps, page contents) are not carried along.
LONGEST_EXTRA = 2000


def item_or_reject(number: int, where: str, make: Callable[[], SourceItem]) -> SourceItem | SourceReject:
    """Return what `make` returns, or the reject that it raises as input `number`, found at `where`."""
    try:
        return make()
    except RecordRejectedError as error:
        return SourceReject(number=number, where=where, reason=error.reason, detail=error.detail)


def captions_of(record: Mapping[str, Any], names: Iterable[str] = CAPTION_NAMES) -> tuple[str, ...]:
    """Return the captions under all of `names`, each one text or a list of texts; stripped, empty ones left out.

    A null in a list is a caption that is missing, as an empty one is.

    Raises:
        RecordRejectedError: "no caption", "empty caption" or "bad caption" (not text).
    """
    found: list[str] = []
    given = [(name, record[name]) for name in names if record.get(name) is not None]
    if not given:
        raise RecordRejectedError("no caption", f"no {' or '.join(names)} given")
    for name, value in given:
        texts = value if isinstance(value, (list, tuple)) else [value]
        for text in (text for text in texts if text is not None):
            if not isinstance(text, str):
                raise RecordRejectedError(
                    "bad caption", f"{name} holds {type(text).__name__}; expected text or a list of texts"
                )
            found.append(text.strip())
    captions = tuple(text for text in found if text)
    if not captions:
        raise RecordRejectedError("empty caption", f"{', '.join(name for name, _ in given)} without a word")
    if not all(map(is_unicode, captions)):
        raise RecordRejectedError("bad caption", "half of a surrogate pair, which UTF-8 cannot write")
    return captions


def stated_id(value: Any, number: int) -> str:
    """Return the id that a record states, or for None the one of its place.

    Raises:
        RecordRejectedError: "bad record": neither text nor an integer, or empty.
    """
    if value is None:
        return positional_id(number)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value and is_unicode(value):
        return value
    raise RecordRejectedError("bad record", f"id is {value!r}; expected text or an integer")


def boxes_of(record: Mapping[str, Any]) -> tuple[Array | None, tuple[str, ...] | None]:
    """Return `boxes` as float32 [R, 4] (xyxy pixels of the oriented original) and `labels`, None where not given.

    Raises:
        RecordRejectedError: "bad boxes": not R x 4 finite numbers, a box without area, or other than R texts as labels.
    """
    given, labels = record.get("boxes"), record.get("labels")
    if given is None:
        if labels is not None:
            raise RecordRejectedError("bad boxes", "labels without boxes")
        return None, None
    if not isinstance(given, list) or not all(_is_box(box) for box in given):
        raise RecordRejectedError("bad boxes", "expected a list of [x0, y0, x1, y1], finite numbers in pixels")
    boxes = np.array(given, np.float32).reshape(-1, 4)  # [R, 4]
    if (boxes[:, 2:] <= boxes[:, :2]).any():
        raise RecordRejectedError(
            "bad boxes", "a box without area; expected x0 < x1 and y0 < y1 (not width and height)"
        )
    if labels is None:
        return boxes, None
    if not isinstance(labels, list) or not all(isinstance(label, str) and label for label in labels):
        raise RecordRejectedError("bad boxes", "labels are not a list of class names")
    if len(labels) != len(boxes):
        raise RecordRejectedError("bad boxes", f"{len(labels)} labels for {len(boxes)} boxes")
    return boxes, tuple(labels)


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(edge, (int, float)) and not isinstance(edge, bool) and math.isfinite(edge) for edge in box)
    )


def size_of(record: Mapping[str, Any], names: tuple[str, str] = ("width", "height")) -> tuple[int, int] | None:
    """Return the stated (width, height) in pixels, None unless both are positive integers."""
    size = record.get(names[0]), record.get(names[1])
    if all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in size):
        return size  # type: ignore[return-value]
    return None


def extras_of(record: Mapping[str, Any], used: Iterable[str]) -> dict[str, Any]:
    """Return the plain values (text, numbers, truth) of a record beside the fields already used; no long texts."""
    taken = set(used)
    return {
        name: value
        for name, value in record.items()
        if name not in taken
        and isinstance(value, (str, int, float, bool))
        and not (isinstance(value, str) and (len(value) > LONGEST_EXTRA or not is_unicode(value)))
        and not (isinstance(value, float) and not math.isfinite(value))
    }


def positional_id(number: int) -> str:
    """Return the id of an input that states none: its number, eight digits or more."""
    return f"{number:08d}"


def is_among(number: int, rising: Array) -> bool:
    """Return whether `number` is in a rising array."""
    place = int(np.searchsorted(rising, number))
    return place < len(rising) and int(rising[place]) == number


def reject_duplicate(image_id: str) -> RecordRejectedError:
    """Return the reject for an id that an earlier input has."""
    return RecordRejectedError(
        "duplicate image id", f"{image_id!r} is the id of an earlier input; give all captions of an image in one record"
    )
