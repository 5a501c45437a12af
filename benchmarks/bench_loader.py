"""bench_loader: from the number of a step to its Batch, against a bare copy and against other projects' loaders.

    python -m benchmarks.bench_loader [--images 2000] [--pairs 11]

Images with 10 to 50 RoIs of 2048 float16 features, batches of 64, the whole path (plan, read, truncate, mask, overlap
rule, targets, pack) in one process, warm cache. Joint batches hold 64 texts beside their 64 captions. The bare loop
copies what the batches hold of the images (features of RoIs and whole images, boxes), in the same order, image by image
out of one memory-mapped file into one buffer made beforehand. Peers read and collate only, with 0 and 2 workers.
"""

import json
import mmap
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, SCRATCH, compare, parser, pin_threads, report, significant

pin_threads(1)

import numpy as np  # noqa: E402  (after its threads are pinned)

from benchmarks.shard_data import fake_features, write_folder  # noqa: E402
from vlbert_data.corpus_build import CorpusBuild, CorpusSettings  # noqa: E402
from vlbert_data.manifest import CONTAINERS  # noqa: E402
from vlbert_data.memory import keep_freed_memory  # noqa: E402
from vlbert_data.shards.folder import ShardFolder  # noqa: E402
from vlbert_data.synthetic import COLOURS, SHAPES, make_records  # noqa: E402
from vlbert_data.tokenizer import load_tokenizer  # noqa: E402
from vlbert_train.config import PretrainConfig  # noqa: E402
from vlbert_train.examples import open_supply  # noqa: E402
from vlbert_train.loader import Loader  # noqa: E402
from vlbert_train.supply import Supply  # noqa: E402

BATCH = 64
# 0: in the calling thread. 2: as `vlb pretrain` does unless told otherwise.
THREADS = (0, 1, 2)
# Epochs that a run goes through against the bare loop: training does not begin anew after one.
EPOCHS = 8
MODES = ("captions", "joint")
PEER_PYTHON = SCRATCH / "peers" / "bin" / "python"
PEERS = ("uniter", "webdataset", "mds")
PEER_PACKAGES = {"uniter": "lmdb, msgpack, msgpack_numpy", "webdataset": "webdataset", "mds": "streaming"}
WORKERS = (0, 2)
TIMES_AS_MANY = 10
# An epoch of the many, several of the few.
MEMORY_STEPS = 320
WORDS = ("a", "and", "empty", "scene", "in", "picture", "said", "times", *COLOURS, *SHAPES)


def main() -> None:
    """Measure, and keep the result."""
    options = parser(__doc__, pairs=11)
    options.add_argument("--images", type=int, default=2000)
    options.add_argument("--memory-of", choices=("few", "many"), help="print what memory one process needs")
    asked = options.parse_args()
    folder = asked.scratch / "loader"
    if asked.memory_of:
        print(json.dumps(memory_of(folder, asked.memory_of)))
        return
    keep_freed_memory()
    make_files(folder, asked.images)
    steps = asked.images // BATCH
    rows = [row for c in CONTAINERS for mode in MODES for row in bare_rows(folder, (c, mode), steps, asked.pairs)]
    rows += peer_rows(folder, steps, asked.pairs)
    rows += memory_rows(folder)
    notes = [
        "targets: 0.7 of the bare loop's speed, 3 times the best peer's, memory flat",
        "headline: captions, LMDB, threads 2: batches made ahead, as vlb pretrain does unless told otherwise",
    ]
    report("bench_loader", rows, notes=notes, keep=not asked.dry)
    shutil.rmtree(folder)


