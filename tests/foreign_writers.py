"""Small files of foreign formats, written as their projects write them, with what they hold told beside."""

import base64
import io
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import lmdb
import numpy as np
import pyarrow as pa

from tests.msgpack_writer import packb
from vlbert_data.types import Array

DIM = 16
MAP_BYTES = 1 << 28


@dataclass(frozen=True)
class Image:
    """What a detector found in one photo, most confident RoI first. Distributions have the background in front."""

    key: str
    width: int
    height: int
    boxes: Array  # float32 [R, 4] pixels
    features: Array  # float32 [R, DIM]
    probs: Array  # float32 [R, 1601]
    attribute_probs: Array  # float32 [R, 401]
    caption: str = ""

    @property
    def ids(self) -> Array:
        """Class ids counted from the first class: int64 [R]."""
        return self.probs[:, 1:].argmax(axis=1)

    @property
    def scores(self) -> Array:
        """Probabilities of these classes: float32 [R]."""
        return self.probs[:, 1:].max(axis=1)

    @property
    def attribute_ids(self) -> Array:
        """Attribute ids counted from the first attribute: int64 [R]."""
        return self.attribute_probs[:, 1:].argmax(axis=1)

    @property
    def attribute_scores(self) -> Array:
        """Probabilities of these attributes: float32 [R]."""
        return self.attribute_probs[:, 1:].max(axis=1)

    @property
    def shares(self) -> Array:
        """Boxes as shares of the image, with width and height: float32 [R, 6]."""
        sides = np.array([self.width, self.height, self.width, self.height], np.float32)
        corners = self.boxes / sides
        return np.concatenate([corners, corners[:, 2:] - corners[:, :2]], axis=1)


def make_images(num: int, *, num_rois: int = 12, seed: int = 0, prefix: str = "COCO_val2014_") -> list[Image]:
    """Return images whose best classes are the first, the last and others, so that a shift of one shows."""
    rng = np.random.default_rng(seed)
    images = []
    for number in range(num):
        width, height = int(rng.integers(300, 700)), int(rng.integers(200, 500))
        low = rng.random((num_rois, 2)) * 0.6 * [width, height]
        high = low + 5 + rng.random((num_rois, 2)) * 0.3 * [width, height]
        confidence = np.sort(rng.uniform(0.3, 0.9, num_rois))[::-1]
        best = rng.integers(0, 1600, num_rois)
        best[:3] = 0, 1599, 1
        images.append(
            Image(
                key=f"{prefix}{rng.integers(10**6):012d}" if prefix else str(rng.integers(10**6)),
                width=width,
                height=height,
                boxes=np.concatenate([low, np.minimum(high, [width, height])], axis=1).astype(np.float32),
                features=np.abs(rng.standard_normal((num_rois, DIM))).astype(np.float32),
                probs=_distributions(rng, best + 1, confidence, 1601),
                attribute_probs=_distributions(rng, rng.integers(1, 401, num_rois), confidence, 401),
                caption=f"a photo of thing {number}",
            )
        )
    return images


def _distributions(rng: np.random.Generator, best: Array, confidence: Array, columns: int) -> Array:
    """Return float32 [R, columns]: `confidence` for the best class, the rest spread over all others."""
    noise = rng.random((len(best), columns))
    np.put_along_axis(noise, best[:, None], 0, axis=1)
    probs = noise / noise.sum(axis=1, keepdims=True) * (1 - confidence[:, None])
    np.put_along_axis(probs, best[:, None], confidence[:, None], axis=1)
    return probs.astype(np.float32)


def b64(array: Array) -> str:
    """Return an array as TSV files hold it."""
    return base64.b64encode(np.ascontiguousarray(array)).decode()


def write_lmdb(path: Path, records: dict[bytes, bytes], *, subdir: bool = True, writemap: bool = False) -> Path:
    """Write records as the conversion scripts do: in one transaction, into a large map."""
    env = lmdb.open(str(path), map_size=MAP_BYTES, subdir=subdir, writemap=writemap)
    with env.begin(write=True) as txn:
        for key, value in records.items():
            txn.put(key, value)
    env.close()
    return path


