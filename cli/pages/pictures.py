"""Pictures of a page's images. Promise: JPEGs, small, upright; an image without one costs nothing but its picture.

They are the thumbnails that shards store, or made from a folder of image files. There a file belongs to an image whose
id is its path or its name, with or without suffix, or whose id is the number that its name ends with, as in COCO.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.images import decode_rgb, encode_thumbnail
from vlbert_data.nearby import where_it_ends

# As vlb build-shards --thumbnails stores them.
LONGEST_SIDE_PX = 320
JPEG_QUALITY = 80
JPEG_START = b"\xff\xd8"


def require_pictures(folder: Path) -> None:
    """Raise a ConfigError unless `folder` is one."""
    if not folder.is_dir():
        raise ConfigError(f"--images {folder}: there is no such folder. {where_it_ends(folder)}".rstrip())


class PictureFolder:
    """The image files of a folder, found by image ids; `files` are its paths, as many as it has in any depth."""

    def __init__(self, folder: Path) -> None:
        require_pictures(folder)
        self.folder = folder
        self.files = sorted(path for path in folder.rglob("*") if path.is_file())
        # Only what is unique: of two files that an id could mean neither is shown.
        self._by_path = _unique((path.relative_to(folder).as_posix(), path) for path in self.files)
        self._by_bare_path = _unique((path.relative_to(folder).with_suffix("").as_posix(), path) for path in self.files)
        self._by_name = _unique((path.stem, path) for path in self.files)
        self._by_number = _unique((str(int(found[0])), path) for path in self.files if (found := _number(path.stem)))

    def find(self, image_id: str) -> Path | None:
        """Return the file that belongs to an image, None where none or several do."""
        name = image_id.rsplit("/", 1)[-1]
        number = str(int(image_id)) if image_id.isascii() and image_id.isdigit() else ""
        return (
            self._by_path.get(image_id)
            or self._by_bare_path.get(image_id)
            or self._by_name.get(name)
            or self._by_name.get(Path(name).stem)
            or self._by_number.get(number)
        )

    def picture(self, image_id: str) -> bytes | None:
        """Return a JPEG of an image, None where its file is not there or not readable."""
        path = self.find(image_id)
        if path is None:
            return None
        try:
            pixels = decode_rgb(path.read_bytes())
        except (OSError, RecordRejectedError):
            return None
        return encode_thumbnail(pixels, longest_side_px=LONGEST_SIDE_PX, quality=JPEG_QUALITY)


def stored_picture(thumbnail: bytes | None) -> bytes | None:
    """Return a stored thumbnail where it is a JPEG, which is the only kind that a page shows."""
    return thumbnail if thumbnail is not None and thumbnail.startswith(JPEG_START) else None


def from_folder(
    folder: PictureFolder, image_ids: list[str], advance: Callable[[int], None] = lambda done: None
) -> list[bytes | None]:
    """Return a picture of each image, None where there is none. advance: called with how many are done.

    Raises:
        ConfigError: the folder has a picture of none of them.
    """
    found = []
    for number, image_id in enumerate(image_ids, 1):
        found.append(folder.picture(image_id))
        advance(number)
    if image_ids and not any(found):
        example = folder.files[0].relative_to(folder.folder) if folder.files else "nothing"
        raise ConfigError(
            f"--images {folder.folder}: none of its {len(folder.files)} files is a picture of these images. Their ids "
            f"look like {image_ids[0]!r}, the files like {str(example)!r}; a file must be named like the id."
        )
    return found


def _number(stem: str) -> re.Match[str] | None:
    return re.search(r"[0-9]+$", stem)


def _unique(pairs: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    found: dict[str, Path | None] = {}
    for name, path in pairs:
        found[name] = path if name not in found else None
    return {name: path for name, path in found.items() if path is not None}
