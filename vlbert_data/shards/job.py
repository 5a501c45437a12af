"""Writing one shard with everything that the folder must know of it. Promise: the index rows describe the very file."""

import itertools
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from vlbert_data import index as index_module
from vlbert_data import manifest as manifest_module
from vlbert_data.errors import ShardError
from vlbert_data.ids import id_hash
from vlbert_data.manifest import FileEntry, Manifest, ShardEntry
from vlbert_data.shards.files import atomic_path
from vlbert_data.shards.folder import new_writer
from vlbert_data.shards.schema import RecordArrays, Sealed, ShardSchema, content_crc, record_arrays
from vlbert_data.types import Array, ImageRois, check_image_rois

# Records are checked here, and summed and written by a thread: so many go to it at once, and so many times that many
# may wait. A thread more, for sums alone, made all of it slower: Python's lock changed hands more often.
RECORDS_A_BUNDLE = 16
BUNDLES_WAITING = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenShard:
    """A finished shard: its manifest entry and its rows of the index."""

    entry: ShardEntry
    rows: pa.Table


# A record to be written, with its arrays, and its CRC where that is known.
_Pending = tuple[ImageRois, RecordArrays, int | None]


class ShardJob:
    """Writes records into shard number `shard` of `folder`; `close` gives the file its name."""

    def __init__(self, folder: Path, shard: int, schema: ShardSchema, container: str) -> None:
        self._path = folder / manifest_module.shard_name(shard, container)
        self._shard = shard
        self._schema = schema
        self._writer = new_writer(self._path, schema, container)
        self._writing = ThreadPoolExecutor(1, f"shard-{shard}")
        self._waiting: deque[Future[list[int]]] = deque()
        self._bundle: list[_Pending] = []
        self._crcs: list[int] = []
        self._rows: dict[str, list[int | str]] = {name: [] for name in index_module.SCHEMA.names}

    def __len__(self) -> int:
        return len(self._rows["row"])

    def add(self, record: ImageRois) -> None:
        """Check a record and append it.

        Raises:
            RecordRejectedError: the record breaks a promise of `types`; nothing was written of it.
            ShardError: the record does not fit the folder's schema.
            OSError: an earlier record could not be written: the disk is full, or the like.
        """
        check_image_rois(record, label_space=self._schema.label_space, feature_dim=self._schema.feature_dim)
        self._append(record, record_arrays(record, self._schema), None)

    def add_sealed(self, sealed: Sealed) -> None:
        """Append a record that was checked and summed before, by the folder's own schema.

        Raises:
            OSError: an earlier record could not be written: the disk is full, or the like.
        """
        self._append(*sealed)

    def _append(self, record: ImageRois, arrays: RecordArrays, crc: int | None) -> None:
        self._bundle.append((record, arrays, crc))
        if len(self._bundle) == RECORDS_A_BUNDLE:
            self._send()
            while len(self._waiting) > BUNDLES_WAITING:
                self._crcs += self._waiting.popleft().result()
        values: dict[str, int | str] = {
            "image_id": record.image_id,
            "shard": self._shard,
            "row": len(self),
            "num_rois": record.num_rois,
            "num_captions": len(record.captions),
            "width_px": record.width_px,
            "height_px": record.height_px,
            "value_offset": -1,
        }
        for name, value in values.items():
            self._rows[name].append(value)

    def close(self) -> WrittenShard:
        """Finish the file and return what the folder must know of it."""
        self._send()
        for future in self._waiting:
            self._crcs += future.result()
        self._rows["crc32"] = list(self._crcs)
        self._writing.shutdown()
        blake3 = self._writer.close()
        if self._writer.value_offsets is not None:
            self._rows["value_offset"] = self._writer.value_offsets.tolist()
        entry = ShardEntry(
            file=self._path.name,
            bytes=self._path.stat().st_size,
            blake3=blake3,
            images=len(self),
            rois=sum(map(int, self._rows["num_rois"])),
            captions=sum(map(int, self._rows["num_captions"])),
        )
        return WrittenShard(entry=entry, rows=pa.table(self._rows, schema=index_module.SCHEMA))

    def abort(self) -> None:
        """Throw away what was written."""
        self._writing.shutdown(cancel_futures=True)
        self._writer.abort()

    def _send(self) -> None:
        """Give the gathered records to the thread that writes them."""
        self._waiting.append(self._writing.submit(self._write, self._bundle))
        self._bundle = []

    def _write(self, bundle: Sequence[_Pending]) -> list[int]:
        """Write records and return their CRCs."""
        crcs = [content_crc(record, arrays) if crc is None else crc for record, arrays, crc in bundle]
        for (record, arrays, _), crc in zip(bundle, crcs, strict=True):
            self._writer.add(record, arrays, crc)
        return crcs


