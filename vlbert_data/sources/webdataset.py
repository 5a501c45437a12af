"""Tar archives of samples: files of one name with different endings, `KEY.jpg`, `KEY.txt`, `KEY.json`.

One input is one sample; a damaged archive gives one more at its end, the reject that names it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.sources.base import FileSlice, SourceItem, SourceReject
from vlbert_data.sources.files import FileFacts, compression_of, fingerprint, hash_file, read_start, relative_names
from vlbert_data.sources.records import captions_of, extras_of, item_or_reject, reject_duplicate
from vlbert_data.sources.tar_members import TarMember, list_members

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm", "pgm")
TEXT_ENDINGS = ("txt", "text", "caption")
JSON_ENDINGS = ("json",)
_KNOWN_ENDINGS = frozenset(IMAGE_ENDINGS + TEXT_ENDINGS + JSON_ENDINGS)
_USED_FIELDS = ("caption", "captions", "image", "key")
# A caption or the facts about one image never need more.
LARGEST_TEXT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class TarSample:
    """The files of one key: `members` by ending, in the archive's order. repeated: the key was there before."""

    key: str
    repeated: bool
    members: dict[str, TarMember]

    def first(self, endings: Sequence[str]) -> TarMember | None:
        """Return the first file with one of `endings`, None if there is none."""
        return next((member for ending, member in self.members.items() if ending in endings), None)


@dataclass(frozen=True, slots=True)
class TarIndex:
    """What an archive holds: its samples in order of appearance, and what ended the list early, None if nothing."""

    samples: tuple[TarSample, ...]
    damage: str | None

    @property
    def num_inputs(self) -> int:
        """Return the number of samples, one more for a damaged archive."""
        return len(self.samples) + (self.damage is not None)


class WebdatasetSource:
    """The samples of uncompressed tar archives, in the archives' order and each archive's own.

    An id is the archive's name and the key, such as `00012/000120345`, so keys may begin anew in each archive. Memory
    holds the list of one archive at a time. The caption is the sample's text file; without one, that of its JSON file.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read all headers of all archives, not the data between them.

        Raises:
            ConfigError: an archive is compressed, unreadable or given twice, or there is no sample in any.
        """
        self._paths = list(paths)
        names = relative_names(self._paths)
        self._prefixes = [str(PurePosixPath(name).with_suffix("")) for name in names]
        self._files = [hash_tar(path, name=name) for path, name in zip(self._paths, names, strict=True)]
        self._cached: tuple[int, TarIndex] | None = None
        indices = (self._index(place) for place in range(len(self._paths)))
        counts = np.array([(index.num_inputs, len(index.samples)) for index in indices])  # [archives, 2]
        if not counts[:, 1].any():
            index = self._index(0)
            raise ConfigError(
                f"{self._paths[0]}: {index.damage or 'no sample in it'}. Expected files such as 0001.jpg with 0001.txt "
                "or 0001.json, in at least one of the archives given."
            )
        self._ends = np.cumsum(counts[:, 0])  # [archives]

    def __len__(self) -> int:
        """Return the number of samples and damaged archives."""
        return int(self._ends[-1])

    def read(self, start: int, stop: int) -> Iterator[SourceItem | SourceReject]:
        """Yield inputs `start` to `stop` - 1."""
        for number in range(start, min(stop, len(self))):
            place = int(np.searchsorted(self._ends, number, side="right"))
            within = number - (int(self._ends[place - 1]) if place else 0)
            path, index = self._paths[place], self._index(place)
            if within < len(index.samples):
                sample = index.samples[within]
                make = partial(self._make_item, number, place, sample)
                yield item_or_reject(number, f"{path}!{sample.key}", make)
            else:
                yield SourceReject(
                    number=number, where=str(path), reason="damaged archive", detail=_describe_damage(index)
                )

    def facts(self) -> dict[str, Any]:
        """Return format, files and counts."""
        return {"format": "webdataset", "count": len(self), "files": [facts.as_json() for facts in self._files]}

    def fingerprint(self) -> str:
        """Return a digest of the archives' names, sizes and hashes."""
        return fingerprint(self.facts())

    def _index(self, place: int) -> TarIndex:
        if self._cached is None or self._cached[0] != place:
            self._cached = place, index_tar(self._paths[place])
        return self._cached[1]

    def _make_item(self, number: int, place: int, sample: TarSample) -> SourceItem:
        path, image_id = str(self._paths[place]), f"{self._prefixes[place]}/{sample.key}"
        if sample.repeated:
            raise reject_duplicate(image_id)
        image = sample.first(IMAGE_ENDINGS)
        if image is None:
            held = ", ".join(member.name for member in sample.members.values())
            raise RecordRejectedError("no image", f"the sample has {held}, and no image file")
        record = _read_facts(path, sample)
        text = sample.first(TEXT_ENDINGS)
        captions = (
            captions_of(record) if text is None else captions_of({"text file": _read_text(path, text)}, ["text file"])
        )
        return SourceItem(
            number=number,
            image_id=image_id,
            captions=captions,
            location=FileSlice(path, image.name, image.offset, image.num_bytes),
            file_name=image.name,
            extra={"key": sample.key, **extras_of(record, _USED_FIELDS)},
        )


def hash_tar(path: Path, *, name: str) -> FileFacts:
    """Return the facts of an uncompressed archive.

    Raises:
        ConfigError: the file is compressed, or cannot be read.
    """
    compression = compression_of(read_start(path, 8))
    if compression is not None:
        raise ConfigError(
            f"{path}: compressed with {compression}, so no image in it can be reached alone. Unpack it to a plain .tar "
            "first (photos hardly shrink, so little space is lost)."
        )
    return hash_file(path, name=name)


def index_tar(path: Path) -> TarIndex:
    """Return the samples of an archive. A sample's files need not stand side by side; hidden files are left out."""
    try:
        members, damage = list_members(path)
    except OSError as error:
        return TarIndex((), f"it cannot be read: {error.strerror}")
    samples: list[TarSample] = []
    current: dict[str, TarSample] = {}
    for member in members:
        folder, _, base = member.name.rpartition("/")
        stem, _, ending = base.partition(".")
        ending = ending.lower()
        if not stem or ending not in _KNOWN_ENDINGS:
            continue
        key = f"{folder}/{stem}" if folder else stem
        key = key.removeprefix("./")
        sample = current.get(key)
        if sample is None or ending in sample.members:
            sample = current[key] = TarSample(key, sample is not None, {})
            samples.append(sample)
        sample.members[ending] = member
    return TarIndex(tuple(samples), damage)


def _describe_damage(index: TarIndex) -> str:
    if index.damage is None:
        return f"it changed since it was first listed: now it has {len(index.samples)} samples"
    return f"{index.damage}; {len(index.samples)} samples before that are read"


def _read_facts(path: str, sample: TarSample) -> Mapping[str, Any]:
    member = sample.first(JSON_ENDINGS)
    if member is None:
        return {}
    try:
        record = json.loads(_read_text(path, member))
    except (ValueError, RecursionError) as error:
        raise RecordRejectedError("bad record", f"{member.name} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise RecordRejectedError("bad record", f"{member.name} is a JSON {type(record).__name__}; expected an object")
    return record


def _read_text(path: str, member: TarMember) -> str:
    if member.num_bytes > LARGEST_TEXT_BYTES:
        raise RecordRejectedError("bad record", f"{member.name} has {member.num_bytes} bytes of text")
    try:
        return FileSlice(path, member.name, member.offset, member.num_bytes).read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordRejectedError("bad record", f"{member.name} is not UTF-8: {error.reason}") from error
