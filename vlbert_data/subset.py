"""A smaller shard folder out of a larger one. Promise: records copied to the bit, in their order, all or nothing."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlbert_data import __version__
from vlbert_data.errors import ConfigError
from vlbert_data.manifest import Manifest
from vlbert_data.shards.files import blake2b_json, no_empty_folder, sync_folder
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.shards.job import FolderFacts, write_records
from vlbert_data.types import Array, ImageRois


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """Images of a folder: images int64 [n], rising. missing: ids that were asked for and are not in it.

    choice: how they were chosen, as JSON types, for the manifest.
    """

    images: Array
    missing: tuple[str, ...]
    choice: dict[str, Any]


def choose_ids(folder: ShardFolder, ids: Sequence[str]) -> Chosen:
    """Return the images with these ids.

    Raises:
        ConfigError: none of them is there.
    """
    wanted = list(dict.fromkeys(ids))
    places = pc.index_in(
        folder.index.image_ids, value_set=pa.array(wanted, pa.string())
    )  # for each image its place among the ids
    found = places.to_numpy(zero_copy_only=False).astype(np.float64)
    images = np.flatnonzero(~np.isnan(found))
    present = set(found[images].astype(int).tolist())
    missing = tuple(image_id for place, image_id in enumerate(wanted) if place not in present)
    if not len(images):
        shown = ", ".join(wanted[:3]) or "nothing"
        raise ConfigError(
            f"{folder.path}: has none of the {len(wanted)} ids asked for, such as {shown}; its first id is "
            f"{folder.index.image_id(0)}."
        )
    return Chosen(images=images, missing=missing, choice={"ids": blake2b_json(sorted(wanted)), "num_ids": len(wanted)})


def choose_sample(folder: ShardFolder, num_images: int, seed: int) -> Chosen:
    """Return `num_images` images, every choice as likely as any other.

    Raises:
        ConfigError: the folder has not so many.
    """
    if not 1 <= num_images <= len(folder):
        raise ConfigError(f"{folder.path}: has {len(folder)} images; --sample is {num_images}.")
    images = np.random.default_rng(seed).choice(len(folder), num_images, replace=False)
    return Chosen(images=np.sort(images), missing=(), choice={"sample": num_images, "seed": seed})


def extract(folder: ShardFolder, chosen: Chosen, out: Path, *, shard_size: int) -> Manifest:
    """Write the chosen images into the new folder `out` and return its manifest.

    Raises:
        ConfigError: `out` is there already.
        OSError: the disk is full, or the like; then there is no `out`.
    """
    if out.exists():
        raise ConfigError(f"{out}: is there already. Choose a new folder for --out.")
    old = folder.manifest
    origin = {"content_hash": old.content_hash, "num_images": old.num_images, **chosen.choice}
    facts = FolderFacts(
        container=old.container,
        schema=old.schema,
        detector=dict(old.detector),
        describer=dict(old.describer),
        source={**old.source, "subset_of": origin, "made_by": f"vlb {__version__}"},
        build={**old.build, "subset_of": origin, "shard_size": shard_size},
    )
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with no_empty_folder(out.parent):
        temporary.mkdir(parents=True)
        try:
            manifest = write_records(temporary, _read(folder, chosen.images), facts, shard_size=shard_size)
            temporary.rename(out)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    sync_folder(out.parent)
    return manifest


def read_ids(path: Path) -> list[str]:
    """Return the ids in a text file, one a line; blank lines count for nothing.

    Raises:
        ConfigError: unreadable, or no id in it.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the file of ids cannot be read: {error}.") from error
    ids = [text for line in lines if (text := line.strip())]
    if not ids:
        raise ConfigError(f"{path}: no id in it; expected one a line.")
    return ids


def _read(folder: ShardFolder, images: Array) -> Iterator[ImageRois]:
    return (folder.read(int(image)) for image in images)
