"""Damaged and hostile files of every text format: thousands of changes, and never a crash or a wrong record.

A change inside base64 can give other base64 of the same length; no format but an archive would show it. Every other
change of a record must be noticed, or leave the record as it was.
"""

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.damage import num_mutations
from tests.foreign_files import (
    Detections,
    butd_row,
    class_names,
    lxmert_row,
    make_detections,
    prediction,
    volta_row,
    write_captions,
    write_rows,
    write_vlbert,
)
from tests.import_world import make_import
from tests.test_import_formats import vinvl_file
from vlbert_data.errors import ConfigError, VlbError
from vlbert_data.importers.labels import LabelChoice
from vlbert_data.importers.zip_directory import open_zip
from vlbert_data.types import ImageRois, check_image_rois

MUTATIONS = num_mutations(300)
IMAGES = [make_detections(number, num_rois=3, feature_dim=8, num_classes=7, num_attributes=3) for number in range(1, 4)]
Write = Callable[[Path], Path]


def scene_graph_file(folder: Path) -> Path:
    path = folder / "predictions.tsv"
    path.write_text("".join(f"{f.key}\t{json.dumps(prediction(f, features=True))}\n" for f in IMAGES))
    return path


def vinvl_with_predictions(folder: Path) -> Path:
    path = vinvl_file(folder / "vinvl", IMAGES)
    (path.parent / "predictions_gt.tsv").write_text(
        "".join(f"{found.key}\t{json.dumps(prediction(found))}\n" for found in IMAGES)
    )
    return path


def rows_of(row: Callable[[Detections], dict[str, Any]]) -> Write:
    return lambda folder: write_rows(folder / "f.tsv", [row(found) for found in IMAGES])


