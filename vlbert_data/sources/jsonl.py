"""JSONL: one record a line, `image`, `caption` or `captions`, optional `id`, `boxes`, `labels`, `width`, `height`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.ids import id_hash, later_duplicates
from vlbert_data.sources.base import FileImage, SourceItem, SourceReject
from vlbert_data.sources.files import (
    Lines,
    check_line,
    fingerprint,
    holds,
    index_lines,
    relative_names,
    require_folder,
)
from vlbert_data.sources.records import (
    boxes_of,
    captions_of,
    extras_of,
    is_among,
    item_or_reject,
    positional_id,
    reject_duplicate,
    size_of,
    stated_id,
)

_USED_FIELDS = ("id", "image", "caption", "captions", "boxes", "labels", "width", "height")


class JsonlSource:
    """The lines of JSONL files, one file after the other; empty lines are no inputs.

    An image's path is relative to its file's folder, or to `images`. A record without an `id` is called by its number
    in the source. The first input that states an id holds it; memory keeps 8 bytes a line.
    """

    def __init__(self, paths: Sequence[Path], *, images: Path | None = None) -> None:
        """Index the files, and read them once more where records state ids.

        Raises:
            ConfigError: a file is unreadable, or empty.
        """
        self._images = images and require_folder(images)
        names = relative_names(paths)
        self._files = [index_lines(path, name=name, skip_blank=True) for path, name in zip(paths, names, strict=True)]
        for lines in self._files:
            if not len(lines.starts):
                raise ConfigError(f"{lines.path}: an empty file; expected a JSON record on each line.")
        self._ends = np.cumsum([len(lines.starts) for lines in self._files])  # [files]
        self._duplicates = np.zeros(0, np.int64)
        if any(holds(path, b'"id"') for path in paths):
            ids = (_id_on(line, number) for _, _, number, line in self._numbered(0, len(self)))
            self._duplicates = later_duplicates(np.fromiter(map(id_hash, ids), np.uint64, len(self)))

    def __len__(self) -> int:
        """Return the number of records."""
        return int(self._ends[-1])

    def read(self, start: int, stop: int) -> Iterator[SourceItem | SourceReject]:
        """Yield records `start` to `stop` - 1."""
        for lines, index, number, line in self._numbered(start, min(stop, len(self))):
            yield item_or_reject(number, lines.where(index), partial(self._make_item, lines, number, line))

    def facts(self) -> dict[str, Any]:
        """Return format, files and counts."""
        return {
            "format": "jsonl",
            "count": len(self),
            "files": [lines.facts.as_json() for lines in self._files],
            "images": None if self._images is None else str(self._images),
        }

    def fingerprint(self) -> str:
        """Return a digest of the files' contents and the name of the images' folder."""
        return fingerprint(self.facts())

    def _numbered(self, start: int, stop: int) -> Iterator[tuple[Lines, int, int, bytes]]:
        """Yield (file, place in the file, number, line) for records `start` to `stop` - 1."""
        for lines, end in zip(self._files, self._ends, strict=True):
            begin = int(end) - len(lines.starts)
            low, high = max(start, begin), min(stop, int(end))
            if low < high:
                for number, line in enumerate(lines.read(low - begin, high - begin), start=low):
                    yield lines, number - begin, number, line

    def _make_item(self, lines: Lines, number: int, line: bytes) -> SourceItem:
        record = parse_record(line)
        image_id = stated_id(record.get("id"), number)
        if is_among(number, self._duplicates):
            raise reject_duplicate(image_id)
        name = record.get("image")
        if not isinstance(name, str) or not name:
            raise RecordRejectedError("bad record", f"image is {name!r}; expected the path of an image file")
        boxes, class_names = boxes_of(record)
        root = lines.path.parent if self._images is None else self._images
        return SourceItem(
            number=number,
            image_id=image_id,
            captions=captions_of(record),
            location=FileImage(str(root / name)),
            file_name=name,
            boxes=boxes,
            class_names=class_names,
            expected_size_px=size_of(record),
            extra=extras_of(record, _USED_FIELDS),
        )


def parse_record(line: bytes) -> Mapping[str, Any]:
    """Return the JSON object on a line.

    Raises:
        RecordRejectedError: "bad line" or "line too long".
    """
    check_line(line)
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecordRejectedError("bad line", f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise RecordRejectedError(
            "bad line", f"a JSON {type(record).__name__}; expected an object with image and caption"
        )
    return record


def _id_on(line: bytes, number: int) -> str:
    """Return the id that a line takes, whether or not its record is taken."""
    if b'"id"' not in line:
        return positional_id(number)
    try:
        return stated_id(parse_record(line).get("id"), number)
    except RecordRejectedError:
        return positional_id(number)
