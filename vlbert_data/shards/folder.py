"""A finished shard folder, open for reading. Promise: opening reads the manifest and the index, nothing else."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vlbert_data import index as index_module
from vlbert_data import manifest as manifest_module
from vlbert_data.addresses import Origins, address
from vlbert_data.errors import ShardError
from vlbert_data.index import ImageIndex
from vlbert_data.manifest import Manifest
from vlbert_data.nearby import where_it_ends
from vlbert_data.shards.base import MappedShard, ShardWriter
from vlbert_data.shards.hdf5 import Hdf5Shard, Hdf5ShardWriter
from vlbert_data.shards.lmdb import LmdbShard, LmdbShardWriter, field_places, scan
from vlbert_data.shards.schema import Field, ShardSchema
from vlbert_data.types import Array, ImageRois


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFolder:
    """Images 0 .. len - 1 of a folder, in the order of the index. Safe to use after fork and from several threads."""

    path: Path
    manifest: Manifest
    index: ImageIndex
    _shards: dict[int, MappedShard] = field(default_factory=dict, repr=False)
    _fields: dict[str, Field] = field(default_factory=dict, repr=False)
    _origins: dict[str, Origins] = field(default_factory=dict, repr=False)
    # What is computed at the first call and then only looked up, by name.
    _tables: dict[str, Array] = field(default_factory=dict, repr=False)

    @staticmethod
    def open(path: Path | str) -> "ShardFolder":
        """Return the folder at `path`.

        Raises:
            ShardError: unfinished, damaged, of another version, or an index that is not the manifest's.
        """
        folder = Path(path)
        manifest = manifest_module.load(folder)
        index = index_module.load(folder / manifest.index.file)
        found = (len(index), int(index.num_rois.sum()), int(index.num_captions.sum()))
        expected = (manifest.num_images, manifest.num_rois, manifest.num_captions)
        if found != expected:
            raise ShardError(
                f"{folder}: the index counts (images, RoIs, captions) {found}, the manifest {expected}. "
                "One of the two is of another build; restore both."
            )
        return ShardFolder(path=folder, manifest=manifest, index=index)

    def __len__(self) -> int:
        return len(self.index)

    def shard(self, shard: int) -> MappedShard:
        """Return shard number `shard`, mapped at the first call."""
        if shard not in self._shards:
            # Two threads may map the same file at once; both results are good and one is kept.
            self._shards.setdefault(shard, self._map(shard))
        return self._shards[shard]

    def read(self, image: int) -> ImageRois:
        """Return image number `image`; its arrays are views of the mapped file."""
        return self.shard(int(self.index.shard[image])).read(int(self.index.row[image]))

    def origins(self, shards: Array) -> Array:
        """Return int64 [B, 2 + f]: of each shard, mapped if it was not, its address, its bytes, and its columns.

        A column is the byte of the file at which a field's column begins, 0 where the container stores no columns.
        """
        if not self._origins:
            made = Origins(len(self.manifest.shards), 2 + len(self.field_numbers()), self._origin)
            self._origins.setdefault("shards", made)
        return self._origins["shards"].of(shards)

    def _origin(self, number: int) -> list[int]:
        shard = self.shard(number)
        columns = shard.columns()
        return [address(shard.mapped), len(shard.mapped), *(columns[name] for name in self.field_numbers())]

    def places(self, images: Array, origins: Array) -> Array:
        """Return int64 [f, B]: for each field the byte of its shard's file at which the array of each image begins.

        origins: what `origins` returns for the images' shards.
        """
        per_roi, once = self.row_bytes()
        if self.manifest.container == "lmdb":
            stored = self.index.num_rois[images].astype(np.int64)
            return field_places(per_roi * stored + once, self.index.value_offset[images])[:-1]
        rows = per_roi * self.first_rois()[images] + once * self.index.row[images]
        places: Array = origins[:, 2:].T + rows
        return places

    def stored_field(self, name: str) -> Field:
        """Return the field of that name.

        Raises:
            ShardError: this folder stores no such field.
        """
        if name not in self._known_fields():
            raise ShardError(f"{self.path}: stores no {name}.")
        return self._fields[name]

    def field_numbers(self) -> dict[str, int]:
        """Return the number of each field, in the order of `places`."""
        return {name: number for number, name in enumerate(self._known_fields())}

    def _known_fields(self) -> dict[str, Field]:
        if not self._fields:
            # Whole at once: another thread must never see half of it.
            self._fields.update({known.name: known for known in self.manifest.schema.fields()})
        return self._fields

    def row_bytes(self) -> Array:
        """Return int64 [2, f, 1]: the bytes of each field's array for each RoI of an image, and those it has once."""
        if "row_bytes" not in self._tables:
            self._tables["row_bytes"] = self.manifest.schema.row_bytes()
        return self._tables["row_bytes"]

    def first_rois(self) -> Array:
        """Return int64 [n]: how many RoIs stand before each image in its shard."""
        if "first_rois" not in self._tables:
            before = np.cumsum(self.index.num_rois, dtype=np.int64) - self.index.num_rois  # [n], in the folder
            starts = np.searchsorted(self.index.shard, np.arange(len(self.manifest.shards)))
            at_start = np.append(before, 0)[np.minimum(starts, len(before))]
            self._tables["first_rois"] = before - at_start[self.index.shard]
        return self._tables["first_rois"]

    def captions(self, image: int) -> tuple[str, ...]:
        """Return the captions of image number `image`."""
        return self.shard(int(self.index.shard[image])).captions(int(self.index.row[image]))

    def _map(self, shard: int) -> MappedShard:
        entry = self.manifest.shards[shard]
        path = self.path / entry.file
        found = path.stat().st_size if path.exists() else None
        if found != entry.bytes:
            size = "missing" if found is None else f"{found} bytes"
            raise ShardError(f"{path}: {size}; the manifest says {entry.bytes} bytes. Copy it again or rebuild it.")
        rows = self.index.shard_slice(shard)
        if self.manifest.container == "hdf5":
            mapped = Hdf5Shard(path)
            if mapped.schema != self.manifest.schema or len(mapped) != entry.images:
                raise ShardError(f"{path}: not the shard that the manifest describes. Copy it again or rebuild it.")
            return mapped
        num_rois = self.index.num_rois[rows].astype("int64")
        return LmdbShard(path, self.manifest.schema, num_rois, self.index.value_offset[rows])


def open_shard_file(path: Path) -> MappedShard:
    """Return a single shard file, read without its folder's manifest and index.

    Raises:
        ShardError: neither LMDB nor HDF5, not a shard, or damaged. See `lmdb.scan` for what damage can do.
    """
    if not path.is_file():
        raise ShardError(f"{path}: there is no such file or folder. {where_it_ends(path)}".rstrip())
    with path.open("rb") as stream:
        head = stream.read(32)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return Hdf5Shard(path)
    # LMDB's meta page: 16 bytes of page header, then the magic number 0xBEEFC0DE.
    if head[16:20] == (0xBEEFC0DE).to_bytes(4, "little"):
        found = scan(path)
        return LmdbShard(path, found.schema, found.num_rois, found.value_offsets)
    raise ShardError(f"{path}: neither an LMDB nor an HDF5 file, so not a shard ({len(head)} bytes looked at).")


def new_writer(path: Path, schema: ShardSchema, container: str) -> ShardWriter:
    """Return a writer of one shard file in `container`, `lmdb` or `hdf5`."""
    return LmdbShardWriter(path, schema) if container == "lmdb" else Hdf5ShardWriter(path, schema)