# UNITER


def uniter_members(image: Image, *, pad_to: int = 20) -> dict[str, Array]:
    """Return the arrays of one image, filled up with RoIs of low confidence."""
    more = pad_to - len(image.boxes)
    filled = {
        "norm_bb": np.concatenate([image.shares, np.tile(np.float32([0.1, 0.1, 0.2, 0.2, 0.1, 0.1]), (more, 1))]),
        "features": np.concatenate([image.features, np.ones((more, DIM), np.float32)]),
        "conf": np.concatenate([image.scores, np.full(more, 0.05, np.float32)])[:, None],
        "soft_labels": np.concatenate([image.probs, np.full((more, 1601), 1 / 1601, np.float32)]),
    }
    return {name: array.astype(np.float16) for name, array in filled.items()}


def write_uniter(
    folder: Path, images: Sequence[Image], *, compressed: bool = False, counts: bool = True, spurious: bool = False
) -> Path:
    """Write a database as `convert_imgdir.py` does, with or without its file of counts."""
    records = {}
    for image in images:
        members = uniter_members(image)
        if compressed:
            stream = io.BytesIO()
            extra = {"allow_pickle": np.array(True)} if spurious else {}
            np.savez_compressed(stream, **members, **extra)
            records[f"{image.key}.npz".encode()] = stream.getvalue()
        else:
            records[f"{image.key}.npz".encode()] = packb(members)
    names = [f"{image.key}.npz" for image in images]
    write_lmdb(folder, {**records, b"__keys__": json.dumps(names).encode()})
    if counts:
        numbers = {f"{image.key}.npz": len(image.boxes) for image in images}
        (folder / "nbb_th0.2_max100_min10.json").write_text(json.dumps(numbers))
    return folder


def write_uniter_npz(folder: Path, images: Sequence[Image]) -> Path:
    """Write the file of each image as `generate_npz.py` does."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        np.savez_compressed(folder / f"{image.key}.npz", **uniter_members(image))
    return folder


# ViLBERT, VOLTA and MMF


def vilbert_fields(image: Image) -> dict[str, Any]:
    """Return what ViLBERT's `convert_to_lmdb.py` pickles: no classes."""
    return {
        "image_id": image.key,
        "image_h": image.height,
        "image_w": image.width,
        "num_boxes": len(image.boxes),
        "boxes": image.boxes,
        "features": image.features,
    }


def lxmert_arrays(image: Image) -> dict[str, Any]:
    """Return what VOLTA's and VL-T5's HDF5 groups hold."""
    return {
        "features": image.features,
        "boxes": image.boxes,
        "obj_id": image.ids,
        "obj_conf": image.scores,
        "attr_id": image.attribute_ids,
        "attr_conf": image.attribute_scores,
        "img_w": np.int64(image.width),
        "img_h": np.int64(image.height),
    }


def volta_row(image: Image, *, soft: bool) -> dict[str, Any]:
    """Return a row of VOLTA's TSV as `csv.DictReader` gives it and the scripts pickle it."""
    row = {
        "img_id": image.key,
        "img_h": str(image.height),
        "img_w": str(image.width),
        "objects_id": b64(image.ids),
        "objects_conf": b64(image.scores),
        "attrs_id": b64(image.attribute_ids),
        "attrs_conf": b64(image.attribute_scores),
        "num_boxes": str(len(image.boxes)),
        "boxes": b64(image.boxes),
        "features": b64(image.features),
    }
    more = {"cls_prob": b64(image.probs), "attrs": b64(image.attribute_probs), "classes": b64(image.probs)}
    return {**row, **(more if soft else dict.fromkeys(more))}


