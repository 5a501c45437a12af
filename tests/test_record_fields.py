"""Records of ViLBERT, VOLTA and MMF: what their fields mean, and fields that disagree."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import foreign_writers as write
from tests.binary_cases import IMAGES, mmf_fields, records, same, vinvl_fields
from tests.foreign_writers import DIM
from vlbert_data.errors import ConfigError
from vlbert_data.importers.base import RawRecord
from vlbert_data.importers.labels import LabelChoice, settle_labels
from vlbert_data.importers.open import open_importer
from vlbert_data.sources.base import SourceReject


@pytest.mark.parametrize("shift", [-1, 1])
def test_ids_that_are_shifted_by_one_are_rejects(tmp_path: Path, shift: int) -> None:
    image = IMAGES[0]
    point = write.volta_list(image)
    point[2] = np.clip(image.ids + shift, 0, None)
    path = write.write_tensorpack(tmp_path / "x.lmdb", [write.volta_list(IMAGES[1]), point], codec="msgpack")
    reject = list(open_importer([str(path)]).read(0, 2))[1]
    assert isinstance(reject, SourceReject) and reject.reason == "labels disagree"


def test_distributions_with_the_background_last_are_rejects_where_ids_show_it(tmp_path: Path) -> None:
    image = IMAGES[0]
    point = write.volta_list(image)
    point[1] = np.roll(image.probs, -1, axis=1)
    path = write.write_tensorpack(tmp_path / "x.lmdb", [write.volta_list(IMAGES[1]), point], codec="msgpack")
    reject = list(open_importer([str(path)]).read(0, 2))[1]
    assert isinstance(reject, SourceReject) and reject.reason == "labels disagree"


def test_ids_beyond_the_known_classes_are_asked_about(tmp_path: Path) -> None:
    images = [replace(image, probs=np.pad(image.probs, ((0, 0), (0, 9)))) for image in IMAGES]
    for image in images:
        image.probs[:, [1600, 1605]] = image.probs[:, [1605, 1600]]
    importer = open_importer([str(write.write_groups(tmp_path / "a.h5", images))])
    assert importer.traits.labels.background is None and "class ids up to 1604" in importer.traits.labels.evidence
    with pytest.raises(ConfigError, match="does not say what its class numbers mean"):
        settle_labels(importer.traits.labels, LabelChoice(), "group-hdf5")


def test_the_size_of_a_resized_image_is_not_taken_for_the_photos(tmp_path: Path) -> None:
    small = {image.key: {**mmf_fields(image), "image_width": image.width // 2} for image in IMAGES}
    importer = open_importer([str(write.write_pickles(tmp_path / "x", small))])
    assert not importer.traits.has_image_sizes
    assert all(record.width_px is None for record in records(importer).values())


def test_geometry_that_vinvl_appends_is_not_part_of_features(tmp_path: Path) -> None:
    path = write.write_pickles(tmp_path / "x", {image.key: vinvl_fields(image) for image in IMAGES})
    importer = open_importer([str(path)])
    assert importer.traits.feature_dim == 2048
    for image in IMAGES:
        found = records(importer)[image.key].features
        assert same(np.ascontiguousarray(found[:, :DIM]), image.features) and not found[:, DIM:].any()


def test_boxes_in_base64_may_be_float64_and_ids_int32(tmp_path: Path) -> None:
    rows = {}
    for image in IMAGES:
        wide = {"boxes": write.b64(image.boxes.astype(np.float64)), "objects_id": write.b64(image.ids.astype(np.int32))}
        rows[image.key] = {**write.volta_row(image, soft=False), **wide}
    found = records(open_importer([str(write.write_pickles(tmp_path / "x", rows))]))
    for image in IMAGES:
        assert same(found[image.key].boxes, image.boxes.astype(np.float64))
        assert same(found[image.key].class_ids, image.ids)


BAD_FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "no features": ({"features": None}, "field missing"),
    "features of text": ({"features": "!!!!"}, "bad base64"),
    "features of numbers": ({"features": 7}, "bad field"),
    "integer features": ({"features": IMAGES[0].features.astype(np.int32)}, "bad field"),
    "flat features": ({"features": IMAGES[0].features.ravel()}, "wrong length"),
    "one row less": ({"features": IMAGES[0].features[1:], "num_boxes": 11}, "wrong length"),
    "another width": ({"features": np.zeros((12, 7), np.float32)}, "wrong length"),
    "boxes of five": ({"boxes": np.zeros((12, 5), np.float32)}, "wrong length"),
    "count": ({"num_boxes": 13}, "wrong length"),
    "count of text": ({"num_boxes": "twelve"}, "bad field"),
    "huge count": ({"num_boxes": 10**15, "features": "AAAA"}, "bad field"),
    "negative size": ({"image_w": -5}, "bad field"),
    "NaN size": ({"image_w": float("nan")}, "bad field"),
    "true size": ({"image_w": True}, "bad field"),
    "sudden labels": ({"cls_prob": IMAGES[0].probs}, "other labels"),
    "a list": ({"boxes": [1, 2, 3]}, "bad field"),
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_fields_that_disagree_are_rejects_by_reason(tmp_path: Path, name: str) -> None:
    changes, reason = BAD_FIELDS[name]
    fields = {f"{number}{image.key}": write.vilbert_fields(image) for number, image in enumerate(IMAGES[:2])}
    fields["2bad"] = {**write.vilbert_fields(IMAGES[0]), **changes}
    found = list(open_importer([str(write.write_pickles(tmp_path / "x", fields))]).read(0, 3))
    assert [isinstance(out, RawRecord) for out in found] == [True, True, False]
    assert isinstance(found[2], SourceReject) and found[2].reason == reason
