"""Where VL-BERT's files of features are listed. Promise: a path in a list never leads out of the list's folder.

A file is loose, in a .zip archive, or named by a line of annotations: `{"image": "train_image.zip@/00000000.jpg",
"caption": [words], "frcnn": "train_frcnn.zip@/00000000.json"}`, paths relative to the annotations. Where an archive was
unpacked, `train_frcnn/00000000.json` is read.

Source: jackroos/VL-BERT, common/utils/zipreader.py.
"""

import re
import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.importers.rows import LONGEST_ROW_BYTES, Rows, index_rows
from vlbert_data.importers.side_files import json_record
from vlbert_data.importers.zip_directory import ZipDirectory, open_zip
from vlbert_data.shards.files import blake2b_json
from vlbert_data.sources.files import relative_names
from vlbert_data.types import is_unicode

MOST_ARCHIVES = 10_000
ANNOTATION_HEAD_BYTES = 1 << 20
SHOWN_CHARACTERS = 200
_ARCHIVE = re.compile(r"(?P<archive>.*?\.zip)@/*(?P<member>.+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """A file of features that is listed: its image's key, where it is, its captions and how it is read."""

    key: str
    where: str
    captions: tuple[str, ...]
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class LooseFiles:
    """Loose files, one an image."""

    files: tuple[Path, ...]
    has_captions = False

    def __len__(self) -> int:
        return len(self.files)

    def key(self, number: int) -> str:
        """Return the file's name without its ending."""
        return self.files[number].stem

    def where(self, number: int) -> str:
        """Return the file's path."""
        return str(self.files[number])

    def read(self, number: int) -> Listed:
        """Return the file."""
        path = self.files[number]
        return Listed(key=path.stem, where=str(path), captions=(), data=read_file(path))

    def facts(self) -> dict[str, Any]:
        """Return the number of files and a digest of their names and sizes."""
        sizes = [[name, path.stat().st_size] for name, path in zip(relative_names(self.files), self.files, strict=True)]
        return {"files": [], "listing": blake2b_json(sizes)}


@dataclass(frozen=True, slots=True)
class ArchiveFiles:
    """The files of one archive, one an image."""

    archive: ZipDirectory
    has_captions = False

    def __len__(self) -> int:
        return len(self.archive)

    def key(self, number: int) -> str:
        """Return the member's name without folder and ending."""
        return PurePosixPath(self.archive.name(number)).stem

    def where(self, number: int) -> str:
        """Return archive and member."""
        return f"{self.archive.path}@/{self.archive.name(number)}"

    def read(self, number: int) -> Listed:
        """Return the member."""
        data = self.archive.read(number)
        return Listed(key=self.key(number), where=self.where(number), captions=(), data=data)

    def facts(self) -> dict[str, Any]:
        """Return the archive's size and hash."""
        return {"files": [self.archive.facts.as_json()]}


@dataclass(frozen=True, slots=True)
class AnnotatedFiles:
    """The files that annotation lines name. archives: by the path written in the lines."""

    lines: Rows
    archives: dict[str, ZipDirectory]
    has_captions = True

    def __len__(self) -> int:
        return len(self.lines)

    def key(self, number: int) -> str:
        """Return the name of the line's image, without folder and ending."""
        return self.lines.key(number)

    def where(self, number: int) -> str:
        """Return file and line."""
        return self.lines.where(number)

    def read(self, number: int) -> Listed:
        """Return the file that a line names."""
        record = json_record(self.lines.read(number))
        if record is None or not isinstance(record.get("frcnn"), str):
            raise RecordRejectedError("bad line", "not a JSON object with a text `frcnn`")
        caption = record.get("caption")
        if isinstance(caption, list) and all(isinstance(word, str) for word in caption):
            caption = " ".join(caption)
        if not isinstance(caption, str):
            raise RecordRejectedError("bad caption", "caption is neither a text nor a list of words")
        data = self._data(record["frcnn"])
        key = _image_key(record).decode()
        return Listed(key=key, where=self.lines.where(number), captions=(caption,), data=data)

    def facts(self) -> dict[str, Any]:
        """Return size and hash of the annotations and the archives."""
        files = [self.lines.facts, *(self.archives[name].facts for name in sorted(self.archives))]
        return {"files": [file.as_json() for file in files]}

    def _data(self, written: str) -> bytes:
        match = _ARCHIVE.fullmatch(written)
        if match and match["archive"] in self.archives:
            archive = self.archives[match["archive"]]
            return archive.read(archive.find(match["member"]))
        if match:
            written = f"{match['archive'].removesuffix('.zip')}/{match['member']}"
        return read_file(_below(self.lines.path.parent, written))


Listing = LooseFiles | ArchiveFiles | AnnotatedFiles


def open_annotations(path: Path) -> AnnotatedFiles:
    """Return the files that the lines of `path` name.

    Raises:
        ConfigError: unreadable, or an archive is missing, damaged, or outside the folder.
    """
    names: set[str] = set()

    def key_of(head: bytes, tabs: int) -> bytes:
        record = json_record(head) or {}
        match = _ARCHIVE.fullmatch(record["frcnn"]) if isinstance(record.get("frcnn"), str) else None
        if match and len(names) < MOST_ARCHIVES:
            names.add(match["archive"])
        return _image_key(record)

    lines = index_rows(path, key_of, name=path.name, head_bytes=ANNOTATION_HEAD_BYTES)
    archives = {}
    for name in sorted(names):
        try:
            archive = _below(path.parent, name)
        except RecordRejectedError as error:
            raise ConfigError(f"{path}: names an archive that is not read: {error.detail}.") from error
        if stat.S_ISREG(_mode(archive)):
            archives[name] = open_zip(archive, name=name)
        elif not stat.S_ISDIR(_mode(archive.with_suffix(""))):
            shown = str(archive)[:SHOWN_CHARACTERS]
            raise ConfigError(f"{path}: names features in {shown}, but neither it nor the folder unpacked is there.")
    return AnnotatedFiles(lines, archives)


def _mode(path: Path) -> int:
    """Return the kind and the rights of what is at `path`, 0 where nothing can be: a name may be longer than any."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _image_key(record: dict[str, Any]) -> bytes:
    """Return the name of a line's image, or of its features, without folder and ending; b"" where it has none."""
    for name in ("image", "frcnn"):
        written = record.get(name)
        if isinstance(written, str) and written:
            return PurePosixPath(written.replace("@/", "/")).stem.encode("utf-8", "replace")
    return b""


def _below(folder: Path, written: str) -> Path:
    """Return the path that is written relative to `folder`.

    Raises:
        RecordRejectedError: "path outside": it leads out of the folder. "not readable": no file has such a name.
    """
    if not is_unicode(written):
        raise RecordRejectedError("not readable", f"{written[:SHOWN_CHARACTERS]!r} is no file's name")
    if written.startswith("/") or ".." in written.split("/") or "\0" in written or "\\" in written:
        raise RecordRejectedError(
            "path outside", f"{written[:SHOWN_CHARACTERS]!r} leads out of the folder of the annotations"
        )
    return folder / written


def read_file(path: Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        RecordRejectedError: "file not found", "not readable" or "too many bytes".
    """
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise RecordRejectedError("not readable", f"{path}: not a file")
        if state.st_size > LONGEST_ROW_BYTES:
            raise RecordRejectedError(
                "too many bytes", f"{path}: {state.st_size}; at most {LONGEST_ROW_BYTES} are read"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise RecordRejectedError("file not found", str(path)) from error
    except OSError as error:
        raise RecordRejectedError("not readable", f"{path}: {error.strerror}") from error
