"""A small world of real image files for tests of the build, and a detector and a describer that need no model."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlbert_data.build.config import BuildConfig
from vlbert_data.build.run import Build, BuildResult
from vlbert_data.describe.base import Description
from vlbert_data.detect.base import DecodedImage
from vlbert_data.sources.jsonl import JsonlSource
from vlbert_data.types import Array, LabelSpace, RoiSet

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 230)}


def make_world(folder: Path, num_images: int, *, broken: Sequence[int] = ()) -> Path:
    """Write PNG photos of coloured rectangles and a JSONL that describes them; `broken` ones are cut short."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(num_images):
        rng = np.random.default_rng(number)
        width, height = (int(side) for side in rng.integers(40, 70, 2))
        pixels = np.full((height, width, 3), 128, np.uint8)
        boxes, names = [], []
        for _ in range(int(rng.integers(0, 4))):
            x, y = (int(rng.integers(0, side - 20)) for side in (width, height))
            name = str(rng.choice(list(COLOURS)))
            pixels[y : y + 15, x : x + 12] = COLOURS[name]
            boxes.append([x, y, x + 12, y + 15])
            names.append(name)
        path = folder / f"{number:04d}.png"
        Image.fromarray(pixels).save(path)
        if number in broken:
            path.write_bytes(path.read_bytes()[:60])
        caption = f"{len(boxes)} things, {', '.join(names) or 'nothing'}"
        lines.append({"image": path.name, "caption": caption, "boxes": boxes, "labels": names})
    table = folder / "world.jsonl"
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return table


class GivenBoxes:
    """Takes the boxes that the source brings."""

    label_space = LabelSpace(name="colours", class_names=tuple(COLOURS))
    label_topk = 1
    has_attributes = False

    def facts(self) -> dict[str, Any]:
        return {"name": "given"}

    def counts(self) -> dict[str, int]:
        return {}

    def detect(self, images: Sequence[DecodedImage]) -> list[RoiSet]:
        return [self._one(image) for image in images]

    def _one(self, image: DecodedImage) -> RoiSet:
        names = image.class_names or ()
        ids = np.array([self.label_space.class_names.index(name) for name in names], np.uint16)
        ones = np.ones(len(names), np.float16)
        boxes = np.zeros((0, 4), np.float32) if image.boxes is None or not len(names) else image.boxes
        return RoiSet(boxes=boxes, scores=ones, label_ids=ids[:, None], label_probs=ones[:, None])


class MeanColours:
    """Describes a box by the mean and the spread of its colours."""

    feature_dim = 6

    def __init__(self, scale: float = 1.0) -> None:
        self._scale = scale

    def facts(self) -> dict[str, Any]:
        return {"name": "mean colours", "scale": self._scale}

    def describe(self, images: Sequence[Array], boxes: Sequence[Array]) -> list[Description]:
        return [
            Description(
                features=np.array([self._one(image, box) for box in own], np.float32).reshape(-1, 6),
                image_feature=self._one(image, (0, 0, image.shape[1], image.shape[0])),
            )
            for image, own in zip(images, boxes, strict=True)
        ]

    def _one(self, image: Array, box: Any) -> Array:
        x0, y0, x1, y1 = (round(float(edge)) for edge in box)
        part = image[y0:y1, x0:x1].reshape(-1, 3).astype(np.float32)
        return np.concatenate([part.mean(0), part.std(0)]).astype(np.float32) * np.float32(self._scale)


def make_build(table: Path, out: Path, *, scale: float = 1.0, **settings: Any) -> Build:
    """Return a build of a world; `settings` are fields of BuildConfig."""
    config = BuildConfig(**{"shard_size": 4, "workers": 0, "masked_views": 2, "thumbnail_px": 32, **settings})
    return Build(
        folder=out, source=JsonlSource([table]), detector=GivenBoxes(), describer=MeanColours(scale), config=config
    )


def build(table: Path, out: Path, **settings: Any) -> BuildResult:
    """Build all shards of a world."""
    return make_build(table, out, **settings).run()


if __name__ == "__main__":
    # A build in a process of its own, for tests that kill it: TABLE OUT SETTINGS_JSON
    settings = json.loads(sys.argv[3])
    part = tuple(settings.pop("part", (0, 1)))
    make_build(Path(sys.argv[1]), Path(sys.argv[2]), **settings).run(part)
