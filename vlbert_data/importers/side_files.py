"""Lists that say things of images by name: captions, sizes. Promise: read once, a line at a time, names under aliases.

An image is `COCO_val2014_000000000042` in one file, `COCO_val2014_000000000042.jpg` in the next and `42` in a third, so
a list's entry is found under its id, and under its file name with and without folder and ending.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlbert_data.errors import ConfigError
from vlbert_data.nearby import where_it_ends
from vlbert_data.sources.files import UTF8_BOM, unreadable

ID_FIELDS = ("image_id", "id", "img_id", "file_name", "image", "img")
LONGEST_LINE_BYTES = 16 << 20
_ENDING = re.compile(r"\.(jpe?g|png|gif|webp|bmp|npz|npy|json)$", re.IGNORECASE)
_IMAGE_ENDING = re.compile(r"#\d+$")


def require_file(path: Path, option: str) -> None:
    """Raise a ConfigError unless `path`, given as `option`, is a file; nothing in it is read."""
    if not path.is_file():
        hint = where_it_ends(path)
        raise ConfigError(
            f"{path}: no such file; {option} takes COCO JSON, JSONL or a table with tabs. {hint}".rstrip()
        )


def aliases(name: str | int) -> Iterator[str]:
    """Yield the names under which an entry for `name` is found, itself first; some may repeat."""
    text = str(name).strip()
    yield text
    # Flickr30k's captions are of `1000092795.jpg#0`, `#1`, ...
    plain = _IMAGE_ENDING.sub("", text)
    yield plain
    # Archives are written `train_image.zip@/00000000.jpg`.
    base = plain.rpartition("/")[2]
    yield base
    yield _ENDING.sub("", base)


def names_in(record: dict[str, Any]) -> list[str]:
    """Return all aliases under which a JSON record names its image, each once."""
    found: dict[str, None] = {}
    for name in ID_FIELDS:
        value = record.get(name)
        if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "":
            found.update(dict.fromkeys(aliases(value)))
    return [name for name in found if name]


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (first byte, line without its line end) for the lines of a file that are not blank.

    Raises:
        ConfigError: the file cannot be read, or has a line of more than 16 MiB.
    """
    try:
        with path.open("rb") as stream:
            place = len(UTF8_BOM) if stream.read(len(UTF8_BOM)) == UTF8_BOM else 0
            stream.seek(place)
            while line := stream.readline(LONGEST_LINE_BYTES):
                if len(line) == LONGEST_LINE_BYTES:
                    raise ConfigError(
                        f"{path}: a line of more than {LONGEST_LINE_BYTES} bytes. Is this the right file?"
                    )
                text = line.rstrip(b"\r\n")
                if text.strip():
                    yield place, text
                place += len(line)
    except OSError as error:
        raise unreadable(path, error) from error


def json_record(text: bytes) -> dict[str, Any] | None:
    """Return the JSON object that a line holds; None where it holds none."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def read_document(path: Path) -> dict[str, Any] | None:
    """Return the file as one JSON object of more than a line's worth, such as COCO's; None where it is none.

    Raises:
        ConfigError: the file cannot be read.
    """
    first = next(lines_of_start(path), b"")
    if not first.lstrip().startswith(b"{"):
        return None
    record = json_record(first)
    if record is not None and not any(isinstance(record.get(name), list) for name in ("images", "annotations")):
        return None
    try:
        return json_record(path.read_bytes().removeprefix(UTF8_BOM))
    except OSError as error:
        raise unreadable(path, error) from error


def lines_of_start(path: Path) -> Iterator[bytes]:
    """Yield the first line of a file, or as much as 16 MiB of it."""
    try:
        with path.open("rb") as stream:
            yield stream.readline(LONGEST_LINE_BYTES).removeprefix(UTF8_BOM)
    except OSError as error:
        raise unreadable(path, error) from error
