"""The TSV of VOLTA for Conceptual Captions: LXMERT's ten columns, then class and attribute distributions.

Distributions are Caffe's: background, or no attribute, in the first column. The key is the CRC-32 of the photo's URL.
Source: e-bug/volta, data/conceptual_captions/extract_cc_image.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlbert_data.importers import lxmert
from vlbert_data.importers.base import FormatOptions, LabelConvention
from vlbert_data.importers.feature_rows import FeatureRows, Layout, Widths, open_rows
from vlbert_data.importers.rows import sniff_lines

NAME = "volta-tsv"
# `classes` repeats the distributions as the network's test code returns them; it is not read.
LAYOUT = Layout(format=NAME, columns=(*lxmert.LAYOUT.columns, "class_probs", "attribute_probs", "classes"))


def sniff(path: Path) -> str | None:
    """Return what shows that the file has this format; None where it has not."""
    return sniff_lines(path, _look)


def _look(line: bytes) -> str | None:
    columns = line.split(b"\t")
    if len(columns) == len(LAYOUT.columns) and all(columns[place].isdigit() for place in (1, 2, 7)):
        return "13 columns, the second, third and eighth whole numbers"
    return None


def open_importer(paths: Sequence[Path], options: FormatOptions) -> FeatureRows:
    """Return the importer of these files; see `base.Format`."""
    return open_rows(paths, LAYOUT, describe)


def describe(widths: Widths, records: Sequence[dict[str, Any]]) -> tuple[LabelConvention, LabelConvention]:
    """Return the conventions of classes and attributes."""
    columns = widths.class_probs
    labels = LabelConvention(
        targets="soft",
        num_classes=columns,
        # That objects_id is the best of cls_prob[:, 1:] has been checked for each record.
        background="first",
        space=lxmert.LABEL_SPACE if columns == lxmert.NUM_CLASSES + 1 else None,
        evidence=f"cls_prob has {columns} columns, and objects_id is the best of all but the first",
    )
    _, attributes = lxmert.describe(widths, records)
    return labels, attributes
