"""Records whose arrays are still base64 text, converted many at once. Promise: what one by one gives, to the bit.

The commonest records by far are those of hard labels in base64: LXMERT's tables, and VOLTA's databases made of these.
Step by step each costs a hundred calls of numpy for a few hundred numbers. Here `text_loops` does a bundle in one call,
without Python's lock, so that the next bundle is read meanwhile. A record with anything unusual about it is None here,
and for `encoded` and `meaning` to convert or to reject.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vlbert_data.errors import RecordRejectedError
from vlbert_data.importers.base import ABSENT, TextRecord
from vlbert_data.importers.meaning import Meaning
from vlbert_data.shards.schema import Sealed, crc_of_sizes, crc_with_texts
from vlbert_data.types import ImageRois, RoiSet, check_text

# Records converted in one call, and their bytes at most.
BUNDLE_RECORDS, BUNDLE_BYTES = 16, 8 << 20
NO_TEXT = np.zeros(0, np.uint8)
NO_TEXT.flags.writeable = False
NO_HALVES = np.zeros(0, np.uint16)


class Named(NamedTuple):
    """What an image is called and how large it is: see `ImageRois`."""

    image_id: str
    captions: tuple[str, ...]
    size_px: tuple[int, int]


def takes_texts(meaning: Meaning) -> bool:
    """Return whether records of this meaning can be converted here: hard labels without background, plain pixels."""
    traits, space = meaning.traits, meaning.label_space
    attributes = traits.attributes
    return (
        traits.labels.targets == "hard"
        and space is not None
        and space.background_index is None
        and (attributes == ABSENT or (attributes.targets, attributes.background) == ("hard", "none"))
        and traits.box_units == "pixels"
        and not traits.has_image_feature
        and sys.byteorder == "little"  # as all numbers in these files are
    )


class TextBundle:
    """At most BUNDLE_RECORDS records that are converted together: made, run once, perhaps in a thread, then read.

    names: of each record. meaning: one that `takes_texts`.
    """

    def __init__(self, meaning: Meaning, records: Sequence[TextRecord], names: Sequence[Named]) -> None:
        self._meaning, self._schema, self._names = meaning, meaning.schema(), names
        self._fields = self._schema.fields()
        self._features = [np.frombuffer(record.features, np.uint8) for record in records]
        self._small = np.frombuffer(b"".join([text for record in records for text in record.small]), np.uint8)
        facts = [(record.num_rois, *name.size_px) for record, name in zip(records, names, strict=True)]
        self._facts = np.array(facts, np.int64).reshape(-1, 3)
        self._ends: list[int] = [0, *np.cumsum(self._facts[:, 0]).tolist()]
        # Each field of all records one after another, as the schema has them: [ΣR, ...], and [n, F] of whole images.
        self._columns = {
            name: np.empty(shape if field.per_roi else (len(records), *shape), field.dtype)
            for name, (field, shape) in self._schema.shapes(self._ends[-1]).items()
        }
        sizes = [
            (name.size_px, record.num_rois, len(name.captions)) for record, name in zip(records, names, strict=True)
        ]
        self._sums = np.array([crc_of_sizes(*size) for size in sizes], np.uint32)
        self._good = np.zeros(len(records), np.bool_)

    def run(self) -> None:
        """Convert the records, and sum what they hold."""
        if not self._names:
            return
        from vlbert_data.importers import text_loops  # loads Numba: processes start without it
        from vlbert_data.shards.crc_loops import crcs

        space, columns = self._meaning.label_space, self._columns
        assert space is not None, "asked of `takes_texts`"
        texts = text_loops.Texts(
            features=(*self._features, *[NO_TEXT] * (BUNDLE_RECORDS - len(self._features))),
            small=self._small,
            facts=self._facts,
            limits=np.array([space.num_classes, self._meaning.traits.attributes.num_classes]),
        )
        halves = {name: column.view(np.uint16) for name, column in columns.items() if column.dtype.itemsize == 2}
        stored = text_loops.Stored(
            features=halves["features"],
            image_features=halves["image_feature"],
            boxes=columns["boxes"],
            scores=halves["scores"],
            label_ids=halves["label_ids"][:, 0],
            attribute_ids=halves.get("attribute_ids", NO_HALVES),
            attribute_probs=halves.get("attribute_probs", NO_HALVES),
            source_rows=halves["source_rows"],
        )
        columns["label_probs"].fill(1)
        text_loops.convert(texts, stored, text_loops.work_for(self._facts, self._schema.feature_dim), self._good)
        rows = [self._ends if field.per_roi else range(len(self._ends)) for field in self._fields]
        strides = [[column.strides[0]] for column in columns.values()]
        crcs(
            tuple([column.reshape(-1).view(np.uint8) for column in columns.values()]),
            np.array(rows, np.int64) * np.array(strides, np.int64),
            self._sums,
        )

    def good(self) -> list[bool]:
        """Return of each record whether it could be converted."""
        found: list[bool] = self._good.tolist()
        return found

    def seal(self, place: int) -> Sealed | None:
        """Return a record that could be converted, its arrays views; None where id or captions cannot be stored."""
        name, rois = self._names[place], slice(self._ends[place], self._ends[place + 1])
        found = {field: column[rois] for field, column in self._columns.items()}
        found["image_feature"] = self._columns["image_feature"][place]
        record = ImageRois(
            image_id=name.image_id,
            width_px=name.size_px[0],
            height_px=name.size_px[1],
            captions=name.captions,
            rois=RoiSet(
                boxes=found["boxes"],
                scores=found["scores"],
                label_ids=found["label_ids"],
                label_probs=found["label_probs"],
                attribute_ids=found.get("attribute_ids"),
                attribute_probs=found.get("attribute_probs"),
                source_rows=found["source_rows"],
            ),
            features=found["features"],
            image_feature=found["image_feature"],
        )
        try:
            check_text(record)
        except RecordRejectedError:
            return None
        arrays = tuple(zip(self._fields, found.values(), strict=True))
        return Sealed(record, arrays, crc_with_texts(record, int(self._sums[place])))
