"""Comparing features: each cause of a difference is made, and is the one that is named."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.foreign_files import (
    Detections,
    lxmert_row,
    make_detections,
    prediction,
    volta_row,
    write_captions,
    write_rows,
)
from tests.import_world import run_import
from vlbert_data import boxes as geometry
from vlbert_data.compare import Comparison, compare, match_boxes
from vlbert_data.errors import ConfigError
from vlbert_data.importers.feature_set import open_feature_set
from vlbert_data.importers.keys import KeyPattern
from vlbert_data.importers.labels import LabelChoice

IMAGES = [make_detections(number, num_rois=8, feature_dim=64) for number in range(1, 9)]


def compare_with(
    tmp_path: Path, change: Callable[[Detections], Detections], *, match: str = "iou", shift: int = 0
) -> Comparison:
    """Return the comparison of IMAGES, imported, with a table of the same images changed."""
    rows = [lxmert_row(found) for found in IMAGES]
    captions = write_captions(tmp_path / "captions.json", IMAGES)
    run_import(write_rows(tmp_path / "a.tsv", rows), tmp_path / "a", captions=captions)
    changed = [change(found) for found in IMAGES]
    if shift:
        changed = [dataclasses.replace(f, cls_prob=np.roll(f.cls_prob, shift, axis=1)) for f in changed]
    write_rows(tmp_path / "b.tsv", [lxmert_row(found) for found in changed])
    sets = [open_feature_set(path, KeyPattern(), None) for path in (tmp_path / "a", tmp_path / "b.tsv")]
    return compare(*sets, match=match, num_images=100)


def scaled(found: Detections) -> Detections:
    return dataclasses.replace(
        found, width=2 * found.width, height=2 * found.height, boxes=(found.boxes * 2).astype(np.float32)
    )


def with_last_pixel(found: Detections) -> Detections:
    return dataclasses.replace(found, boxes=found.boxes + np.array([0, 0, 1, 1], np.float32))


def swapped(found: Detections) -> Detections:
    side = max(found.width, found.height)
    return dataclasses.replace(found, width=side, height=side, boxes=found.boxes[:, [1, 0, 3, 2]])


def from_other_pixels(found: Detections) -> Detections:
    noise = np.random.default_rng(0).standard_normal(found.features.shape).astype(np.float32)
    return dataclasses.replace(found, features=found.features + 1.2 * noise)


def of_other_network(found: Detections) -> Detections:
    return dataclasses.replace(found, features=np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32))


@pytest.mark.parametrize(
    ("change", "match", "expected"),
    [
        (lambda found: found, "iou", "No difference beyond rounding."),
        (scaled, "iou", "2.0 times as wide and 2.0 times as high"),
        (with_last_pixel, "iou", "right and lower edges differ by one pixel"),
        (swapped, "id", "x and y are swapped"),
        (from_other_pixels, "iou", "another colour order"),
        (of_other_network, "iou", "Features are unrelated"),
        (lambda f: dataclasses.replace(f, features=f.features * 3), "iou", "3.0 times as long"),
        (lambda f: dataclasses.replace(f, features=f.features[:, :32]), "iou", "64 and 32 numbers"),
        (
            lambda f: dataclasses.replace(
                f, boxes=f.boxes[:3], features=f.features[:3], cls_prob=f.cls_prob[:3], attr_prob=f.attr_prob[:3]
            ),
            "iou",
            "have a partner",
        ),
    ],
)
def test_the_cause_of_a_difference_is_named(
    tmp_path: Path, change: Callable[[Detections], Detections], match: str, expected: str
) -> None:
    found = compare_with(tmp_path, change, match=match)
    assert any(expected in finding for finding in found.findings), found


@pytest.mark.parametrize("shift", [-1, 1])
def test_classes_moved_by_one_are_named_with_their_direction(tmp_path: Path, shift: int) -> None:
    found = compare_with(tmp_path, lambda image: image, shift=shift)
    assert len(found.findings) == 1
    assert f"Classes are moved by {shift:+d}" in found.findings[0]
    assert found.facts["label_agreement"][f"{shift:+d}"] > 0.9


def test_classes_are_compared_by_what_they_mean_and_not_by_number(tmp_path: Path) -> None:
    """VOLTA counts the background, LXMERT does not, and both say so."""
    paths = [
        write_rows(tmp_path / f"{row.__name__}.tsv", [row(found) for found in IMAGES])
        for row in (volta_row, lxmert_row)
    ]
    found = compare(*(open_feature_set(path, KeyPattern(), None) for path in paths), match="iou", num_images=100)
    assert found.facts["backgrounds"] == ["first", "none"] and found.facts["label_agreement"]["+0"] == 1.0
    assert [finding[:24] for finding in found.findings] == ["Classes are the same, bu"]
    captions = write_captions(tmp_path / "captions.json", IMAGES)
    wrong = run_import(paths[1], tmp_path / "wrong", captions=captions, labels=LabelChoice(background="first"))
    sets = [open_feature_set(path, KeyPattern(), None) for path in (wrong.path, paths[1])]
    assert "Classes are moved by +1" in compare(*sets, match="iou", num_images=100).findings[0]


def test_the_same_rois_in_another_order_are_recognised(tmp_path: Path) -> None:
    def turned(image: Detections) -> Detections:
        return Detections(
            **{
                field.name: value[::-1] if isinstance(value := getattr(image, field.name), np.ndarray) else value
                for field in dataclasses.fields(image)
            }
        )

    assert "another order" in compare_with(tmp_path, turned).findings[0]
    by_place = compare_with(tmp_path, turned, match="id")
    assert any("Compare with --match iou" in finding for finding in by_place.findings)


def test_boxes_are_paired_as_a_slow_search_pairs_them() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        low = rng.uniform(0, 50, (6, 2))
        a = np.concatenate([low, low + rng.uniform(10, 60, (6, 2))], axis=1)
        b = (a + rng.normal(0, 6, a.shape))[rng.permutation(6)][:5]
        overlaps = geometry.iou(a, b)
        expected = [
            (i, j)
            for i in range(6)
            for j in range(5)
            if overlaps[i, j] >= 0.5 and overlaps[i, j] == overlaps[i].max() == overlaps[:, j].max()
        ]
        assert list(zip(*(rows.tolist() for rows in match_boxes(a, b)), strict=True)) == expected


@pytest.mark.parametrize(
    ("ids", "pattern", "words"),
    [
        (("5", "6"), None, r"Images in {a} are called 'COCO_val2014_000000000001', 'COCO_val2014_000000000002'. "),
        (("5", "6"), None, "Images in {b} are called '5', '6'. No usual --key-pattern makes some equal."),
        (("2", "9"), None, r"With --key-pattern '0*(\d+)$' 1 of 2 images are in both."),
        (("2.jpg", "1.jpg"), None, r"With --key-pattern '0*(\d+)(?:\.\w+)?$' 2 of 2 images are in both."),
        (("x/2.jpg", "y/2.jpg"), None, "No usual --key-pattern makes some equal."),
        (
            ("2", "1"),
            r"_(\d+)$",
            r"By --key-pattern '_(\d+)$' images in {a} are called '000000000001', '000000000002'. ",
        ),
        (
            ("2", "1"),
            r"_(\d+)$",
            r"--key-pattern '_(\d+)$' finds nothing in '2', '1' in {b}. With --key-pattern '0*(\d+)$'",
        ),
    ],
)
def test_features_of_other_images_are_told_by_their_ids_with_a_pattern_that_finds_some(
    tmp_path: Path, ids: tuple[str, str], pattern: str | None, words: str
) -> None:
    rows = [[{**lxmert_row(found), **other} for found in IMAGES[:2]] for other in ({}, {"img_id": ""})]
    for row, name in zip(rows[1], ids, strict=True):
        row["img_id"] = name
    paths = {name: write_rows(tmp_path / f"{name}.tsv", side) for name, side in zip("ab", rows, strict=True)}
    sets = [open_feature_set(path, KeyPattern.of(pattern), None) for path in paths.values()]
    with pytest.raises(ConfigError) as refused:
        compare(*sets, match="iou", num_images=10)
    said = str(refused.value)
    assert said.startswith(f"{paths['a']} and {paths['b']} have no image id in common. ")
    assert words.format(**paths) in said


def test_classes_without_a_list_that_numbers_them_hinder_no_comparison(tmp_path: Path) -> None:
    path = tmp_path / "predictions.tsv"
    lines = [f"{found.key}\t{json.dumps(prediction(found, features=True))}\n" for found in IMAGES]
    path.write_text("".join(lines))
    (tmp_path / "rows").mkdir()
    table = write_rows(tmp_path / "rows" / "a.tsv", [lxmert_row(found) for found in IMAGES])
    sets = [open_feature_set(other, KeyPattern(), None) for other in (path, table)]
    found = compare(*sets, match="iou", num_images=100)
    assert found.facts["images"] == len(IMAGES) and "label_agreement" not in found.facts
    assert found.facts["cosine"]["median"] == 1.0
    path.write_text("".join(line.replace('"image_w"', '"w"') for line in lines))
    with pytest.raises(ConfigError, match="scene-graph stores no image sizes"):
        open_feature_set(path, KeyPattern(), None)


def test_the_command_prints_facts_and_findings(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.tsv", [lxmert_row(found) for found in IMAGES])
    command = [sys.executable, "-m", "cli.main", "compare-features", str(path), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "- No difference beyond rounding." in done.stdout
    facts = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert facts["images"] == len(IMAGES)
    assert facts["cosine"]["median"] == 1.0
