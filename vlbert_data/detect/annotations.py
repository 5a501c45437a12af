"""Boxes that people drew, as a detector. Promise: every annotation becomes a RoI or is counted with its reason.

An annotated RoI has one class with probability 1 and score 1. Since all are equally sure, the larger box comes first:
"the first n" then are those that show most of the image.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlbert_data import boxes as geometry
from vlbert_data.detect.base import DecodedImage
from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.shards.files import blake3_file
from vlbert_data.sources.base import Source, SourceItem
from vlbert_data.sources.files import unreadable
from vlbert_data.types import Array, LabelSpace, RoiSet

CROWD, DEGENERATE, OVER_MAX = "crowd annotations", "degenerate boxes", "RoIs over max_rois"
UNKNOWN_IMAGE, UNKNOWN_CLASS = "images without an entry in the annotations", "boxes of a class that is not listed"


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotatedImage:
    """What a file says of one image: its size, float32 boxes [R, 4] xyxy pixels, class ids [R], crowds left out."""

    size_px: tuple[int, int] | None
    boxes: Array
    label_ids: Array
    num_crowds: int


def one_hot(boxes: Array, label_ids: Array, size_px: tuple[int, int], max_rois: int) -> tuple[RoiSet, Counter[str]]:
    """Return annotated boxes as RoIs, and what was left out; boxes: float32 [n, 4], label_ids: integers [n]."""
    boxes = geometry.clip(boxes.astype(np.float32).reshape(-1, 4), width_px=size_px[0], height_px=size_px[1])
    sound = ~geometry.degenerate(boxes)
    order = np.flatnonzero(sound)
    order = order[np.argsort(-geometry.area(boxes[order]), kind="stable")]
    left_out = Counter({DEGENERATE: int((~sound).sum()), OVER_MAX: max(0, len(order) - max_rois)})
    order = order[:max_rois]
    ones = np.ones(len(order), np.float16)
    rois = RoiSet(
        boxes=boxes[order],
        scores=ones,
        label_ids=np.asarray(label_ids)[order].astype(np.uint16)[:, None],
        label_probs=ones[:, None],
    )
    return rois, left_out


class CocoAnnotations:
    """The boxes of a COCO instances file; images are found by file name, else by id."""

    label_topk = 1
    has_attributes = False

    def __init__(self, path: Path, *, max_rois: int) -> None:
        """Read the file.

        Raises:
            ConfigError: missing, not JSON, or not COCO instances.
        """
        self._path = path
        self._max_rois = max_rois
        content = _read_json(path)
        self.label_space, number_of = _label_space(path, content)
        self._by_name, self._by_id = _images(path, content, number_of)
        self._hash = blake3_file(path)
        self._left_out: Counter[str] = Counter()

    def facts(self) -> dict[str, Any]:
        """Return where the boxes come from."""
        selection = {"max_rois": self._max_rois, "order": "larger boxes first", "left_out": [CROWD, DEGENERATE]}
        return {"name": "annotations", "file": self._path.name, "blake3": self._hash, "selection": selection}

    def counts(self) -> dict[str, int]:
        """Return what was left out so far, by reason."""
        return dict(+self._left_out)

    def detect(self, images: Sequence[DecodedImage]) -> list[RoiSet]:
        """Return the annotated RoIs of each image.

        Raises:
            RecordRejectedError: an image has another size than the file says, so its boxes would mean other pixels.
        """
        found = [self._one(image) for image in images]
        # Counted only when all are accepted: the build asks again, one by one, for a window with a refused image.
        for _, left_out in found:
            self._left_out += left_out
        return [rois for rois, _ in found]

    def _one(self, image: DecodedImage) -> tuple[RoiSet, Counter[str]]:
        height, width = image.pixels.shape[:2]
        known = self._by_name.get(Path(image.file_name).name) or self._by_id.get(image.image_id)
        if known is None:
            return RoiSet.empty(self.label_topk), Counter({UNKNOWN_IMAGE: 1})
        if known.size_px not in (None, (width, height)):
            stated = "{} x {}".format(*known.size_px or ())
            raise RecordRejectedError(
                "another size than annotated", f"{width} x {height} pixels; {self._path.name} says {stated}"
            )
        rois, left_out = one_hot(known.boxes, known.label_ids, (width, height), self._max_rois)
        return rois, left_out + Counter({CROWD: known.num_crowds})


class SourceBoxes:
    """The boxes and class names that the source's own records bring."""

    label_topk = 1
    has_attributes = False

    def __init__(self, class_names: Sequence[str], *, max_rois: int) -> None:
        self.label_space = LabelSpace(name="source", class_names=tuple(class_names))
        self._number_of = {name: number for number, name in enumerate(class_names)}
        self._max_rois = max_rois
        self._left_out: Counter[str] = Counter()

    def facts(self) -> dict[str, Any]:
        """Return where the boxes come from."""
        selection = {"max_rois": self._max_rois, "order": "larger boxes first", "left_out": [DEGENERATE]}
        return {"name": "annotations", "file": "the source's records", "selection": selection}

    def counts(self) -> dict[str, int]:
        """Return what was left out so far, by reason."""
        return dict(+self._left_out)

    def detect(self, images: Sequence[DecodedImage]) -> list[RoiSet]:
        """Return the RoIs that came with each image."""
        return [self._one(image) for image in images]

    def _one(self, image: DecodedImage) -> RoiSet:
        if image.boxes is None or image.class_names is None or not len(image.boxes):
            return RoiSet.empty(self.label_topk)
        height, width = image.pixels.shape[:2]
        known = np.array([name in self._number_of for name in image.class_names])
        ids = np.array([self._number_of.get(name, 0) for name in image.class_names])
        rois, left_out = one_hot(image.boxes[known], ids[known], (width, height), self._max_rois)
        self._left_out += left_out + Counter({UNKNOWN_CLASS: int((~known).sum())})
        return rois


