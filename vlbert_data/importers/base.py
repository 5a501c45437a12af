"""What every foreign format hands to an import. Promise: one outcome an input, in an order that never changes.

A format is a module with `NAME`, `sniff` and `open_importer` (see `Format`), listed in `importers.open`. What it opens
is an `Importer`: like a source it numbers its inputs 0 .. len - 1, and `read(start, stop)` yields exactly one
`RawRecord` or `SourceReject` for each number. A raw record says what the file says and nothing more; `meaning` turns
it into an `ImageRois`, and the import gives each range of inputs a shard.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from vlbert_data.errors import ConfigError
from vlbert_data.sources.base import SourceReject
from vlbert_data.types import Array

BACKGROUNDS = ("first", "last", "none")
TARGETS = ("soft", "hard", "absent")
BOX_UNITS = ("pixels", "normalised")


@dataclass(frozen=True, kw_only=True, slots=True)
class RawRecord:
    """One image as its file states it, arrays copied or viewed, with no order, unit or index changed.

    key: the image's name in the file, before `--key-pattern`. where: its place, such as `features.tsv:17`.
    num_bytes: what was read for it. boxes: [R, 4] xyxy, in `Traits.box_units`. features: [R, F].
    width_px, height_px: of the original image, None where the file does not say.
    Soft labels are class_probs [R, C]; hard ones class_ids [R] with class_scores [R] in 0..1. Attributes likewise.
    confidence: [R] in 0..1, where the file has one that is not to be had from its classes.
    image_feature: [F], the whole image described, where the file has it. captions: the file's own, possibly none.
    """

    key: str
    where: str
    num_bytes: int
    boxes: Array
    features: Array
    width_px: int | None = None
    height_px: int | None = None
    class_probs: Array | None = None
    class_ids: Array | None = None
    class_scores: Array | None = None
    attribute_probs: Array | None = None
    attribute_ids: Array | None = None
    attribute_scores: Array | None = None
    confidence: Array | None = None
    image_feature: Array | None = None
    captions: tuple[str, ...] = ()


class TextRecord(NamedTuple):
    """One image as `RawRecord` is, its arrays as text of the right lengths.

    small: the text of boxes, class ids, class scores and, where the input has them, attribute ids and scores.
    """

    key: str
    where: str
    num_bytes: int
    num_rois: int
    width_px: int
    height_px: int
    features: bytes | memoryview
    small: tuple[bytes | memoryview, ...]
    captions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelConvention:
    """What a file's class numbers are, as far as its format settles that.

    targets: "soft" (distributions), "hard" (an id and its score) or "absent". num_classes: columns of a distribution,
    or how many ids there are; background included where there is one; 0 for absent targets.
    background: where the class that means "no object" stands: "first", "last" or "none"; None where the format does
    not settle it, and then the user is asked. space: the label space's name, None where the format does not settle it.
    evidence: what was seen, in words, for the user who is asked.
    """

    targets: str
    num_classes: int = 0
    background: str | None = None
    space: str | None = None
    evidence: str = ""

    def __post_init__(self) -> None:
        assert self.targets in TARGETS, self.targets
        assert self.background in (*BACKGROUNDS, None), self.background
        assert (self.num_classes == 0) == (self.targets == "absent"), "absent targets have no classes"


ABSENT = LabelConvention(targets="absent")


@dataclass(frozen=True, kw_only=True, slots=True)
class Traits:
    """What holds for all records of an opened input; a record that differs is a reject.

    box_units: "pixels" of the original image, or "normalised", 0..1 of its sides. has_image_sizes, has_confidence,
    has_image_feature, has_captions: whether records bring them. attributes: their convention, `ABSENT` for none; it
    never asks the user, so its background is settled.
    """

    format: str
    feature_dim: int
    labels: LabelConvention = ABSENT
    attributes: LabelConvention = ABSENT
    box_units: str = "pixels"
    has_image_sizes: bool = True
    has_confidence: bool = False
    has_image_feature: bool = False
    has_captions: bool = False

    def __post_init__(self) -> None:
        assert self.box_units in BOX_UNITS, self.box_units
        if not 1 <= self.feature_dim <= 2**20:
            raise ConfigError(f"{self.format}: features of {self.feature_dim} numbers; a shard stores 1 to {2**20}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class FormatOptions:
    """What the user said that a format may need.

    class_names: names by id, background left out, for files that write names. labels: whether classes are wanted.
    """

    class_names: tuple[str, ...] | None = None
    labels: bool = True


class Importer(Protocol):
    """An opened input. Picklable: worker processes get a copy and open files by themselves."""

    @property
    def reading_threads(self) -> int:
        """Return how many threads should read at once: 0 where reading is quick or keeps Python busy itself.

        Then threads only take Python's lock from each other. They pay where C code decompresses, or where another
        process or many small files are waited for.
        """
        ...

    @property
    def traits(self) -> Traits:
        """Return what holds for all records."""
        ...

    def __len__(self) -> int:
        """Return the number of inputs, unreadable ones included."""
        ...

    def keys(self) -> Iterator[str]:
        """Yield the key of every input in order, cheaply (features are not decoded); "" where it cannot be read."""
        ...

    def read(self, start: int, stop: int) -> Iterator[RawRecord | SourceReject]:
        """Yield inputs `start` to `stop` - 1 in order, each as a record or a reject; any `start` is cheap to begin at.

        A record whose inner counts, lengths or types disagree is a reject here. Values are `meaning`'s to check:
        NaN, boxes outside the image, probabilities, ids outside their space. So is what depends on other inputs, such
        as a key that occurs twice.
        """
        ...

    def read_texts(self, start: int, stop: int) -> Iterator[RawRecord | TextRecord | SourceReject]:
        """Yield what `read` yields, but undecoded what is text whose lengths `encoded.lengths_fit`.

        Such a record has the traits, as far as lengths say; whoever finds a fault in it asks `read` what it is.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """Return what the manifest keeps of the input, as JSON types: format, count, files with sizes and hashes."""
        ...

    def fingerprint(self) -> str:
        """Return a hex digest that changes when the input would give other records; cheap enough for every start."""
        ...


class Format(Protocol):
    """A module of this package that knows one format."""

    NAME: str

    def sniff(self, path: Path) -> str | None:
        """Return what shows that this file or folder has the format, in words; None where it has not.

        It looks at contents, reads little, and never raises for a file of another format.
        """
        ...

    def open_importer(self, paths: Sequence[Path], options: FormatOptions) -> Importer:
        """Return the importer of the inputs in `paths`, all of this format.

        Raises:
            ConfigError: unreadable, empty, not of this format after all, or a thing is needed that only the user knows.
        """
        ...