def mmf_info(image: Image, *, background: bool = False) -> dict[str, Any]:
    """Return what MMF's `extract_features_vmb.py` knows besides features: by default, background is cut off."""
    probs = image.probs if background else image.probs[:, 1:]
    return {
        "bbox": image.boxes,
        "num_boxes": len(image.boxes),
        "objects": probs.argmax(axis=1),
        "cls_prob": probs,
        "image_width": image.width,
        "image_height": image.height,
    }


def mmf_frcnn_info(image: Image, *, scale: float = 1.6) -> dict[str, Any]:
    """Return what MMF's `extract_features_frcnn.py` knows: the size is the resized image's, the boxes are not."""
    return {
        "bbox": image.boxes,
        "num_boxes": 100,
        "objects": image.ids,
        "cls_prob": image.scores,
        "image_width": int(image.width * scale),
        "image_height": int(image.height * scale),
    }


def write_pickles(path: Path, fields: dict[str, dict[str, Any]], *, protocol: int = 4, **options: Any) -> Path:
    """Write a database of pickled dicts by name, with the list of keys that all three projects add."""
    records = {key.encode(): pickle.dumps(value, protocol) for key, value in fields.items()}
    return write_lmdb(path, {**records, b"keys": pickle.dumps(list(records), protocol)}, **options)


def write_mmf_npy(folder: Path, images: Sequence[Image]) -> Path:
    """Write a pair of files an image."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        np.save(folder / f"{image.key}.npy", image.features)
        np.save(folder / f"{image.key}_info.npy", np.array(mmf_info(image), dtype=object))
    return folder


def write_vilbert_npy(folder: Path, images: Sequence[Image]) -> Path:
    """Write one file an image, whose `objects` are one too few, as `extract_features.py` leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        info = {**mmf_info(image, background=True), "image_id": image.key, "features": image.features}
        info["objects"] = info["objects"][1:]
        np.save(folder / f"{image.key}.npy", np.array(info, dtype=object))
    return folder


# tensorpack


def vilbert_list(image: Image) -> list[Any]:
    """Return the 8 parts of ViLBERT's data points."""
    size = [len(image.boxes), image.height, image.width]
    return [image.features, image.probs, image.boxes, *size, image.key, image.caption]


def volta_list(image: Image) -> list[Any]:
    """Return the 13 parts of VOLTA's data points; numbers are text, as they come out of its TSV."""
    labels = [image.ids, image.scores, image.attribute_ids, image.attribute_scores, image.attribute_probs]
    size = [str(len(image.boxes)), str(image.height), str(image.width)]
    return [image.features, image.probs, *labels, image.boxes, *size, image.key, image.caption]


def write_tensorpack(path: Path, points: Sequence[Any], *, codec: str) -> Path:
    """Write a single file as `LMDBSerializer` does, MessagePack or pickled."""
    dumps = packb if codec == "msgpack" else pickle.dumps
    records = {f"{number:08d}".encode(): dumps(point) for number, point in enumerate(points)}
    return write_lmdb(path, {**records, b"__keys__": dumps(list(records))}, subdir=False)


# HDF5


def write_groups(path: Path, images: Sequence[Image], *, attributes: bool = True) -> Path:
    """Write a group an image, as VL-T5's and VOLTA's scripts do; VL-T5's detectors leave attributes zero."""
    with h5py.File(path, "w") as file:
        for image in images:
            group = file.create_group(image.key)
            for name, value in lxmert_arrays(image).items():
                blank = name.startswith("attr_") and not attributes
                group.create_dataset(name, data=np.zeros_like(value) if blank else value)
    return path


def write_dense(path: Path, images: Sequence[Image], *, ids: str = "json") -> Path:
    """Write the arrays of all images together, and the map of ids as JSON, or pickled as Python 2 does."""
    with h5py.File(path, "w") as file:
        file["image_features"] = np.stack([image.features for image in images])
        file["image_bb"] = np.stack([image.boxes for image in images])
        file["spatial_features"] = np.stack([image.shares for image in images])
    numbers = {image.key: row for row, image in enumerate(images)}
    if ids == "json":
        path.with_name(f"{path.stem}_imgid2idx.json").write_text(json.dumps(numbers))
    else:
        path.with_name(f"{path.stem}_imgid2idx.pkl").write_bytes(pickle.dumps(numbers, 2))
    return path


