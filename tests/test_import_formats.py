"""Every text format, written as its project writes it, comes back to the bit and with the same classes."""

import base64
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.foreign_files import (
    Detections,
    butd_row,
    class_names,
    lxmert_row,
    make_detections,
    prediction,
    vinvl_numbers,
    vlbert_json,
    volta_row,
    write_captions,
    write_rows,
    write_vlbert,
)
from tests.import_world import foreground_order, rejects, run_import
from tests.real_data import real_data
from vlbert_data.errors import ConfigError
from vlbert_data.importers.labels import LabelChoice
from vlbert_data.importers.open import FORMATS, open_importer, sniff
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.types import Array, ImageRois

IMAGES = [make_detections(number, num_rois=3 + number) for number in range(1, 5)]
FEW_CLASSES = [make_detections(number, num_classes=7, num_attributes=3) for number in range(1, 4)]
BOX_ROUNDING_PX = 1e-3


def check_geometry(image: ImageRois, found: Detections, order: Array) -> None:
    assert (image.width_px, image.height_px) == (found.width, found.height)
    np.testing.assert_array_equal(image.rois.boxes, found.boxes[order])
    np.testing.assert_array_equal(image.features, found.features[order].astype(np.float16))
    mean = found.features.mean(axis=0, dtype=np.float32).astype(np.float16)
    np.testing.assert_array_equal(image.image_feature, mean)


def check_hard(image: ImageRois, found: Detections) -> None:
    order = foreground_order(found)
    check_geometry(image, found, order)
    objects, attributes = found.cls_prob[order][:, 1:], found.attr_prob[order][:, 1:]
    assert image.rois.label_ids[:, 0].tolist() == objects.argmax(axis=1).tolist()
    assert (image.rois.label_probs == 1).all(), "a hard label is one-hot"
    np.testing.assert_array_equal(image.rois.scores, objects.max(axis=1).astype(np.float16))
    np.testing.assert_array_equal(image.rois.source_rows, order)
    if image.rois.attribute_ids is not None:
        assert image.rois.attribute_ids.tolist() == attributes.argmax(axis=1).tolist()
        np.testing.assert_array_equal(image.rois.attribute_probs, attributes.max(axis=1).astype(np.float16))


def check_soft(image: ImageRois, found: Detections, topk: int) -> None:
    order = foreground_order(found)
    check_geometry(image, found, order)
    for roi, row in enumerate(found.cls_prob[order].tolist()):
        best = sorted(range(len(row)), key=lambda column: (-row[column], column))[:topk]
        assert image.rois.label_ids[roi].tolist() == best
        np.testing.assert_array_equal(image.rois.label_probs[roi], np.array([row[c] for c in best], np.float16))
    residual = 1 - np.sort(found.cls_prob[order], axis=1)[:, -topk:].sum(axis=1)
    np.testing.assert_allclose(image.label_residual(), residual, atol=1e-2)
    np.testing.assert_array_equal(image.rois.scores, found.cls_prob[order][:, 1:].max(axis=1).astype(np.float16))
    assert image.rois.attribute_ids is not None
    assert image.rois.attribute_ids.tolist() == found.attr_prob[order][:, 1:].argmax(axis=1).tolist()


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    return write_captions(tmp_path / "captions.json", IMAGES)


def test_lxmert_keeps_classes_without_background(tmp_path: Path, captions: Path) -> None:
    path = write_rows(tmp_path / "f.tsv", [lxmert_row(found) for found in IMAGES])
    folder = run_import(path, tmp_path / "out", captions=captions)
    space = folder.manifest.label_space
    assert space is not None
    assert (space.name, space.num_classes, space.background_index) == ("vg1600-butd", 1600, None)
    for number, found in enumerate(IMAGES):
        image = folder.read(number)
        check_hard(image, found)
        assert image.image_id == found.key
        assert image.captions == tuple(f"caption {i} of {int(found.key[-12:])}" for i in range(2))


