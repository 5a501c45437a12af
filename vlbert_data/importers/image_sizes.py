"""Sizes of the original images, for features that do not bring them. Promise: 16 bytes an image; never invented.

COCO JSON (`images` with `width` and `height`), JSONL with the same fields, or a table: `image TAB width TAB height`,
or scene_graph_benchmark's `hw.tsv`, `image TAB [{"height": h, "width": w}]`.
"""

import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from vlbert_data.errors import ConfigError
from vlbert_data.ids import id_hash
from vlbert_data.importers.keys import holds
from vlbert_data.importers.side_files import aliases, json_record, lines_of, names_in, read_document, require_file
from vlbert_data.sources.files import FileFacts, hash_file
from vlbert_data.sources.records import size_of
from vlbert_data.types import Array

NAMES_SHOWN = 3
Entry = tuple[Iterable[str], tuple[int, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSizes:
    """Sizes by image id. hashes: uint64 [n], rising. sizes: int32 [n, 2], (width, height); 0 where two are stated."""

    path: Path
    facts: FileFacts
    hashes: Array = field(repr=False)
    sizes: Array = field(repr=False)

    def of(self, image_id: str) -> tuple[int, int] | None:
        """Return (width, height) in pixels; None where the file does not state it, or states two sizes."""
        wanted = np.uint64(id_hash(image_id))
        place = int(np.searchsorted(self.hashes, wanted))
        if place == len(self.hashes) or self.hashes[place] != wanted:
            return None
        width, height = self.sizes[place].tolist()
        return (width, height) if width else None

    def has(self, image_id: str) -> bool:
        """Return whether the file states a size of this image."""
        return holds(self.hashes, image_id)

    def some_names(self) -> list[str]:
        """Return the names of a few images, for a person who wonders why none was found."""
        return [next(iter(names)) for names, _ in islice(_entries(self.path), NAMES_SHOWN)]


def open_image_sizes(path: Path) -> ImageSizes:
    """Return the sizes in `path`.

    Raises:
        ConfigError: unreadable, or no entry states an image's size.
    """
    require_file(path, "--image-sizes")
    hashes, sizes = array("Q"), array("i")
    for names, size in _entries(path):
        for name in names:
            hashes.append(id_hash(name))
            sizes.extend(size)
    if not hashes:
        raise ConfigError(
            f"{path}: states no image's size. Expected COCO JSON; JSONL with image_id, width and height; or a table: "
            "image TAB width TAB height."
        )
    order = np.argsort(np.frombuffer(hashes, np.uint64), kind="stable")
    ordered = np.frombuffer(sizes, np.int32).reshape(-1, 2)[order]  # [all, 2], equal ids side by side
    found, starts = np.unique(np.frombuffer(hashes, np.uint64)[order], return_index=True)
    agree = np.minimum.reduceat(ordered, starts) == np.maximum.reduceat(ordered, starts)  # [n, 2]
    kept = np.where(agree.all(axis=1)[:, None], ordered[starts], 0)
    return ImageSizes(path=path, facts=hash_file(path, name=path.name), hashes=found, sizes=kept)


def _entries(path: Path) -> Iterator[Entry]:
    document = read_document(path)
    if document is not None:
        images = document.get("images")
        for image in images if isinstance(images, list) else []:
            if isinstance(image, dict) and (size := _storable(size_of(image))) is not None:
                yield names_in(image), size
        return
    for _, text in lines_of(path):
        entry = _from_json(text) if text.lstrip().startswith(b"{") else _from_columns(text)
        if entry is not None:
            yield entry


def _from_json(text: bytes) -> Entry | None:
    record = json_record(text)
    size = _storable(size_of(record)) if record else None
    return (names_in(record), size) if record and size else None


def _from_columns(text: bytes) -> Entry | None:
    parts = text.split(b"\t")
    try:
        names = aliases(parts[0].decode())
        if len(parts) == 3 and parts[1].strip().isdigit() and parts[2].strip().isdigit():
            sides: dict[str, Any] = {"width": int(parts[1]), "height": int(parts[2])}
        else:
            stated = json.loads(parts[1])
            sides = stated[0] if isinstance(stated, list) else stated
        size = _storable(size_of(sides))
    except (ValueError, IndexError, KeyError, AttributeError, RecursionError):
        return None
    return (names, size) if size is not None else None


def _storable(size: tuple[int, int] | None) -> tuple[int, int] | None:
    return size if size is not None and max(size) < 2**31 else None
