"""Captions from a file beside the features. Promise: found by image id in memory of 12 bytes a line or name.

COCO captions JSON, JSONL (`image_id`, `id` or `image`; `caption` or `captions`), or a table: `image TAB caption`, or
Conceptual Captions' `caption TAB url`, whose images go by their URL or by its CRC-32, as VOLTA calls them.
"""

import json
import re
import zlib
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.ids import id_hash
from vlbert_data.importers.keys import holds
from vlbert_data.importers.placed_file import PlacedFile
from vlbert_data.importers.row_importer import most_common
from vlbert_data.importers.rows import LINES_SNIFFED
from vlbert_data.importers.side_files import aliases, json_record, lines_of, names_in, read_document, require_file
from vlbert_data.sources.files import FileFacts, hash_file
from vlbert_data.sources.records import captions_of
from vlbert_data.types import Array, is_unicode

_URL = re.compile(rb"https?://|//")
UNUSABLE_SHOWN = 3
HASHES_AT_ONCE = 1 << 16
# Names of an image, each with what it leaves out to tell the image from others, and captions; see `aliases`.
Entry = tuple[dict[str, str], tuple[str, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionFile:
    """Which captions belong to which image.

    alias_hashes: uint64 [a], rising; alias_entries: int32 [a], the entry that goes by each. places: int64 [e + 1],
    where entries begin in the file, or in `held` if that is not empty. counts: int32 [e], captions of each entry.
    kind: how an entry is written. unusable: lines, or annotations of COCO, that hold no caption of an image.
    """

    file: PlacedFile
    kind: str
    facts: FileFacts
    alias_hashes: Array = field(repr=False)
    alias_entries: Array = field(repr=False)
    places: Array = field(repr=False)
    counts: Array = field(repr=False)
    held: bytes = field(repr=False)
    unusable: int

    @property
    def path(self) -> Path:
        """Return the file's path."""
        return self.file.path

    def of(self, image_id: str) -> tuple[str, ...]:
        """Return the captions of an image, in the order of the file; () where it has none.

        Entries that name the image in full go before those that name it in a folder, or by a URL of this CRC-32.

        Raises:
            RecordRejectedError: "ambiguous caption": two different images go by this id.
        """
        wanted = np.uint64(id_hash(image_id))
        low, high = (int(self.alias_hashes.searchsorted(wanted, side)) for side in ("left", "right"))
        found: dict[str, list[str]] = {}
        for entry in sorted(set(self.alias_entries[low:high].tolist())):
            names, captions = PARSERS[self.kind](self._text(entry)) or ({}, ())
            if image_id in names:
                found.setdefault(names[image_id], []).extend(captions)
        if "" not in found and len(found) > 1:
            several = ", ".join(sorted(found)[:UNUSABLE_SHOWN])
            what = "URLs with this CRC-32" if self.kind == "caption-url" else "folders with an image of this name"
            raise RecordRejectedError(
                "ambiguous caption", f"{image_id!r}: {self.path} has {len(found)} {what}: {several}"
            )
        return tuple(found.get("") or next(iter(found.values()), ()))

    def without_image(self, image_hashes: Array) -> int:
        """Return how many captions are of no image among those whose ids hash to `image_hashes`, uint64 [n]."""
        used = np.zeros(len(self.counts), np.bool_)
        for start in range(0, len(image_hashes), HASHES_AT_ONCE):
            part = image_hashes[start : start + HASHES_AT_ONCE]
            low, high = (np.searchsorted(self.alias_hashes, part, side=side) for side in ("left", "right"))
            for offset in range(int((high - low).max(initial=0))):
                used[self.alias_entries[(low + offset)[low + offset < high]]] = True
        return int(self.counts[~used].sum())

    def has(self, image_id: str) -> bool:
        """Return whether an entry goes by this id."""
        return holds(self.alias_hashes, image_id)

    def some_names(self) -> list[str]:
        """Return the names of a few images, for a person who wonders why none was found."""
        shown = range(min(UNUSABLE_SHOWN, len(self.counts)))
        return [next(iter((PARSERS[self.kind](self._text(entry)) or ({"": ""}, ()))[0])) for entry in shown]

    def _text(self, entry: int) -> bytes:
        start, stop = self.places[entry : entry + 2].tolist()
        if self.held:
            return self.held[start:stop]
        # Lines without a caption may stand behind it.
        return self.file.read_near(start, stop - start).partition(b"\n")[0].rstrip(b"\r")


def open_captions(path: Path) -> CaptionFile:
    """Return the captions in `path`.

    Raises:
        ConfigError: unreadable, or no line holds a caption of an image.
    """
    require_file(path, "--captions")
    document = read_document(path)
    if document is not None:
        held, unusable = _coco_entries(path, document)
        places = np.cumsum([0, *map(len, held)])
        return _collect(path, "jsonl", zip(places.tolist(), held, strict=False), b"".join(held), unusable)
    return _collect(path, _kind_of(path), lines_of(path))


def _collect(
    path: Path, kind: str, lines: Iterable[tuple[int, bytes]], held: bytes = b"", unusable: int = 0
) -> CaptionFile:
    """Return the captions in these lines; unusable: how many were none before."""
    # Plain lists of so many numbers would take five times the memory.
    hashes, entries, places, counts = array("Q"), array("i"), array("q"), array("i")
    end = 0
    for place, text in lines:
        entry = PARSERS[kind](text)
        end = place + len(text)
        if entry is None:
            unusable += 1
            continue
        for name in entry[0]:
            hashes.append(id_hash(name))
            entries.append(len(places))
        places.append(place)
        counts.append(len(entry[1]))
    if not places:
        raise ConfigError(
            f"{path}: none of {unusable} lines or annotations holds a caption of an image. Expected COCO JSON; "
            "JSONL with image_id and caption; or a table: image TAB caption, or caption TAB url."
        )
    places.append(end)
    order = np.argsort(np.frombuffer(hashes, np.uint64), kind="stable")
    return CaptionFile(
        file=PlacedFile(path),
        kind=kind,
        facts=hash_file(path, name=path.name),
        alias_hashes=np.frombuffer(hashes, np.uint64)[order],
        alias_entries=np.frombuffer(entries, np.int32)[order],
        places=np.frombuffer(places, np.int64),
        counts=np.frombuffer(counts, np.int32),
        held=held,
        unusable=unusable,
    )


def _coco_entries(path: Path, document: dict[str, Any]) -> tuple[list[bytes], int]:
    """Return for each image of a COCO captions file a line of JSON, its names and its captions; and how many are none.

    Raises:
        ConfigError: no list of annotations with captions.
    """
    annotations = document.get("annotations")
    if not isinstance(annotations, list):
        raise ConfigError(f"{path}: a JSON file without a list `annotations`; COCO captions have one.")
    captions: dict[int | str, list[str]] = {}
    for annotation in annotations:
        fields = annotation if isinstance(annotation, dict) else {}
        image_id, caption = fields.get("image_id"), fields.get("caption")
        if isinstance(image_id, (int, str)) and isinstance(caption, str) and caption.strip() and is_unicode(caption):
            captions.setdefault(image_id, []).append(caption)
    images = document.get("images")
    listed = [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    names = {image["id"]: image.get("file_name") for image in listed if isinstance(image.get("id"), (int, str))}
    lines = [
        json.dumps({"id": image_id, "file_name": names.get(image_id), "captions": texts}).encode()
        for image_id, texts in captions.items()
    ]
    return lines, len(annotations) - sum(map(len, captions.values()))


def _kind_of(path: Path) -> str:
    """Return how most of the first lines are written: one may be torn, or name the columns."""
    first = [_kind_of_line(text) for _, text in islice(lines_of(path), LINES_SNIFFED)]
    return most_common(first) if first else "image-caption"


def _kind_of_line(text: bytes) -> str:
    if text.lstrip().startswith(b"{"):
        return "jsonl"
    columns = text.split(b"\t")
    return "caption-url" if len(columns) >= 2 and _URL.match(columns[1]) else "image-caption"


def _parse_json(text: bytes) -> Entry | None:
    record = json_record(text)
    names = names_in(record) if record else {}
    if record is None or not names:
        return None
    if isinstance(record.get("frcnn"), str) and isinstance(record.get("caption"), list):
        # VL-BERT's annotations: one caption as a list of its words.
        words = [word for word in record["caption"] if isinstance(word, str)]
        record = {"caption": " ".join(words)}
    try:
        return names, captions_of(record)
    except RecordRejectedError:
        return None


def _parse_columns(text: bytes) -> tuple[str, str] | None:
    parts = text.split(b"\t")
    try:
        first, second = (part.decode().strip() for part in parts[:2])
    except (UnicodeDecodeError, ValueError):
        return None
    usable = first and second and is_unicode(first) and is_unicode(second)
    return (first, second) if usable else None


def _parse_image_caption(text: bytes) -> Entry | None:
    columns = _parse_columns(text)
    return columns and (aliases(columns[0]), (columns[1],))


def _parse_caption_url(text: bytes) -> Entry | None:
    columns = _parse_columns(text)
    return columns and ({columns[1]: "", str(zlib.crc32(columns[1].encode())): columns[1]}, (columns[0],))


PARSERS: dict[str, Callable[[bytes], Entry | None]] = {
    "jsonl": _parse_json,
    "image-caption": _parse_image_caption,
    "caption-url": _parse_caption_url,
}
