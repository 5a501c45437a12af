"""Facts about a shard folder or file, as data. Promise: JSON types only, and samples are called samples."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlbert_data.boxes import area
from vlbert_data.errors import RecordRejectedError, ShardError
from vlbert_data.shards.base import MappedShard
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.shards.schema import ShardSchema
from vlbert_data.types import Array, ImageRois, RoiSet, check_image_rois
from vlbert_data.verify import open_single

# Images read for class frequencies, caption lengths and feature statistics: reading more would make looking slow.
SAMPLE_IMAGES = 1000
# Of these, so many whole feature arrays: at 36 x 2048 float16 about 30 MB.
SAMPLE_FEATURES = 200
# Images of Conceptual Captions (Sharma et al., ACL 2018), for the disk that the whole set would take.
CONCEPTUAL_CAPTIONS_IMAGES = 3_300_000
MOST_BINS = 10
NOTHING = np.zeros(0, np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """A folder or a single shard file, as a sequence of records with the facts that need no reading of them."""

    path: Path
    container: str
    schema: ShardSchema
    num_rois: Array
    num_bytes: int
    folder: ShardFolder | None
    shard: MappedShard | None

    @staticmethod
    def open(path: Path) -> "Images":
        """Return the folder or file at `path`.

        Raises:
            ShardError: neither, or damaged.
        """
        if path.is_dir():
            folder = ShardFolder.open(path)
            return Images(
                path=path,
                container=folder.manifest.container,
                schema=folder.manifest.schema,
                num_rois=folder.index.num_rois,
                num_bytes=sum(entry.bytes for entry in folder.manifest.shards),
                folder=folder,
                shard=None,
            )
        shard = open_single(path)
        container = "hdf5" if type(shard).__name__ == "Hdf5Shard" else "lmdb"
        return Images(
            path=path,
            container=container,
            schema=shard.schema,
            num_rois=shard.num_rois,
            num_bytes=len(shard.mapped),
            folder=None,
            shard=shard,
        )

    def __len__(self) -> int:
        return len(self.num_rois)

    def read(self, image: int) -> ImageRois:
        """Return record number `image`."""
        if self.folder is not None:
            return self.folder.read(image)
        assert self.shard is not None, "a file where there is no folder"
        return self.shard.read(image)

    def read_sound(self, image: int) -> ImageRois:
        """Return record number `image`, whose values are what a record promises.

        Raises:
            ShardError: they are not.
        """
        record = self.read(image)
        try:
            check_image_rois(record, label_space=self.schema.label_space, feature_dim=self.schema.feature_dim)
        except RecordRejectedError as error:
            hint = "vlb inspect-shard --verify finds all that is damaged."
            raise ShardError(f"{self.path}: image {record.image_id!r} is damaged ({error}). {hint}") from error
        return record

    def find(self, image_id: str) -> int:
        """Return the number of the image with this id.

        Raises:
            ShardError: there is none.
        """
        if self.folder is not None:
            found = self.folder.index.find(image_id)
        else:
            assert self.shard is not None, "a file where there is no folder"
            ids = (row for row in range(len(self)) if self.shard.image_id(row) == image_id)
            found = next(ids, None)
        if found is None:
            raise ShardError(f"{self.path}: no image {image_id!r}; ids look like {self.read(0).image_id!r}.")
        return found


def facts(images: Images, among: Array | None = None) -> dict[str, Any]:
    """Return what the folder or file holds, for people and programs alike.

    among: int64, the images that may be sampled; None samples all.

    Raises:
        ShardError: a sampled record is damaged.
    """
    among = np.arange(len(images)) if among is None else among
    records = [images.read_sound(int(image)) for image in among[spread(len(among), SAMPLE_IMAGES)]]
    captions = int(images.folder.index.num_captions.sum()) if images.folder is not None else _count(records)
    bytes_an_image = images.num_bytes / max(len(images), 1)
    return {
        "path": str(images.path),
        "container": images.container,
        "format_version": images.folder.manifest.format_version if images.folder is not None else None,
        "num_images": len(images),
        "num_captions": captions,
        "num_rois": int(images.num_rois.sum()),
        "num_shards": len(images.folder.manifest.shards) if images.folder is not None else 1,
        "feature_dim": images.schema.feature_dim,
        "feature_dtype": "float16",
        "label_topk": images.schema.label_topk,
        "masked_views": images.schema.num_views,
        "has_attributes": images.schema.has_attributes,
        "label_space": _label_space(images.schema),
        "bytes": images.num_bytes,
        "bytes_an_image": bytes_an_image,
        "bytes_of_3_3_million_images": bytes_an_image * CONCEPTUAL_CAPTIONS_IMAGES,
        "rois_an_image": _histogram(images.num_rois),
        "sample": {
            "images": len(records),
            "caption_words": _histogram(np.array([len(text.split()) for r in records for text in r.captions])),
            "classes": _classes(records, images.schema),
            "roi_sides": _histogram(_sides(records), share_bins=20),
            "scores": _histogram(_scores(records), share_bins=20),
            "features": _feature_statistics(records),
        },
        **_manifest_facts(images.folder),
    }


def record_facts(
    record: ImageRois, schema: ShardSchema, *, attribute_names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return one record without its features, as JSON types; attribute_names: see `attribute_names`."""
    names = schema.label_space.class_names if schema.label_space is not None else ()
    rois = record.rois
    return {
        "image_id": record.image_id,
        "width_px": record.width_px,
        "height_px": record.height_px,
        "captions": list(record.captions),
        "num_rois": record.num_rois,
        "rois": [
            {
                "box": [round(float(edge), 2) for edge in rois.boxes[i]],
                "score": round(float(rois.scores[i]), 4),
                "classes": [
                    {"id": int(label), "name": names[int(label)], "probability": round(float(probability), 4)}
                    for label, probability in zip(rois.label_ids[i], rois.label_probs[i], strict=True)
                ],
                "residual": round(float(record.label_residual()[i]), 4),
                "attribute": _attribute(rois, i, attribute_names),
                "feature_norm": round(float(np.linalg.norm(record.features[i].astype(np.float32))), 3),
            }
            for i in range(record.num_rois)
        ],
        "image_feature_norm": round(float(np.linalg.norm(record.image_feature.astype(np.float32))), 3),
        "masked_views": 0 if record.masked_views is None else int(record.masked_views.chosen.shape[0]),
        "thumbnail_bytes": len(record.thumbnail or b""),
    }


