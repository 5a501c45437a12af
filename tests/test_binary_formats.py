"""Each binary format, written as its project writes it, comes out to the bit, and its numbers mean what they meant."""

import json
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import lmdb
import numpy as np
import pytest

from tests import foreign_writers as write
from tests.foreign_writers import DIM, Image, make_images
from vlbert_data.errors import ConfigError, VlbError
from vlbert_data.importers import dense_hdf5, loose_files, uniter_counts, uniter_lmdb
from vlbert_data.importers.base import Importer, RawRecord
from vlbert_data.importers.labels import LabelChoice, settle_labels
from vlbert_data.importers.meaning import Meaning
from vlbert_data.importers.open import FORMATS, load_format, open_importer
from vlbert_data.sources.base import SourceReject
from vlbert_data.types import Array, check_image_rois

IMAGES = tuple(make_images(4))
NUMBERED = tuple(make_images(4, prefix=""))


@dataclass(frozen=True)
class Case:
    """A format as one of its writers leaves it.

    labels: "first" for distributions with the background in front, "none" for those without, "hard", or "absent".
    key: how an image is called in the file. half: whether numbers went through float16.
    """

    format: str
    write: Callable[[Path, Sequence[Image]], Path]
    labels: str
    attributes: str = "absent"
    box_units: str = "pixels"
    sized: bool = True
    half: bool = False
    captions: bool = False
    key: Callable[[Image], str] = lambda image: image.key
    images: Sequence[Image] = IMAGES


def of_uniter(**options: Any) -> Callable[[Path, Sequence[Image]], Path]:
    return lambda folder, images: write.write_uniter(folder / "feat_th0.2_max100_min10", images, **options)


def of_pickles(fields: Callable[[Image], dict[str, Any]], **options: Any) -> Callable[[Path, Sequence[Image]], Path]:
    return lambda folder, images: write.write_pickles(
        folder / "feat.lmdb", {image.key: fields(image) for image in images}, **options
    )


def of_tensorpack(point: Callable[[Image], Any], codec: str) -> Callable[[Path, Sequence[Image]], Path]:
    return lambda folder, images: write.write_tensorpack(
        folder / "training_feat_all.lmdb", [point(image) for image in images], codec=codec
    )


def named_arrays(image: Image) -> dict[str, Any]:
    return {**write.lxmert_arrays(image), "img_id": image.key}


def mmf_fields(image: Image) -> dict[str, Any]:
    return {**write.mmf_info(image), "features": image.features, "feature_path": image.key}


def mmf_background_fields(image: Image) -> dict[str, Any]:
    return {**write.mmf_info(image, background=True), "features": image.features, "feature_path": image.key}


def mmf_frcnn_fields(image: Image) -> dict[str, Any]:
    return {**write.mmf_frcnn_info(image), "features": image.features, "feature_path": image.key}


def vinvl_fields(image: Image) -> dict[str, Any]:
    wide = np.concatenate([np.zeros((len(image.boxes), 2048), np.float32), image.shares], axis=1)
    wide[:, :DIM] = image.features
    return {**mmf_fields(image), "features": wide}


