"""`vlb import-features` against a converter written the way the formats' own projects write theirs.

Theirs: one process, row by row, `csv` and `base64`, each record pickled into an LMDB file in one transaction, arrays as
base64 again, as VOLTA stores them. Ours: the whole import, from opening the input to the finished, verified folder.
Both end with what they wrote synced to disk, and neither is timed while the run before is removed.

Each side runs in a process of its own that stays from run to run. Ours arranges its memory as `vlb import-features`
does (see `vlbert_data.memory`); the projects' converters do nothing of the kind, so neither does theirs. Peak memory is
that of another process which imports the input once, and one four times as large.
"""

import base64
import csv
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import lmdb
import numpy as np

from benchmarks.common import Comparison, parser, peak_mb, report, seconds
from vlbert_data.build.config import BuildConfig
from vlbert_data.importers.captions import open_captions
from vlbert_data.importers.open import FORMATS, open_importer
from vlbert_data.importers.run import Beside, Import
from vlbert_data.memory import keep_freed_memory
from vlbert_data.types import Array

NUM_ROIS, FEATURE_DIM = 36, 2048
COLUMNS = (
    *("img_id", "img_h", "img_w", "objects_id", "objects_conf"),
    *("attrs_id", "attrs_conf", "num_boxes", "boxes", "features"),
)
LMDB_BYTES = 1 << 40
# How much larger the second input is whose peak memory is measured.
LARGER = 4


def fake_columns(rng: np.random.Generator, number: int) -> dict[str, Array]:
    """Return the arrays of one image: half of the features zero, as after a rectifier, some boxes at its border."""
    low = np.maximum(rng.uniform(-50, 300, (NUM_ROIS, 2)), 0)
    return {
        "objects_id": rng.integers(0, 1600, NUM_ROIS),
        "objects_conf": np.sort(rng.uniform(0.1, 1, NUM_ROIS).astype(np.float32)),
        "attrs_id": rng.integers(0, 400, NUM_ROIS),
        "attrs_conf": rng.uniform(0.1, 1, NUM_ROIS).astype(np.float32),
        "boxes": np.concatenate([low, low + rng.uniform(10, 150, (NUM_ROIS, 2))], axis=1).astype(np.float32),
        "features": np.maximum(rng.standard_normal((NUM_ROIS, FEATURE_DIM)), 0).astype(np.float32),
    }


def write_tsv(path: Path, num_images: int) -> None:
    """Write a table as LXMERT's extractor does."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, delimiter="\t", fieldnames=COLUMNS)
        for number in range(num_images):
            arrays = fake_columns(rng, number)
            text = {name: base64.b64encode(array.tobytes()).decode() for name, array in arrays.items()}
            row = {"img_id": f"COCO_fake_{number:012d}", "img_h": 480, "img_w": 640, "num_boxes": NUM_ROIS}
            writer.writerow({**row, **text})


def write_lmdb(path: Path, num_images: int) -> None:
    """Write a database as VOLTA's converter does: pickled dicts, arrays as base64."""
    rng = np.random.default_rng(0)
    env = lmdb.open(str(path), map_size=LMDB_BYTES)
    with env.begin(write=True) as txn:
        keys = []
        for number in range(num_images):
            key = f"COCO_fake_{number:012d}".encode()
            txn.put(key, pickle.dumps(volta_item(key.decode(), 640, 480, fake_columns(rng, number))))
            keys.append(key)
        txn.put(b"keys", pickle.dumps(keys))
    env.close()


def volta_item(image_id: str, width: int, height: int, arrays: dict[str, Array]) -> dict[str, object]:
    """Return a record of VOLTA's database."""
    encoded = {name: base64.b64encode(np.ascontiguousarray(array)) for name, array in arrays.items()}
    return {"img_id": image_id, "img_h": height, "img_w": width, "num_boxes": NUM_ROIS, **encoded}


def decode(fields: dict[str, bytes]) -> dict[str, Array]:
    """Return the arrays of a record, as LXMERT's `load_obj_tsv` decodes them."""
    kinds = (
        ("objects_id", (NUM_ROIS,), np.int64),
        ("objects_conf", (NUM_ROIS,), np.float32),
        ("attrs_id", (NUM_ROIS,), np.int64),
        ("attrs_conf", (NUM_ROIS,), np.float32),
        ("boxes", (NUM_ROIS, 4), np.float32),
        ("features", (NUM_ROIS, -1), np.float32),
    )
    return {name: np.frombuffer(base64.b64decode(fields[name]), kind).reshape(shape) for name, shape, kind in kinds}


def convert_tsv(source: Path, target: Path) -> None:
    """Turn the table into VOLTA's database, row by row."""
    csv.field_size_limit(sys.maxsize)
    env = lmdb.open(str(target), map_size=LMDB_BYTES)
    with env.begin(write=True) as txn, source.open() as stream:
        keys = []
        for row in csv.DictReader(stream, COLUMNS, delimiter="\t"):
            item = volta_item(row["img_id"], int(row["img_w"]), int(row["img_h"]), decode(row))
            txn.put(row["img_id"].encode(), pickle.dumps(item))
            keys.append(row["img_id"].encode())
        txn.put(b"keys", pickle.dumps(keys))
    env.close()


