"""Each binary format as one of its writers leaves it, for tests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests import foreign_writers as write
from tests.foreign_writers import DIM, Image, make_images
from vlbert_data.importers.base import Importer, RawRecord
from vlbert_data.sources.base import SourceReject
from vlbert_data.types import Array

IMAGES = tuple(make_images(4))
NUMBERED = tuple(make_images(4, prefix=""))


@dataclass(frozen=True)
class Case:
    """A format as one of its writers leaves it.

    labels: "first" for distributions with the background in front, "none" for those without, "hard", or "absent".
    key: how an image is called in the file. half: whether numbers went through float16.
    """

    format: str
    write: Callable[[Path, Sequence[Image]], Path]
    labels: str
    attributes: str = "absent"
    box_units: str = "pixels"
    sized: bool = True
    half: bool = False
    captions: bool = False
    key: Callable[[Image], str] = lambda image: image.key
    images: Sequence[Image] = IMAGES


def of_uniter(**options: Any) -> Callable[[Path, Sequence[Image]], Path]:
    return lambda folder, images: write.write_uniter(folder / "feat_th0.2_max100_min10", images, **options)


def of_pickles(fields: Callable[[Image], dict[str, Any]], **options: Any) -> Callable[[Path, Sequence[Image]], Path]:
    return lambda folder, images: write.write_pickles(
        folder / "feat.lmdb", {image.key: fields(image) for image in images}, **options
    )


def of_tensorpack(point: Callable[[Image], Any], codec: str) -> Callable[[Path, Sequence[Image]], Path]:
    return lambda folder, images: write.write_tensorpack(
        folder / "training_feat_all.lmdb", [point(image) for image in images], codec=codec
    )


def named_arrays(image: Image) -> dict[str, Any]:
    return {**write.lxmert_arrays(image), "img_id": image.key}


def mmf_fields(image: Image) -> dict[str, Any]:
    return {**write.mmf_info(image), "features": image.features, "feature_path": image.key}


def mmf_background_fields(image: Image) -> dict[str, Any]:
    return {**write.mmf_info(image, background=True), "features": image.features, "feature_path": image.key}


def mmf_frcnn_fields(image: Image) -> dict[str, Any]:
    return {**write.mmf_frcnn_info(image), "features": image.features, "feature_path": image.key}


def vinvl_fields(image: Image) -> dict[str, Any]:
    wide = np.concatenate([np.zeros((len(image.boxes), 2048), np.float32), image.shares], axis=1)
    wide[:, :DIM] = image.features
    return {**mmf_fields(image), "features": wide}


UNITER = {"box_units": "normalised", "sized": False, "half": True, "key": lambda image: f"{image.key}.npz"}
CASES = {
    "UNITER msgpack": Case("uniter-lmdb", of_uniter(), "first", **UNITER),
    "UNITER npz": Case("uniter-lmdb", of_uniter(compressed=True), "first", **UNITER),
    "UNITER npz, old numpy": Case("uniter-lmdb", of_uniter(compressed=True, spurious=True), "first", **UNITER),
    "UNITER npz files": Case(
        "uniter-npz",
        lambda folder, images: write.write_uniter_npz(folder / "coco_train2014", images),
        "first",
        **UNITER,
    ),
    "UNITER uncounted": Case("uniter-lmdb", of_uniter(counts=False), "first", **UNITER),
    "ViLBERT LMDB": Case("pickle-lmdb", of_pickles(write.vilbert_fields), "absent"),
    "ViLBERT LMDB, protocol 2": Case("pickle-lmdb", of_pickles(write.vilbert_fields, protocol=2), "absent"),
    "ViLBERT npy": Case("mmf-npy", lambda folder, images: write.write_vilbert_npy(folder / "npy", images), "first"),
    "VOLTA LMDB, 10 columns": Case("pickle-lmdb", of_pickles(lambda i: write.volta_row(i, soft=False)), "hard", "hard"),
    "VOLTA LMDB, 13 columns": Case(
        "pickle-lmdb", of_pickles(lambda i: write.volta_row(i, soft=True)), "first", "first"
    ),
    "VOLTA LMDB of HDF5": Case("pickle-lmdb", of_pickles(named_arrays, writemap=True), "hard", "hard"),
    "MMF LMDB": Case("pickle-lmdb", of_pickles(mmf_fields), "none"),
    "MMF LMDB, background": Case("pickle-lmdb", of_pickles(mmf_background_fields), "first"),
    "MMF LMDB, Faster R-CNN": Case("pickle-lmdb", of_pickles(mmf_frcnn_fields), "hard", sized=False),
    "MMF npy": Case("mmf-npy", lambda folder, images: write.write_mmf_npy(folder / "npy", images), "none"),
    "tensorpack 8, msgpack": Case(
        "tensorpack-lmdb", of_tensorpack(write.vilbert_list, "msgpack"), "first", captions=True
    ),
    "tensorpack 8, pickle": Case(
        "tensorpack-lmdb", of_tensorpack(write.vilbert_list, "pickle"), "first", captions=True
    ),
    "tensorpack 13, msgpack": Case(
        "tensorpack-lmdb", of_tensorpack(write.volta_list, "msgpack"), "first", "first", captions=True
    ),
    "tensorpack 13, pickle": Case(
        "tensorpack-lmdb", of_tensorpack(write.volta_list, "pickle"), "first", "first", captions=True
    ),
    "tensorpack dicts": Case("tensorpack-lmdb", of_tensorpack(named_arrays, "msgpack"), "hard", "hard"),
    "VL-T5 HDF5": Case(
        "group-hdf5", lambda folder, images: write.write_groups(folder / "a.h5", images), "hard", "hard"
    ),
    "VL-T5 HDF5, no attributes": Case(
        "group-hdf5", lambda folder, images: write.write_groups(folder / "a.h5", images, attributes=False), "hard"
    ),
    "dense HDF5": Case("dense-hdf5", lambda folder, images: write.write_dense(folder / "val36.hdf5", images), "absent"),
    "dense HDF5, pickled ids": Case(
        "dense-hdf5", lambda folder, images: write.write_dense(folder / "val36.hdf5", images, ids="pkl"), "absent"
    ),
    "VLP HDF5": Case("vlp-hdf5", lambda folder, images: write.write_vlp(folder / "vlp", images), "asked", sized=False),
    "MILVLG npz": Case("milvlg-npz", lambda folder, images: write.write_milvlg(folder / "npz", images), "hard", "hard"),
    "HF Arrow": Case(
        "lxmert-arrow",
        lambda folder, images: write.write_arrow(folder / "val.arrow", images),
        *("hard", "hard", "normalised", False),
        images=NUMBERED,
        key=lambda image: str(int(image.key)),
    ),
}


def records(importer: Importer) -> dict[str, RawRecord]:
    found = list(importer.read(0, len(importer)))
    assert not [outcome for outcome in found if isinstance(outcome, SourceReject)]
    return {record.key: record for record in found if isinstance(record, RawRecord)}


def same(found: Array | None, expected: Array) -> bool:
    return found is not None and found.dtype == expected.dtype and found.tobytes() == expected.tobytes()
