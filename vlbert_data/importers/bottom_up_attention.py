"""The TSV of bottom-up attention: id, width, height, number of RoIs, boxes, features; neither classes nor attributes.

Source: peteanderson80/bottom-up-attention, tools/generate_tsv.py and tools/read_tsv.py.
"""

from collections.abc import Sequence
from pathlib import Path

from vlbert_data.importers.base import ABSENT, FormatOptions
from vlbert_data.importers.feature_rows import FeatureRows, Layout, open_rows
from vlbert_data.importers.rows import sniff_lines

NAME = "bottom-up-attention"
LAYOUT = Layout(format=NAME, columns=("key", "width", "height", "num_boxes", "boxes", "features"))


def sniff(path: Path) -> str | None:
    """Return what shows that the file has this format; None where it has not."""
    return sniff_lines(path, _look)


def _look(line: bytes) -> str | None:
    columns = line.split(b"\t")
    if len(columns) == len(LAYOUT.columns) and all(text.isdigit() for text in columns[1:4]):
        return "6 columns, the second to fourth whole numbers"
    return None


def open_importer(paths: Sequence[Path], options: FormatOptions) -> FeatureRows:
    """Return the importer of these files; see `base.Format`."""
    return open_rows(paths, LAYOUT, lambda widths, records: (ABSENT, ABSENT))
