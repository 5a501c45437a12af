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
from vlbert_data.sources.files import UTF8_BOM, compression_of, read_start, unreadable

ID_FIELDS = ("image_id", "img_id", "id", "file_name", "image", "img")
LONGEST_LINE_BYTES = 16 << 20
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_ENDING = re.compile(r"\.(jpe?g|png|gif|webp|bmp|npz|npy|json)$", re.IGNORECASE)
_IMAGE_ENDING = re.compile(r"#\d+$")


def require_file(path: Path, option: str) -> None:
    """Raise a ConfigError unless `path`, given as `option`, is a file of text; of this its first bytes are read."""
    if path.is_file():
        start = read_start(path, len(UTF8_BOM))
        if start.startswith(UTF16_BOMS):
            raise ConfigError(f"{path}: text in UTF-16; {option} takes UTF-8. Convert it, as with iconv -t utf8.")
        if (compression := compression_of(start)) is not None:
            raise ConfigError(f"{path}: compressed with {compression}; {option} takes a file of text. Unpack it first.")
        return
    takes = f"{option} takes a file of COCO JSON, JSONL or a table with tabs"
    if path.is_dir():
        raise ConfigError(f"{path}: a folder; {takes}. Name the file in it.")
    if path.exists():
        raise ConfigError(f"{path}: a pipe or a device; {takes}, which is read more than once. Save it first.")
    raise ConfigError(f"{path}: no such file; {takes}. {where_it_ends(path)}".rstrip())


def aliases(name: str | int) -> dict[str, str]:
    """Return the names under which an entry for `name` is found, itself first; with each the folder that it leaves out.

    That folder is "" for a name that says all. Two images may have a name in common that leaves their folders out.
    """
    text = str(name).strip()
    # Flickr30k's captions are of `1000092795.jpg#0`, `#1`, ...
    plain = _IMAGE_ENDING.sub("", text) if "#" in text else text
    # Archives are written `train_image.zip@/00000000.jpg`.
    folder, _, base = plain.rpartition("/")
    found = dict.fromkeys((text, plain, _ENDING.sub("", plain)), "")
    for short in (base, _ENDING.sub("", base)):
        found.setdefault(short, folder)
    return found


def names_in(record: dict[str, Any]) -> dict[str, str]:
    """Return all names under which a JSON record's image is found; see `aliases`.

    An `id` beside `image_id` is that of an annotation, such as each caption of COCO has, and names no image.
    """
    found: dict[str, str] = {}
    for field in ID_FIELDS:
        value = record.get(field)
        if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "":
            if field == "id" and found:
                continue
            for name, left_out in aliases(value).items():
                found[name] = left_out and found.get(name, left_out)
    found.pop("", None)
    return found


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
