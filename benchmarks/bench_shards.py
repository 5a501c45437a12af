"""bench_shard_write and bench_shard_read: shards against the same bytes as one plain file.

    python benchmarks/bench_shards.py [--images 2000] [--pairs 5]

Write: records that lie in memory become a finished folder (checked, CRCs, synced, hashed, indexed), against the same
bytes written to one file and synced. Read: records in random order are copied into one buffer, against the same
copies out of one memory-mapped file; warm cache, one process. Ratios are of speeds, measured alternately.
"""

import argparse
import mmap
import os
import resource
import shutil
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.common import report
from vlbert_data.manifest import CONTAINERS
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.shards.gather import Picked
from vlbert_data.shards.job import FolderFacts, write_records
from vlbert_data.shards.schema import record_arrays
from vlbert_data.synthetic import FakeShards, make_records
from vlbert_data.types import Array, ImageRois

SHARD_SIZE = 1000
BATCH = 256


def main() -> None:
    """Run both and keep the results."""
    options = parse()
    folder = options.scratch
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    fake = FakeShards(num_images=options.images, num_rois=(10, 50), feature_dim=2048, num_classes=1600, label_topk=32)
    records = list(make_records(fake))
    blobs = [b"".join(array.tobytes() for _, array in record_arrays(record, fake.schema())) for record in records]
    rows: list[dict[str, object]] = []
    rows += [write_row(folder, fake, (records, blobs), container, options.pairs) for container in CONTAINERS]
    del records
    for container in CONTAINERS:
        rows += read_rows(folder, blobs, container, options.pairs)
    rows.append({"measure": "peak memory of this process", "value": f"{peak_mb():.0f} MB"})
    report("bench_shards", rows)
    shutil.rmtree(folder)


def write_row(
    folder: Path, fake: FakeShards, data: tuple[list[ImageRois], list[bytes]], container: str, pairs: int
) -> dict[str, object]:
    """Return the row of writing `container`."""
    records, blobs = data
    size = sum(map(len, blobs))
    out, plain = folder / container, folder / "plain"

    def ours() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        write_folder(out, fake, records, container)

    def theirs() -> None:
        plain.unlink(missing_ok=True)
        write_plain(plain, blobs)

    return compare(f"write {container}", size, (ours, theirs), pairs)


def write_folder(out: Path, fake: FakeShards, records: list[ImageRois], container: str) -> None:
    """Write records the way every writer of folders does."""
    facts = FolderFacts(container=container, schema=fake.schema(), detector={}, describer={}, source={}, build={})
    write_records(out, records, facts, shard_size=SHARD_SIZE)


def write_plain(path: Path, blobs: list[bytes]) -> None:
    """Write the same bytes as one file, synced."""
    with path.open("wb") as stream:
        stream.writelines(blobs)
        stream.flush()
        os.fsync(stream.fileno())


def read_rows(folder: Path, blobs: list[bytes], container: str, pairs: int) -> list[dict[str, object]]:
    """Return the rows of reading `container` in random order: against the same copies, and against one copy a record.

    The plain file of the same copies has its arrays in the container's order: image after image for LMDB, field after
    field for HDF5. The other one has every image's bytes together. Their readers know every place beforehand.
    """
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

    whole = [
        [(stop - size, stop)] for stop, size in zip(sizes.sum(1).cumsum().tolist(), sizes.sum(1).tolist(), strict=True)
    ]
    same = spans_of(sizes if container == "lmdb" else sizes.T)
    if container == "hdf5":
        same = [list(spans) for spans in zip(*same, strict=True)]
    ours()
    copy_plain(whole)
    return [
        compare(f"read {container}, against {words}", int(sizes.sum()), (ours, partial(copy_plain, spans)), pairs)
        for words, spans in (("the same copies", same), ("one copy a record", whole))
    ]


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


def compare(
    name: str, size: int, sides: tuple[Callable[[], None], Callable[[], None]], pairs: int
) -> dict[str, object]:
    """Return speeds of both sides and the ratio, of `pairs` alternating runs."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(pairs):
        for side, kept in zip(sides, times, strict=True):
            start = time.perf_counter()
            side()
            kept.append(time.perf_counter() - start)
    ratios = [theirs / ours for ours, theirs in zip(*times, strict=True)]
    speeds = [size / 1e6 / statistics.median(kept) for kept in times]
    return {
        "measure": name,
        "ours MB/s": round(speeds[0]),
        "plain file MB/s": round(speeds[1]),
        "ratio (median)": round(statistics.median(ratios), 3),
        "ratios": " ".join(f"{ratio:.2f}" for ratio in ratios),
    }


def peak_mb() -> float:
    """Return the process's peak resident memory in MB (the records themselves are held in it)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--scratch", type=Path, default=Path(".bench/shards"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
