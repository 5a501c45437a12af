"""What tests of damaged and hostile files share."""

import os
from pathlib import Path

from tests.foreign_writers import make_images
from vlbert_data.errors import RecordRejectedError
from vlbert_data.importers.base import Importer, RawRecord
from vlbert_data.importers.labels import LabelChoice, settle_labels
from vlbert_data.importers.meaning import Meaning
from vlbert_data.sources.base import SourceReject
from vlbert_data.types import check_image_rois

IMAGES = make_images(3, num_rois=10)
NUMBERED = make_images(3, num_rois=10, prefix="")


class Runs:
    """A class whose pickle makes a folder when Python reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def is_sound(importer: Importer, record: RawRecord) -> bool:
    """Return whether a record is one that a shard may hold: `meaning` takes it and all promises of a shard are kept."""
    traits = importer.traits
    asked = traits.labels.targets != "absent" and traits.labels.background is None
    choice = LabelChoice(background="first") if asked else LabelChoice()
    space = settle_labels(traits.labels, choice, traits.format)
    meaning = Meaning(traits=traits, label_space=space, label_topk=5)
    size = (record.width_px or 700, record.height_px or 500)
    try:
        image, _ = meaning.convert(record, "id", ("a caption",), size)
    except RecordRejectedError:
        return False
    check_image_rois(image, label_space=space, feature_dim=traits.feature_dim)
    return True


def check_outcomes(importer: Importer, start: int = 0) -> tuple[int, int]:
    """Read all inputs; return how many were taken and how many refused, each taken one sound."""
    taken = refused = 0
    for number, outcome in enumerate(importer.read(start, len(importer)), start=start):
        if isinstance(outcome, SourceReject):
            assert outcome.number == number and outcome.reason and outcome.detail
            refused += 1
        elif is_sound(importer, outcome):
            taken += 1
        else:
            refused += 1
    assert taken + refused == len(importer) - start
    return taken, refused
