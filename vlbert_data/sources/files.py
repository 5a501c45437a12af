"""What all sources do with the files that people name. Promise: contents decide, not dates and not absolute paths."""

import glob
import hashlib
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlbert_data import nearby
from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.shards.files import blake2b_json
from vlbert_data.types import Array

# Archives up to this size are hashed whole; of larger ones the two ends and the size, which takes milliseconds even on
# a network disk. A Parquet file's end holds its directory; a tar's length follows the length of its members.
WHOLE_HASH_BYTES = 16 << 20
END_HASH_BYTES = 1 << 20
SCAN_CHUNK_BYTES = 4 << 20
# No record about one image needs a longer line; of a longer one no more than this is read.
LONGEST_LINE_BYTES = 16 << 20

UTF8_BOM = b"\xef\xbb\xbf"
COMPRESSED_STARTS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFacts:
    """An input file.

    name: its path from the folder that all inputs share. blake2b: hex, 16 bytes, of the whole file where `hashed` is
    "whole", of its two ends and its size where it is "ends".
    """

    name: str
    num_bytes: int
    blake2b: str
    hashed: str

    def as_json(self) -> dict[str, Any]:
        """Return the facts as the manifest stores them."""
        return {"name": self.name, "bytes": self.num_bytes, "blake2b": self.blake2b, "hashed": self.hashed}


@dataclass(frozen=True, kw_only=True, slots=True)
class Lines:
    """Where the lines of a text file start.

    starts: int64 [n], rising byte offsets. line_numbers: int64 [n], counted from 1, None where no line was left out.
    """

    path: Path
    starts: Array
    line_numbers: Array | None
    facts: FileFacts

    def where(self, index: int) -> str:
        """Return file and line number of the line at `index`, as editors and compilers write it."""
        return f"{self.path}:{index + 1 if self.line_numbers is None else int(self.line_numbers[index])}"

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield lines `start` to `stop` - 1 without their line ends; a line that is too long ends beyond the limit."""
        with self.path.open("rb") as stream:
            for offset in self.starts[start:stop]:
                stream.seek(int(offset))
                yield stream.readline(LONGEST_LINE_BYTES + 1).rstrip(b"\r\n")


def check_line(line: bytes) -> None:
    """Refuse a line of more than LONGEST_LINE_BYTES, of which only the beginning was read.

    Raises:
        RecordRejectedError: "line too long".
    """
    if len(line) > LONGEST_LINE_BYTES:
        raise RecordRejectedError("line too long", f"more than {LONGEST_LINE_BYTES} bytes; begins with {line[:40]!r}")


def expand_inputs(inputs: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return the existing paths that `inputs` name, in their order; a glob gives its matches sorted by name.

    Raises:
        ConfigError: nothing given, a path that is not there (the nearest name is told), or a glob without a match.
    """
    if not inputs:
        raise ConfigError("no input given; expected a file, a folder or a glob such as 'cc/*.tar'.")
    paths: list[Path] = []
    for given in (os.fspath(entry) for entry in inputs):
        if Path(given).exists():
            paths.append(Path(given))
        elif glob.has_magic(given):
            matches = sorted(glob.glob(given, recursive=True))  # noqa: PTH207  (Path.glob wants its start apart)
            if not matches:
                raise ConfigError(f"{given}: no file matches. {nearby.where_it_ends(Path(given))}".rstrip())
            paths.extend(map(Path, matches))
        else:
            raise missing_path(Path(given))
    return paths


def missing_path(path: Path) -> ConfigError:
    """Return the error for a path that is not there, with the nearest existing name if there is one."""
    if path.is_symlink():
        return ConfigError(f"{path}: a link to {path.readlink()}, where nothing is.")
    return ConfigError(f"{path}: no such file or folder. {nearby.where_it_ends(path)}".rstrip())


def require_folder(path: Path) -> Path:
    """Return `path`.

    Raises:
        ConfigError: it is not there, or not a folder.
    """
    if not path.exists():
        raise missing_path(path)
    if not path.is_dir():
        raise ConfigError(f"{path}: a file; expected the folder of the images.")
    return path