UNITER = {"box_units": "normalised", "sized": False, "half": True, "key": lambda image: f"{image.key}.npz"}
CASES = {
    "UNITER msgpack": Case("uniter-lmdb", of_uniter(), "first", **UNITER),
    "UNITER npz": Case("uniter-lmdb", of_uniter(compressed=True), "first", **UNITER),
    "UNITER npz, old numpy": Case("uniter-lmdb", of_uniter(compressed=True, spurious=True), "first", **UNITER),
    "UNITER npz files": Case(
        "uniter-npz",
        lambda folder, images: write.write_uniter_npz(folder / "coco_train2014", images),
        "first",
        **UNITER,
    ),
    "UNITER uncounted": Case("uniter-lmdb", of_uniter(counts=False), "first", **UNITER),
    "ViLBERT LMDB": Case("pickle-lmdb", of_pickles(write.vilbert_fields), "absent"),
    "ViLBERT LMDB, protocol 2": Case("pickle-lmdb", of_pickles(write.vilbert_fields, protocol=2), "absent"),
    "ViLBERT npy": Case("mmf-npy", lambda folder, images: write.write_vilbert_npy(folder / "npy", images), "first"),
    "VOLTA LMDB, 10 columns": Case("pickle-lmdb", of_pickles(lambda i: write.volta_row(i, soft=False)), "hard", "hard"),
    "VOLTA LMDB, 13 columns": Case(
        "pickle-lmdb", of_pickles(lambda i: write.volta_row(i, soft=True)), "first", "first"
    ),
    "VOLTA LMDB of HDF5": Case("pickle-lmdb", of_pickles(named_arrays, writemap=True), "hard", "hard"),
    "MMF LMDB": Case("pickle-lmdb", of_pickles(mmf_fields), "none"),
    "MMF LMDB, background": Case("pickle-lmdb", of_pickles(mmf_background_fields), "first"),
    "MMF LMDB, Faster R-CNN": Case("pickle-lmdb", of_pickles(mmf_frcnn_fields), "hard", sized=False),
    "MMF npy": Case("mmf-npy", lambda folder, images: write.write_mmf_npy(folder / "npy", images), "none"),
    "tensorpack 8, msgpack": Case(
        "tensorpack-lmdb", of_tensorpack(write.vilbert_list, "msgpack"), "first", captions=True
    ),
    "tensorpack 8, pickle": Case(
        "tensorpack-lmdb", of_tensorpack(write.vilbert_list, "pickle"), "first", captions=True
    ),
    "tensorpack 13, msgpack": Case(
        "tensorpack-lmdb", of_tensorpack(write.volta_list, "msgpack"), "first", "first", captions=True
    ),
    "tensorpack 13, pickle": Case(
        "tensorpack-lmdb", of_tensorpack(write.volta_list, "pickle"), "first", "first", captions=True
    ),
    "tensorpack dicts": Case("tensorpack-lmdb", of_tensorpack(named_arrays, "msgpack"), "hard", "hard"),
    "VL-T5 HDF5": Case(
        "group-hdf5", lambda folder, images: write.write_groups(folder / "a.h5", images), "hard", "hard"
    ),
    "VL-T5 HDF5, no attributes": Case(
        "group-hdf5", lambda folder, images: write.write_groups(folder / "a.h5", images, attributes=False), "hard"
    ),
    "dense HDF5": Case("dense-hdf5", lambda folder, images: write.write_dense(folder / "val36.hdf5", images), "absent"),
    "dense HDF5, pickled ids": Case(
        "dense-hdf5", lambda folder, images: write.write_dense(folder / "val36.hdf5", images, ids="pkl"), "absent"
    ),
    "VLP HDF5": Case("vlp-hdf5", lambda folder, images: write.write_vlp(folder / "vlp", images), "asked", sized=False),
    "MILVLG npz": Case("milvlg-npz", lambda folder, images: write.write_milvlg(folder / "npz", images), "hard", "hard"),
    "HF Arrow": Case(
        "lxmert-arrow",
        lambda folder, images: write.write_arrow(folder / "val.arrow", images),
        *("hard", "hard", "normalised", False),
        images=NUMBERED,
        key=lambda image: str(int(image.key)),
    ),
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Importer]:
    found = {}
    for name, case in CASES.items():
        folder = tmp_path_factory.mktemp("case")
        found[name] = open_importer([str(case.write(folder, case.images))])
    return found


def records(importer: Importer) -> dict[str, RawRecord]:
    found = list(importer.read(0, len(importer)))
    assert not [outcome for outcome in found if isinstance(outcome, SourceReject)]
    return {record.key: record for record in found if isinstance(record, RawRecord)}


def same(found: Array | None, expected: Array) -> bool:
    return found is not None and found.dtype == expected.dtype and found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", CASES)
