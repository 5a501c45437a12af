"""bench_resume: how long a run of 3.3 million examples takes until it has the batch of step one million.

    python -m benchmarks.bench_resume [--examples 3300000] [--step 1000000]

The shard folder is simulated: a true manifest, index and token cache of that many images in 3,300 shards, and shard
files of the right length that are holes. Measured is what every resume does with data, in a process of its own each
time, imports left out: open folder, index, token cache and corpus, lay the schedule, make the step's batch. The same
folder once more with validation images kept aside, which hashes every image's id.
"""

import json
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.bench_loader import WORDS, write_texts
from benchmarks.common import parser, report, significant
from benchmarks.shard_data import fake_features
from vlbert_data import index as index_module
from vlbert_data import token_file
from vlbert_data.manifest import ShardEntry, shard_name
from vlbert_data.shards.job import FolderFacts, WrittenShard, finish_folder
from vlbert_data.token_file import TokenRuns
from vlbert_data.tokenizer import load_tokenizer
from vlbert_train.config import PretrainConfig
from vlbert_train.examples import open_supply
from vlbert_train.tokens import cache_key, cache_path

IMAGES_A_SHARD = 1000
# Room for 50 RoIs of 2048 float16 features, on a page of its own.
VALUE_BYTES = 1 << 18
TOKENS_A_CAPTION = 12
ASIDE = 0.01


def main() -> None:
    """Measure, and keep the result."""
    options = parser(__doc__)
    options.add_argument("--examples", type=int, default=3_300_000)
    options.add_argument("--step", type=int, default=1_000_000)
    options.add_argument("--once", type=float, help="measure one time, with this share of images kept aside")
    asked = options.parse_args()
    folder = asked.scratch / "resume"
    if asked.once is not None:
        print(json.dumps(resume(folder, asked.step, asked.once)))
        return
    shutil.rmtree(folder, ignore_errors=True)
    simulate(folder, asked.examples)
    rows = []
    for aside in (0.0, ASIDE):
        command = [sys.executable, "-m", "benchmarks.bench_resume", "--scratch", asked.scratch, "--once", aside]
        command += ["--step", asked.step]
        taken = [json.loads(subprocess.check_output(list(map(str, command)))) for _ in range(asked.pairs)]
        names = ("open the data", "make the step's batch")
        medians = [significant(statistics.median(each[name] for each in taken), 3) for name in names]
        total = significant(statistics.median(sum(each[name] for name in names) for each in taken), 3)
        processor = significant(statistics.median(each["processor"] for each in taken), 3)
        rows.append(
            {
                "measure": f"step {asked.step:,} of {asked.examples:,} examples, {aside:.0%} of images kept aside",
                **{f"{name}, s": median for name, median in zip(names, medians, strict=True)},
                "together, s (median)": total,
                "processor time, s": processor,
            }
        )
    report("bench_resume", rows, notes=["the target is less than 2 seconds together"], keep=not asked.dry)
    shutil.rmtree(folder)


def resume(folder: Path, step: int, aside: float) -> dict[str, float]:
    """Return the seconds that each part of a resume takes."""
    config = PretrainConfig().assigned(
        [
            f"data.shards={folder / 'shards'}",
            f"data.corpus={folder / 'corpus'}",
            f"data.tokenizer={folder / 'vocab.txt'}",
            f"data.val_fraction={aside}",
            "data.caption_batch=128",
            "data.text_batch=128",
        ]
    )
    worked, begin = time.process_time(), time.perf_counter()
    supply = open_supply(config, cache_dir=folder / "cache")
    opened = time.perf_counter()
    [batch] = supply.batches(step)
    done = time.perf_counter()
    assert batch.step == step
    return {
        "open the data": opened - begin,
        "make the step's batch": done - opened,
        "processor": time.process_time() - worked,
    }


def simulate(folder: Path, examples: int) -> None:
    """Write the folder, the token cache of its captions, a vocabulary and a corpus."""
    shards = folder / "shards"
    shards.mkdir(parents=True)
    write_texts(folder)
    facts = FolderFacts(
        container="lmdb",
        schema=replace(fake_features(examples), captions_an_image=1).schema(),
        detector={},
        describer={},
        source={},
        build={},
    )
    written = [
        simulated_shard(shards, number, min(IMAGES_A_SHARD, examples - first))
        for number, first in enumerate(range(0, examples, IMAGES_A_SHARD))
    ]
    manifest = finish_folder(shards, facts, written, [], ({}, {}))
    tokenizer = load_tokenizer(folder / "vocab.txt")
    ids = np.random.default_rng(0).integers(tokenizer.vocab_size - len(WORDS), tokenizer.vocab_size, TOKENS_A_CAPTION)
    tokens = TokenRuns(
        ids=np.tile(ids.astype(tokenizer.dtype), examples),
        starts_word=np.ones(examples * TOKENS_A_CAPTION, np.bool_),
        cu_lengths=np.arange(examples + 1) * TOKENS_A_CAPTION,
    )
    key = cache_key(manifest.content_hash, tokenizer)
    path = cache_path(folder / "cache", key)
    path.parent.mkdir()
    token_file.write(path, tokens, None, {"key": key})


def simulated_shard(folder: Path, number: int, images: int) -> WrittenShard:
    """Return a shard whose file is a hole."""
    rng = np.random.default_rng(number)
    num_rois = rng.integers(10, 51, images).astype(np.int32)
    entry = ShardEntry(
        file=shard_name(number, "lmdb"),
        bytes=(images + 1) * VALUE_BYTES,
        blake3="",
        images=images,
        rois=int(num_rois.sum()),
        captions=images,
    )
    with (folder / entry.file).open("wb") as stream:
        stream.truncate(entry.bytes)
    columns = {
        "image_id": [f"{number:05d}{row:04d}" for row in range(images)],
        "shard": np.full(images, number),
        "row": np.arange(images),
        "num_rois": num_rois,
        "num_captions": np.ones(images),
        "width_px": np.full(images, 640),
        "height_px": np.full(images, 480),
        "crc32": np.zeros(images),
        "value_offset": (np.arange(images) + 1) * VALUE_BYTES + 16,
    }
    return WrittenShard(entry=entry, rows=pa.table(columns).cast(index_module.SCHEMA))


if __name__ == "__main__":
    main()
