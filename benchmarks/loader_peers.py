"""Other projects' ways of storing and loading RoI features, for bench_loader. Runs in the environment of peers.txt.

    .bench/peers/bin/python benchmarks/loader_peers.py PEER DATA OUT WORKERS

It stores the images of DATA in the peer's layout under OUT, if they are not there yet, and prints a line `ready`. For
each line on stdin it then goes once through all images in batches, reading and collating only, and prints the seconds.
Each peer gets its best case: the same sparse labels as a shard has, features left in float16, workers kept alive.

PEER: uniter (LMDB of msgpack-numpy, as UNITER and its heirs), webdataset (tars of npz), mds (mosaicml-streaming).
"""

import io
import itertools
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

BATCH = 64
FIELDS = ("features", "boxes", "label_ids", "label_probs")
IMAGES_A_TAR = 250


def images(data: Path) -> Iterator[dict[str, Any]]:
    """Yield each image's arrays."""
    arrays = {name: np.load(data / f"{name}.npy", mmap_mode="r") for name in (*FIELDS, "image_feature")}
    offsets = np.load(data / "offsets.npy").tolist()
    for image, (begin, end) in enumerate(itertools.pairwise(offsets)):
        record = {name: np.array(arrays[name][begin:end]) for name in FIELDS}
        yield {**record, "image_feature": np.array(arrays["image_feature"][image])}


def collate(records: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return the images padded to the one with the most RoIs, the way these projects do."""
    lengths = [len(record["features"]) for record in records]
    batch: dict[str, torch.Tensor] = {"num_rois": torch.tensor(lengths)}
    for name in FIELDS:
        first = torch.as_tensor(records[0][name])
        padded = torch.zeros(len(records), max(lengths), *first.shape[1:], dtype=first.dtype)
        for row, record in enumerate(records):
            padded[row, : lengths[row]] = torch.as_tensor(record[name])
        batch[name] = padded
    batch["image_feature"] = torch.stack([torch.as_tensor(record["image_feature"]) for record in records])
    return batch


class UniterLmdb(Dataset[dict[str, Any]]):
    """An LMDB of msgpack-numpy values, opened once in each worker."""

    def __init__(self, path: Path, num_images: int) -> None:
        self._path, self._num_images = path, num_images
        self._txn: Any = None

    def __len__(self) -> int:
        return self._num_images

    def __getitem__(self, image: int) -> dict[str, Any]:
        import lmdb
        import msgpack
        import msgpack_numpy

        if self._txn is None:
            env = lmdb.open(str(self._path), readonly=True, create=False, lock=False, readahead=False)
            self._txn = env.begin(buffers=True)
        found: dict[str, Any] = msgpack.unpackb(self._txn.get(str(image).encode()), object_hook=msgpack_numpy.decode)
        return found


def uniter(data: Path, out: Path, workers: int) -> Iterable[Any]:
    """Return a loader of UNITER's layout, in random order."""
    import lmdb
    import msgpack
    import msgpack_numpy

    num_images = len(np.load(data / "offsets.npy")) - 1
    if not out.exists():
        with lmdb.open(str(out), map_size=1 << 40) as env, env.begin(write=True) as txn:
            for number, record in enumerate(images(data)):
                txn.put(str(number).encode(), msgpack.packb(record, default=msgpack_numpy.encode))
    return DataLoader(
        UniterLmdb(out, num_images),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
    )


def webdataset(data: Path, out: Path, workers: int) -> Iterable[Any]:
    """Return a loader of tars of npz members; tars come in random order, images within them do not."""
    import webdataset as wds

    if not out.exists():
        out.mkdir()
        with wds.ShardWriter(str(out / "%05d.tar"), maxcount=IMAGES_A_TAR, verbose=0) as sink:
            for number, record in enumerate(images(data)):
                stream = io.BytesIO()
                np.savez(stream, **record)
                sink.write({"__key__": f"{number:08d}", "npz": stream.getvalue()})
    tars = sorted(map(str, out.glob("*.tar")))
    dataset = wds.WebDataset(tars, shardshuffle=len(tars), nodesplitter=wds.split_by_node)
    dataset = dataset.map(lambda sample: dict(np.load(io.BytesIO(sample["npz"]))))
    dataset = dataset.batched(BATCH, collation_fn=collate)
    return DataLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0)


def mds(data: Path, out: Path, workers: int) -> Iterable[Any]:
    """Return a loader of mosaicml-streaming's format, in its random order."""
    from streaming import MDSWriter, StreamingDataset

    kinds = {"features": "float16", "boxes": "float32", "label_ids": "uint16", "label_probs": "float16"}
    columns = {name: f"ndarray:{kind}" for name, kind in kinds.items()} | {"image_feature": "ndarray:float16"}
    if not out.exists():
        with MDSWriter(out=str(out), columns=columns) as sink:
            for record in images(data):
                sink.write(record)
    dataset = StreamingDataset(local=str(out), shuffle=True, batch_size=BATCH)
    return DataLoader(
        dataset,
        batch_size=BATCH,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
    )


PEERS: dict[str, Callable[[Path, Path, int], Iterable[Any]]] = {"uniter": uniter, "webdataset": webdataset, "mds": mds}


def main() -> None:
    """Serve epochs until stdin ends."""
    peer, data, out, workers = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    # Of arrays that are read-only views of what was read; they are only copied from.
    warnings.filterwarnings("ignore", message=".*not writable")
    loader = PEERS[peer](data, out, workers)
    print("ready", flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        seen = sum(len(batch["num_rois"]) for batch in loader)
        print(time.perf_counter() - begin, seen, flush=True)


if __name__ == "__main__":
    main()