class BackgroundCloser:
    """Closes shards in a thread, one at a time, so that the disk works while the next shard is filled."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._closing: Future[WrittenShard] | None = None

    def close(self, job: ShardJob, then: Callable[[WrittenShard], None]) -> None:
        """Begin to close `job` and call `then` in the thread when it is done; first wait for the one before.

        Raises:
            OSError: the one before could not be closed: the disk is full, or the like.
        """
        try:
            self.wait()
        except BaseException:
            job.abort()
            raise
        self._closing = self._pool.submit(self._close, job, then)

    def wait(self) -> None:
        """Return when nothing is being closed; raise what closing raised."""
        closing, self._closing = self._closing, None
        if closing is not None:
            closing.result()

    def settle(self) -> None:
        """Return when nothing is being closed, however that ended."""
        closing, self._closing = self._closing, None
        if closing is not None:
            closing.exception()

    @staticmethod
    def _close(job: ShardJob, then: Callable[[WrittenShard], None]) -> WrittenShard:
        try:
            written = job.close()
        except BaseException:
            job.abort()
            raise
        then(written)
        return written


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderFacts:
    """What a manifest says beside its shards: see `Manifest`."""

    container: str
    schema: ShardSchema
    detector: dict[str, object]
    describer: dict[str, object]
    source: dict[str, object]
    build: dict[str, object]


def write_records(
    folder: Path, records: Iterable[ImageRois], facts: FolderFacts, *, shard_size: int = 1000
) -> Manifest:
    """Write records into a new folder, `shard_size` a shard, and return its manifest.

    Raises:
        RecordRejectedError, ShardError, OSError: see `ShardJob.add`; the folder then has no manifest.
    """
    closer, written = BackgroundCloser(), list[WrittenShard]()
    source = iter(records)
    try:
        for shard in itertools.count():
            job = ShardJob(folder, shard, facts.schema, facts.container)
            try:
                for record in itertools.islice(source, shard_size):
                    job.add(record)
            except BaseException:
                job.abort()
                raise
            if not len(job):
                job.abort()
                break
            closer.close(job, written.append)
    finally:
        closer.wait()  # also after a failure: nothing may be written once this has returned
    return finish_folder(folder, facts, written, [], ({}, {}))


def finish_folder(
    folder: Path,
    facts: FolderFacts,
    shards: Iterable[WrittenShard],
    rejects: Iterable[bytes],
    counts: tuple[dict[str, int], dict[str, int]],
) -> Manifest:
    """Write rejects, index and manifest, in this order, and return the manifest; then the folder is whole.

    rejects: lines of `rejects.jsonl`, each with its line end. counts: (left out by reason, rejects by reason).

    Raises:
        ShardError: two images have the same id, or there is no image at all.
    """
    with atomic_path(folder / manifest_module.REJECTS_NAME) as temporary, temporary.open("wb") as stream:
        stream.writelines(rejects)
    entries, hashes = list[ShardEntry](), array("Q")

    def rows() -> Iterator[pa.Table]:
        for shard in shards:
            entries.append(shard.entry)
            hashes.extend(map(id_hash, shard.rows["image_id"].to_pylist()))
            yield shard.rows

    with atomic_path(folder / manifest_module.INDEX_NAME) as temporary:
        index_module.save(rows(), temporary)
        _refuse_duplicates(folder, np.frombuffer(hashes, np.uint64), temporary)
    left_out, reject_counts = counts
    manifest = Manifest(
        container=facts.container,
        schema=facts.schema,
        num_images=sum(entry.images for entry in entries),
        num_captions=sum(entry.captions for entry in entries),
        num_rois=sum(entry.rois for entry in entries),
        detector=facts.detector,
        describer=facts.describer,
        source=facts.source,
        build=facts.build,
        left_out=dict(sorted(left_out.items())),
        rejects=dict(sorted(reject_counts.items())),
        shards=tuple(entries),
        index=FileEntry.of(folder / manifest_module.INDEX_NAME),
        rejects_file=FileEntry.of(folder / manifest_module.REJECTS_NAME),
    )
    manifest_module.save(manifest, folder)
    return manifest_module.load(folder)


def _refuse_duplicates(folder: Path, hashes: Array, index: Path) -> None:
    """Refuse a folder without images, or with two of one id. hashes: uint64 [n], of the ids in the file `index`."""
    if not len(hashes):
        raise ShardError(f"{folder}: not one image was taken, so there is nothing to write. See the rejects.")
    rising = np.sort(hashes)
    suspects = set(rising[1:][rising[1:] == rising[:-1]].tolist())
    if not suspects:
        return
    # Two ids may share a hash, by chance.
    ids = index_module.read_rows(index)["image_id"].to_pylist()
    image_id, count = Counter(name for name in ids if id_hash(name) in suspects).most_common(1)[0]
    if count > 1:
        raise ShardError(f"{folder}: image id {image_id!r} occurs {count} times; ids must be unique.")
