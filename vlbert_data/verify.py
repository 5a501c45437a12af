"""Reading everything to find what is damaged. Promise: a changed byte in any file is found, and its file named.

Each shard is read in a process of its own, because a damaged LMDB file can end the process that reads it.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlbert_data import manifest as manifest_module
from vlbert_data.build.processes import follow_parent, require_start, spawn_context
from vlbert_data.errors import RecordRejectedError, ShardError
from vlbert_data.index import ImageIndex
from vlbert_data.manifest import FileEntry, ShardEntry
from vlbert_data.shards import files
from vlbert_data.shards.base import MappedShard
from vlbert_data.shards.folder import ShardFolder, open_shard_file
from vlbert_data.shards.lmdb import scan
from vlbert_data.shards.schema import content_crc, record_arrays
from vlbert_data.types import check_image_rois

FATAL = "so damaged that reading it ends the process"


# What is said of a file whose hash differs. Its records are still judged one by one.
CHANGED = "its bytes have changed since it was written"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something damaged: the file, the image if the damage lies in a record, and what is wrong."""

    file: str
    image_id: str | None
    problem: str

    def __str__(self) -> str:
        image = f", image {self.image_id}" if self.image_id else ""
        return f"{self.file}{image}: {self.problem}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What `verify` read, and what it found."""

    files: int
    bytes: int
    images: int
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Return whether nothing is damaged."""
        return not self.findings


def verify(
    path: Path, *, workers: int = 1, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Verdict:
    """Return what is wrong with a shard folder, or with a single shard file, after reading all of it.

    on_progress is called with (shards read, shards). A single file has no manifest beside it to compare with: its
    records are checked against their own CRCs, but bytes between records are not covered.
    """
    if not path.is_dir():
        findings = tuple(_in_child(path, None))
        images = 0 if findings else len(open_shard_file(path))
        return Verdict(files=1, bytes=path.stat().st_size, images=images, findings=findings)
    try:
        manifest = manifest_module.load(path)
    except ShardError as error:
        return _verdict(path, 0, [Finding(file=manifest_module.FILE_NAME, image_id=None, problem=str(error))])
    findings_list = [
        *_check_file(path, manifest.index),
        *_check_file(path, manifest.rejects_file),
        *_check_folder(path),
    ]
    if any(finding.file == manifest.index.file for finding in findings_list):
        # Without the index records cannot be found; hashes still can be checked.
        for entry in manifest.shards:
            findings_list += _check_file(path, FileEntry(file=entry.file, bytes=entry.bytes, blake3=entry.blake3))
        return _verdict(path, manifest.num_images, findings_list)
    with ProcessPoolExecutor(workers, mp_context=spawn_context(), initializer=follow_parent) as pool:
        tasks = [pool.submit(check_shard, path, number) for number in range(len(manifest.shards))]
        for number, task in enumerate(tasks):
            try:
                findings_list += task.result()
            except BrokenProcessPool:
                findings_list += _in_child(path, number)
            on_progress(number + 1, len(tasks))
    return _verdict(path, manifest.num_images, findings_list)


def _verdict(path: Path, images: int, findings: list[Finding]) -> Verdict:
    found = [entry for entry in path.iterdir() if entry.is_file()]
    total = sum(entry.stat().st_size for entry in found)
    return Verdict(files=len(found), bytes=total, images=images, findings=tuple(findings))


def _check_file(folder: Path, entry: FileEntry) -> list[Finding]:
    """Compare a file's size and hash with the manifest's."""
    path = folder / entry.file
    if not path.exists():
        return [Finding(file=entry.file, image_id=None, problem="missing")]
    size = path.stat().st_size
    if size != entry.bytes:
        return [Finding(file=entry.file, image_id=None, problem=f"{size} bytes; the manifest says {entry.bytes}")]
    try:
        same = files.blake3_file(path) == entry.blake3
    except OSError as error:
        return [Finding(file=entry.file, image_id=None, problem=f"cannot be read: {error.strerror}")]
    return [] if same else [Finding(file=entry.file, image_id=None, problem=CHANGED)]


def _check_folder(folder: Path) -> list[Finding]:
    """Open the folder as a trainer would."""
    try:
        ShardFolder.open(folder)
    except ShardError as error:
        return [Finding(file=manifest_module.INDEX_NAME, image_id=None, problem=str(error))]
    return []


def check_shard(folder: Path, number: int) -> list[Finding]:
    """Return what is wrong with shard `number` of a folder whose manifest and index are sound."""
    opened = ShardFolder.open(folder)
    entry = opened.manifest.shards[number]
    found = _check_file(folder, FileEntry(file=entry.file, bytes=entry.bytes, blake3=entry.blake3))
    try:
        shard = opened.shard(number)
        rows = opened.index.shard_slice(number)
        if opened.manifest.container == "lmdb":
            _check_tree(folder, entry, opened.index.value_offset[rows])
    except ShardError as error:
        return [*found, Finding(file=entry.file, image_id=None, problem=str(error))]
    found += (
        Finding(file=entry.file, image_id=opened.index.image_id(image), problem=problem)
        for row, image in enumerate(range(rows.start, rows.stop))
        if (problem := _check_record(shard, row, (opened.index, image))) is not None
    )
    return found


def _check_tree(folder: Path, entry: ShardEntry, value_offsets: np.ndarray) -> None:
    """Refuse an LMDB file in which lmdb itself finds other values than the index says."""
    if not np.array_equal(scan(folder / entry.file).value_offsets, value_offsets):
        raise ShardError(f"{entry.file}: values do not lie where the index says.")


def _check_record(shard: MappedShard, row: int, indexed: tuple[ImageIndex, int] | None) -> str | None:
    """Return what is wrong with a record, or None."""
    try:
        record = shard.read(row)
        if content_crc(record, record_arrays(record, shard.schema)) != shard.stored_crc(row):
            return "its contents do not fit their CRC"
        check_image_rois(record, label_space=shard.schema.label_space, feature_dim=shard.schema.feature_dim)
    except (ShardError, RecordRejectedError) as error:
        return str(error)
    if indexed is None:
        return None
    index, image = indexed
    stored = (record.image_id, record.num_rois, len(record.captions), record.width_px, record.height_px)
    listed = (
        index.image_id(image),
        *(int(column[image]) for column in (index.num_rois, index.num_captions, index.width_px, index.height_px)),
    )
    if stored != listed or shard.stored_crc(row) != int(index.crc32[image]):
        return f"the record says {stored}, the index {listed}"
    return None


def open_single(path: Path) -> MappedShard:
    """Return a single shard file, opened in a process of its own before: what would end that one is an error here.

    Raises:
        ShardError: see `open_shard_file`; also where damage ends the process that reads the file.
    """
    with ProcessPoolExecutor(1, mp_context=spawn_context(), initializer=follow_parent) as pool:
        require_start(pool)
        try:
            pool.submit(_try_to_open, path).result()
        except BrokenProcessPool as error:
            raise ShardError(f"{path}: {FATAL}. Copy it again or rebuild it.") from error
    return open_shard_file(path)


def _try_to_open(path: Path) -> None:
    open_shard_file(path)


def check_single(path: Path) -> list[Finding]:
    """Return what is wrong with a single shard file, judged by itself."""
    try:
        shard = open_shard_file(path)
    except ShardError as error:
        return [Finding(file=path.name, image_id=None, problem=str(error))]
    problems = ((row, _check_record(shard, row, None)) for row in range(len(shard)))
    return [
        Finding(file=path.name, image_id=_name(shard, row), problem=problem)
        for row, problem in problems
        if problem is not None
    ]


def _name(shard: MappedShard, row: int) -> str:
    try:
        return shard.image_id(row)
    except ShardError:
        return f"(row {row})"


def _in_child(path: Path, number: int | None) -> Iterator[Finding]:
    """Yield the findings of one shard, read in a process of its own whose death is a finding too."""
    with ProcessPoolExecutor(1, mp_context=spawn_context(), initializer=follow_parent) as pool:
        require_start(pool)
        task = pool.submit(check_single, path) if number is None else pool.submit(check_shard, path, number)
        try:
            yield from task.result()
        except BrokenProcessPool:
            name = path.name if number is None else manifest_module.load(path).shards[number].file
            yield Finding(file=name, image_id=None, problem=FATAL)
