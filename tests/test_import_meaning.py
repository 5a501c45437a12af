"""What numbers of foreign files mean: each convention of classes, and both sides of every shift by one."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.halves import to_half
from vlbert_data.importers.base import ABSENT, LabelConvention, RawRecord, Traits
from vlbert_data.importers.half_features import halve
from vlbert_data.importers.image_sizes import open_image_sizes
from vlbert_data.importers.labels import BACKGROUND_NAME, LabelChoice, read_class_names, settle_labels
from vlbert_data.importers.meaning import Meaning, to_pixels, top_classes
from vlbert_data.importers.predictions import classes_of
from vlbert_data.sources.files import UTF8_BOM
from vlbert_data.types import ImageRois, check_image_rois, to_float16

NAMES = ("ant", "bee", "cat", "dog")
SOFT = LabelConvention(targets="soft", num_classes=5, background="first", space="five")
HARD = LabelConvention(targets="hard", num_classes=4, background="none", space="four")


def record(**fields: Any) -> RawRecord:
    num = len(next(iter(fields.values())))
    boxes = np.tile(np.array([[1, 2, 30, 40]], np.float32), (num, 1)) + np.arange(num, dtype=np.float32)[:, None]
    features = np.arange(num * 3, dtype=np.float32).reshape(num, 3)
    return RawRecord(**{"key": "k", "where": "w", "num_bytes": 1, "boxes": boxes, "features": features, **fields})


def convert(raw: RawRecord, labels: LabelConvention, choice: LabelChoice | None = None, **traits: Any) -> ImageRois:
    settled = settle_labels(labels, choice or LabelChoice(), "test")
    meaning = Meaning(
        traits=Traits(format="test", feature_dim=3, labels=labels, **traits), label_space=settled, label_topk=2
    )
    image, _ = meaning.convert(raw, "id", ("a caption",), (100, 80))
    check_image_rois(image, label_space=settled)
    return image


def names_of(image: ImageRois, labels: LabelConvention, choice: LabelChoice) -> list[str]:
    space = settle_labels(labels, choice, "test")
    assert space is not None
    return [space.class_names[label] for label in image.rois.label_ids[:, 0]]


@pytest.mark.parametrize("background", ["first", "last", "none"])
@pytest.mark.parametrize("place", range(4))
def test_columns_get_the_names_that_their_background_leaves_them(background: str, place: int) -> None:
    offset = 1 if background == "first" else 0
    columns = 4 if background == "none" else 5
    probs = np.full((1, columns), 0.05, np.float32)
    probs[0, place + offset] = 1 - 0.05 * (columns - 1)
    convention = dataclasses.replace(SOFT, num_classes=columns, background=None)
    choice = LabelChoice(background=background, class_names=NAMES)
    image = convert(record(class_probs=probs), convention, choice)
    assert names_of(image, convention, choice) == [NAMES[place]]
    assert image.rois.scores[0] == probs.max().astype(np.float16)


@pytest.mark.parametrize(
    ("background", "ids", "names"),
    [
        ("none", [0, 3], ["ant", "dog"]),
        ("first", [0, 1, 4], [BACKGROUND_NAME, "ant", "dog"]),
        ("last", [0, 3, 4], ["ant", "dog", BACKGROUND_NAME]),
    ],
)
def test_ids_get_the_names_that_their_background_leaves_them(background: str, ids: list[int], names: list[str]) -> None:
    choice = LabelChoice(background=background, class_names=NAMES)
    scores = np.linspace(0.9, 0.5, len(ids)).astype(np.float32)
    image = convert(record(class_ids=np.array(ids), class_scores=scores), HARD, choice)
    found = dict(zip(image.rois.source_rows.tolist(), names_of(image, HARD, choice), strict=True))
    assert [found[row] for row in range(len(ids))] == names


@pytest.mark.parametrize("background", ["first", "last", "none"])
def test_an_id_one_beyond_its_space_is_refused_on_both_sides(background: str) -> None:
    choice = LabelChoice(background=background, class_names=NAMES)
    last = 3 if background == "none" else 4
    for wrong in (-1, last + 1):
        raw = record(class_ids=np.array([wrong]), class_scores=np.array([0.5], np.float32))
        with pytest.raises(RecordRejectedError, match="bad label"):
            convert(raw, HARD, choice)
    convert(record(class_ids=np.array([last]), class_scores=np.array([0.5], np.float32)), HARD, choice)


def test_confident_background_does_not_come_first() -> None:
    probs = np.array([[0.9, 0.1, 0, 0, 0], [0.3, 0.1, 0.2, 0.2, 0.2], [0, 0.25, 0.75, 0, 0]], np.float32)
    image = convert(record(class_probs=probs), SOFT)
    assert image.rois.source_rows.tolist() == [2, 1, 0]
    assert image.rois.label_ids[:, 0].tolist() == [2, 0, 0]
    np.testing.assert_array_equal(image.rois.scores, np.array([0.75, 0.2, 0.1], np.float16))
    hard = dataclasses.replace(HARD, num_classes=5, background="first")
    ids = record(class_ids=np.array([0, 1]), class_scores=np.array([0.9, 0.4], np.float32))
    assert convert(ids, hard).rois.source_rows.tolist() == [1, 0]


def test_everything_of_a_roi_moves_with_it() -> None:
    probs = np.zeros((4, 5), np.float32)
    probs[np.arange(4), [1, 2, 3, 4]] = [0.2, 0.8, 0.4, 0.6]
    probs[:, 0] = 1 - probs.sum(axis=1)
    raw = record(
        class_probs=probs, attribute_ids=np.array([3, 2, 1, 0]), attribute_scores=np.array([0.1, 0.2, 0.3, 0.4])
    )
    attributes = LabelConvention(targets="hard", num_classes=4, background="none", space="a")
    image = convert(raw, dataclasses.replace(SOFT), attributes=attributes)
    order = [1, 3, 2, 0]
    assert image.rois.source_rows.tolist() == order
    np.testing.assert_array_equal(image.rois.boxes, raw.boxes[order])
    np.testing.assert_array_equal(image.features, raw.features[order])
    assert image.rois.attribute_ids is not None
    assert image.rois.attribute_ids.tolist() == [2, 0, 1, 3]


@pytest.mark.parametrize("background", ["first", "last", "none"])
@pytest.mark.parametrize("targets", ["soft", "hard"])
def test_attributes_are_counted_without_none(background: str, targets: str) -> None:
    columns = 3 if background == "none" else 4
    offset = 1 if background == "first" else 0
    convention = LabelConvention(targets=targets, num_classes=columns, background=background, space="a")
    if targets == "soft":
        probs = np.full((3, columns), 0.1, np.float32)
        probs[np.arange(3), np.arange(3) + offset] = 0.6
        fields: dict[str, Any] = {"attribute_probs": probs}
    else:
        fields = {"attribute_ids": np.arange(3) + offset, "attribute_scores": np.full(3, 0.6, np.float32)}
    image = convert(record(**fields), ABSENT, attributes=convention)
    assert image.rois.attribute_ids is not None
    assert image.rois.attribute_ids.tolist() == [0, 1, 2]
    if targets == "hard" and background != "none":
        none = 0 if background == "first" else 3
        raw = record(attribute_ids=np.array([none]), attribute_scores=np.array([0.9], np.float32))
        assert convert(raw, ABSENT, attributes=convention).rois.attribute_probs == [0]


def test_rounded_distributions_are_made_whole_and_others_refused() -> None:
    rng = np.random.default_rng(1)
    probs = rng.uniform(size=(6, 5))
    half = (probs / probs.sum(axis=1, keepdims=True)).astype(np.float16)
    image = convert(record(class_probs=half), SOFT)
    assert (image.label_residual() >= 0).all()
    for factor in (0.8, 1.2):
        with pytest.raises(RecordRejectedError, match="not a distribution"):
            convert(record(class_probs=(half * np.float16(factor)).clip(0, 1)), SOFT)
    without = dataclasses.replace(SOFT, background="none")
    convert(record(class_probs=half * np.float16(0.3)), without)


@pytest.mark.parametrize("value", [np.nan, -0.1, 1.5, 12.0])
def test_numbers_that_are_no_probabilities_are_refused(value: float) -> None:
    probs = np.full((2, 5), 0.2, np.float32)
    probs[1, 3] = value
    with pytest.raises(RecordRejectedError):
        convert(record(class_probs=probs), SOFT)


def test_more_rois_than_places_are_counted_with_are_refused() -> None:
    raw = record(class_ids=np.zeros(70_000, np.int64), class_scores=np.ones(70_000, np.float32))
    with pytest.raises(RecordRejectedError, match="too many RoIs"):
        convert(raw, HARD)


def test_top_classes_are_those_of_a_plain_sort() -> None:
    rng = np.random.default_rng(2)
    for topk in (1, 3, 9, 10):
        probs = rng.integers(0, 4, (20, 10)).astype(np.float32) / 4  # many ties
        ids, kept = top_classes(probs, topk)
        for row, (found, values) in enumerate(zip(ids.tolist(), kept.tolist(), strict=True)):
            best = sorted(range(10), key=lambda column: (-probs[row, column], column))[:topk]
            assert found == best
            assert values == probs[row, best].tolist()


def test_normalised_boxes_become_pixels_and_half_pixels_stay() -> None:
    boxes = np.array([[0.1, 0.25, 0.5, 1.0]], np.float32)
    pixels, _ = to_pixels(boxes, (200, 100), "normalised")
    np.testing.assert_allclose(pixels, [[20, 25, 100, 100]], atol=1e-4)
    exact = np.array([[0.25, 0.5, 199.59, 99.9]], np.float32)
    np.testing.assert_array_equal(to_pixels(exact, (200, 100), "pixels")[0], exact)
    with pytest.raises(RecordRejectedError, match="box outside image"):
        to_pixels(boxes * 200, (200, 100), "normalised")


def test_what_a_format_leaves_open_is_asked_for_with_what_was_seen() -> None:
    unknown = LabelConvention(targets="soft", num_classes=5, evidence="column 0 is most probable for 61 % of RoIs")
    with pytest.raises(ConfigError, match=r"column 0 is most.*--label-space NAME and --background \(first, last"):
        settle_labels(unknown, LabelChoice(), "vlp")
    with pytest.raises(ConfigError, match="Give --background"):
        settle_labels(unknown, LabelChoice(space="mine"), "vlp")
    space = settle_labels(unknown, LabelChoice(space="mine", background="last"), "vlp")
    assert space is not None
    assert (space.num_classes, space.background_index) == (5, 4)
    with pytest.raises(ConfigError, match="stores no classes"):
        settle_labels(ABSENT, LabelChoice(space="mine"), "butd")
    with pytest.raises(ConfigError, match="3 class names; the input has 5 classes, of which one is background"):
        settle_labels(unknown, LabelChoice(space="m", background="last", class_names=("a", "b", "c")), "vlp")


def test_class_names_come_from_a_list_or_a_label_map(tmp_path: Path) -> None:
    listed, mapped = tmp_path / "names.txt", tmp_path / "map.json"
    listed.write_text("\n".join(NAMES))
    mapped.write_text(json.dumps({"label_to_idx": {name: NAMES.index(name) + 1 for name in reversed(NAMES)}}))
    assert read_class_names(listed) == read_class_names(mapped) == NAMES
    mapped.write_text(json.dumps({"label_to_idx": {"ant": 1, "bee": 3}}))
    with pytest.raises(ConfigError, match="do not run from 1 to 2"):
        read_class_names(mapped)
    listed.write_bytes(UTF8_BOM + "\r\n".join(NAMES).encode())
    assert read_class_names(listed) == NAMES
    listed.write_text("\n")
    with pytest.raises(ConfigError, match="an empty file; expected class names"):
        read_class_names(listed)


def test_a_class_is_found_however_the_list_writes_it(tmp_path: Path) -> None:
    listed = tmp_path / "names.txt"
    listed.write_text("Traffic Light,stop light\nant\n")
    ids = {name: number for number, name in enumerate(read_class_names(listed))}
    objects = [{"class": name, "conf": 0.5} for name in ("Traffic Light", "traffic light,stop light", "ant")]
    assert classes_of(objects, ids)[0].tolist() == [0, 0, 1]
    for unknown in ("stop light", "", None, 1):
        with pytest.raises(RecordRejectedError, match="unknown class"):
            classes_of([{"class": unknown, "conf": 0.5}], ids)


def test_sizes_come_from_every_layout_and_contradictions_from_none(tmp_path: Path) -> None:
    path = tmp_path / "sizes"
    contents = [
        json.dumps({"images": [{"id": 7, "file_name": "a/x_7.jpg", "width": 20, "height": 10}]}),
        '{"image_id": 7, "width": 20, "height": 10}\n',
        "x_7.jpg\t20\t10\n7\t20\t10\n",
        '7\t[{"height": 10, "width": 20}]\n',
    ]
    for content in contents:
        path.write_text(content)
        assert open_image_sizes(path).of("7") == (20, 10)
    path.write_text("7\t20\t10\n7\t10\t20\n8\t5\t5\n8\t5\t5\n")
    assert [open_image_sizes(path).of(name) for name in ("7", "8", "9")] == [None, (5, 5), None]


def test_halves_are_numpys_to_the_bit() -> None:
    rng = np.random.default_rng(3)
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = (halves[1:] + halves[:-1]) / 2  # the ties
    bits = rng.integers(0, 2**32, 400_000, dtype=np.uint32)
    bits = bits[(bits & 0x7FFFFFFF) < 0x477FF000]
    beside = [np.nextafter(middle, np.float32(sign * 1e9)) for sign in (-1, 1)]
    for values in (bits.view(np.float32), halves, middle, *beside, np.zeros(0, np.float32)):
        for signed in (values, -values):
            half = to_half(np.ascontiguousarray(signed))
            assert half is not None
            np.testing.assert_array_equal(half.view(np.uint16), signed.astype(np.float16).view(np.uint16))


def test_halves_of_what_float16_cannot_hold_are_refused() -> None:
    for value in (np.nan, np.inf, -np.inf, 65520.0, -65520.0, 1e30):
        values = np.array([0.5, value], np.float32)
        assert to_half(values) is None
        with pytest.raises(RecordRejectedError):
            to_float16(values, what="numbers")
    assert to_float16(np.array([65519.9], np.float32), what="numbers") == np.float16(65504)


def test_boxes_wholly_inside_are_what_the_careful_way_makes_of_them() -> None:
    rng = np.random.default_rng(5)
    low = rng.uniform(0.01, 300, (36, 2))
    inside = np.concatenate([low, low + rng.uniform(1, 100, (36, 2))], axis=1).astype(np.float32)
    touching = np.concatenate([inside, np.array([[-0.0, 0, 640, 480]], np.float32)])
    for boxes in (inside, touching):
        quick, changes = to_pixels(boxes, (640, 480), "pixels")
        careful, _ = to_pixels(boxes.astype(np.float64), (640, 480), "pixels")
        assert not changes and quick.dtype == np.float32 and quick.flags.owndata
        np.testing.assert_array_equal(quick.view(np.uint32), careful.view(np.uint32))
    with pytest.raises(RecordRejectedError, match="no area"):
        to_pixels(inside[:, [2, 3, 0, 1]], (640, 480), "pixels")
    with pytest.raises(RecordRejectedError, match="NaN"):
        to_pixels(np.where(inside == inside.max(), np.float32(np.nan), inside), (640, 480), "pixels")


@pytest.mark.parametrize("num_rois", [1, 2, 36, 100])
def test_halved_features_and_their_mean_are_numpys_to_the_bit(num_rois: int) -> None:
    rng = np.random.default_rng(num_rois)
    bits = rng.integers(0, 2**32, (num_rois, 2054), dtype=np.uint32)
    wide = np.where((bits & 0x7FFFFFFF) < 0x477FF000, bits, 0x80000000).astype(np.uint32).view(np.float32)
    usual = np.maximum(rng.standard_normal((num_rois, 2054)), 0).astype(np.float32)
    small = (usual * 1e-7).astype(np.float32)
    small.flags.writeable = False
    for features in (wide, usual, small, wide[:, :-6], usual.astype(np.float64), usual.astype(np.float16)):
        half, mean = halve(features)
        slow = features.mean(axis=0, dtype=np.float32).astype(np.float16)
        np.testing.assert_array_equal(half.view(np.uint16), features.astype(np.float16).view(np.uint16))
        np.testing.assert_array_equal(mean.view(np.uint16), slow.view(np.uint16))


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf, 65520.0, -65520.0])
def test_features_that_float16_cannot_hold_are_not_halved(value: float) -> None:
    features = np.ones((3, 5), np.float32)
    features[2, 4] = value
    with pytest.raises(RecordRejectedError):
        halve(features)