def make_files(folder: Path, images: int) -> None:
    """Write shards, ten times as many shards, the plain file, a vocabulary, a corpus and the peers' input."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    fake = replace(fake_features(images), captions_an_image=1)
    records = list(make_records(fake))
    for container in CONTAINERS:
        (folder / container).mkdir()
        write_folder(folder / container, fake, records, container)
    many = [replace(r, image_id=f"{r.image_id}-{n}") for n in range(TIMES_AS_MANY) for r in records]
    (folder / "many").mkdir()
    write_folder(folder / "many", fake, many, "lmdb")
    data = folder / "arrays"
    data.mkdir()
    with (folder / "plain").open("wb") as stream:
        for record in records:
            stream.write(record.features.tobytes() + record.image_feature.tobytes() + record.rois.boxes.tobytes())
    np.save(data / "features.npy", np.concatenate([record.features for record in records]))
    np.save(data / "image_feature.npy", np.stack([record.image_feature for record in records]))
    for name in ("boxes", "label_ids", "label_probs"):
        np.save(data / f"{name}.npy", np.concatenate([getattr(record.rois, name) for record in records]))
    np.save(data / "offsets.npy", np.cumsum([0, *(record.num_rois for record in records)]))
    write_texts(folder)


def write_texts(folder: Path) -> None:
    """Write a vocabulary of the captions' words, and a corpus of such words."""
    special, signs = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], [*"0123456789,"]
    vocabulary = [*special, *signs, *(f"##{sign}" for sign in signs), *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    chosen = np.random.default_rng(0).choice(WORDS, (4000, 300))
    (folder / "novel.txt").write_text("\n\n".join(" ".join(words) for words in chosen))
    CorpusBuild(
        folder=folder / "corpus",
        inputs=[str(folder / "novel.txt")],
        tokenizer=load_tokenizer(folder / "vocab.txt"),
        settings=CorpusSettings(workers=1),
    ).run()


def open_folder(folder: Path, shards: str, mode: str) -> Supply:
    """Return the supply of a folder's shards; limits are such that no RoI is cut off, since peers cut none off."""
    corpus = [f"data.corpus={folder / 'corpus'}", f"data.text_batch={BATCH}"] if mode == "joint" else []
    config = PretrainConfig().assigned(
        [
            f"data.shards={folder / shards}",
            f"data.tokenizer={folder / 'vocab.txt'}",
            f"data.caption_batch={BATCH}",
            "data.truncation=separate",
            *corpus,
        ]
    )
    return open_supply(config, cache_dir=folder / "cache")


def epochs(supply: Supply, threads: int, steps: int) -> Callable[[], None]:
    """Return what goes through the next `steps` steps each time it is called."""
    starts = iter(range(0, 10**9, steps))

    def run() -> None:
        first = next(starts)
        if not threads:
            for step in range(first, first + steps):
                supply.batches(step)
            return
        with Loader(supply, first_step=first, last_step=first + steps, threads=threads) as loader:
            for _ in loader:
                pass

    return run


def bare_rows(folder: Path, kind: tuple[str, str], steps: int, pairs: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of one container and mode against the bare loop."""
    container, mode = kind
    supply = open_folder(folder, container, mode)
    bare = bare_loop(folder, supply, steps)
    for threads in THREADS:
        name = f"{container}, {mode}, threads {threads}, against the bare loop"
        ours, theirs = epochs(supply, threads, EPOCHS * steps), partial(repeat, bare, EPOCHS)
        found = compare(name, ours, theirs, pairs=pairs, warm_up=True)
        yield found.row(work=EPOCHS * steps * BATCH, unit="images")


def repeat(work: Callable[[], None], times: int) -> None:
    """Do it so many times."""
    for _ in range(times):
        work()


def bare_loop(folder: Path, supply: Supply, steps: int) -> Callable[[], None]:
    """Return the loop that copies the images of the first steps; in other steps they are others, but as many."""
    index = ShardFolder.open(folder / CONTAINERS[0]).index
    sizes = index.num_rois.astype(np.int64) * (2 * 2048 + 4 * 4) + 2 * 2048
    ends = np.cumsum(sizes)
    with (folder / "plain").open("rb") as stream:
        plain = np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    batches = []
    for step in range(steps):
        images = supply.batches(step)[0].example_ids[:BATCH].numpy()  # an image has one caption
        batches.append(list(zip((ends - sizes)[images].tolist(), ends[images].tolist(), strict=True)))
    buffer = np.empty(max(sum(end - begin for begin, end in batch) for batch in batches), np.uint8)

    def run() -> None:
        for batch in batches:
            place = 0
            for begin, end in batch:
                buffer[place : place + end - begin] = plain[begin:end]
                place += end - begin

    return run


def peer_rows(folder: Path, steps: int, pairs: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of ours against each peer that is there, with the same images in batches of the same size."""
    if not PEER_PYTHON.exists():
        print(f"left out: all peers, for want of {PEER_PYTHON}; see benchmarks/README.md", file=sys.stderr)
        return
    supply = open_folder(folder, "lmdb", "captions")
    for peer in PEERS:
        lacking = f"import {PEER_PACKAGES[peer]}"
        if subprocess.run([PEER_PYTHON, "-c", lacking], capture_output=True, check=False).returncode:
            print(f"left out: {peer}, for want of {PEER_PACKAGES[peer]}; see benchmarks/README.md", file=sys.stderr)
            continue
        for workers in WORKERS:
            with serving(peer, folder, workers) as (epoch, seen):
                for threads in THREADS:
                    name = f"lmdb, captions, threads {threads}, against {peer}, workers {workers}"
                    found = compare(name, epochs(supply, threads, steps), epoch, pairs=max(3, pairs // 3), warm_up=True)
                    assert len(set(seen)) == 1, f"{peer} gave {set(seen)} images an epoch"
                    # Ours leaves the images of a last, smaller batch to the next steps; theirs does not.
                    scaled = tuple(time * steps * BATCH / seen[0] for time in found.theirs)
                    yield replace(found, theirs=scaled).row(work=steps * BATCH, unit="images")


@contextmanager
def serving(peer: str, folder: Path, workers: int) -> Iterator[tuple[Callable[[], None], list[int]]]:
    """Give what lets a peer go once through all images, and the list of how many it saw each time."""
    command = [PEER_PYTHON, ROOT / "benchmarks" / "loader_peers.py", peer, folder / "arrays", folder / peer, workers]
    with (
        subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child,
        ExitStack() as stack,
    ):
        assert child.stdin is not None and child.stdout is not None
        stack.callback(child.stdin.close)
        seen: list[int] = []
        lines = (line for line in child.stdout if line.startswith(("ready", *"0123456789")))
        assert next(lines, "").startswith("ready"), f"{peer} did not start"

        def epoch() -> None:
            child.stdin.write("go\n")  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]
            seen.append(int(next(lines).split()[1]))

        yield epoch, seen


def memory_rows(folder: Path) -> list[dict[str, Any]]:
    """Return what memory a process needs, mapped files left out, after as many steps with few and with many images."""
    found = {}
    for which, shards in (("few", "lmdb"), ("many", "many")):
        # Tokens of captions are made here, so that neither process is measured making them.
        open_folder(folder, shards, "captions")
        command = [sys.executable, "-m", "benchmarks.bench_loader", "--memory-of", which, "--scratch", folder.parent]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, cwd=Path.cwd())
        found[which] = json.loads(done.stdout)
    few, many = found["few"], found["many"]
    added = (many["anonymous_mb"] - few["anonymous_mb"]) * 1e6 / (many["images"] - few["images"])
    return [
        {
            "measure": f"memory after {MEMORY_STEPS} steps of {few['images']} and of {many['images']} images",
            "few MB": few["anonymous_mb"],
            "many MB": many["anonymous_mb"],
            "bytes an image more": round(added),
        }
    ]


def memory_of(folder: Path, which: str) -> dict[str, float]:
    """Return the anonymous memory of this process after MEMORY_STEPS steps with few or many images."""
    keep_freed_memory()
    supply = open_folder(folder, "lmdb" if which == "few" else "many", "captions")
    # In the calling thread: how many batches two threads hold at once would depend on chance.
    epochs(supply, 0, MEMORY_STEPS)()
    kept = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {"images": supply.num_caption_examples, "anonymous_mb": significant(int(kept["RssAnon"].split()[0]) / 1000)}


if __name__ == "__main__":
    main()