def test_a_format_is_told_by_its_content_alone(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    path = case.write(tmp_path, case.images)
    seen = {known: load_format(known).sniff(path) for known in FORMATS}
    assert {known for known, evidence in seen.items() if evidence} == {case.format}


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


# UNITER's counts


def test_uniter_takes_the_rois_that_its_file_counts(tmp_path: Path) -> None:
    path = write.write_uniter(tmp_path / "feat_th0.2_max100_min10", IMAGES)
    counts = {f"{image.key}.npz": 10 + number for number, image in enumerate(IMAGES)}
    (path / "nbb_th0.2_max100_min10.json").write_text(json.dumps(counts))
    found = records(open_importer([str(path / "data.mdb")]))
    assert {key: len(record.boxes) for key, record in found.items()} == counts
    assert {key: len(record.boxes) for key, record in records(open_importer([str(path)])).items()} == counts
    first = found[f"{IMAGES[0].key}.npz"].confidence
    assert first is not None and same(np.ascontiguousarray(first), IMAGES[0].scores.astype(np.float16)[:10])


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("feat_th0.2_max100_min10", 12),
        ("feat_th0.2_max100_min15_compressed", 15),
        ("feat_th0.2_max11_min2", 11),
        ("feat_th0.01_max100_min10", 20),
        ("feat_numbb7", 7),
        ("all", 12),
    ],
)
def test_uniter_counts_by_the_rule_in_its_folders_name(tmp_path: Path, folder: str, expected: int) -> None:
    path = write.write_uniter(tmp_path / folder, IMAGES, counts=False)
    importer = open_importer([str(path)])
    assert {len(record.boxes) for record in records(importer).values()} == {expected}
    assert "rule" in importer.facts()["roi_counts"][0]


BAD_COUNTS = (
    *(
        "",
        "[1]",
        "{",
        "{}x",
        '{"a": 1',
        '{"a": 1,}',
        '{"a": 1}{',
        '{"a": 1} x',
        '{"a": "b"}',
        '{"a": true}',
        '{"a": 1.5}',
    ),
    *(
        '{"a": 0}',
        '{"a": -1}',
        '{"a": 70000}',
        '{"a": 1, "a": 2}',
        "{a: 1}",
        '{"\\ud800": 1}',
        '{"\\x": 1}',
        "[" * 100_000,
    ),
    *('{"' + "a" * 3_000_000 + '": 1}', '{"a": {"b": 1}}'),
)


def test_counts_come_out_as_json_reads_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    names = [f"coco_{number:012d}.npz" for number in range(150_000)] + ['sn\u00f6w "q" \\.npz']
    counts = {name: int(number) for name, number in zip(names, rng.integers(1, 101, len(names)), strict=True)}
    for text in (json.dumps(counts), json.dumps(counts, indent=1), json.dumps(counts, ensure_ascii=False) + "\n"):
        (tmp_path / "nbb_x.json").write_text(text)
        found = uniter_counts.find_counts(tmp_path)
        asked = [*names[::997], names[-1]]
        assert [found.count(name, np.zeros(0)) for name in asked] == [counts[name] for name in asked]
        assert found.numbers is not None and int(found.numbers.sum()) == sum(counts.values())


def test_uniter_rejects_what_its_counts_do_not_fit(tmp_path: Path) -> None:
    path = write.write_uniter(tmp_path / "x", IMAGES)
    counts = {f"{IMAGES[0].key}.npz": 21, f"{IMAGES[1].key}.npz": 12}
    (path / "nbb_th0.2_max100_min10.json").write_text(json.dumps(counts))
    importer = open_importer([str(path)])
    reasons = sorted(out.reason for out in importer.read(0, 4) if isinstance(out, SourceReject))
    assert reasons == ["field missing", "field missing", "wrong length"]
    for text in BAD_COUNTS:
        (path / "nbb_th0.2_max100_min10.json").write_text(text)
        with pytest.raises(ConfigError, match=r"nbb_th0\.2_max100_min10\.json: "):
            uniter_lmdb.UniterLmdb([path])


# tensorpack


