"""The TSV of LXMERT: height before width, a class and an attribute with their confidence for each RoI, no background.

Source: airsplay/lxmert, src/utils.py and data/mscoco_imgfeat/extract_coco_image.py.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vlbert_data.importers.base import ABSENT, FormatOptions, LabelConvention
from vlbert_data.importers.feature_rows import FeatureRows, Layout, Widths, open_rows
from vlbert_data.importers.rows import sniff_lines
from vlbert_data.types import Array

NAME = "lxmert"
LAYOUT = Layout(
    format=NAME,
    columns=(
        "key",
        "height",
        "width",
        "class_ids",
        "class_scores",
        "attribute_ids",
        "attribute_scores",
        "num_boxes",
        "boxes",
        "features",
    ),
)
NUM_CLASSES, NUM_ATTRIBUTES = 1600, 400
# Class ids are stored in two bytes.
MOST_CLASSES = 2**16
LABEL_SPACE = "vg1600-butd"


def sniff(path: Path) -> str | None:
    """Return what shows that the file has this format; None where it has not."""
    return sniff_lines(path, _look)


def _look(line: bytes) -> str | None:
    columns = line.split(b"\t")
    if len(columns) == len(LAYOUT.columns) and all(columns[place].isdigit() for place in (1, 2, 7)):
        return "10 columns, the second, third and eighth whole numbers"
    return None


def open_importer(paths: Sequence[Path], options: FormatOptions) -> FeatureRows:
    """Return the importer of these files; see `base.Format`."""
    return open_rows(paths, LAYOUT, describe)


def highest_id(ids: Iterable[Array]) -> int:
    """Return the highest class id of images [R] each; one with an id that no label space has is damaged, and left out.

    If all are such, it is the highest of these.
    """
    highest = [int(part.max(initial=0)) for part in ids]
    return max([found for found in highest if found < MOST_CLASSES] or highest)


def describe(widths: Widths, records: Sequence[dict[str, Any]]) -> tuple[LabelConvention, LabelConvention]:
    """Return the conventions of classes and attributes; some writers fill the attributes with zeros."""
    highest = highest_id(record["class_ids"] for record in records)
    settled = highest < NUM_CLASSES
    labels = LabelConvention(
        targets="hard",
        num_classes=NUM_CLASSES if settled else highest + 1,
        background="none" if settled else None,
        space=LABEL_SPACE if settled else None,
        evidence=f"the first {len(records)} images have class ids up to {highest}; LXMERT's end at {NUM_CLASSES - 1}",
    )
    blank = all(not record["attribute_ids"].any() and not record["attribute_scores"].any() for record in records)
    return labels, ABSENT if blank else LabelConvention(
        targets="hard", num_classes=NUM_ATTRIBUTES, background="none", space="vg400-butd"
    )