def convert_lmdb(source: Path, target: Path) -> None:
    """Turn VOLTA's database into another one of the same kind, record by record."""
    read, write = lmdb.open(str(source), readonly=True, lock=False), lmdb.open(str(target), map_size=LMDB_BYTES)
    with read.begin() as old, write.begin(write=True) as new:
        keys = pickle.loads(old.get(b"keys"))
        for key in keys:
            item = pickle.loads(old.get(key))
            new.put(key, pickle.dumps(volta_item(item["img_id"], item["img_w"], item["img_h"], decode(item))))
        new.put(b"keys", pickle.dumps(keys))
    read.close()
    write.close()


def import_features(source: Path, target: Path) -> None:
    """Import the input as `vlb import-features` does, in this process."""
    importer = open_importer([str(source)])
    captions = open_captions(source.with_suffix(".jsonl"))
    work = Import(folder=target, importer=importer, config=BuildConfig(), beside=Beside(captions=captions))
    assert work.run().manifest.num_images == len(importer), "every image of the input is taken"


Work = Callable[[Path, Path], None]
INPUTS: dict[str, tuple[str, Callable[[Path, int], None], Work]] = {
    "LXMERT TSV": ("lxmert", write_tsv, convert_tsv),
    "VOLTA LMDB": ("pickle-lmdb", write_lmdb, convert_lmdb),
}


def make_input(folder: Path, name: str, num_images: int) -> Path:
    """Return the input of so many images, written now if it is not there, with captions beside it."""
    kind, write, _ = INPUTS[name]
    path = folder / f"{kind}-{num_images}"
    if not path.exists():
        write(path, num_images)
        ids = (f"COCO_fake_{number:012d}" for number in range(num_images))
        lines = (json.dumps({"image_id": image_id, "caption": "a fake image"}) for image_id in ids)
        path.with_suffix(".jsonl").write_text("\n".join(lines) + "\n")
    return path


def peak_of_import(source: Path, target: Path) -> float:
    """Return the peak memory in MB of a process that imports the input."""
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.bench_import", "--one", str(source), str(target)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peaks_of(folder: Path, name: str, num_images: int) -> dict[str, int]:
    """Return the peak memory in MB of importing an input and one LARGER times as large."""
    large = make_input(folder, name, LARGER * num_images)
    found = [round(peak_of_import(path, folder / "ours")) for path in (make_input(folder, name, num_images), large)]
    large.unlink() if large.is_file() else shutil.rmtree(large)
    return {"peak MB": found[0], f"peak MB, {LARGER} x the images": found[1]}


def seconds_afresh(work: Work, source: Path, target: Path) -> float:
    """Return the seconds that `work` takes to make `target`, which is removed before."""
    shutil.rmtree(target, ignore_errors=True)
    return seconds(lambda: work(source, target))


def compare_in_processes(name: str, source: Path, folder: Path, pairs: int) -> Comparison:
    """Return the times of both sides in turn, each in a process of its own, after a run that is not measured."""
    taken: tuple[list[float], list[float]] = ([], [])
    context = get_context("spawn")
    with (
        ProcessPoolExecutor(1, context, initializer=keep_freed_memory) as ours,
        ProcessPoolExecutor(1, context) as theirs,
    ):
        sides = ((ours, import_features, folder / "ours"), (theirs, INPUTS[name][2], folder / "theirs"))
        for pair in range(-1, pairs):
            for side in (0, 1) if pair % 2 == 0 else (1, 0):
                process, work, target = sides[side]
                found = process.submit(seconds_afresh, work, source, target).result()
                if pair >= 0:
                    taken[side].append(found)
    return Comparison(name=name, ours=tuple(taken[0]), theirs=tuple(taken[1]))


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=1000, help="images of an input")
    options.add_argument("--one", nargs=2, type=Path, help="import one input and print this process's peak memory")
    chosen = options.parse_args()
    if chosen.one:
        keep_freed_memory()
        import_features(*chosen.one)
        print(peak_mb())
        return
    folder = chosen.scratch / "import"
    folder.mkdir(parents=True, exist_ok=True)
    inputs = [name for name, (kind, *_) in INPUTS.items() if kind in FORMATS]
    peaks = {name: peaks_of(folder, name, chosen.images) for name in inputs}
    rows = []
    for name in inputs:
        times = compare_in_processes(name, make_input(folder, name, chosen.images), folder, chosen.pairs)
        rows.append({**times.row(work=chosen.images, unit="images"), **peaks[name]})
    report("bench_import", rows, keep=not chosen.dry)


if __name__ == "__main__":
    main()
