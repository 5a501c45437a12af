"""VL-BERT's own features: a JSON file an image, loose, in a .zip archive, or named by its annotations.

Background is the first class, "no attribute" the first attribute. Files for fine-tuning have neither classes nor sizes.

Source: jackroos/VL-BERT, pretrain/data/datasets/conceptual_captions.py.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from heapq import nsmallest
from pathlib import Path
from typing import Any, ClassVar

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.importers.base import ABSENT, FormatOptions, LabelConvention, RawRecord, Traits
from vlbert_data.importers.encoded import FLOATS, MOST_ROIS, count_columns, decode_base64, decode_table
from vlbert_data.importers.lxmert import LABEL_SPACE, NUM_CLASSES
from vlbert_data.importers.row_importer import most_common
from vlbert_data.importers.rows import sniff_lines
from vlbert_data.importers.side_files import json_record
from vlbert_data.importers.vlbert_files import (
    ArchiveFiles,
    Listed,
    Listing,
    LooseFiles,
    open_annotations,
    read_file,
)
from vlbert_data.importers.zip_directory import open_zip
from vlbert_data.shards.files import blake2b_json
from vlbert_data.sources.base import SourceReject
from vlbert_data.sources.files import read_start
from vlbert_data.sources.records import size_of

NAME = "vl-bert"
FILES_TRIED = 32
FILES_SNIFFED = 8
FEATURE_FIELDS = ("boxes", "features")


def sniff(path: Path) -> str | None:
    """Return what shows that the file or folder has this format; None where it has not."""
    if path.is_dir():
        first = nsmallest(FILES_SNIFFED, (entry.name for entry in os.scandir(path) if entry.name.endswith(".json")))
        found = next((name for name in first if _holds_features(_small_json(path / name) or {})), None)
        return found and f"{found} has boxes and features in base64"
    if not path.is_file():
        return None
    if read_start(path, 4) == b"PK\3\4":
        return _sniff_zip(path)
    return sniff_lines(path, _look)


def _look(line: bytes) -> str | None:
    record = json_record(line)
    if record is not None and isinstance(record.get("frcnn"), str):
        return "JSON lines that name files of features as `frcnn`"
    if record is not None and _holds_features(record):
        return "a JSON file with boxes and features in base64"
    return None


def open_importer(paths: Sequence[Path], options: FormatOptions) -> "VlbertJson":
    """Return the importer of one annotation file, archive or folder, or of loose files; see `base.Format`."""
    if len(paths) == 1 and paths[0].is_dir():
        names = sorted(entry.name for entry in os.scandir(paths[0]) if entry.name.endswith(".json"))
        listing: Listing = LooseFiles(tuple(paths[0] / name for name in names))
    elif all(path.is_file() and _holds_features(_small_json(path) or {}) for path in paths):
        listing = LooseFiles(tuple(paths))
    elif len(paths) > 1:
        raise ConfigError(
            f"{len(paths)} annotation files or archives of VL-BERT, such as {paths[0]} and {paths[1]}. Give one: "
            "annotations, which name their archives, or an archive."
        )
    elif read_start(paths[0], 4) == b"PK\3\4":
        listing = ArchiveFiles(open_zip(paths[0], name=paths[0].name))
    else:
        listing = open_annotations(paths[0])
    if not len(listing):
        raise ConfigError(f"{paths[0]}: holds no file of features.")
    return VlbertJson(listing=listing, traits=_describe(listing, paths[0]))


@dataclass(frozen=True, kw_only=True)
class VlbertJson:
    """An `Importer` of such files."""

    reading_threads: ClassVar[int] = 2
    listing: Listing
    traits: Traits

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.listing)

    def keys(self) -> Iterator[str]:
        """Yield the key of each file."""
        return map(self.listing.key, range(len(self)))

    def read(self, start: int, stop: int) -> Iterator[RawRecord | SourceReject]:
        """Yield files `start` to `stop` - 1."""
        for number in range(start, min(stop, len(self))):
            try:
                yield self._parse(self.listing.read(number))
            except RecordRejectedError as error:
                where = self.listing.where(number)
                yield SourceReject(number=number, where=where, reason=error.reason, detail=error.detail)

    def read_texts(self, start: int, stop: int) -> Iterator[RawRecord | SourceReject]:
        """Yield files `start` to `stop` - 1, decoded."""
        return self.read(start, stop)

    def facts(self) -> dict[str, Any]:
        """Return format, count and files."""
        return {"format": NAME, "count": len(self), **self.listing.facts()}

    def fingerprint(self) -> str:
        """Return a digest of the annotations' contents, the archives' ends, or the loose files' names and sizes."""
        return blake2b_json(self.facts())

    def _parse(self, listed: Listed) -> RawRecord:
        fields = parse_fields(listed.data)
        num = _num_rois(fields)
        size = size_of(fields, ("image_w", "image_h"))
        traits = self.traits
        return RawRecord(
            key=listed.key,
            where=listed.where,
            num_bytes=len(listed.data),
            width_px=size and size[0],
            height_px=size and size[1],
            boxes=decode_table(_text(fields, "boxes"), (num, 4), "boxes", FLOATS),
            features=_floats(fields, "features", num, traits.feature_dim),
            class_probs=None if traits.labels == ABSENT else _floats(fields, "classes", num, traits.labels.num_classes),
            attribute_probs=None
            if traits.attributes == ABSENT
            else _floats(fields, "attrs", num, traits.attributes.num_classes),
            image_feature=_floats(fields, "image_box_feature", 1, traits.feature_dim)[0]
            if traits.has_image_feature
            else None,
            captions=listed.captions,
        )