def class_names_of(source: Source) -> list[str]:
    """Return the class names that occur in a source's records, sorted; this reads all of them.

    Raises:
        ConfigError: no record brings boxes with class names.
    """
    names = {
        name
        for entry in source.read(0, len(source))
        if isinstance(entry, SourceItem) and entry.class_names is not None
        for name in entry.class_names
    }
    if not names:
        raise ConfigError(
            "--detector annotations:source, but no record of the input brings boxes with labels. JSONL and Parquet "
            "records may bring `boxes` and `labels`."
        )
    return sorted(names)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON: {error}.") from error
    lists = ("images", "annotations", "categories")
    lacking = [name for name in lists if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if lacking:
        raise ConfigError(
            f"{path}: no list of {', '.join(lacking)}; a COCO instances file has {', '.join(lists)}. "
            "A captions file has no boxes: give instances_*.json."
        )
    return dict(content)


def _label_space(path: Path, content: dict[str, Any]) -> tuple[LabelSpace, dict[int, int]]:
    """Return the classes in the order of their ids, and the number of each id."""
    try:
        named = sorted((int(category["id"]), str(category["name"])) for category in content["categories"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ConfigError(f"{path}: a category without id or name ({error!r}).") from error
    number_of = {category: number for number, (category, _) in enumerate(named)}
    if len(number_of) != len(named):
        raise ConfigError(f"{path}: two categories share an id.")
    return LabelSpace(name=path.stem, class_names=tuple(name for _, name in named)), number_of


def _images(
    path: Path, content: dict[str, Any], number_of: dict[int, int]
) -> tuple[dict[str, AnnotatedImage], dict[str, AnnotatedImage]]:
    """Return the annotated images by file name and by id."""
    rows: dict[Any, list[tuple[list[float], int]]] = {}
    crowds: Counter[Any] = Counter()
    try:
        for annotation in content["annotations"]:
            if annotation.get("iscrowd"):
                crowds[annotation["image_id"]] += 1
                continue
            x, y, width, height = (float(number) for number in annotation["bbox"])
            row = [x, y, x + width, y + height], number_of[annotation["category_id"]]
            rows.setdefault(annotation["image_id"], []).append(row)
        by_name, by_id = {}, {}
        for image in content["images"]:
            own = rows.get(image["id"], [])
            size = (int(image["width"]), int(image["height"])) if "width" in image and "height" in image else None
            found = AnnotatedImage(
                size_px=size,
                boxes=np.array([box for box, _ in own], np.float32).reshape(-1, 4),
                label_ids=np.array([number for _, number in own], np.int64),
                num_crowds=crowds[image["id"]],
            )
            by_id[str(image["id"])] = found
            if "file_name" in image:
                by_name[Path(str(image["file_name"])).name] = found
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ConfigError(f"{path}: an image or annotation is not as COCO writes it ({error!r}).") from error
    return by_name, by_id