def test_the_first_and_the_last_class_of_lxmert_stay_where_they_are(tmp_path: Path, captions: Path) -> None:
    rows = [lxmert_row(found) for found in IMAGES[:2]]
    for row, (first, second) in zip(rows, [(0, 1599), (1, 1598)], strict=True):
        ids = np.full(row["num_boxes"], first)
        ids[1:] = second
        row["objects_id"] = base64.b64encode(ids.astype(np.int64)).decode()
        row["objects_conf"] = base64.b64encode(np.linspace(1, 0.5, len(ids)).astype(np.float32)).decode()
    folder = run_import(write_rows(tmp_path / "f.tsv", rows), tmp_path / "out", captions=captions)
    assert folder.read(0).rois.label_ids[:, 0].tolist() == [0] + [1599] * (IMAGES[0].num - 1)
    assert folder.read(1).rois.label_ids[:, 0].tolist() == [1] + [1598] * (IMAGES[1].num - 1)


def test_an_id_beyond_lxmerts_classes_is_asked_about_and_not_taken_for_one(tmp_path: Path, captions: Path) -> None:
    row = lxmert_row(IMAGES[0])
    row["objects_id"] = base64.b64encode(np.full(IMAGES[0].num, 1600)).decode()
    path = write_rows(tmp_path / "f.tsv", [row])
    with pytest.raises(ConfigError, match=r"class ids up to 1600.*--label-space NAME and --background"):
        run_import(path, tmp_path / "out", captions=captions)
    choice = LabelChoice(space="mine", background="first", class_names=class_names(1600))
    folder = run_import(path, tmp_path / "out", captions=captions, labels=choice)
    space = folder.manifest.label_space
    assert space is not None
    assert space.class_names[:2] == ("__background__", "thing 0")
    assert space.class_names[folder.read(0).rois.label_ids[0, 0]] == "thing 1599"


def test_lxmert_attributes_of_zeros_are_absent_not_class_0(tmp_path: Path, captions: Path) -> None:
    rows = [lxmert_row(found) for found in IMAGES]
    for row, found in zip(rows, IMAGES, strict=True):
        row["attrs_id"] = base64.b64encode(np.zeros(found.num, np.int64)).decode()
        row["attrs_conf"] = base64.b64encode(np.zeros(found.num, np.float32)).decode()
    folder = run_import(write_rows(tmp_path / "f.tsv", rows), tmp_path / "out", captions=captions)
    assert not folder.manifest.schema.has_attributes
    assert folder.manifest.detector["attributes"] is None


def test_lxmert_ids_of_four_bytes_and_boxes_of_eight_are_read_by_their_length(tmp_path: Path, captions: Path) -> None:
    rows = [lxmert_row(found) for found in IMAGES]
    for row, found in zip(rows, IMAGES, strict=True):
        ids = found.cls_prob[:, 1:].argmax(axis=1).astype(np.int32)
        row["objects_id"] = base64.b64encode(ids).decode()
        row["boxes"] = base64.b64encode(found.boxes.astype(np.float64)).decode()
    folder = run_import(write_rows(tmp_path / "f.tsv", rows), tmp_path / "out", captions=captions)
    for number, found in enumerate(IMAGES):
        check_hard(folder.read(number), found)


def test_bottom_up_attention_has_features_only_in_the_order_of_the_file(tmp_path: Path, captions: Path) -> None:
    path = write_rows(tmp_path / "f.tsv", [butd_row(found) for found in IMAGES])
    folder = run_import(path, tmp_path / "out", captions=captions)
    assert folder.manifest.label_space is None
    assert folder.manifest.label_topk == 0
    assert folder.manifest.detector["targets"] == "absent"
    for number, found in enumerate(IMAGES):
        image = folder.read(number)
        check_geometry(image, found, np.arange(found.num))
        assert image.image_id == str(int(found.key[-12:]))
        assert image.rois.label_ids.shape == (found.num, 0)


