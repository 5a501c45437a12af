"""What a source hands to the build. Promise: light, picklable, in an order that never changes for the same input.

A source numbers its inputs 0 .. len(source) - 1. `read(start, stop)` yields exactly one `SourceItem` or `SourceReject`
for each number, in order, without decoding an image: the bytes stay where they are until a worker asks for them
through the item's `location`. So any range of inputs can be built alone, again, or on another machine.
"""

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vlbert_data.errors import RecordRejectedError
from vlbert_data.types import Array

# More than any photo takes, less than fills a worker's memory: a film listed by mistake costs its record only.
MAX_IMAGE_BYTES = 1 << 30


def check_num_bytes(where: str, num_bytes: int) -> None:
    """Refuse to read an image of more than MAX_IMAGE_BYTES.

    Raises:
        RecordRejectedError: "too many bytes".
    """
    if num_bytes > MAX_IMAGE_BYTES:
        raise RecordRejectedError("too many bytes", f"{where}: {num_bytes} bytes; at most {MAX_IMAGE_BYTES} are read")


@dataclass(frozen=True, slots=True)
class FileImage:
    """An image that is a file of its own."""

    path: str

    def read(self) -> bytes:
        """Return the file's bytes.

        Raises:
            RecordRejectedError: the file is missing, is too large for an image, or cannot be read.
        """
        try:
            state = Path(self.path).stat()
            if not stat.S_ISREG(state.st_mode):
                raise RecordRejectedError("image not readable", f"{self.path}: not a file")
            check_num_bytes(self.path, state.st_size)
            return Path(self.path).read_bytes()
        except FileNotFoundError as error:
            raise RecordRejectedError("image not found", self.path) from error
        except OSError as error:
            raise RecordRejectedError("image not readable", f"{self.path}: {error.strerror}") from error
        except ValueError as error:  # a path that no system can have
            raise RecordRejectedError("image not readable", f"{self.path!r}: {error}") from error

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class FileSlice:
    """An image that is a run of bytes inside an uncompressed archive."""

    path: str
    member: str
    offset: int
    num_bytes: int

    def read(self) -> bytes:
        """Return the member's bytes.

        Raises:
            RecordRejectedError: the archive cannot be read or ends too early, or the member is too large for an image.
        """
        check_num_bytes(str(self), self.num_bytes)
        try:
            with Path(self.path).open("rb") as stream:
                stream.seek(self.offset)
                data = stream.read(self.num_bytes)
        except OSError as error:
            raise RecordRejectedError("image not readable", f"{self}: {error.strerror}") from error
        if len(data) != self.num_bytes:
            raise RecordRejectedError("image not readable", f"{self}: the archive ends inside this member")
        return data

    def __str__(self) -> str:
        return f"{self.path}!{self.member}"


@dataclass(frozen=True, slots=True)
class InlineImage:
    """An image whose bytes came with its row, as in Parquet."""

    where: str
    data: bytes = field(repr=False)

    def read(self) -> bytes:
        """Return the bytes.

        Raises:
            RecordRejectedError: too many for an image.
        """
        check_num_bytes(self.where, len(self.data))
        return self.data

    def __str__(self) -> str:
        return self.where


ImageLocation = FileImage | FileSlice | InlineImage


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceItem:
    """One image with its captions, not yet opened.

    number: its place in the source. image_id: unique in the source. captions: at least one, stripped, none empty.
    file_name: the name that annotations may know the image by. boxes: float32 [R, 4] xyxy pixels of the oriented
    original and class_names, when the source itself brings them. extra: what else the source knows (url, licence, ...).
    expected_size_px: (width, height) that the source states, to be checked against the decoded image.
    """

    number: int
    image_id: str
    captions: tuple[str, ...]
    location: ImageLocation
    file_name: str
    boxes: Array | None = None
    class_names: tuple[str, ...] | None = None
    expected_size_px: tuple[int, int] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceReject:
    """An input that never became an item: `where` it was, the countable `reason`, the `detail`."""

    number: int
    where: str
    reason: str
    detail: str


class Source(Protocol):
    """A numbered, repeatable sequence of inputs."""

    def __len__(self) -> int:
        """Return the number of inputs, rejects included."""
        ...

    def read(self, start: int, stop: int) -> Iterator[SourceItem | SourceReject]:
        """Yield inputs `start` to `stop` - 1 in order, each as an item or a reject."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what the manifest keeps of the input, as JSON types: format, files with sizes and hashes, options."""
        ...

    def fingerprint(self) -> str:
        """Return a hex digest that changes when the input would give other items; cheap enough for every start."""
        ...
