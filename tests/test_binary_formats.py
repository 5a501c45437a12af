"""Each binary format, written as its project writes it, comes out to the bit, and its numbers mean what they meant."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests import foreign_writers as write
from tests.binary_cases import (
    CASES,
    IMAGES,
    records,
    same,
)
from tests.foreign_files import make_detections, write_vlbert
from tests.foreign_writers import DIM, Image
from tests.msgpack_writer import packb
from vlbert_data.errors import ConfigError, VlbError
from vlbert_data.importers import loose_files
from vlbert_data.importers.base import Importer, RawRecord
from vlbert_data.importers.labels import LabelChoice, settle_labels
from vlbert_data.importers.meaning import Meaning
from vlbert_data.importers.open import FORMATS, OF_FOLDERS, load_format, open_importer
from vlbert_data.types import check_image_rois


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Importer]:
    found = {}
    for name, case in CASES.items():
        folder = tmp_path_factory.mktemp("case")
        found[name] = open_importer([str(case.write(folder, case.images))])
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_format_is_told_by_its_content_alone(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    path = case.write(tmp_path, case.images)
    seen = {known: load_format(known).sniff(path) for known in FORMATS}
    assert {known for known, evidence in seen.items() if evidence} == {case.format}


def test_damaged_first_records_hide_no_format(tmp_path: Path) -> None:
    """Of a few records that are looked at, one is enough to know what all are."""
    broken = dict.fromkeys(range(3), b"no record")
    fields = {image.key: write.vilbert_fields(image) for image in IMAGES}
    values = {key.encode(): pickle.dumps(value) for key, value in fields.items()}
    pickles = write.write_lmdb(tmp_path / "p", {b"A%d" % number: raw for number, raw in broken.items()} | values)
    members = {f"{image.key}.npz".encode(): packb(write.uniter_members(image)) for image in IMAGES}
    uniter = write.write_lmdb(tmp_path / "u", {b"A%d" % number: raw for number, raw in broken.items()} | members)
    points = [*["no record"] * 3, *map(write.vilbert_list, IMAGES)]
    tensorpack = write.write_tensorpack(tmp_path / "t.lmdb", points, codec="msgpack")
    groups = write.write_groups(tmp_path / "g.h5", IMAGES)
    with h5py.File(groups, "a") as file:
        for number in broken:
            file[f"A{number}"] = h5py.ExternalLink("other.h5", "/a")
    loose = [
        ("mmf-npy", write.write_vilbert_npy(tmp_path / "npy", IMAGES)),
        ("milvlg-npz", write.write_milvlg(tmp_path / "milvlg", IMAGES)),
        ("uniter-npz", write.write_uniter_npz(tmp_path / "uniter", IMAGES)),
        ("vl-bert", write_vlbert(tmp_path / "vl", [make_detections(n) for n in range(4)], packed=False).parent),
    ]
    loose[-1] = ("vl-bert", loose[-1][1] / "train_frcnn")
    for _, folder in loose:
        for file in sorted(folder.iterdir())[:-1]:
            file.write_bytes(file.read_bytes()[:-100])
    with zipfile.ZipFile(tmp_path / "vl.zip", "w") as archive:
        archive.writestr("a.json", "{")
        for file in sorted(loose[-1][1].iterdir()):
            archive.writestr(file.name, file.read_bytes())
    expected = [
        *(("pickle-lmdb", pickles), ("uniter-lmdb", uniter), ("tensorpack-lmdb", tensorpack), ("group-hdf5", groups)),
        *(*loose, ("vl-bert", tmp_path / "vl.zip")),
    ]
    for name, path in expected:
        assert {known for known in FORMATS if load_format(known).sniff(path)} == {name}, path


@pytest.mark.parametrize("odd", ["narrow", "soft"])
def test_a_first_record_unlike_the_others_decides_nothing(tmp_path: Path, odd: str) -> None:
    fields = {image.key: write.lxmert_arrays(image) for image in sorted(IMAGES, key=lambda image: image.key)}
    first = next(iter(fields.values()))
    if odd == "narrow":
        first["features"] = first["features"][:, : DIM // 2]
    else:
        first["cls_prob"] = np.full((len(first["features"]), 1700), 1 / 1700, np.float32)
        first["obj_id"] = np.zeros(len(first["features"]), np.int64)
    importer = open_importer([str(write.write_pickles(tmp_path / "p", fields))])
    assert (importer.traits.feature_dim, importer.traits.labels.targets) == (DIM, "hard")
    found = list(importer.read(0, len(importer)))
    assert [isinstance(outcome, RawRecord) for outcome in found] == [False, *[True] * (len(IMAGES) - 1)]


@pytest.mark.parametrize("name", CASES)
def test_features_boxes_and_sizes_come_out_to_the_bit(name: str, opened: dict[str, Importer]) -> None:
    case, importer = CASES[name], opened[name]
    assert importer.traits.format == case.format and importer.traits.feature_dim == DIM
    assert importer.traits.box_units == case.box_units and importer.traits.has_image_sizes == case.sized
    found = records(importer)
    assert set(found) == {case.key(image) for image in case.images} == set(importer.keys())
    for image in case.images:
        record = found[case.key(image)]
        features = image.features.astype(np.float16) if case.half or name == "VLP HDF5" else image.features
        boxes = image.shares[:, :4] if case.box_units == "normalised" else image.boxes
        assert same(np.ascontiguousarray(record.features), features)
        assert same(np.ascontiguousarray(record.boxes), boxes.astype(np.float16) if case.half else boxes)
        assert (record.width_px, record.height_px) == ((image.width, image.height) if case.sized else (None, None))
        assert record.captions == ((image.caption,) if case.captions else ())
        assert record.num_bytes > 0 and record.where


@pytest.mark.parametrize("name", CASES)
def test_labels_come_out_with_their_convention(name: str, opened: dict[str, Importer]) -> None:
    case, importer = CASES[name], opened[name]
    traits, found = importer.traits, records(importer)
    soft = {"first": (1601, "first"), "none": (1600, "none"), "asked": (1601, None)}
    if case.labels in soft:
        assert (traits.labels.targets, traits.labels.num_classes, traits.labels.background) == (
            "soft",
            *soft[case.labels],
        )
    else:
        expected = (1600, "none") if case.labels == "hard" else (0, None)
        assert (traits.labels.targets, traits.labels.num_classes, traits.labels.background) == (case.labels, *expected)
    assert (traits.attributes.targets, traits.attributes.background) == {
        "hard": ("hard", "none"),
        "first": ("soft", "first"),
        "absent": ("absent", None),
    }[case.attributes]
    for image in case.images:
        record = found[case.key(image)]
        if case.labels in soft:
            probs = image.probs[:, 1:] if case.labels == "none" else image.probs
            half = case.half or name == "VLP HDF5"
            assert record.class_probs is not None
            assert same(np.ascontiguousarray(record.class_probs), probs.astype(np.float16) if half else probs)
        elif case.labels == "hard":
            assert record.class_probs is None and same(record.class_ids, image.ids)
            assert same(record.class_scores, image.scores)
        if case.attributes == "hard":
            assert same(record.attribute_ids, image.attribute_ids)
            assert same(record.attribute_scores, image.attribute_scores)
        elif case.attributes == "first":
            assert same(record.attribute_probs, image.attribute_probs)
        else:
            assert record.attribute_ids is None and record.attribute_probs is None


def understood(importer: Importer, image: Image, key: str) -> Any:
    """Return what a shard stores of an image."""
    traits = importer.traits
    choice = (
        LabelChoice(background="first") if traits.labels.background is None and traits.labels != 0 else LabelChoice()
    )
    choice = LabelChoice() if traits.labels.targets == "absent" else choice
    meaning = Meaning(traits=traits, label_space=settle_labels(traits.labels, choice, traits.format), label_topk=20)
    record, _ = meaning.convert(records(importer)[key], key, ("a caption",), (image.width, image.height))
    check_image_rois(record, label_space=meaning.label_space)
    return meaning, record


@pytest.mark.parametrize("name", CASES)
def test_each_rois_best_class_is_the_one_that_was_detected(name: str, opened: dict[str, Importer]) -> None:
    case, importer = CASES[name], opened[name]
    for image in case.images:
        meaning, record = understood(importer, image, case.key(image))
        if meaning.label_space is None:
            continue
        # Among the images' classes are 0, 1 and the last: a shift by one to either side would be seen.
        assert {0, 1, 1599} <= set(image.ids.tolist())
        offset = 1 if meaning.label_space.background_index == 0 else 0
        order = np.arange(len(image.ids)) if record.rois.source_rows is None else record.rois.source_rows
        np.testing.assert_array_equal(record.rois.label_ids[:, 0] - offset, image.ids[order])
        names = [meaning.label_space.class_names[i] for i in record.rois.label_ids[:, 0]]
        assert names == [f"#{i}" for i in image.ids[order]]
        np.testing.assert_allclose(record.rois.boxes, image.boxes[order], atol=0.7 if case.half else 1e-3)


@pytest.mark.parametrize("name", CASES)
def test_any_range_reads_the_same_and_a_pickled_importer_too(name: str, opened: dict[str, Importer]) -> None:
    importer = opened[name]
    whole = [record.key for record in importer.read(0, len(importer)) if isinstance(record, RawRecord)]
    copy = pickle.loads(pickle.dumps(importer))
    assert [record.key for record in copy.read(2, 4) if isinstance(record, RawRecord)] == whole[2:4]
    assert list(copy.keys()) == whole and copy.fingerprint() == importer.fingerprint()
    json.dumps(importer.facts())


# All formats


def test_telling_a_format_looks_at_few_files(tmp_path: Path) -> None:
    for number in range(loose_files.SNIFFED_ENTRIES):
        (tmp_path / f"{number}.jpg").touch()
    (tmp_path / "in").mkdir()
    write.write_mmf_npy(tmp_path / "in" / "features", IMAGES)
    assert load_format("mmf-npy").sniff(tmp_path) is None
    assert load_format("mmf-npy").sniff(tmp_path / "in") is not None


@pytest.mark.parametrize("name", FORMATS)
def test_sniffing_other_files_raises_nothing(tmp_path: Path, name: str) -> None:
    sniff = load_format(name).sniff
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500))
    (tmp_path / "arrow").write_bytes(b"ARROW1\0\0" + bytes(500))
    (tmp_path / "stream").write_bytes(b"\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(500))
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04")
    (tmp_path / "data.mdb").write_bytes(bytes(16) + (0xBEEFC0DE).to_bytes(4, "little") + bytes(9000))
    for path in [tmp_path, tmp_path / "absent", *tmp_path.iterdir()]:
        assert sniff(path) is None, path


@pytest.mark.parametrize(
    "name", ["uniter-lmdb", "pickle-lmdb", "tensorpack-lmdb", "group-hdf5", "mmf-npy", "milvlg-npz"]
)
def test_a_wrong_format_by_the_users_word_is_refused_in_words(tmp_path: Path, name: str) -> None:
    wrong = "UNITER msgpack" if name != "uniter-lmdb" else "ViLBERT LMDB"
    path = CASES[wrong].write(tmp_path, IMAGES)
    with pytest.raises(VlbError):
        open_importer([str(path)], format_name=name)


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_of_other_files_is_refused_in_words_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a photo")
    known = "a folder of a.jpg; nothing of the format" if name not in OF_FOLDERS else tmp_path.name
    if name == "lxmert-arrow":
        known = "no file that ends in .arrow"
    with pytest.raises(VlbError, match=known):
        open_importer([str(tmp_path)], format_name=name)


def test_the_users_word_opens_a_database_of_which_the_first_records_are_damaged(tmp_path: Path) -> None:
    records = {b"A%02d" % number: b"no record" for number in range(10)}
    records |= {image.key.encode(): pickle.dumps(write.vilbert_fields(image)) for image in IMAGES}
    path = write.write_lmdb(tmp_path / "x", records)
    with pytest.raises(ConfigError, match="no format of features that is known"):
        open_importer([str(path)])
    found = list(open_importer([str(path)], format_name="pickle-lmdb").read(0, 14))
    assert [isinstance(outcome, RawRecord) for outcome in found] == [False] * 10 + [True] * 4
