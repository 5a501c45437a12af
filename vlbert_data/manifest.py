"""The manifest: what a shard folder is. Promise: written last, so a folder with a manifest is whole; it hashes itself.

`manifest.json` carries no clock time and no host: the same input and settings give the same bytes.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlbert_data import nearby
from vlbert_data.errors import ShardError
from vlbert_data.shards import files
from vlbert_data.shards.schema import FORMAT_VERSION, ShardSchema, check_version
from vlbert_data.types import LabelSpace

FILE_NAME = "manifest.json"
INDEX_NAME = "index.parquet"
REJECTS_NAME = "rejects.jsonl"
CONTAINERS = ("lmdb", "hdf5")
SUFFIXES = {"lmdb": ".lmdb", "hdf5": ".h5"}
EXPECTED = "a folder that vlb build-shards or vlb import-features has finished"


def shard_name(shard: int, container: str) -> str:
    """Return the file name of shard number `shard`, such as `shard-00003.lmdb`."""
    return f"shard-{shard:05d}{SUFFIXES[container]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """A file of the folder: name, size in bytes and BLAKE3 in hex."""

    file: str
    bytes: int
    blake3: str

    @staticmethod
    def of(path: Path) -> "FileEntry":
        """Return the entry of a file that stands in its folder."""
        return FileEntry(file=path.name, bytes=path.stat().st_size, blake3=files.blake3_file(path))


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """A shard: its file and what is in it."""

    file: str
    bytes: int
    blake3: str
    images: int
    rois: int
    captions: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Everything known of a folder. `build` holds the settings that made it; what they mean is documented in docs/.

    detector, describer, selection, source, build: JSON types only. rejects: reason to count.
    """

    container: str
    schema: ShardSchema
    num_images: int
    num_captions: int
    num_rois: int
    detector: Mapping[str, Any]
    describer: Mapping[str, Any]
    source: Mapping[str, Any]
    build: Mapping[str, Any]
    left_out: Mapping[str, int]
    rejects: Mapping[str, int]
    shards: tuple[ShardEntry, ...]
    index: FileEntry
    rejects_file: FileEntry
    format_version: int = FORMAT_VERSION
    content_hash: str = field(default="")

    @property
    def feature_dim(self) -> int:
        """Return F."""
        return self.schema.feature_dim

    @property
    def label_topk(self) -> int:
        """Return K, 0 where RoIs have no labels."""
        return self.schema.label_topk

    @property
    def label_space(self) -> LabelSpace | None:
        """Return what class ids mean, None where RoIs have no labels."""
        return self.schema.label_space

    @property
    def masked_views(self) -> int:
        """Return V, the number of masked views stored for each image."""
        return self.schema.num_views

    def as_json(self) -> dict[str, Any]:
        """Return this manifest as JSON types, its hash included."""
        facts = {
            "format_version": self.format_version,
            "container": self.container,
            "num_images": self.num_images,
            "num_captions": self.num_captions,
            "num_rois": self.num_rois,
            **self.schema.as_json(),
            "feature_dtype": "float16",
            "detector": dict(self.detector),
            "describer": dict(self.describer),
            "source": dict(self.source),
            "build": dict(self.build),
            "left_out": dict(self.left_out),
            "rejects": dict(self.rejects),
            "shards": [asdict(shard) for shard in self.shards],
            "index": asdict(self.index),
            "rejects_file": asdict(self.rejects_file),
        }
        return {**facts, "content_hash": files.blake2b_json(facts)}


def save(manifest: Manifest, folder: Path) -> None:
    """Write `manifest.json`, all or nothing; from then on the folder is whole."""
    files.write_bytes(folder / FILE_NAME, render(manifest.as_json()))


def render(facts: Mapping[str, Any]) -> bytes:
    """Return the bytes of a manifest file: readable, keys sorted, one way only."""
    return files.encode_json(json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def load(folder: Path) -> Manifest:
    """Return the manifest of a folder.

    Raises:
        ShardError: no such folder, an unfinished build, another version, or a manifest that was changed.
    """
    path = folder / FILE_NAME
    if not path.exists():
        raise ShardError(_why_not(folder))
    facts = files.read_json(path, what="manifest")
    if isinstance(facts, dict) and "kind" in facts:
        raise ShardError(f"{folder}: a {facts['kind']}; expected {EXPECTED}. A corpus goes with --corpus.")
    try:
        check_version(int(facts["format_version"]), str(path))
        manifest = _from_json(facts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ShardError(f"{path}: not a vlb manifest, or a damaged one ({error!r}). Restore it.") from error
    if path.read_bytes() != render(manifest.as_json()):
        raise ShardError(f"{path}: changed since it was written (its hash does not fit). Restore the original.")
    return manifest


def _why_not(folder: Path) -> str:
    """Return why a folder without a manifest is no shard folder, and what to do."""
    if not folder.is_dir():
        return nearby.no_folder(folder, expected=EXPECTED, fits=_looks_right)
    shards = sum(1 for name in folder.iterdir() if name.name.startswith("shard-"))
    if not shards and not (folder / ".build").exists():
        hint = nearby.folders_inside(folder, _looks_right) or f"Give {EXPECTED}."
        return f"{folder}: no shards, no {FILE_NAME}. {hint}"
    return (
        f"{folder}: an unfinished build ({shards} shards so far), no {FILE_NAME}. Run the same vlb build-shards "
        "command again to finish it."
    )


def _looks_right(folder: Path) -> bool:
    return (folder / FILE_NAME).is_file() and (folder / INDEX_NAME).is_file()


def _from_json(facts: dict[str, Any]) -> Manifest:
    return Manifest(
        format_version=int(facts["format_version"]),
        container=str(facts["container"]),
        schema=ShardSchema.from_json(facts),
        num_images=int(facts["num_images"]),
        num_captions=int(facts["num_captions"]),
        num_rois=int(facts["num_rois"]),
        detector=facts["detector"],
        describer=facts["describer"],
        source=facts["source"],
        build=facts["build"],
        left_out=facts["left_out"],
        rejects=facts["rejects"],
        shards=tuple(ShardEntry(**entry) for entry in facts["shards"]),
        index=FileEntry(**facts["index"]),
        rejects_file=FileEntry(**facts["rejects_file"]),
        content_hash=str(facts["content_hash"]),
    )