def test_parts_of_tensorpack_are_one_input(tmp_path: Path) -> None:
    for part, images in enumerate((IMAGES[:2], IMAGES[2:])):
        points = [write.vilbert_list(image) for image in images]
        write.write_tensorpack(tmp_path / f"training_feat_part_{part}.lmdb", points, codec="msgpack")
    for lock in tmp_path.glob("*-lock"):
        lock.unlink()
    importer = open_importer([str(tmp_path)])
    assert list(importer.keys()) == [image.key for image in IMAGES] and len(importer.facts()["files"]) == 2


@pytest.mark.parametrize("codec", ["msgpack", "pickle"])
@pytest.mark.parametrize("parts", [8, 13])
def test_ids_are_found_without_reading_arrays(tmp_path: Path, codec: str, parts: int) -> None:
    make = write.vilbert_list if parts == 8 else write.volta_list
    path = write.write_tensorpack(
        tmp_path / "x.lmdb", [make(image) for image in make_images(3, num_rois=300)], codec=codec
    )
    importer = open_importer([str(path)])
    expected = [record.key for record in importer.read(0, 3) if isinstance(record, RawRecord)]
    sparse = importer.records(0).read_sparse(0, max_bytes=1 << 24)
    size, reads, pread = len(sparse), [], os.pread
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", lambda *where: (reads.append(where[1]), pread(*where))[1])
        assert list(importer.keys()) == expected
    assert sum(reads) < 3 * size / 10


def test_tensorpack_is_told_though_its_first_records_are_lost(tmp_path: Path) -> None:
    path = write.write_tensorpack(tmp_path / "x.lmdb", [named_arrays(image) for image in IMAGES], codec="pickle")
    env = lmdb.open(str(path), subdir=False, map_size=1 << 28)
    with env.begin(write=True) as txn:
        txn.delete(b"00000000")
    env.close()
    importer = open_importer([str(path)])
    assert importer.traits.format == "tensorpack-lmdb"
    assert list(importer.keys()) == [*(image.key for image in IMAGES[1:]), ""]


def test_records_that_tensorpack_lost_are_told(tmp_path: Path) -> None:
    points = [write.vilbert_list(image) for image in make_images(9)]
    path = write.write_tensorpack(tmp_path / "x.lmdb", points, codec="pickle")
    env = lmdb.open(str(path), subdir=False, map_size=1 << 28)
    with env.begin(write=True) as txn:
        for number in (3, 4, 5):
            txn.delete(f"{number:08d}".encode())
    env.close()
    importer = open_importer([str(path)])
    rejects = [out for out in importer.read(0, len(importer)) if isinstance(out, SourceReject)]
    assert len(importer) == 7 and list(importer.keys())[-1] == ""
    assert [(out.number, out.reason) for out in rejects] == [(6, "damaged file")]
    assert "records 3 to 5 are missing" in rejects[0].detail


@pytest.mark.parametrize(
    ("point", "reason", "detail"),
    [
        ([1, 2, 3], "bad record", "a list of 3 parts; expected 8 parts (ViLBERT) or 13 (VOLTA)"),
        ("text", "bad record", "a str; expected"),
        ([*write.vilbert_list(IMAGES[0])[:6], None, "caption"], "bad key", "the image's id is 'None'"),
        ([*write.vilbert_list(IMAGES[0])[:7], 5], "bad caption", "'5'; expected text"),
        ([*write.vilbert_list(IMAGES[0])[:3], 11, *write.vilbert_list(IMAGES[0])[4:]], "wrong length", "11 boxes"),
        ([*write.vilbert_list(IMAGES[0])[:5], "wide", "a", "b"], "bad field", "image width: 'wide'"),
    ],
)
def test_bad_data_points_are_rejects(tmp_path: Path, point: Any, reason: str, detail: str) -> None:
    points = [write.vilbert_list(IMAGES[0]), point]
    path = write.write_tensorpack(tmp_path / "x.lmdb", points, codec="msgpack")
    reject = list(open_importer([str(path)]).read(0, 2))[1]
    assert isinstance(reject, SourceReject) and reject.reason == reason and detail in reject.detail


# ViLBERT, VOLTA, MMF


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
