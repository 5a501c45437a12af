"""bench_shard_write: writing shards against writing and syncing the same bytes as one plain file.

    python -m benchmarks.bench_shard_write [--images 2000] [--pairs 5]

Ours: records that lie in memory become a finished folder (checked, CRCs, synced, hashed, indexed). Theirs: the bytes
of the same arrays go to one file, which is synced.
"""

import os
import shutil
from functools import partial
from pathlib import Path

from benchmarks.common import compare, parser, peak_mb, report
from benchmarks.shard_data import fake_features, records_and_bytes, write_folder
from vlbert_data.manifest import CONTAINERS
from vlbert_data.synthetic import FakeShards
from vlbert_data.types import ImageRois


def main() -> None:
    """Measure both containers and keep the result."""
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=2000)
    asked = options.parse_args()
    folder = asked.scratch / "shard_write"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    fake = fake_features(asked.images)
    records, blobs = records_and_bytes(fake)
    megabytes = sum(map(len, blobs)) / 1e6
    held = peak_mb()
    rows = [
        compare(
            f"write {container}",
            partial(write_ours, folder / container, fake, records, container),
            partial(write_plain, folder / "plain", blobs),
            pairs=asked.pairs,
        ).row(work=megabytes, unit="MB")
        for container in CONTAINERS
    ]
    notes = [
        f"{megabytes:.0f} MB, {asked.images} images; the target is a speed ratio of at least 0.5",
        f"peak memory {peak_mb():.0f} MB, of which {held:.0f} MB are the records and their bytes, made beforehand",
    ]
    report("bench_shard_write", rows, notes=notes, keep=not asked.dry)
    shutil.rmtree(folder)


def write_ours(out: Path, fake: FakeShards, records: list[ImageRois], container: str) -> None:
    """Write a folder where there is none."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    write_folder(out, fake, records, container)


def write_plain(path: Path, blobs: list[bytes]) -> None:
    """Write the same bytes as one new file, synced."""
    path.unlink(missing_ok=True)
    with path.open("wb") as stream:
        stream.writelines(blobs)
        stream.flush()
        os.fsync(stream.fileno())


if __name__ == "__main__":
    main()