def test_width_and_height_are_taken_in_each_formats_own_order(tmp_path: Path, captions: Path) -> None:
    wide = next(found for found in IMAGES if found.width > found.height)
    for name, row in (("a", butd_row(wide)), ("b", lxmert_row(wide)), ("c", volta_row(wide))):
        folder = run_import(write_rows(tmp_path / f"{name}.tsv", [row]), tmp_path / name, captions=captions)
        assert (folder.index.width_px[0], folder.index.height_px[0]) == (wide.width, wide.height)


def test_volta_keeps_distributions_with_background_first(tmp_path: Path, captions: Path) -> None:
    path = write_rows(tmp_path / "f.tsv", [volta_row(found) for found in IMAGES])
    folder = run_import(path, tmp_path / "out", captions=captions, label_topk=9)
    space = folder.manifest.label_space
    assert space is not None
    assert (space.num_classes, space.background_index, space.class_names[0]) == (1601, 0, "__background__")
    assert space.class_names[1] == "#0"
    for number, found in enumerate(IMAGES):
        check_soft(folder.read(number), found, 9)


def test_volta_ids_that_count_background_are_rejected(tmp_path: Path, captions: Path) -> None:
    rows = [volta_row(found) for found in IMAGES]
    shifted = IMAGES[1].cls_prob.argmax(axis=1).astype(np.int64)
    rows[1]["objects_id"] = base64.b64encode(shifted).decode()
    path = write_rows(tmp_path / "f.tsv", rows)
    folder = run_import(path, tmp_path / "out", captions=captions, max_rejects=1)
    assert [line["reason"] for line in rejects(folder)] == ["labels disagree"]
    assert rejects(folder)[0]["where"] == f"{path}:2"
    assert len(folder) == len(IMAGES) - 1


