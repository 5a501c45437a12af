"""The HDF5 of VL-T5, VOLTA and VLP, and LXMERT's Arrow: what is particular to each."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests import foreign_writers as write
from tests.binary_cases import (
    IMAGES,
    NUMBERED,
    records,
    same,
)
from tests.foreign_writers import make_images
from vlbert_data.errors import ConfigError
from vlbert_data.importers import dense_hdf5
from vlbert_data.importers.base import RawRecord
from vlbert_data.importers.labels import LabelChoice, settle_labels
from vlbert_data.importers.open import open_importer
from vlbert_data.sources.base import SourceReject

# HDF5


def test_dense_files_with_changing_numbers_of_rois_come_out(tmp_path: Path) -> None:
    images = [make_images(1, num_rois=num, seed=num)[0] for num in (10, 25, 13)]
    ends = np.cumsum([len(image.boxes) for image in images])
    with h5py.File(tmp_path / "val.hdf5", "w") as file:
        file["image_features"] = np.concatenate([image.features for image in images])
        file["image_bb"] = np.concatenate([image.boxes for image in images])
        file["spatial_features"] = np.concatenate([image.shares for image in images])
        file["pos_boxes"] = np.stack([ends - [10, 25, 13], ends], axis=1).astype(np.int32)
    (tmp_path / "val_imgid2idx.json").write_text(json.dumps({image.key: row for row, image in enumerate(images)}))
    found = records(open_importer([str(tmp_path / "val.hdf5")]))
    for image in images:
        assert same(found[image.key].features, image.features) and same(found[image.key].boxes, image.boxes)
        assert (found[image.key].width_px, found[image.key].height_px) == (image.width, image.height)


@pytest.mark.parametrize("num_rois", [1, 3, 36])
def test_sizes_follow_from_boxes_and_shares_or_are_not_stated(num_rois: int) -> None:
    for image in make_images(30, num_rois=max(num_rois, 3), seed=5):
        boxes, shares = image.boxes[:num_rois], image.shares[:num_rois]
        assert dense_hdf5.stated_size(boxes, shares) == (image.width, image.height)
        assert dense_hdf5.stated_size(boxes, shares * 1.01) != (image.width, image.height)
        assert dense_hdf5.stated_size(boxes + np.float32([3, 0, 0, 0]), shares) is None
        assert dense_hdf5.stated_size(boxes, np.full_like(shares, np.nan)) is None
        assert dense_hdf5.stated_size(boxes, np.zeros_like(shares)) is None


def test_dense_files_without_shares_have_no_sizes(tmp_path: Path) -> None:
    path = write.write_dense(tmp_path / "val36.hdf5", IMAGES)
    with h5py.File(path, "a") as file:
        del file["spatial_features"]
    assert not open_importer([str(path)]).traits.has_image_sizes


@pytest.mark.parametrize(("value", "what"), [(None, "a group"), (3.0, "one number")])
def test_features_that_are_no_rows_are_refused(tmp_path: Path, value: float | None, what: str) -> None:
    path = write.write_dense(tmp_path / "val36.hdf5", IMAGES)
    with h5py.File(path, "a") as file:
        del file["image_features"]
        if value is None:
            file.create_group("image_features")
        else:
            file["image_features"] = value
    with pytest.raises(ConfigError, match=f"image_features is {what}; expected a data set with a row for each image"):
        open_importer([str(path)])


def test_dense_files_without_features_or_boxes_are_refused(tmp_path: Path) -> None:
    for name in ("image_features", "image_bb"):
        path = write.write_dense(tmp_path / "val36.hdf5", IMAGES)
        with h5py.File(path, "a") as file:
            del file[name]
        with pytest.raises(ConfigError, match=f"no {name} in it; expected image_features, image_bb, spatial_features"):
            open_importer([str(path)], format_name="dense-hdf5")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (None, "no map of ids beside it"),
        ({"a": 4}, "a has row 4; the file has rows 0 to 3"),
        ({"a": 1, "b": 1}, "row 1 belongs to a and to b"),
        ({"a": "1"}, "a has row 1"),
        (["a"], "expected a map of ids to rows, or a list of 4 ids"),
    ],
)
def test_maps_of_ids_that_do_not_fit_are_refused(tmp_path: Path, ids: Any, message: str) -> None:
    path = write.write_dense(tmp_path / "val36.hdf5", IMAGES)
    (tmp_path / "val36_imgid2idx.json").unlink()
    if ids is not None:
        (tmp_path / "val36_imgid2idx.json").write_text(json.dumps(ids))
    with pytest.raises(ConfigError, match=message):
        open_importer([str(path)])


def test_vlp_shows_what_it_saw_of_the_background(tmp_path: Path) -> None:
    images = [replace(image, probs=image.probs.copy()) for image in IMAGES]
    images[0].probs[0] = 0
    images[0].probs[0, 0] = 1
    importer = open_importer([str(write.write_vlp(tmp_path / "vlp", images))])
    assert "the first column is the most probable 1 times, the last" in importer.traits.labels.evidence
    with pytest.raises(ConfigError, match="Give --background"):
        settle_labels(importer.traits.labels, LabelChoice(), "vlp-hdf5")


def test_vlp_is_read_in_the_folders_that_it_is_handed_out_in(tmp_path: Path) -> None:
    whole, parts = tmp_path / "region_feat_gvd_wo_bgd", tmp_path / "region_feat_gvd_wo_bgd" / "feat_cls_1000_float16"
    write.write_vlp(parts, IMAGES)
    (parts / "coco_detection_vg_bbox.h5").rename(whole / "coco_detection_vg_bbox.h5")
    keys = sorted(image.key for image in IMAGES)
    for path in (whole, parts):
        assert sorted(records(open_importer([str(path)]))) == keys


def test_vlp_images_without_classes_are_rejects(tmp_path: Path) -> None:
    folder = write.write_vlp(tmp_path / "vlp", IMAGES)
    (folder / f"coco_detection_vg_cls{IMAGES[-1].key[-3:]}.h5").unlink()
    found = list(open_importer([str(folder)]).read(0, 4))
    assert sum(isinstance(out, SourceReject) for out in found) == 1


# Arrow


def test_rows_of_zeros_that_fill_up_are_left_out(tmp_path: Path) -> None:
    path = write.write_arrow(tmp_path / "val.arrow", NUMBERED, kept=7)
    for image, record in zip(NUMBERED, open_importer([str(path)]).read(0, 4), strict=True):
        assert isinstance(record, RawRecord) and same(np.ascontiguousarray(record.features), image.features[:7])


def test_boxes_divided_by_another_images_size_are_rejects(tmp_path: Path) -> None:
    path = write.write_arrow(tmp_path / "val.arrow", NUMBERED, batch_size=2)
    found = list(write_first_good(path))
    assert {out.reason for out in found if isinstance(out, SourceReject)} <= {
        "boxes of mixed sizes",
        "box outside image",
    }
    assert len([out for out in found if isinstance(out, SourceReject)]) == 4


def write_first_good(path: Path) -> list[RawRecord | SourceReject]:
    """Return what comes of a file of pairs, behind a file of single images, because a format is told by good ones."""
    single = write.write_arrow(path.with_name("a.arrow"), make_images(3, prefix="", seed=9))
    return list(open_importer([str(single), str(path)]).read(3, 7))


def test_pairs_of_equal_size_are_taken(tmp_path: Path) -> None:
    images = [replace(image, width=900, height=700) for image in NUMBERED]
    path = write.write_arrow(tmp_path / "val.arrow", images, batch_size=2)
    for image, record in zip(images, open_importer([str(path)]).read(0, 4), strict=True):
        assert isinstance(record, RawRecord)
        assert same(np.ascontiguousarray(record.boxes), image.shares[:, :4].astype(np.float32))


def test_a_file_that_was_not_finished_is_read(tmp_path: Path) -> None:
    path = write.write_arrow(tmp_path / "val.arrow", NUMBERED, finish=False)
    assert len(records(open_importer([str(path)]))) == 4


def test_a_cut_arrow_file_costs_what_is_gone_and_tells(tmp_path: Path) -> None:
    path = write.write_arrow(tmp_path / "val.arrow", NUMBERED)
    path.write_bytes(path.read_bytes()[:-700])
    importer = open_importer([str(path)])
    found = list(importer.read(0, len(importer)))
    assert [isinstance(out, RawRecord) for out in found] == [True, True, True, False]
    assert list(importer.keys())[-1] == "" and "the stream ends inside batch 3" in found[-1].detail
