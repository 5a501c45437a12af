"""COCO captions: one JSON file that lists images and annotations. One input is one image with all its captions."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.sources.base import FileImage, SourceItem, SourceReject
from vlbert_data.sources.files import fingerprint, hash_bytes, relative_names, require_folder, unreadable
from vlbert_data.sources.records import captions_of, extras_of, item_or_reject, reject_duplicate, size_of

_USED_FIELDS = ("id", "file_name", "width", "height")
# Twenty times the captions of COCO 2017; Python's objects take some five times as much memory as the text.
LARGEST_FILE_BYTES = 2 << 30


class CocoSource:
    """The images of COCO caption files, in the order of their lists; then, as rejects, captions of unlisted images.

    All of the annotations are held in memory (0.2 GB for COCO 2017), none of the images.
    """

    def __init__(self, paths: Sequence[Path], *, images: Path | None = None) -> None:
        """Read the caption files. images: the folder that `file_name` is relative to; by default the file's own.

        Raises:
            ConfigError: a file is unreadable, no JSON, or no COCO captions.
        """
        self._images = images and require_folder(images)
        self._files = []
        self._inputs: list[SourceItem | SourceReject] = []
        seen: set[str] = set()
        for path, name in zip(paths, relative_names(paths), strict=True):
            data = _read(path)
            self._files.append(hash_bytes(data, name=name))
            self._add_file(path, _parse(path, data), seen)

    def __len__(self) -> int:
        """Return the number of inputs."""
        return len(self._inputs)

    def read(self, start: int, stop: int) -> Iterator[SourceItem | SourceReject]:
        """Yield inputs `start` to `stop` - 1."""
        yield from self._inputs[start:stop]

    def facts(self) -> dict[str, Any]:
        """Return format, files and counts."""
        return {
            "format": "coco",
            "count": len(self),
            "files": [facts.as_json() for facts in self._files],
            "images": None if self._images is None else str(self._images),
        }

    def fingerprint(self) -> str:
        """Return a digest of the caption files' contents and the name of the images' folder."""
        return fingerprint(self.facts())

    def _add_file(self, path: Path, content: Mapping[str, Any], seen: set[str]) -> None:
        captions: dict[Any, list[Any]] = {}
        for annotation in content["annotations"]:
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
        licenses = _license_names(content.get("licenses"))
        root = path.parent if self._images is None else self._images
        for place, image in enumerate(content["images"]):
            number = len(self._inputs)
            context = {
                "captions": captions.pop(_as_key(image.get("id")), None),
                "license": licenses.get(_as_key(image.get("license"))),
            }
            make = partial(_make_item, number, root, image, context, seen)
            self._inputs.append(item_or_reject(number, f"{path}!images[{place}]", make))
        for image_id, texts in captions.items():
            self._inputs.append(
                SourceReject(
                    number=len(self._inputs),
                    where=f"{path}!annotations",
                    reason="image not listed",
                    detail=f"{len(texts)} captions are of image id {image_id!r}, which is not in the file's images",
                )
            )


def _make_item(
    number: int, root: Path, image: Mapping[str, Any], context: Mapping[str, Any], seen: set[str]
) -> SourceItem:
    image_id, file_name = image.get("id"), image.get("file_name")
    if not isinstance(image_id, (int, str)) or not isinstance(file_name, str) or not file_name:
        raise RecordRejectedError("bad record", f"an image with id {image_id!r} and file_name {file_name!r}")
    if str(image_id) in seen:
        raise reject_duplicate(str(image_id))
    seen.add(str(image_id))
    return SourceItem(
        number=number,
        image_id=str(image_id),
        captions=captions_of(context, ("captions",)),
        location=FileImage(str(root / file_name)),
        file_name=file_name,
        expected_size_px=size_of(image),
        extra=extras_of({**image, "license": context["license"]}, _USED_FIELDS),
    )


def _read(path: Path) -> bytes:
    """Return the file's bytes.

    Raises:
        ConfigError: it cannot be read, or is larger than any COCO captions file.
    """
    try:
        num_bytes = path.stat().st_size
        if num_bytes > LARGEST_FILE_BYTES:
            raise ConfigError(
                f"{path}: one JSON document of {num_bytes} bytes; at most {LARGEST_FILE_BYTES} are read at once. For "
                "more use JSONL, one record a line of at most 16 MB."
            )
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def _parse(path: Path, data: bytes) -> Mapping[str, Any]:
    """Return the file's content, checked to be a COCO caption file in its outer form."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON: {error}. Expected a COCO captions file.") from error
    if not isinstance(content, dict) or not all(
        _is_list_of_dicts(content.get(key)) for key in ("images", "annotations")
    ):
        found = f"the keys {', '.join(sorted(content))}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ConfigError(
            f"{path}: holds {found}; a COCO captions file has the lists `images` and `annotations`. For a list of "
            "records use JSONL, one record a line."
        )
    for place, annotation in enumerate(content["annotations"]):
        if "image_id" not in annotation or "caption" not in annotation:
            hint = ""
            if "bbox" in annotation:
                hint = (
                    f" This file has boxes: give the captions file here and this one as --detector annotations:{path}."
                )
            raise ConfigError(f"{path}: annotations[{place}] has no caption of an image_id.{hint}")
        if _as_key(annotation["image_id"]) is None:
            raise ConfigError(
                f"{path}: annotations[{place}] has the image_id {annotation['image_id']!r}; expected a number or text, "
                "as in `images`."
            )
    return content


def _as_key(value: Any) -> int | str | None:
    """Return a value that can be an id, None for any other."""
    return value if isinstance(value, (int, str)) else None


def _license_names(licenses: Any) -> dict[int | str | None, Any]:
    """Return names by id of the file's `licenses`, as far as they are what COCO writes: nothing depends on them."""
    if not _is_list_of_dicts(licenses):
        return {}
    return {_as_key(entry.get("id")): entry.get("name") for entry in licenses if _as_key(entry.get("id")) is not None}


def _is_list_of_dicts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)
