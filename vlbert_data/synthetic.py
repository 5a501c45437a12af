"""Small fake data. Promise: the one maker of it: tests, benchmarks and tries all use this; the seed says everything.

The data has something to learn: a RoI's feature is its class's prototype plus noise, and captions name the classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlbert_data.shards.job import FolderFacts, write_records
from vlbert_data.shards.schema import ShardSchema
from vlbert_data.types import Array, ImageRois, LabelSpace, MaskedViews, RoiSet

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "bar", "heart")


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeShards:
    """What to make: see `write_shards`."""

    num_images: int = 8
    feature_dim: int = 16
    num_rois: tuple[int, int] = (2, 6)
    num_classes: int = 8
    label_topk: int = 3
    captions_an_image: int = 2
    masked_views: int = 0
    has_attributes: bool = False
    has_source_rows: bool = False
    has_background: bool = True
    thumbnails: bool = False
    noise: float = 0.5
    seed: int = 0

    def schema(self) -> ShardSchema:
        """Return the schema of these records."""
        names = class_names(self.num_classes)
        space = LabelSpace(
            name="synthetic",
            class_names=(*names, "background") if self.has_background else names,
            background_index=self.num_classes if self.has_background else None,
        )
        return ShardSchema(
            feature_dim=self.feature_dim,
            label_topk=self.label_topk,
            num_views=self.masked_views,
            has_attributes=self.has_attributes,
            has_source_rows=self.has_source_rows,
            label_space=space if self.label_topk else None,
        )


def class_names(num_classes: int) -> tuple[str, ...]:
    """Return names such as `red circle`, each once."""
    kinds = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]
    return tuple(kinds[i % 64] + (f" {i // 64}" if i >= 64 else "") for i in range(num_classes))


def make_record(fake: FakeShards, image: int) -> ImageRois:
    """Return fake image number `image`: the same for the same arguments."""
    rng = np.random.default_rng([fake.seed, image])
    num = int(rng.integers(fake.num_rois[0], fake.num_rois[1] + 1))
    width_px, height_px = (int(side) for side in rng.integers(200, 800, 2))
    classes = rng.integers(0, fake.num_classes, num)
    prototypes = np.random.default_rng([fake.seed, 2**32]).normal(size=(fake.num_classes, fake.feature_dim))
    features = _noisy(rng, prototypes[classes], fake.noise)
    image_feature = features.mean(axis=0) if num else _noisy(rng, np.zeros(fake.feature_dim), fake.noise)
    names = class_names(fake.num_classes)
    seen = " and a ".join(names[c] for c in classes[:3]) or "empty scene"
    captions = tuple(f"a {seen} in picture {image}, said {i + 1} times" for i in range(fake.captions_an_image))
    views = _make_views(fake, rng, features, num) if fake.masked_views else None
    return ImageRois(
        image_id=f"{image:08d}",
        width_px=width_px,
        height_px=height_px,
        captions=captions,
        rois=_make_rois(fake, rng, classes, (width_px, height_px)),
        features=features.astype(np.float16),
        image_feature=image_feature.astype(np.float16),
        masked_views=views,
        thumbnail=b"\xff\xd8 not a real JPEG \xff\xd9" if fake.thumbnails else None,
    )


def make_records(fake: FakeShards) -> Iterator[ImageRois]:
    """Yield all fake images in order."""
    return (make_record(fake, image) for image in range(fake.num_images))


def write_shards(
    out: Path | str,
    fake: FakeShards | None = None,
    *,
    container: str = "lmdb",
    shard_size: int = 1000,
    **settings: object,
) -> Path:
    """Write a finished shard folder of fake images and return its path; `settings` are fields of `FakeShards`."""
    fake = fake or FakeShards(**settings)  # type: ignore[arg-type]
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    facts = FolderFacts(
        container=container,
        schema=fake.schema(),
        detector={"name": "synthetic", "seed": fake.seed},
        describer={"name": "synthetic", "feature_dim": fake.feature_dim},
        source={"format": "synthetic", "num_inputs": fake.num_images},
        build={"shard_size": shard_size},
    )
    write_records(folder, make_records(fake), facts, shard_size=shard_size)
    return folder


def _noisy(rng: np.random.Generator, values: Array, noise: float) -> Array:
    """Return values plus normal noise, float32."""
    noisy: Array = (values + noise * rng.standard_normal(values.shape)).astype(np.float32)
    return noisy


def _make_rois(fake: FakeShards, rng: np.random.Generator, classes: Array, size_px: tuple[int, int]) -> RoiSet:
    num, space = len(classes), fake.num_classes + fake.has_background
    low = rng.uniform(0, 0.6, (num, 2))
    high = low + rng.uniform(0.1, 0.4, (num, 2))
    boxes = np.concatenate([low, high], axis=1) * [*size_px, *size_px]  # [R, 4]
    topk = min(fake.label_topk, space)
    others = np.argsort(rng.random((num, space)) + (np.arange(space) == classes[:, None]) * -1.0, axis=1)
    ids = others[:, : fake.label_topk]  # [R, K], the true class first
    top = np.sort(rng.uniform(0.5, 0.9, num))[::-1]  # [R], most confident first
    rest = (1 - top[:, None]) / max(space, 2) * np.linspace(1.0, 0.5, max(topk - 1, 0))[None, :]
    probs = np.concatenate([top[:, None], rest], axis=1)[:, : fake.label_topk]
    return RoiSet(
        boxes=boxes.astype(np.float32),
        scores=top.astype(np.float16),
        label_ids=ids.astype(np.uint16),
        label_probs=probs.astype(np.float16),
        attribute_ids=(classes % 4).astype(np.uint16) if fake.has_attributes else None,
        attribute_probs=np.full(num, 0.5, np.float16) if fake.has_attributes else None,
        source_rows=np.arange(num, dtype=np.uint16)[::-1].copy() if fake.has_source_rows else None,
    )


def _make_views(fake: FakeShards, rng: np.random.Generator, features: Array, num: int) -> MaskedViews:
    chosen = rng.random((fake.masked_views, num)) < 0.15
    if num:
        chosen[np.arange(fake.masked_views), rng.integers(0, num, fake.masked_views)] = True
    shown = np.where(chosen[:, :, None], 0.0, features[None])  # [V, R, F]
    mean = shown.mean(axis=1) if num else np.zeros((fake.masked_views, fake.feature_dim))
    return MaskedViews(chosen=chosen, features=shown.astype(np.float16), image_features=mean.astype(np.float16))
