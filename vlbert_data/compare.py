"""Whether two sets of features describe the same images alike. Promise: measured on the same RoIs, and said in words.

RoIs are paired by their boxes (each with the one that it overlaps most, if that one agrees) or by their place. What is
measured: cosine of features, lengths, box edges, most probable classes. What may be behind a difference is looked for
by trying it: ids moved by one, boxes scaled, axes swapped, RoIs in another order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vlbert_data import boxes as geometry
from vlbert_data.errors import ConfigError
from vlbert_data.importers.keys import KeyPattern
from vlbert_data.importers.mismatch import explain_disjoint
from vlbert_data.types import Array, ImageRois, LabelSpace

MATCHES = ("iou", "id")
LEAST_IOU = 0.5
SHIFTS = (-1, 0, 1)
QUANTILES = {"median": 0.5, "lowest 5%": 0.05}
# Thresholds on the numbers above. Float16 rounding keeps cosines above 0.9999. On real photos and one backbone,
# swapped colour channels gave a median cosine of 0.84 and another image size 0.84 to 0.87; another photo gave 0.3.
SAME_COSINE, RELATED_COSINE = 0.999, 0.5
SAME_EDGE_PX = 0.1
SAME_LENGTH = 0.01
SAME_SCALE = 0.01
MOST = 0.8


class FeatureSet(Protocol):
    """Images with RoIs, found by id."""

    name: str
    pattern: KeyPattern
    label_space: LabelSpace | None
    feature_dim: int

    def keys(self) -> Iterator[str]:
        """Yield what the images are called, before the pattern finds ids in it."""
        ...

    def image_ids(self) -> Sequence[str]:
        """Return all ids."""
        ...

    def find(self, image_id: str) -> ImageRois | None:
        """Return an image; None where it cannot be read."""
        ...


@dataclass(kw_only=True)
class Pairs:
    """What was measured, gathered image by image. Each list has one array [pairs of the image]; see `compare`."""

    num_rois: tuple[int, int] = (0, 0)
    cosines: list[Array] = field(default_factory=list)
    length_ratios: list[Array] = field(default_factory=list)
    edges: list[Array] = field(default_factory=list)
    classes: list[Array] = field(default_factory=list)
    scales: list[Array] = field(default_factory=list)
    same_sizes: int = 0
    swapped: list[float] = field(default_factory=list)
    cosines_by_place: list[Array] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """facts: numbers by name, JSON types. findings: what they mean, most weighty first."""

    facts: dict[str, Any]
    findings: tuple[str, ...]


def compare(a: FeatureSet, b: FeatureSet, *, match: str, num_images: int) -> Comparison:
    """Return how the sets differ on images that both have, at most `num_images` of them, evenly spread.

    Raises:
        ConfigError: no image in common, or none that both can read.
    """
    ids_b = set(b.image_ids())
    shared = [image_id for image_id in a.image_ids() if image_id in ids_b]
    if not shared:
        why = explain_disjoint({a.name: a.keys, b.name: b.keys}, a.pattern)
        raise ConfigError(f"{a.name} and {b.name} have no image id in common. {why}")
    step = max(1, -(-len(shared) // num_images))
    pairs, looked_at = Pairs(), 0
    for image_id in shared[::step]:
        first, second = a.find(image_id), b.find(image_id)
        if first is not None and second is not None:
            looked_at += 1
            _measure(pairs, first, second, match)
    if not looked_at:
        raise ConfigError(f"none of the images in common can be read in both {a.name} and {b.name}.")
    facts = {"images": looked_at, "images_in_both": len(shared), "match": match, **_facts(a, b, pairs, looked_at)}
    return Comparison(facts=facts, findings=tuple(_findings(facts)))


def match_boxes(a: Array, b: Array) -> tuple[Array, Array]:
    """Return int64 [p] and int64 [p]: pairs of boxes that overlap each other most, by at least half."""
    overlaps = geometry.iou(a, b)  # [A, B]
    if not overlaps.size:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    best_b, best_a = overlaps.argmax(axis=1), overlaps.argmax(axis=0)
    rows = np.arange(len(a))
    good = (best_a[best_b] == rows) & (overlaps[rows, best_b] >= LEAST_IOU)
    return rows[good], best_b[good]


def _match_places(a: ImageRois, b: ImageRois) -> tuple[Array, Array]:
    """Return pairs of RoIs that stood at the same place before they were ordered."""
    places_a, places_b = _places(a), _places(b)
    _, rows_a, rows_b = np.intersect1d(places_a, places_b, assume_unique=True, return_indices=True)
    return rows_a, rows_b


def _places(image: ImageRois) -> Array:
    return np.arange(image.num_rois) if image.rois.source_rows is None else image.rois.source_rows.astype(np.int64)


def _measure(pairs: Pairs, a: ImageRois, b: ImageRois, match: str) -> None:
    by_place = _match_places(a, b)
    rows_a, rows_b = by_place if match == "id" else match_boxes(a.rois.boxes, b.rois.boxes)
    pairs.num_rois = (pairs.num_rois[0] + a.num_rois, pairs.num_rois[1] + b.num_rois)
    pairs.same_sizes += (a.width_px, a.height_px) == (b.width_px, b.height_px)
    boxes_a, boxes_b = a.rois.boxes[rows_a], b.rois.boxes[rows_b]
    pairs.edges.append(boxes_b - boxes_a)
    if a.label_topk and b.label_topk:
        pairs.classes.append(np.stack([a.rois.label_ids[rows_a, 0], b.rois.label_ids[rows_b, 0]], axis=1))
    if by_place[0].size:
        placed_a, placed_b = a.rois.boxes[by_place[0]], b.rois.boxes[by_place[1]]
        pairs.scales.append(np.array([_slope(placed_a, placed_b)]))
        pairs.swapped.append(float(np.abs(placed_b[:, [1, 0, 3, 2]] - placed_a).mean()))
    if a.feature_dim == b.feature_dim:
        lengths, cosines = _cosines(a.features[rows_a], b.features[rows_b])
        pairs.cosines.append(cosines)
        pairs.length_ratios.append(lengths)
        pairs.cosines_by_place.append(_cosines(a.features[by_place[0]], b.features[by_place[1]])[1])


def _slope(a: Array, b: Array) -> Array:
    """Return the factors [2] for x and y that bring boxes a [p, 4] nearest to boxes b [p, 4]."""
    x, y = a[:, [0, 2]].ravel(), a[:, [1, 3]].ravel()
    fits = [(x @ b[:, [0, 2]].ravel()) / max(x @ x, 1e-9), (y @ b[:, [1, 3]].ravel()) / max(y @ y, 1e-9)]
    return np.array(fits, np.float64)


def _cosines(a: Array, b: Array) -> tuple[Array, Array]:
    """Return for each pair of rows the ratio of lengths, b to a, and the cosine."""
    wide_a, wide_b = a.astype(np.float32), b.astype(np.float32)
    long_a, long_b = np.linalg.norm(wide_a, axis=1), np.linalg.norm(wide_b, axis=1)
    products = (wide_a * wide_b).sum(axis=1)
    sound = (long_a > 0) & (long_b > 0)
    ratio = np.divide(long_b, long_a, out=np.ones_like(long_a), where=sound)
    cosine = np.divide(products, long_a * long_b, out=(long_a == long_b).astype(np.float32), where=sound)
    return ratio, cosine


def _facts(a: FeatureSet, b: FeatureSet, pairs: Pairs, images: int) -> dict[str, Any]:
    edges = np.concatenate(pairs.edges)
    facts: dict[str, Any] = {
        "rois": list(pairs.num_rois),
        "paired_share": round(2 * len(edges) / max(sum(pairs.num_rois), 1), 4),
        "feature_dims": [a.feature_dim, b.feature_dim],
        "same_image_size_share": round(pairs.same_sizes / images, 4),
        "label_spaces": [a.label_space and a.label_space.name, b.label_space and b.label_space.name],
    }
    if len(edges):
        facts["edge_shift_px"] = [round(float(value), 3) for value in np.median(edges, axis=0)]
        facts["edge_distance_px"] = round(float(np.abs(edges).mean()), 3)
    if pairs.scales:
        facts["box_scale"] = [round(float(value), 4) for value in np.median(np.concatenate(pairs.scales), axis=0)]
        facts["edge_distance_with_axes_swapped_px"] = round(float(np.mean(pairs.swapped)), 3)
    if pairs.cosines and len(found := np.concatenate(pairs.cosines)):
        facts["cosine"] = {name: round(float(np.quantile(found, share)), 4) for name, share in QUANTILES.items()}
        facts["length_ratio"] = round(float(np.median(np.concatenate(pairs.length_ratios))), 4)
        placed = np.concatenate(pairs.cosines_by_place)
        facts["cosine_by_place"] = round(float(np.median(placed)), 4) if len(placed) else None
    if pairs.classes and len(classes := np.concatenate(pairs.classes).astype(np.int64)):
        objects = classes - [_first_object(space) for space in (a.label_space, b.label_space)]
        moved = objects[:, 1] - objects[:, 0]
        facts["backgrounds"] = [_background(space) for space in (a.label_space, b.label_space)]
        facts["label_agreement"] = {f"{shift:+d}": round(float((moved == shift).mean()), 4) for shift in SHIFTS}
    return facts


def _first_object(space: LabelSpace | None) -> int:
    """Return the id of the first class that is an object: ids are compared by what the sets themselves say of them."""
    return int(space is not None and space.background_index == 0)


def _background(space: LabelSpace | None) -> str:
    if space is None or space.background_index is None:
        return "none"
    return "first" if space.background_index == 0 else "last"


def _findings(facts: dict[str, Any]) -> list[str]:
    """Return what the numbers mean, in sentences."""
    found = [*_box_findings(facts), *_feature_findings(facts), *_label_findings(facts)]
    return found or ["No difference beyond rounding."]


def _box_findings(facts: dict[str, Any]) -> list[str]:
    found = []
    scale, distance = facts.get("box_scale", [1.0, 1.0]), facts.get("edge_distance_px", 0.0)
    swapped = facts["match"] == "id" and distance > 5 * SAME_EDGE_PX
    if swapped and facts["edge_distance_with_axes_swapped_px"] < distance / 10:
        found.append("Boxes fit when x and y are swapped: one side writes (y, x).")
    elif max(abs(factor - 1) for factor in scale) > SAME_SCALE and facts["paired_share"] < MOST:
        found.append(
            f"Boxes of the second set are {scale[0]} times as wide and {scale[1]} times as high: one side counts "
            "pixels of a resized image, or shares of its sides."
        )
    if facts["same_image_size_share"] < MOST:
        found.append(
            f"Image sizes agree for {facts['same_image_size_share']:.0%} of images only: one side stores the resized "
            "image's size, or height before width."
        )
    shift = facts.get("edge_shift_px")
    if shift is not None and max(abs(shift[0]), abs(shift[1])) < SAME_EDGE_PX and _about_one(shift[2:]):
        found.append("The right and lower edges differ by one pixel: one side counts the last pixel as inside.")
    elif facts["paired_share"] < MOST:
        found.append(
            f"Only {facts['paired_share']:.0%} of RoIs have a partner: another detector, another image size for it, "
            "or another rule for which RoIs are kept."
        )
    elif distance > SAME_EDGE_PX:
        found.append(
            f"Paired boxes differ by {distance} pixels on the mean: regressed boxes against proposals, or a detector "
            "on another image size."
        )
    return found


def _about_one(shift: Sequence[float]) -> bool:
    return all(0.9 < abs(value) < 1.1 for value in shift)


def _feature_findings(facts: dict[str, Any]) -> list[str]:
    dims = facts["feature_dims"]
    if dims[0] != dims[1]:
        return [f"Features have {dims[0]} and {dims[1]} numbers: different networks or layers; no cosine can be had."]
    if "cosine" not in facts:
        return []
    cosine, by_place = facts["cosine"]["median"], facts["cosine_by_place"]
    if by_place is not None and facts["match"] == "iou" and cosine > SAME_COSINE > MOST > by_place:
        return ["The same RoIs stand in another order; features of the same boxes are equal."]
    if facts["match"] == "id" and cosine < MOST and facts.get("edge_distance_px", 0) > 5:
        return ["RoIs at the same place have other boxes and features: another order. Compare with --match iou."]
    if cosine < RELATED_COSINE:
        return [f"Features are unrelated (cosine {cosine}): another network, layer or weights, or other photos."]
    found = []
    if cosine < SAME_COSINE:
        found.append(
            f"The same RoIs are described from other pixels or by another version (cosine {cosine}): another colour "
            "order (RGB or BGR), other means, another image size or way of resizing, or another pooling."
        )
    if abs(facts["length_ratio"] - 1) > SAME_LENGTH and cosine >= SAME_COSINE:
        found.append(
            f"Features point the same way but are {facts['length_ratio']} times as long: one side scales them."
        )
    return found


def _label_findings(facts: dict[str, Any]) -> list[str]:
    agreement = facts.get("label_agreement")
    if agreement is None:
        return []
    same = agreement["+0"]
    for shift in ("-1", "+1"):
        if agreement[shift] > max(same, 0.5):
            return [
                f"Classes are moved by {shift}: {agreement[shift]:.0%} of the second set's ids are the first's "
                f"{shift}, {same:.0%} are equal. One side counts background as class 0 without saying so."
            ]
    if same < MOST:
        return [f"Most probable classes agree for {same:.0%} of pairs: another detector, or another list of classes."]
    first, second = facts["backgrounds"]
    if first != second:
        return [
            f"Classes are the same, but background is {first} on one side and {second} on the other: such folders are "
            "not trained together."
        ]
    return []
