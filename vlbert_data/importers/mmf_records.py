"""Records of MMF's extraction scripts. Promise: a size that cannot be the photo's is dropped, not passed on.

Three scripts write the same fields. The ones for ResNeXt and VinVL detectors state the photo's size. The one for Faster
R-CNN states the size to which the photo was resized, while its boxes are in pixels of the photo; it is told by
its `cls_prob`, which has only the best class's probability.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from vlbert_data.importers.base import RawRecord
from vlbert_data.importers.record_dict import RecordPlace, record_of

# Boxes may pass the stated size by this much, which rounding explains; beyond it the size is another image's.
SIZE_SLACK = 1.02


def is_mmf(fields: Mapping[Any, Any]) -> bool:
    """Return whether a dict has the fields that only MMF's scripts, and ViLBERT's that they came from, write."""
    return "bbox" in fields and "image_width" in fields


def states_resized_sizes(fields: Mapping[Any, Any]) -> bool:
    """Return whether the dict states the size of a resized image."""
    probs = fields.get("cls_prob")
    return isinstance(probs, np.ndarray) and probs.ndim == 1


def mmf_record(fields: Mapping[Any, Any], place: RecordPlace) -> RawRecord:
    """Return the record, without size where what is stated cannot be the photo's: its boxes reach beyond it.

    Raises:
        RecordRejectedError: see `record_of`.
    """
    record = record_of(fields, place, count_holds=False)
    if states_resized_sizes(fields):
        return replace(record, width_px=None, height_px=None)
    if record.width_px is None or record.height_px is None or not record.boxes.size:
        return record
    reach = record.boxes.max(axis=0)
    if reach[2] > SIZE_SLACK * record.width_px or reach[3] > SIZE_SLACK * record.height_px:
        return replace(record, width_px=None, height_px=None)
    return record
