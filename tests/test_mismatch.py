"""Captions and sizes of other images are told with ids of both sides and a pattern that works, if there is one."""

from collections.abc import Callable
from pathlib import Path

import pytest
from foreign_files import lxmert_row, make_detections, write_rows
from run_vlb import Answer

from vlbert_data.importers.keys import KeyPattern
from vlbert_data.importers.mismatch import explain_mismatch

IMAGES = [make_detections(number, num_rois=4) for number in range(1, 6)]
KEYS = ["train/COCO_000000000042.jpg", "train/COCO_000000000043.jpg", "train/COCO_000000000044.jpg", "train/COCO_9.jpg"]


@pytest.mark.parametrize(
    ("pattern", "ids", "words"),
    [
        (None, {"42", "43"}, r"With --key-pattern '0*(\d+)(?:\.\w+)?$' 2 of 4 images are found."),
        (None, {"COCO_9.jpg"}, "With --key-pattern '([^/]+)$' 1 of 4 images are found."),
        (None, {"no"}, "No usual --key-pattern makes them equal."),
        (None, {"0"}, "No usual --key-pattern makes them equal."),
        (r"(\d+)\.jpg$", {"42"}, "By --key-pattern '(\\d+)\\.jpg$' images are called '000000000042', '000000000043', "),
        (r"(\d+)\.jpg$", {"42"}, r"With --key-pattern '0*(\d+)(?:\.\w+)?$' 1 of 4"),
        (r"(\d+)\.png$", {"42"}, r"--key-pattern '(\d+)\.png$' finds nothing in 'train/COCO_000000000042.jpg', "),
        (
            r"0(42)",
            {"no"},
            "By --key-pattern '0(42)' images are called '42', 'train/COCO_000000000043.jpg' (not found), ",
        ),
        (r"(\d+)\.png$", {KEYS[0]}, "Without --key-pattern 1 of 4 images are found."),
    ],
)
def test_ids_of_both_sides_are_shown_as_compared_and_a_pattern_only_if_it_finds_more(
    pattern: str | None, ids: set[str], words: str
) -> None:
    said = explain_mismatch(lambda: iter(KEYS), KeyPattern.of(pattern), ["1", "2"], ids.__contains__)
    assert words in said
    assert "the file has '1', '2'." in said


def test_captions_and_sizes_of_other_images_are_told_with_a_pattern_that_works(
    vlb: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "f.tsv", [lxmert_row(found) for found in IMAGES])
    (tmp_path / "c.tsv").write_text("".join(f"{number}\ta caption\n" for number in range(1, 6)))
    command = ["import-features", "f.tsv", "--captions", "c.tsv", "--out", "out"]
    for options in ([], ["--key-pattern", r"\d+$"]):
        answer = vlb(*command, *options)
        assert answer.code == 1
        assert r"With --key-pattern '0*(\d+)$' 5 of 5 images are found." in answer.err
        assert "the file has '1', '2', '3'." in answer.err
    assert vlb(*command, "--key-pattern", r"0*(\d+)$").code == 0