def relative_names(paths: Sequence[Path]) -> list[str]:
    """Return a distinct name for each file: its path from the folder that all of them share.

    Raises:
        ConfigError: a file is given twice.
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100  (Path has no way to fold "..")
    for path, other in zip(sorted(absolute), sorted(absolute)[1:], strict=False):
        if path == other:
            raise ConfigError(f"{path}: given twice. Name each input once.")
    shared = os.path.commonpath([path.parent for path in absolute])
    names = (path.relative_to(shared).as_posix() for path in absolute)
    # File names are bytes; of those that are no text, what is not is written as escapes, for ids must be text.
    return [name.encode(errors="backslashreplace").decode() for name in names]


def hash_file(path: Path, *, name: str) -> FileFacts:
    """Return the facts of a file, reading all of it or, above WHOLE_HASH_BYTES, its two ends.

    Raises:
        ConfigError: the file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as stream:
            num_bytes = os.fstat(stream.fileno()).st_size
            whole = num_bytes <= WHOLE_HASH_BYTES
            digest.update(stream.read(WHOLE_HASH_BYTES if whole else END_HASH_BYTES))
            if not whole:
                stream.seek(num_bytes - END_HASH_BYTES)
                digest.update(stream.read(END_HASH_BYTES) + num_bytes.to_bytes(8, "little"))
    except OSError as error:
        raise unreadable(path, error) from error
    return FileFacts(name=name, num_bytes=num_bytes, blake2b=digest.hexdigest(), hashed="whole" if whole else "ends")


def hash_bytes(data: bytes, *, name: str) -> FileFacts:
    """Return the facts of a file whose bytes are at hand."""
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    return FileFacts(name=name, num_bytes=len(data), blake2b=digest, hashed="whole")


def index_lines(path: Path, *, name: str, skip_blank: bool) -> Lines:
    """Return where each line starts, in 8 bytes a line; the file is read once, in chunks, and hashed on the way.

    A mark at the file's start that says UTF-8 is not part of the first line. skip_blank: leave out empty lines.

    Raises:
        ConfigError: the file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    ends: list[Array] = []
    num_bytes = 0
    try:
        with path.open("rb") as stream:
            first = len(UTF8_BOM) if stream.read(len(UTF8_BOM)) == UTF8_BOM else 0
            stream.seek(0)
            while chunk := stream.read(SCAN_CHUNK_BYTES):
                digest.update(chunk)
                ends.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + num_bytes)
                num_bytes += len(chunk)
            starts = np.concatenate([np.array([first], np.int64), *(end + 1 for end in ends)])
            starts = starts[starts < num_bytes]
            text = _holds_text(stream, starts, num_bytes) if skip_blank else np.ones(len(starts), np.bool_)
    except OSError as error:
        raise unreadable(path, error) from error
    facts = FileFacts(name=name, num_bytes=num_bytes, blake2b=digest.hexdigest(), hashed="whole")
    line_numbers = None if text.all() else np.flatnonzero(text) + 1
    return Lines(path=path, starts=starts[text], line_numbers=line_numbers, facts=facts)


def _holds_text(stream: Any, starts: Array, num_bytes: int) -> Array:
    """Return bool [n], False for lines of nothing but a line end; longer runs of spaces count as text."""
    lengths = np.diff(starts, append=num_bytes)
    text: Array = lengths > 1
    for i in np.flatnonzero(lengths <= 2):
        stream.seek(int(starts[i]))
        text[i] = bool(stream.read(int(lengths[i])).strip())
    return text


def holds(path: Path, needle: bytes) -> bool:
    """Return whether a file's bytes have `needle` in them; an empty file has not."""
    if not path.stat().st_size:
        return False
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return mapped.find(needle) >= 0


def unreadable(path: Path, error: OSError) -> ConfigError:
    """Return the error for an input file that the system does not let us read."""
    return ConfigError(nearby.unreadable(path, error))


def compression_of(start: bytes) -> str | None:
    """Return the name of the compression that a file of these first bytes has, None for none."""
    return next((name for magic, name in COMPRESSED_STARTS.items() if start.startswith(magic)), None)


def read_start(path: Path, num_bytes: int) -> bytes:
    """Return the first bytes of a file.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return stream.read(num_bytes)
    except OSError as error:
        raise unreadable(path, error) from error


def fingerprint(facts: dict[str, Any]) -> str:
    """Return a hex digest of a source's facts; of the images' folder only its last name counts, so data may move."""
    images = facts.get("images")
    return blake2b_json({**facts, "images": Path(images).name if images else None})