@pytest.mark.parametrize("packed", [True, False], ids=["zip", "unpacked"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_vl_bert_files_come_with_their_annotations(tmp_path: Path, packed: bool, method: int) -> None:
    path = write_vlbert(tmp_path / "cc", IMAGES, packed=packed, method=method)
    folder = run_import(path, tmp_path / "out", label_topk=20)
    assert folder.manifest.source["format"] == "vl-bert"
    for number, found in enumerate(IMAGES):
        image = folder.read(number)
        check_soft(image, found, 20)
        assert image.image_id == f"{number:08d}"
        assert image.captions == (f"a photo of number {number}",)


def test_vl_bert_files_come_from_a_folder_or_an_archive_alone(tmp_path: Path) -> None:
    listed = tmp_path / "captions.tsv"
    listed.write_text("".join(f"{number:08d}\tphoto {number}\n" for number in range(len(IMAGES))))
    for packed, name in ((True, "train_frcnn.zip"), (False, "train_frcnn")):
        write_vlbert(tmp_path / name, IMAGES, packed=packed)
        folder = run_import(tmp_path / name / name, tmp_path / f"out-{name}", captions=listed)
        check_soft(folder.read(2), IMAGES[2], 32)
        assert folder.read(2).captions == ("photo 2",)


def test_vl_bert_files_for_fine_tuning_have_no_classes_and_need_sizes(tmp_path: Path) -> None:
    files = tmp_path / "vgbua"
    files.mkdir()
    for found in IMAGES:
        fields = vlbert_json(found, 0)
        kept = {"boxes": fields["boxes"], "features": fields["features"]}
        kept["image_box_feature"] = base64.b64encode(np.full(12, 2.5, np.float32)).decode()
        (files / f"{found.key}.json").write_text(json.dumps(kept))
    captions = write_captions(tmp_path / "captions.json", IMAGES)
    with pytest.raises(ConfigError, match=r"stores no image sizes\. Give them"):
        run_import(files, tmp_path / "out", captions=captions)
    sizes = tmp_path / "sizes.jsonl"
    sizes.write_text(
        "".join(json.dumps({"image": f"{f.key}.jpg", "width": f.width, "height": f.height}) + "\n" for f in IMAGES)
    )
    folder = run_import(files, tmp_path / "out", captions=captions, sizes=sizes)
    assert folder.manifest.label_space is None
    image = folder.read(0)
    np.testing.assert_array_equal(image.rois.boxes, IMAGES[0].boxes)
    assert (image.image_feature == 2.5).all()


def vinvl_file(folder: Path, images: list[Detections], *, as_json: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    lines = []
    for found in images:
        text = base64.b64encode(vinvl_numbers(found)).decode()
        stated = json.dumps({"num_boxes": found.num, "features": text}) if as_json else f"{found.num}\t{text}"
        lines.append(f"{found.key}\t{stated}\n")
    (folder / "features.tsv").write_text("".join(lines))
    # Their index counts characters and is wrong as soon as a key is not ASCII; nothing may depend on it.
    (folder / "features.lineidx").write_text("".join(f"{number}\n" for number in range(len(images))))
    return folder / "features.tsv"


@pytest.mark.parametrize("as_json", [False, True], ids=["columns", "json"])
def test_vinvl_features_take_classes_and_sizes_from_the_predictions_beside(tmp_path: Path, as_json: bool) -> None:
    path = vinvl_file(tmp_path / "vinvl", FEW_CLASSES, as_json=as_json)
    rows = [f"{found.key}\t{json.dumps(prediction(found))}\n" for found in reversed(FEW_CLASSES)]
    (path.parent / "predictions_gt.tsv").write_text("".join(rows))
    captions = write_captions(tmp_path / "captions.json", FEW_CLASSES)
    with pytest.raises(ConfigError, match="--class-names FILE"):
        run_import(path.parent, tmp_path / "out", captions=captions)
    choice = LabelChoice(space="seven", class_names=class_names(7))
    folder = run_import(path.parent, tmp_path / "out", captions=captions, labels=choice)
    assert folder.manifest.label_space is not None
    assert folder.manifest.label_space.class_names == class_names(7)
    for number, found in enumerate(FEW_CLASSES):
        image, order = folder.read(number), foreground_order(found)
        np.testing.assert_allclose(image.rois.boxes, found.boxes[order], atol=BOX_ROUNDING_PX)
        np.testing.assert_array_equal(image.features, found.features[order].astype(np.float16))
        assert image.rois.label_ids[:, 0].tolist() == found.cls_prob[order][:, 1:].argmax(axis=1).tolist()


def test_vinvl_features_alone_need_sizes_and_have_no_classes(tmp_path: Path) -> None:
    path = vinvl_file(tmp_path / "vinvl", FEW_CLASSES)
    captions = write_captions(tmp_path / "captions.json", FEW_CLASSES)
    with pytest.raises(ConfigError, match="stores no image sizes"):
        run_import(path, tmp_path / "out", captions=captions)
    sizes = tmp_path / "hw.tsv"
    sizes.write_text("".join(f"{f.key}\t{json.dumps([{'height': f.height, 'width': f.width}])}\n" for f in FEW_CLASSES))
    folder = run_import(path, tmp_path / "out", captions=captions, sizes=sizes)
    assert folder.manifest.label_space is None
    np.testing.assert_allclose(folder.read(1).rois.boxes, FEW_CLASSES[1].boxes, atol=BOX_ROUNDING_PX)


@pytest.mark.parametrize("soft", [False, True], ids=["names", "scores_all"])
def test_scene_graph_predictions_keep_names_or_distributions(tmp_path: Path, soft: bool) -> None:
    path = tmp_path / "predictions.tsv"
    rows = [f"{f.key}\t{json.dumps(prediction(f, features=True, soft=soft))}\n" for f in FEW_CLASSES]
    path.write_text("".join(rows))
    captions = write_captions(tmp_path / "captions.json", FEW_CLASSES)
    choice = LabelChoice(space="seven", class_names=class_names(7))
    folder = run_import(path, tmp_path / "out", captions=captions, labels=choice)
    space = folder.manifest.label_space
    assert space is not None
    assert space.background_index == (0 if soft else None)
    for number, found in enumerate(FEW_CLASSES):
        image, order = folder.read(number), foreground_order(found)
        np.testing.assert_array_equal(image.rois.boxes, found.boxes[order])
        np.testing.assert_array_equal(image.features, found.features[order].astype(np.float16))
        best = found.cls_prob[order].argmax(axis=1)
        assert [space.class_names[i] for i in image.rois.label_ids[:, 0]] == [class_names(7)[i - 1] for i in best]


def test_formats_are_told_apart_by_content_alone(tmp_path: Path) -> None:
    found = IMAGES[0]
    files = {
        "lxmert": write_rows(tmp_path / "1", [lxmert_row(found)]),
        "bottom-up-attention": write_rows(tmp_path / "2", [butd_row(found)]),
        "volta-tsv": write_rows(tmp_path / "3", [volta_row(found)]),
        "vl-bert": write_vlbert(tmp_path / "4", [found]),
        "vinvl": vinvl_file(tmp_path / "5", [found]),
        "scene-graph": tmp_path / "6",
    }
    files["scene-graph"].write_text(f"{found.key}\t{json.dumps(prediction(found, features=True))}\n")
    for name, path in files.items():
        assert list(sniff(path, list(FORMATS))) == [name]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "an empty file"),
        (b"\x1f\x8b\x08 rest", "compressed with gzip"),
        (b"a caption\thttp://example.org/1.jpg\n", "no format of features that is known"),
        (b"\x80\x04}.", "no format of features that is known"),
        (b"PK\3\4 cut short", "a .zip archive, damaged or of something else"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file, damaged or of something else"),
        (b"ARROW1\0\0", "an Arrow file, damaged or of something else"),
        (bytes(16) + 0xBEEFC0DE.to_bytes(4, "little"), "an LMDB database, damaged or of something else"),
    ],
)
def test_a_file_of_no_known_format_is_told_what_it_is(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=complaint):
        open_importer([str(path)])


def test_several_archives_of_vl_bert_are_refused_with_what_to_give(tmp_path: Path) -> None:
    annotations = write_vlbert(tmp_path / "vl", IMAGES)
    with pytest.raises(ConfigError, match=r"2 annotation files or archives .*Give one: annotations, which name"):
        open_importer([str(annotations.parent)])


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="neither a file nor a folder"):
        open_importer([str(tmp_path / "pipe")])


def test_real_lxmert_features_come_in_as_they_are(tmp_path: Path) -> None:
    path = real_data("features", "train2014_obj36.tsv")
    lines = [line.rstrip(b"\r\n").split(b"\t") for line in path.read_bytes().splitlines()]
    captions = tmp_path / "captions.tsv"
    captions.write_text("".join(f"{columns[0].decode()}.jpg\ta photo\n" for columns in lines))
    folder: ShardFolder = run_import(path, tmp_path / "out", captions=captions)
    assert len(folder) == 10
    assert not folder.manifest.rejects
    for number, columns in enumerate(lines):
        image = folder.read(number)
        order = image.rois.source_rows
        boxes = np.frombuffer(base64.b64decode(columns[8]), np.float32).reshape(36, 4)
        features = np.frombuffer(base64.b64decode(columns[9]), np.float32).reshape(36, 2048)
        np.testing.assert_array_equal(image.rois.boxes, boxes[order])
        np.testing.assert_array_equal(image.features, features[order].astype(np.float16))
        ids = np.frombuffer(base64.b64decode(columns[3]), np.int64)
        np.testing.assert_array_equal(image.rois.label_ids[:, 0], ids[order])
