"""Files of features as other projects write them, from the same made-up detections. Row formats and VL-BERT's JSON."""

import base64
import csv
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlbert_data.types import Array

LXMERT_COLUMNS = (
    *("img_id", "img_h", "img_w", "objects_id", "objects_conf"),
    *("attrs_id", "attrs_conf", "num_boxes", "boxes", "features"),
)
VOLTA_COLUMNS = (*LXMERT_COLUMNS, "cls_prob", "attrs", "classes")


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What a detector found in one image. cls_prob: [R, 1 + classes], background first; attr_prob likewise."""

    key: str
    width: int
    height: int
    boxes: Array
    features: Array
    cls_prob: Array
    attr_prob: Array

    @property
    def num(self) -> int:
        return len(self.boxes)


def make_detections(
    number: int, *, num_rois: int = 5, feature_dim: int = 12, num_classes: int = 1600, num_attributes: int = 400
) -> Detections:
    """Return detections whose best class, confidence and box differ from RoI to RoI, in no order of confidence."""
    rng = np.random.default_rng(number)
    width, height = int(rng.integers(300, 640)), int(rng.integers(200, 480))
    low = rng.uniform(0, 0.5, (num_rois, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.1, 0.45, (num_rois, 2))], axis=1) * [width, height, width, height]
    return Detections(
        key=f"COCO_val2014_{number:012d}",
        width=width,
        height=height,
        boxes=boxes.astype(np.float32),
        features=np.maximum(rng.standard_normal((num_rois, feature_dim)) * 3, 0).astype(np.float32),
        cls_prob=_peaked(rng, num_rois, num_classes + 1),
        attr_prob=_peaked(rng, num_rois, num_attributes + 1),
    )


def _peaked(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Return float32 distributions, each with one clear peak outside the first column."""
    weights = rng.uniform(0.1, 1, (rows, columns))
    weights[np.arange(rows), rng.integers(1, columns, rows)] += columns * rng.uniform(0.5, 3, rows)
    probs: Array = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return probs


def b64(array: Array) -> str:
    return base64.b64encode(np.ascontiguousarray(array)).decode()


def lxmert_row(found: Detections) -> dict[str, Any]:
    objects, attributes = found.cls_prob[:, 1:], found.attr_prob[:, 1:]
    return {
        "img_id": found.key,
        "img_h": found.height,
        "img_w": found.width,
        "objects_id": b64(objects.argmax(axis=1)),
        "objects_conf": b64(objects.max(axis=1)),
        "attrs_id": b64(attributes.argmax(axis=1)),
        "attrs_conf": b64(attributes.max(axis=1)),
        "num_boxes": found.num,
        "boxes": b64(found.boxes),
        "features": b64(found.features),
    }


def volta_row(found: Detections) -> dict[str, Any]:
    return {
        **lxmert_row(found),
        "cls_prob": b64(found.cls_prob),
        "attrs": b64(found.attr_prob),
        "classes": b64(found.cls_prob),
    }


def butd_row(found: Detections) -> dict[str, Any]:
    return {
        "image_id": int(found.key[-12:]),
        "image_w": found.width,
        "image_h": found.height,
        "num_boxes": found.num,
        "boxes": b64(found.boxes),
        "features": b64(found.features),
    }


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as `csv.DictWriter` does, which ends lines with a carriage return and a line feed."""
    text = io.StringIO(newline="")
    csv.DictWriter(text, delimiter="\t", fieldnames=list(rows[0])).writerows(rows)
    path.write_text(text.getvalue(), newline="")
    return path


def vlbert_json(found: Detections, number: int) -> dict[str, Any]:
    return {
        "image_id": number,
        "image_w": found.width,
        "image_h": found.height,
        "num_boxes": found.num,
        "boxes": b64(found.boxes),
        "features": b64(found.features),
        "classes": b64(found.cls_prob),
        "attrs": b64(found.attr_prob),
    }


def write_vlbert(
    folder: Path, images: list[Detections], *, packed: bool = True, method: int = zipfile.ZIP_STORED
) -> Path:
    """Write per-image JSON files and the annotations that list them; return the annotations' path."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, texts = [], {}
    for number, found in enumerate(images):
        name = f"{number:08d}.json"
        texts[name] = json.dumps(vlbert_json(found, number))
        lines.append(
            {
                "image": f"train_image.zip@/{number:08d}.jpg",
                "caption": ["a", "photo", "of", "number", str(number)],
                "frcnn": f"train_frcnn.zip@/{name}",
            }
        )
    if packed:
        with zipfile.ZipFile(folder / "train_frcnn.zip", "w", method) as archive:
            for name, text in texts.items():
                archive.writestr(name, text)
    else:
        (folder / "train_frcnn").mkdir(exist_ok=True)
        for name, text in texts.items():
            (folder / "train_frcnn" / name).write_text(text)
    path = folder / "train_frcnn.json"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def vinvl_numbers(found: Detections) -> Array:
    """Return [R, F + 6]: features, then the box in shares of the image, and its width and height."""
    shares = found.boxes / np.array([found.width, found.height] * 2, np.float32)
    sides = shares[:, 2:] - shares[:, :2]
    return np.concatenate([found.features, shares, sides], axis=1).astype(np.float32)


def class_names(num: int) -> tuple[str, ...]:
    return tuple(f"thing {number}" for number in range(num))


def prediction(found: Detections, *, features: bool = False, soft: bool = False, size: bool = True) -> dict[str, Any]:
    """Return what scene_graph_benchmark writes of an image."""
    names = class_names(found.cls_prob.shape[1] - 1)
    best = found.cls_prob[:, 1:].argmax(axis=1)
    objects = []
    for roi in range(found.num):
        entry: dict[str, Any] = {
            "rect": [float(edge) for edge in found.boxes[roi]],
            "bbox_id": roi,
            "class": names[best[roi]],
            "conf": float(found.cls_prob[roi, 1 + best[roi]]),
        }
        if features:
            entry["feature"] = b64(found.features[roi])
        if soft:
            entry["scores_all"] = b64(found.cls_prob[roi])
        objects.append(entry)
    stated = {"image_h": found.height, "image_w": found.width} if size else {}
    return {**stated, "objects": objects, "relations": None}


def write_captions(path: Path, images: list[Detections]) -> Path:
    """Write COCO captions, two an image, for images that COCO calls by their number."""
    numbers = [int(found.key[-12:]) for found in images]
    content = {
        "images": [{"id": number, "file_name": f"COCO_val2014_{number:012d}.jpg"} for number in numbers],
        "annotations": [
            {"id": 10 * number + i, "image_id": number, "caption": f"caption {i} of {number}"}
            for number in numbers
            for i in range(2)
        ],
    }
    path.write_text(json.dumps(content))
    return path