def attribute_names(images: Images) -> list[str] | None:
    """Return what attribute ids mean; None for a single file, and where the detector did not say."""
    names = images.folder.manifest.detector.get("attribute_names") if images.folder is not None else None
    return list(names) if names else None


def _attribute(rois: RoiSet, number: int, names: Sequence[str] | None) -> dict[str, Any] | None:
    """Return id, name and probability of a RoI's attribute, None where there is none."""
    if rois.attribute_ids is None or rois.attribute_probs is None:
        return None
    attribute = int(rois.attribute_ids[number])
    return {
        "id": attribute,
        "name": names[attribute] if names and attribute < len(names) else None,
        "probability": round(float(rois.attribute_probs[number]), 4),
    }


def spread(count: int, most: int) -> Array:
    """Return up to `most` numbers, int64 rising, spread evenly over 0 .. count - 1."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)) if count else NOTHING


def _scores(records: Sequence[ImageRois]) -> Array:
    return np.concatenate([record.rois.scores for record in records] or [NOTHING]).astype(np.float64)


def _sides(records: Sequence[ImageRois]) -> Array:
    """Return for each RoI the side of the square of its area, as a share of that of the image's."""
    shares = [area(record.rois.boxes) / (record.width_px * record.height_px) for record in records]
    sides: Array = np.sqrt(np.concatenate(shares or [np.empty(0)]).astype(np.float64))
    return sides


def _count(records: Sequence[ImageRois]) -> int | None:
    """Return the number of captions of a single file, None where it was only sampled."""
    return sum(len(record.captions) for record in records) if len(records) < SAMPLE_IMAGES else None


def _label_space(schema: ShardSchema) -> dict[str, Any] | None:
    space = schema.label_space
    if space is None:
        return None
    return {
        "name": space.name,
        "num_classes": space.num_classes,
        "background_index": space.background_index,
        "fingerprint": space.fingerprint(),
        "class_names": list(space.class_names),
    }


def _histogram(values: Array, *, share_bins: int | None = None) -> dict[str, Any]:
    """Return count, mean, smallest, largest, median and a histogram of whole numbers, in ten bins at most.

    share_bins: the values are shares instead, and so many bins stand between 0 and 1.
    """
    if not len(values):
        return {"count": 0}
    low, high = float(values.min()), float(values.max())
    if share_bins is None:
        # Whole numbers get bins of a whole width, so that no bin is empty by construction.
        width = max(1, -(-int(high - low + 1) // MOST_BINS))
        edges = np.arange(int(low), int(high) + width + 1, width, dtype=np.float64)
    else:
        edges = np.linspace(0, 1, share_bins + 1)
    # Rounding may put a share a little above 1.
    counts, _ = np.histogram(np.minimum(values, edges[-1]), bins=edges)
    return {
        "count": len(values),
        "mean": float(values.mean()),
        "min": low,
        "median": float(np.median(values)),
        "max": high,
        "bin_edges": edges.tolist(),
        "bin_counts": counts.tolist(),
    }


def _classes(records: Sequence[ImageRois], schema: ShardSchema) -> list[dict[str, Any]]:
    """Return the most probable classes of RoIs with their counts, the most frequent first."""
    if schema.label_space is None:
        return []
    ids: Counter[int] = Counter()
    for record in records:
        ids.update(record.rois.label_ids[:, 0].tolist())
    names = schema.label_space.class_names
    return [{"id": label, "name": names[label], "rois": count} for label, count in ids.most_common()]


def _feature_statistics(records: Sequence[ImageRois]) -> dict[str, Any]:
    """Return statistics of the feature values of some records' RoIs."""
    chosen = [records[int(i)] for i in spread(len(records), SAMPLE_FEATURES)]
    blocks = [record.features.astype(np.float32) for record in chosen if record.num_rois]
    if not blocks:
        return {"images": len(chosen), "rois": 0}
    values = np.concatenate(blocks)  # [RoIs, F]
    return {
        "images": len(chosen),
        "rois": len(values),
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
        "share_of_zeros": float((values == 0).mean()),
        "mean_norm": float(np.linalg.norm(values, axis=1).mean()),
    }


def _manifest_facts(folder: ShardFolder | None) -> Mapping[str, Any]:
    if folder is None:
        return {}
    manifest = folder.manifest
    return {
        "content_hash": manifest.content_hash,
        "detector": dict(manifest.detector),
        "describer": dict(manifest.describer),
        "source": dict(manifest.source),
        "build": dict(manifest.build),
        "left_out": dict(manifest.left_out),
        "rejects": dict(manifest.rejects),
    }
