"""bench_shard_read: random whole records out of shards against the same copies out of one memory-mapped file.

    python -m benchmarks.bench_shard_read [--images 2000] [--pairs 11]

Batches of records in random order are copied into one buffer; warm cache, one process. The plain file has its arrays
in the container's order (image after image for LMDB, field after field for HDF5) and its reader knows every place
beforehand. A second comparison, one copy a record out of a file of records, tells what any container can at best.
"""

import mmap
import shutil
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.common import compare, parser, peak_mb, report
from benchmarks.shard_data import fake_features, records_and_bytes, write_folder
from vlbert_data.manifest import CONTAINERS
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.shards.gather import Picked
from vlbert_data.types import Array

BATCH = 256


def main() -> None:
    """Measure both containers and keep the result."""
    options = parser(__doc__, pairs=11)
    options.add_argument("--images", type=int, default=2000)
    asked = options.parse_args()
    folder = asked.scratch / "shard_read"
    make_files(folder, asked.images)
    before = peak_mb()
    rows = [row for container in CONTAINERS for row in read_rows(folder, container, asked.pairs)]
    notes = [
        "the target is a speed ratio of at least 0.9 against the same copies",
        f"peak memory {peak_mb():.0f} MB, mapped files included; {before:.0f} MB before the first read",
    ]
    report("bench_shard_read", rows, notes=notes, keep=not asked.dry)
    shutil.rmtree(folder)


def make_files(folder: Path, images: int) -> None:
    """Write a folder of each container and the plain file, in a process of their own that gives its memory back."""
    import multiprocessing

    shutil.rmtree(folder, ignore_errors=True)
    child = multiprocessing.get_context("spawn").Process(target=_make_files, args=(folder, images))
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(f"making the files failed with exit code {child.exitcode}")


def _make_files(folder: Path, images: int) -> None:
    fake = fake_features(images)
    records, blobs = records_and_bytes(fake)
    for container in CONTAINERS:
        (folder / container).mkdir(parents=True)
        write_folder(folder / container, fake, records, container)
    with (folder / "plain").open("wb") as stream:
        stream.writelines(blobs)


def read_rows(folder: Path, container: str, pairs: int) -> list[dict[str, object]]:
    """Return the rows of reading `container` in random order."""
    opened = ShardFolder.open(folder / container)
    schema = opened.manifest.schema
    order = np.random.default_rng(1).permutation(len(opened))
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    sizes = np.stack([schema.num_bytes(field, opened.index.num_rois) for field in schema.fields()], axis=1)  # [n, f]
    buffer = np.empty(int(max(sizes[batch].sum() for batch in batches)), np.uint8)
    with (folder / "plain").open("rb") as stream:
        plain = np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)

    def ours() -> None:
        for batch in batches:
            copy_records(opened, batch, buffer)

    def copy_plain(spans: list[list[tuple[int, int]]]) -> None:
        for batch in batches:
            place = 0
            for image in batch.tolist():
                for start, stop in spans[image]:
                    buffer[place : place + stop - start] = plain[start:stop]
                    place += stop - start

    return [
        compare(f"read {container}, against {words}", ours, partial(copy_plain, spans), pairs=pairs, warm_up=True).row(
            work=float(sizes.sum()) / 1e6, unit="MB"
        )
        for words, spans in (("the same copies", same_copies(sizes, container)), ("one copy a record", whole(sizes)))
    ]


def same_copies(sizes: Array, container: str) -> list[list[tuple[int, int]]]:
    """Return for each image the (start, stop) of its arrays in a plain file laid out as the container is."""
    if container == "lmdb":
        return spans_of(sizes)
    return [list(spans) for spans in zip(*spans_of(sizes.T), strict=True)]


def whole(sizes: Array) -> list[list[tuple[int, int]]]:
    """Return for each image the one (start, stop) of all its arrays in a plain file of image after image."""
    return spans_of(sizes.sum(axis=1, keepdims=True))


def spans_of(sizes: Array) -> list[list[tuple[int, int]]]:
    """Return for each row of sizes [a, b] the (start, stop) of its pieces, all laid one after another, row by row."""
    stops = np.cumsum(sizes).reshape(sizes.shape)
    return [list(zip(*pair, strict=True)) for pair in zip((stops - sizes).tolist(), stops.tolist(), strict=True)]


def copy_records(folder: ShardFolder, images: Array, buffer: Array) -> None:
    """Copy all arrays of the images into the buffer, field after field."""
    schema = folder.manifest.schema
    picked = Picked(folder, images)
    place = 0
    for field in schema.fields():
        size = int(schema.num_bytes(field, picked.num_rois).sum())
        picked.copy(field.name, buffer[place : place + size].view(field.dtype))
        place += size


if __name__ == "__main__":
    main()