def write_vlp(folder: Path, images: Sequence[Image]) -> Path:
    """Write features and classes by the last three characters of the id, and all boxes in one file."""
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "coco_detection_vg_bbox.h5", "w") as boxes:
        for image in images:
            sixth = image.scores[:, None]
            boxes[image.key] = np.concatenate([image.boxes, np.zeros_like(sixth), sixth], axis=1).astype(np.float32)
            for kind, array in (("feat", image.features), ("cls", image.probs)):
                with h5py.File(folder / f"coco_detection_vg_{kind}{image.key[-3:]}.h5", "a") as file:
                    file[image.key] = array.astype(np.float16)
    return folder


# .npz and Arrow


def write_milvlg(folder: Path, images: Sequence[Image]) -> Path:
    """Write one packed file an image, with the dict that repeats what is beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        info = {
            "image_id": image.key,
            "image_h": image.height,
            "image_w": image.width,
            "num_boxes": len(image.boxes),
            "objects_id": image.ids,
            "objects_conf": image.scores,
            "attrs_id": image.attribute_ids,
            "attrs_conf": image.attribute_scores,
        }
        np.savez_compressed(
            folder / f"{image.key}.npz",
            x=image.features,
            bbox=image.boxes,
            num_bbox=len(image.boxes),
            image_h=image.height,
            image_w=image.width,
            info=np.array(info, dtype=object),
        )
    return folder


def arrow_schema(num_rois: int) -> Any:
    """Return the columns of the research project's file."""
    numbers = pa.list_(pa.float32(), num_rois)
    table = pa.list_(pa.list_(pa.float32()))
    return pa.schema(
        {
            **{"attr_ids": numbers, "attr_probs": numbers, "boxes": table, "img_id": pa.int32(), "obj_ids": numbers},
            **{"obj_probs": numbers, "roi_features": table, "sizes": pa.list_(pa.float32(), 2)},
            "preds_per_image": pa.int32(),
        }
    )


def write_arrow(
    path: Path, images: Sequence[Image], *, batch_size: int = 1, kept: int = 12, finish: bool = True
) -> Path:
    """Write a stream of batches as `extracting_data.py` does, with its way to normalise boxes of a batch.

    kept: how many RoIs count; the rest are zeros.
    """
    schema = arrow_schema(len(images[0].boxes))
    with path.open("wb") as sink:
        writer = pa.ipc.new_stream(sink, schema)
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            boxes = np.stack([image.boxes for image in batch])
            widths = np.array([image.width for image in batch], np.float32)
            heights = np.array([image.height for image in batch], np.float32)
            boxes[:, :, (0, 2)] /= widths  # [B, R, 2] by [B]: right for B = 1 only
            boxes[:, :, (1, 3)] /= heights
            live = np.arange(len(images[0].boxes)) < kept
            columns = {
                "attr_ids": [(image.attribute_ids * live).astype(np.float32) for image in batch],
                "attr_probs": [image.attribute_scores * live for image in batch],
                "boxes": [list(rows) for rows in boxes * live[:, None]],
                "img_id": [int(image.key) for image in batch],
                "obj_ids": [(image.ids * live).astype(np.float32) for image in batch],
                "obj_probs": [image.scores * live for image in batch],
                "roi_features": [list(image.features * live[:, None]) for image in batch],
                "sizes": [np.float32([image.height * 1.6, image.width * 1.6]) for image in batch],
                "preds_per_image": [kept for _ in batch],
            }
            arrays = [pa.array(columns[field.name], field.type) for field in schema]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
        if finish:
            writer.close()
        else:
            sink.flush()
    return path