# What is written, and which of its files is damaged.
FORMATS: dict[str, tuple[Write, str]] = {
    "lxmert": (rows_of(lxmert_row), "f.tsv"),
    "bottom-up-attention": (rows_of(butd_row), "f.tsv"),
    "volta-tsv": (rows_of(volta_row), "f.tsv"),
    "vl-bert annotations": (lambda folder: write_vlbert(folder / "cc", IMAGES), "cc/train_frcnn.json"),
    "vl-bert archive": (lambda folder: write_vlbert(folder / "cc", IMAGES), "cc/train_frcnn.zip"),
    "vl-bert deflated": (
        lambda folder: write_vlbert(folder / "cc", IMAGES, method=zipfile.ZIP_DEFLATED),
        "cc/train_frcnn.zip",
    ),
    "vl-bert loose": (
        lambda folder: write_vlbert(folder / "cc", IMAGES, packed=False),
        "cc/train_frcnn/00000001.json",
    ),
    "vinvl": (vinvl_with_predictions, "vinvl/features.tsv"),
    "vinvl predictions": (vinvl_with_predictions, "vinvl/predictions_gt.tsv"),
    "scene-graph": (scene_graph_file, "predictions.tsv"),
}


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Return `data` changed in one of the ways in which files are damaged or attacked."""
    place, other = (int(value) for value in rng.integers(0, len(data), 2))
    size = int(rng.choice([1, 2, 3, 4, 16, 300]))
    kinds = [
        lambda: data[:place],
        lambda: data[:place] + data[place + size :],
        lambda: data[:place] + data[other : other + size] + data[place:],
        lambda: data[:place] + rng.bytes(size) + data[place + size :],
        lambda: data[:place] + bytes([data[place] ^ (1 << int(rng.integers(8)))]) + data[place + 1 :],
        lambda: data[:place] + SPECIALS[int(rng.integers(len(SPECIALS)))] + data[place:],
        lambda: data[:place] + b"\0" * size + data[place + size :],
        lambda: data + data[other:],
    ]
    return kinds[int(rng.integers(len(kinds)))]()


SPECIALS = (
    *(b"\t", b"\n", b"\r\n", b'"', b"{", b"}", b"[" * 3000, b"-1", b"0", b"99999999999", b"1e999", b"NaN", b"null"),
    *(b"\xff\xfe", b"\\ud800", b"../../", b"/etc/passwd", b".zip@/", b"=", b"PK\3\4", b"\x80\x04cos\nsystem\n."),
)


def outcomes_of(path: Path, captions: Path, out: Path) -> Iterator[ImageRois]:
    choice = LabelChoice(space="seven", class_names=class_names(7))
    if json_needs_no_names(path):
        choice = LabelChoice(space=None)
    work = make_import(path, out, captions=captions, labels=choice)
    reading = work.maker.reading
    found = list(reading.outcomes(0, len(reading.importer)))
    assert [outcome.number for outcome in found] == list(range(len(reading.importer)))
    for outcome in found:
        if outcome.image is not None:
            check_image_rois(outcome.image, label_space=reading.meaning.label_space)
            yield outcome.image


def json_needs_no_names(path: Path) -> bool:
    """Return whether the format settles its classes, or has none."""
    return path.name == "f.tsv" and path.read_bytes().split(b"\n")[0].count(b"\t") in (5, 9)


def contents(image: ImageRois) -> bytes:
    rois = image.rois
    arrays = [image.features, rois.boxes, rois.scores, rois.label_ids, rois.label_probs, image.image_feature]
    return b"".join(np.ascontiguousarray(array).tobytes() for array in arrays if array is not None)


@pytest.mark.parametrize("name", list(FORMATS))
def test_no_change_of_a_file_crashes_an_import_or_passes_unnoticed(tmp_path: Path, name: str) -> None:
    write, damaged = FORMATS[name]
    source = write(tmp_path)
    captions = tmp_path / "captions.tsv"
    keys = [key for found in IMAGES for key in (found.key, str(int(found.key[-12:])))] + ["00000000", "00000001"]
    captions.write_text("".join(f"{key}\ta caption\n" for key in [*keys, "00000002"]))
    good = {contents(image) for image in outcomes_of(source, captions, tmp_path / "out")}
    assert len(good) == len(IMAGES)
    target = tmp_path / damaged
    original = target.read_bytes()
    rng = np.random.default_rng(len(name))
    accepted = refused = 0
    for _ in range(MUTATIONS):
        target.write_bytes(changed := mutate(original, rng))
        try:
            images = list(outcomes_of(source, captions, tmp_path / "out"))
        except VlbError:
            refused += 1
            continue
        accepted += len(images)
        if "archive" in name or "deflated" in name or "annotations" in name:
            assert {contents(image) for image in images} <= good
        elif len(changed) != len(original):
            # Another length: numbers in columns may differ (a size, a confidence), arrays of base64 may not.
            check_arrays(images, good_arrays(good, images))
    assert accepted, "some changes leave some records good"
    assert refused < MUTATIONS


def good_arrays(good: set[bytes], images: list[ImageRois]) -> set[bytes]:
    """Return the features of the good records, which each accepted record must have as they were."""
    size = {image.features.nbytes for image in images}
    return {record[:count] for record in good for count in size}


def check_arrays(images: list[ImageRois], good: set[bytes]) -> None:
    for image in images:
        rows = {np.ascontiguousarray(row).tobytes() for row in image.features}
        width = image.features.shape[1] * 2
        known = {record[at : at + width] for record in good for at in range(0, len(record), width)}
        assert rows <= known, "features that are in no good record were accepted"


def test_paths_in_annotations_never_lead_outside(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    path = write_vlbert(tmp_path / "cc", IMAGES, packed=False)
    secret.write_text((tmp_path / "cc" / "train_frcnn" / "00000000.json").read_text())
    captions = write_captions(tmp_path / "captions.json", IMAGES)
    lines = path.read_text().splitlines()
    for written in (
        "../secret.json",
        str(secret),
        "train_frcnn/../../secret.json",
        "train_frcnn.zip@/../../secret.json",
    ):
        path.write_text("\n".join([json.dumps({**json.loads(lines[0]), "frcnn": written}), *lines[1:]]))
        choice = LabelChoice(space="seven")
        reading = make_import(path, tmp_path / "out", captions=None, labels=choice).maker.reading
        first = next(reading.outcomes(0, 1))
        assert first.reject is not None
        assert first.reject.reason == "path outside"
    assert captions.exists()


def test_a_name_longer_than_any_file_has_is_refused_in_words(tmp_path: Path) -> None:
    path = write_vlbert(tmp_path / "cc", IMAGES)
    path.write_text(path.read_text().replace("train_frcnn.zip", "t" + "[" * 3000 + ".zip", 1))
    with pytest.raises(ConfigError, match=r"names features in .*, but neither it nor the folder unpacked is there"):
        make_import(path, tmp_path / "out", labels=LabelChoice(space="seven"))


@pytest.mark.parametrize(
    "written", ["train_frcnn.zip@/0000\ud800.json", "tr\ud800in.zip@/00000000.json", "\ud800.json"]
)
def test_names_with_halves_of_characters_cost_their_record_or_are_refused(tmp_path: Path, written: str) -> None:
    path = write_vlbert(tmp_path / "cc", IMAGES)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], json.dumps({**json.loads(lines[1]), "frcnn": written}), *lines[2:]]))
    if written.startswith("tr\ud800in"):
        with pytest.raises(ConfigError, match=r"names an archive that is not read: .* is no file's name"):
            make_import(path, tmp_path / "out", labels=LabelChoice(space="seven"))
        return
    reading = make_import(path, tmp_path / "out", labels=LabelChoice(space="seven")).maker.reading
    assert [outcome.image is None for outcome in reading.outcomes(0, 3)] == [False, True, False]


def test_an_archive_that_unpacks_to_more_than_it_states_is_a_reject(tmp_path: Path) -> None:
    path = write_vlbert(tmp_path / "cc", IMAGES, method=zipfile.ZIP_DEFLATED)
    archive = tmp_path / "cc" / "train_frcnn.zip"
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("bomb.json", b" " * 50_000_000)
    data = bytearray(archive.read_bytes())
    entry = data.rfind(b"PK\1\2")
    data[entry + 24 : entry + 28] = (100).to_bytes(4, "little")  # the stated size
    archive.write_bytes(data)
    lines = path.read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), "frcnn": "train_frcnn.zip@/bomb.json"})
    path.write_text("\n".join(lines))
    reading = make_import(path, tmp_path / "out", labels=LabelChoice(space="seven")).maker.reading
    outcomes = list(reading.outcomes(0, 3))
    assert [outcome.image is None for outcome in outcomes] == [False, True, False]
    assert outcomes[1].reject is not None
    assert outcomes[1].reject.reason == "damaged archive"


def test_the_zip_directory_finds_what_python_wrote(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    rng = np.random.default_rng(0)
    members = {f"folder/é{number}.json": rng.bytes(number) for number in range(200)}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/", b"")
        for number, (name, data) in enumerate(members.items()):
            archive.writestr(name, data, zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED)
        # Python's own reader takes these letters for the archive's end.
        archive.comment = b"PK\5\6 is no end here"
    found = open_zip(path, name="a.zip")
    assert [found.name(member) for member in range(len(found))] == list(members)
    assert all(found.read(found.find(name)) == data for name, data in members.items())