def parse_fields(data: bytes) -> dict[str, Any]:
    """Return the JSON object in a file of features.

    Raises:
        RecordRejectedError: "bad JSON": cut short, or no object.
    """
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RecordRejectedError("bad JSON", f"{len(data)} bytes: {str(error)[:200]}") from error
    if not isinstance(fields, dict):
        raise RecordRejectedError("bad JSON", f"a {type(fields).__name__}; expected an object")
    return fields


def _text(fields: dict[str, Any], name: str) -> str:
    text = fields.get(name)
    if not isinstance(text, str):
        found = "absent" if text is None else f"a {type(text).__name__}"
        raise RecordRejectedError("bad record", f"{name} is {found}; expected base64 text")
    # Python 2's encoder breaks lines.
    return text.replace("\n", "") if "\n" in text else text


def _num_rois(fields: dict[str, Any]) -> int:
    """Return the stated number of RoIs, or where none is stated, that of float32 boxes."""
    num = fields.get("num_boxes")
    if num is None:
        num = len(decode_base64(_text(fields, "boxes"), "boxes")) // 16
    if not isinstance(num, int) or isinstance(num, bool) or not 1 <= num <= MOST_ROIS:
        raise RecordRejectedError("bad number", f"num_boxes is {str(num)[:20]}; expected 1 to {MOST_ROIS}")
    return num


def _floats(fields: dict[str, Any], name: str, num: int, columns: int) -> Any:
    return decode_table(_text(fields, name), (num, columns), name, {4: FLOATS[4]})


def _holds_features(record: dict[str, Any]) -> bool:
    return all(isinstance(record.get(name), str) for name in FEATURE_FIELDS)


def _small_json(path: Path) -> dict[str, Any] | None:
    try:
        return parse_fields(read_file(path))
    except RecordRejectedError:
        return None


def _sniff_zip(path: Path) -> str | None:
    try:
        archive = open_zip(path, name=path.name)
    except ConfigError:
        return None
    for member in range(min(len(archive), FILES_SNIFFED)):
        with suppress(RecordRejectedError):  # one of them may be damaged
            if _holds_features(parse_fields(archive.read(member))):
                return f"an archive whose {archive.name(member)} has boxes and features in base64"
    return None


def _describe(listing: Listing, path: Path) -> Traits:
    """Return what most of the first files show that all have.

    Raises:
        ConfigError: none of the first files is good.
    """
    found: list[Traits] = []
    complaint = ""
    for number in range(min(len(listing), FILES_TRIED)):
        try:
            found.append(_traits(parse_fields(listing.read(number).data), listing))
        except RecordRejectedError as error:
            complaint = complaint or f"{listing.where(number)}: {error}"
    if found:
        return most_common(found)
    raise ConfigError(
        f"{path}: none of the first {min(len(listing), FILES_TRIED)} files of features can be read; the first trouble "
        f"is {complaint}."
    )


def _traits(fields: dict[str, Any], listing: Listing) -> Traits:
    num = _num_rois(fields)
    columns = {
        name: count_columns(_text(fields, name), num, name) if name in fields else 0
        for name in ("features", "classes", "attrs")
    }
    labels = attributes = ABSENT
    if columns["classes"]:
        labels = LabelConvention(
            targets="soft",
            num_classes=columns["classes"],
            background="first",
            space=LABEL_SPACE if columns["classes"] == NUM_CLASSES + 1 else None,
            evidence=f"classes has {columns['classes']} columns; VL-BERT's has {NUM_CLASSES + 1}, background first",
        )
    if columns["attrs"]:
        attributes = LabelConvention(
            targets="soft", num_classes=columns["attrs"], background="first", space="vg400-butd"
        )
    if not columns["features"]:
        raise RecordRejectedError("bad record", "no features")
    return Traits(
        format=NAME,
        feature_dim=columns["features"],
        labels=labels,
        attributes=attributes,
        has_image_sizes=size_of(fields, ("image_w", "image_h")) is not None,
        has_image_feature="image_box_feature" in fields,
        has_captions=listing.has_captions,
    )
