"""Inputs that are read one by one by their number. Promise: whatever one input holds, its number gets one outcome.

Formats of one value, one group or one file an image share this: they say how input i is read, and what is wrong with
it comes back as a reject instead of ending the import.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.importers.base import ABSENT, LabelConvention, RawRecord, TextRecord, Traits
from vlbert_data.importers.lxmert import LABEL_SPACE, NUM_ATTRIBUTES, NUM_CLASSES, highest_id
from vlbert_data.importers.plain_arrays import RefusedDataError
from vlbert_data.importers.row_importer import most_common
from vlbert_data.sources.base import SourceReject
from vlbert_data.sources.files import FileFacts, fingerprint, hash_file, relative_names
from vlbert_data.types import Array

ATTRIBUTE_SPACE = "vg400-butd"
# Inputs looked at for what holds of all: a few, because the first may be damaged.
PROBED_INPUTS = 16
Found = TypeVar("Found")


class NumberedImporter(ABC):
    """An importer whose input `i` is read on its own. It calls `settle` when it can read, before it is used."""

    reading_threads: ClassVar[int] = 2
    _traits: Traits
    _file_facts: Sequence[FileFacts] = ()

    def settle(self, name: str, *, box_units: str = "pixels") -> None:
        """Find out from the first records what holds for all; most of them decide, not one that differs.

        Raises:
            ConfigError: none of the first inputs is good.
        """
        probed = probe(self, name)
        usual = most_common(map(_kind, probed))
        records = [record for record in probed if _kind(record) == usual]
        labels, attributes = vg_labels(records)
        self._traits = Traits(
            format=name,
            feature_dim=int(records[0].features.shape[1]),
            labels=labels,
            attributes=attributes,
            box_units=box_units,
            has_image_sizes=all(record.width_px is not None for record in records),
            has_confidence=records[0].confidence is not None,
            has_captions=any(record.captions for record in records),
        )

    @property
    def traits(self) -> Traits:
        """See `Importer`."""
        return self._traits

    @abstractmethod
    def __len__(self) -> int:
        """See `Importer`."""

    @abstractmethod
    def load(self, number: int) -> RawRecord:
        """Return an input, of which `read` checks that it has the traits.

        Raises:
            RecordRejectedError, RefusedDataError: what is wrong with it.
        """

    @abstractmethod
    def where(self, number: int) -> str:
        """Return the place of an input, for rejects."""

    def facts(self) -> dict[str, Any]:
        """Return format, count and files."""
        return {
            "format": self._traits.format,
            "count": len(self),
            "files": [facts.as_json() for facts in self._file_facts],
        }

    def load_text(self, number: int) -> RawRecord | TextRecord:
        """Return what `load` does, or a record whose arrays are text undecoded, which has the traits."""
        return self.load(number)

    def read(self, start: int, stop: int) -> Iterator[RawRecord | SourceReject]:
        """See `Importer`."""
        return self._read(lambda number: with_traits(self.load(number), self.traits), start, stop)

    def read_texts(self, start: int, stop: int) -> Iterator[RawRecord | TextRecord | SourceReject]:
        """See `Importer`."""

        def load(number: int) -> RawRecord | TextRecord:
            found = self.load_text(number)
            return found if isinstance(found, TextRecord) else with_traits(found, self.traits)

        return self._read(load, start, stop)

    def _read(self, load: Callable[[int], Found], start: int, stop: int) -> Iterator[Found | SourceReject]:
        for number in range(start, stop):
            try:
                yield load(number)
            except RecordRejectedError as error:
                yield self.reject(number, error.reason, error.detail)
            except RefusedDataError as error:
                yield self.reject(number, "damaged or unsafe", str(error))

    def reject(self, number: int, reason: str, detail: str) -> SourceReject:
        """Return an input as a reject."""
        return SourceReject(number=number, where=self.where(number), reason=reason, detail=detail)

    def fingerprint(self) -> str:
        """See `Importer`."""
        return fingerprint(self.facts())


def hash_files(paths: Sequence[Path]) -> list[FileFacts]:
    """Return the facts of files, called by their path from the folder that all share.

    Raises:
        ConfigError: a file is given twice, or cannot be read.
    """
    return [hash_file(path, name=name) for path, name in zip(paths, relative_names(paths), strict=True)]


def place_in(ends: Sequence[int], number: int) -> tuple[int, int]:
    """Return the file of an input and its place there, where file i ends before input ends[i]."""
    file = bisect_right(ends, number)
    return file, number - (ends[file - 1] if file else 0)


def probe(importer: NumberedImporter, name: str) -> list[RawRecord]:
    """Return the good ones among the first inputs, at least one.

    Raises:
        ConfigError: none of them is good; what is wrong with the first is told.
    """
    found, first_error = [], None
    for number in range(min(len(importer), PROBED_INPUTS)):
        try:
            found.append(importer.load(number))
        except (RecordRejectedError, RefusedDataError) as error:
            first_error = first_error or f"{importer.where(number)}: {error}"
    if not found:
        detail = first_error or "there is no record in it"
        raise ConfigError(f"{detail}. Expected features in the format {name}; name another with --format.")
    return found


def _kind(record: RawRecord) -> tuple[Any, ...]:
    """Return what records of one input have in common: the width of features and of distributions, which values."""
    soft = (record.class_probs, record.attribute_probs)
    columns = tuple(None if probs is None else int(probs.shape[1]) for probs in soft)
    return int(record.features.shape[1]), *columns, record.class_ids is None, record.confidence is None


def vg_labels(records: Sequence[RawRecord]) -> tuple[LabelConvention, LabelConvention]:
    """Return what class and attribute numbers are, as far as detectors trained on Visual Genome settle it.

    Distributions of 1601 columns have the background first, those of 1600 have none, and hard ids count from the first
    class. Other widths and higher ids belong to other detectors and settle nothing. Attributes that are all zeros are
    absent: some writers fill the columns.
    """
    first = records[0]
    labels = ABSENT
    if first.class_probs is not None:
        columns = int(first.class_probs.shape[1])
        background = {NUM_CLASSES: "none", NUM_CLASSES + 1: "first"}.get(columns)
        labels = LabelConvention(
            targets="soft",
            num_classes=columns,
            background=background,
            space=LABEL_SPACE if background else None,
            evidence=f"distributions of {columns} columns{_likely_background(records)}",
        )
    elif first.class_ids is not None:
        highest = highest_id(record.class_ids for record in records if record.class_ids is not None)
        settled = highest < NUM_CLASSES
        labels = LabelConvention(
            targets="hard",
            num_classes=NUM_CLASSES if settled else highest + 1,
            background="none" if settled else None,
            space=LABEL_SPACE if settled else None,
            evidence=f"the first {len(records)} images have class ids up to {highest}",
        )
    return labels, _attributes(records)


def _attributes(records: Sequence[RawRecord]) -> LabelConvention:
    first = records[0].attribute_probs
    if first is not None:
        columns = int(first.shape[1])
        background = {NUM_ATTRIBUTES: "none", NUM_ATTRIBUTES + 1: "first"}.get(columns)
        if background is None:
            return ABSENT
        return LabelConvention(targets="soft", num_classes=columns, background=background, space=ATTRIBUTE_SPACE)
    scores = [record.attribute_scores for record in records if record.attribute_scores is not None]
    if not any(bool((part != 0).any()) for part in scores):
        return ABSENT
    return LabelConvention(targets="hard", num_classes=NUM_ATTRIBUTES, background="none", space=ATTRIBUTE_SPACE)


def _likely_background(records: Sequence[RawRecord]) -> str:
    """Return in words which end of the distributions is the best class how often: a background often is."""
    probs = [record.class_probs for record in records if record.class_probs is not None]
    best = np.concatenate([part.argmax(axis=1) for part in probs])
    last = probs[0].shape[1] - 1
    return (
        f"; in {len(best)} RoIs of the first {len(probs)} images the first column is the most probable "
        f"{int((best == 0).sum())} times, the last {int((best == last).sum())} times, any other "
        f"{int(((best != 0) & (best != last)).sum())} times"
    )


def with_traits(record: RawRecord, traits: Traits) -> RawRecord:
    """Return a record that has the traits, without what the traits call absent.

    Raises:
        RecordRejectedError: its features have another width, or its labels are of another kind.
    """
    dim = int(record.features.shape[1])
    if dim != traits.feature_dim:
        raise RecordRejectedError("wrong length", f"{dim} numbers a RoI; the others have {traits.feature_dim}")
    _check_labels("class", record.class_probs, record.class_ids, traits.labels)
    if traits.attributes.targets == "absent":
        return replace(record, attribute_probs=None, attribute_ids=None, attribute_scores=None)
    _check_labels("attribute", record.attribute_probs, record.attribute_ids, traits.attributes)
    return record


def _check_labels(what: str, probs: Array | None, ids: Array | None, expected: LabelConvention) -> None:
    columns = None if probs is None else int(probs.shape[1])
    found = "soft" if columns is not None else "hard" if ids is not None else "absent"
    if found != expected.targets or (columns is not None and columns != expected.num_classes):
        stated = "" if columns is None else f" of {columns} columns"
        raise RecordRejectedError(
            "other labels",
            f"{found} {what} labels{stated}; the others have {expected.targets} ones of {expected.num_classes} numbers",
        )
