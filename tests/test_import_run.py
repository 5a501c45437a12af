"""The import as a whole: rejects, joins, duplicates, limits, going on after a kill, and always the same bytes."""

import base64
import filecmp
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.foreign_files import b64, butd_row, lxmert_row, make_detections, volta_row, write_captions, write_rows
from tests.import_world import make_import, rejects, run_import
from tests.limits import files_end_at
from vlbert_data.build.state import BuildState, TooManyRejectsError
from vlbert_data.errors import ConfigError, VlbError
from vlbert_data.importers.captions import open_captions
from vlbert_data.importers.keys import KeyPattern, Repeats, hash_keys
from vlbert_data.importers.meaning import CLAMPED
from vlbert_data.importers.reading import WITHOUT_CAPTION
from vlbert_data.importers.run import NO_CAPTION, WITHOUT_IMAGE, Progress
from vlbert_data.shards.folder import ShardFolder

IMAGES = [make_detections(number, num_rois=4) for number in range(1, 13)]


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    return write_captions(tmp_path / "captions.json", IMAGES)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "f.tsv", [lxmert_row(found) for found in IMAGES])


def damage(table: Path, line: int, column: int, value: str) -> None:
    lines = table.read_bytes().split(b"\r\n")
    columns = lines[line].split(b"\t")
    columns[column] = value.encode()
    lines[line] = b"\t".join(columns)
    table.write_bytes(b"\r\n".join(lines))


WIDE = np.array([[0, 0, 50, 50]] * 4, np.float32)


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        (9, "AAAA", "wrong length"),
        (9, "AA*A", "bad base64"),
        (9, "AAA", "bad base64"),
        (9, b64(np.full((4, 12), np.nan, np.float32)), "feature not finite"),
        (9, b64(np.full((4, 12), 7e4, np.float32)), "feature overflow"),
        (8, b64(WIDE * 100), "box outside image"),
        (8, b64(WIDE * 0), "bad box"),
        (8, b64(WIDE - [[0, 0, 0, np.inf]]), "not finite"),
        (8, b64(WIDE[:3]), "wrong length"),
        (7, "5", "wrong length"),
        (7, "-4", "bad number"),
        (7, "4_0", "bad number"),
        (7, "99999999", "bad number"),
        (1, "0", "bad number"),
        (3, b64(np.full(4, -1)), "bad label"),
        (4, b64(np.full(4, 1.5, np.float32)), "not a probability"),
        (4, b64(np.full(4, np.nan, np.float32)), "not finite"),
        (5, b64(np.full(4, 400)), "bad label"),
        (0, "", "bad key"),
        (0, "torn\tline", "wrong columns"),
    ],
)
def test_a_damaged_column_costs_its_row_and_names_it(
    tmp_path: Path, captions: Path, table: Path, column: int, value: str, reason: str
) -> None:
    damage(table, 3, column, value)
    folder = run_import(table, tmp_path / "out", captions=captions, max_rejects=1)
    assert [(line["reason"], line["where"]) for line in rejects(folder)] == [(reason, f"{table}:4")]
    assert folder.manifest.rejects == {reason: 1}
    assert folder.index.image_ids.to_pylist() == [found.key for found in IMAGES if found != IMAGES[3]]


def test_an_id_beyond_the_classes_behind_the_first_rows_costs_its_row(
    tmp_path: Path, captions: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlbert_data.importers.row_importer.ROWS_TRIED", 5)
    damage(table, 7, 3, b64(np.full(4, 1600)))
    folder = run_import(table, tmp_path / "out", captions=captions, max_rejects=1)
    assert [line["detail"] for line in rejects(folder)] == ["class ids are 1600 .. 1600; the space has 0 .. 1599"]


def test_an_id_that_no_list_of_classes_has_does_not_decide_for_the_file(
    tmp_path: Path, captions: Path, table: Path
) -> None:
    damage(table, 0, 3, b64(np.full(4, 10**12)))
    folder = run_import(table, tmp_path / "out", captions=captions, max_rejects=1)
    assert folder.manifest.rejects == {"bad label": 1}


def test_a_torn_last_line_is_a_reject(tmp_path: Path, captions: Path, table: Path) -> None:
    table.write_bytes(table.read_bytes()[:-50])
    folder = run_import(table, tmp_path / "out", captions=captions, max_rejects=1)
    assert rejects(folder)[0]["where"] == f"{table}:12"
    assert len(folder) == 11


def test_swapped_sides_are_suspected_where_boxes_fit_them(tmp_path: Path, captions: Path, table: Path) -> None:
    tall = next(number for number, found in enumerate(IMAGES) if found.boxes[:, 2].max() > found.height + 1)
    damage(table, tall, 1, str(IMAGES[tall].width))
    damage(table, tall, 2, str(IMAGES[tall].height))
    folder = run_import(table, tmp_path / "out", captions=captions, max_rejects=1)
    assert "width and height swapped" in rejects(folder)[0]["detail"]


def test_edges_within_a_pixel_of_the_image_are_moved_to_its_border_and_counted(
    tmp_path: Path, captions: Path, table: Path
) -> None:
    boxes = IMAGES[0].boxes.copy()
    boxes[0, 2] = IMAGES[0].width + 0.8
    boxes[1, 1] = -0.6
    damage(table, 0, 8, b64(boxes))
    folder = run_import(table, tmp_path / "out", captions=captions)
    assert folder.manifest.left_out == {CLAMPED: 2}
    image = folder.read(0)
    boxes[0, 2], boxes[1, 1] = IMAGES[0].width, 0
    np.testing.assert_array_equal(image.rois.boxes, boxes[image.rois.source_rows])


def test_the_first_good_record_of_an_id_holds_it(tmp_path: Path, captions: Path) -> None:
    rows = [lxmert_row(found) for found in IMAGES[:4]]
    rows.insert(0, {**rows[2], "boxes": "AAAA"})  # a damaged one first
    rows.append({**rows[1], "features": rows[2]["features"]})
    path = write_rows(tmp_path / "f.tsv", rows)
    for shard_size in (2, 1000):
        folder = run_import(path, tmp_path / str(shard_size), captions=captions, max_rejects=2, shard_size=shard_size)
        found = [(line["reason"], line["where"].rpartition(":")[2]) for line in rejects(folder)]
        assert found == [("wrong length", "1"), ("duplicate image id", "6")]
        assert sorted(folder.index.image_ids.to_pylist()) == [found.key for found in IMAGES[:4]]


def test_parts_that_overlap_give_each_image_once(tmp_path: Path, captions: Path) -> None:
    parts = [
        write_rows(tmp_path / f"part.{number}", [lxmert_row(found) for found in IMAGES[first : first + 5]])
        for number, first in enumerate((0, 3, 6))
    ]
    folder = run_import(parts, tmp_path / "out", captions=captions, max_rejects=4, shard_size=4)
    assert folder.index.image_ids.to_pylist() == [found.key for found in IMAGES[:11]]
    assert [line["where"] for line in rejects(folder)] == [f"{parts[n]}:{line}" for n in (1, 2) for line in (1, 2)]
    assert {line["reason"] for line in rejects(folder)} == {"duplicate image id"}


def test_blank_lines_are_no_rows_and_places_count_them(tmp_path: Path, captions: Path, table: Path) -> None:
    damage(table, 3, 8, "AAAA")
    table.write_bytes(b"\r\n" + table.read_bytes().replace(b"\r\n", b"\r\n\r\n", 2))
    folder = run_import(table, tmp_path / "out", captions=captions, max_rejects=1)
    assert len(folder) == 11
    assert rejects(folder)[0]["where"] == f"{table}:7"


def test_given_sizes_go_before_those_of_the_file(tmp_path: Path, captions: Path, table: Path) -> None:
    sizes = tmp_path / "sizes.tsv"
    sizes.write_text(f"{IMAGES[0].key}\t1000\t900\n")
    folder = run_import(table, tmp_path / "out", captions=captions, sizes=sizes)
    assert (folder.index.width_px[0], folder.index.height_px[0]) == (1000, 900)
    assert folder.index.width_px[1] == IMAGES[1].width


def test_sizes_are_found_by_the_key_where_a_pattern_makes_the_id(tmp_path: Path, captions: Path, table: Path) -> None:
    sizes = tmp_path / "sizes.tsv"
    sizes.write_text(f"{IMAGES[0].key}.jpg\t1000\t900\n")
    folder = run_import(table, tmp_path / "out", captions=captions, sizes=sizes, key_pattern=r"0*(\d+)$")
    assert (folder.index.image_id(0), folder.index.width_px[0]) == ("1", 1000)


def test_sizes_of_other_images_are_refused_even_where_none_are_needed(
    tmp_path: Path, captions: Path, table: Path
) -> None:
    sizes = tmp_path / "sizes.tsv"
    sizes.write_text("other\t1000\t900\n")
    with pytest.raises(ConfigError, match="sizes of none of the images"):
        make_import(table, tmp_path / "out", captions=captions, sizes=sizes)


def test_a_line_that_ran_into_the_next_one_takes_no_id(tmp_path: Path, captions: Path, table: Path) -> None:
    lines = table.read_bytes().split(b"\r\n")
    table.write_bytes(b"\r\n".join([lines[0][:200] + lines[1], lines[0], *lines[2:]]))
    folder = run_import(table, tmp_path / "out", captions=captions, max_rejects=1)
    assert [line["reason"] for line in rejects(folder)] == ["wrong columns"]
    assert folder.index.find(IMAGES[0].key) is not None


def test_images_without_caption_and_captions_without_image_are_counted(tmp_path: Path, table: Path) -> None:
    others = [*IMAGES[:9], make_detections(50), make_detections(51)]
    captions = write_captions(tmp_path / "some.json", others)
    folder = run_import(table, tmp_path / "out", captions=captions)
    assert folder.manifest.left_out == {WITHOUT_CAPTION: 3, WITHOUT_IMAGE: 4}
    assert len(folder) == 9


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("a.jsonl", ['{"image_id": "%s", "caption": "one"}', '{"image": "%s.jpg", "captions": ["two"]}']),
        ("a.tsv", ["%s\tone", "%s.jpg\ttwo"]),
        ("flickr.token", ["%s.jpg#0\tone", "%s.jpg#1\ttwo"]),
    ],
)
def test_captions_of_several_lines_join_in_order(tmp_path: Path, table: Path, name: str, lines: list[str]) -> None:
    path = tmp_path / name
    text = "".join(f"{line % found.key}\n" for line in lines for found in IMAGES)
    path.write_text(text.replace("\n", "\nno caption here\n", 1))
    folder = run_import(table, tmp_path / "out", captions=path)
    assert {folder.captions(image) for image in range(len(folder))} == {("one", "two")}


def test_captions_of_images_in_folders_are_not_taken_for_each_others(tmp_path: Path) -> None:
    keys = ["cat/1", "dog/1.jpg", "dog/2", "1", "2", "3", "4"]
    rows = [{**lxmert_row(found), "img_id": key} for found, key in zip(IMAGES, keys, strict=False)]
    captions = tmp_path / "captions.tsv"
    named = ["cat/1.jpg", "dog/1.jpg", "dog/2.jpg", "2.jpg", "dog/3.jpg", "dog/4.jpg#0", "cat/4.jpg#0"]
    captions.write_text("".join(f"{name}\tof {name}\n" for name in named))
    folder = run_import(write_rows(tmp_path / "f.tsv", rows), tmp_path / "out", captions=captions, max_rejects=2)
    found = {folder.index.image_id(image): folder.captions(image) for image in range(len(folder))}
    assert found == {
        "cat/1": ("of cat/1.jpg",),
        "dog/1.jpg": ("of dog/1.jpg",),
        "dog/2": ("of dog/2.jpg",),
        "2": ("of 2.jpg",),  # as it is called, not as an image of that name in a folder
        "3": ("of dog/3.jpg",),
    }
    assert [(line["reason"], line["detail"]) for line in rejects(folder)] == [
        ("ambiguous caption", f"{key!r}: {captions} has 2 folders with an image of this name: cat, dog")
        for key in ("1", "4")
    ]


def test_a_coco_file_with_odd_entries_loses_these_alone_and_counts_them(tmp_path: Path, table: Path) -> None:
    captions = write_captions(tmp_path / "captions.json", IMAGES[:2])
    document = json.loads(captions.read_text())
    first = document["annotations"][0]
    odd = [5, None, {"caption": "of none"}, {"image_id": [1], "caption": "a"}]
    odd += [{**first, "caption": text} for text in (None, " ", ["a"], "\ud800")]
    document["annotations"] += odd
    document["images"] += [7, {"id": [1], "file_name": "x.jpg"}]
    captions.write_text(json.dumps(document))
    folder = run_import(table, tmp_path / "out", captions=captions)
    assert len(folder) == 2
    assert folder.captions(0)[0] == first["caption"] and len(folder.captions(0)) == len(folder.captions(1))
    assert folder.manifest.left_out == {WITHOUT_CAPTION: 10, NO_CAPTION: len(odd)}
    document["images"] = {"a": 1}
    captions.write_text(json.dumps(document))
    again = run_import(table, tmp_path / "again", captions=captions, key_pattern=r"_0*(\d+)$")
    assert again.captions(0) == folder.captions(0)


@pytest.mark.parametrize("first", ['torn": 5}', "a\tb\tc", "x"])
def test_a_first_line_unlike_the_others_does_not_decide_how_captions_are_written(tmp_path: Path, first: str) -> None:
    for name, line in (("a", '{"image_id": %d, "caption": "one"}'), ("b", "one\thttp://example.org/%d.jpg")):
        path = tmp_path / name
        path.write_text("".join(f"{text}\n" for text in (first, line % 1, line % 2)))
        captions = open_captions(path)
        assert captions.of("2" if name == "a" else str(zlib.crc32(b"http://example.org/2.jpg"))) == ("one",)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (gzip.compress(b"x\ta caption\n"), "compressed with gzip; --captions takes a file of text. Unpack it first."),
        (
            "x\ta caption\n".encode("utf-16"),
            "text in UTF-16; --captions takes UTF-8. Convert it, as with iconv -t utf8.",
        ),
        (b"x a caption\n\n[]\n", "none of 2 lines or annotations holds a caption of an image."),
        (b"", "none of 0 lines or annotations holds a caption of an image."),
    ],
)
def test_a_file_that_holds_no_captions_is_told_what_it_is(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "captions"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^{path}: {complaint}"):
        open_captions(path)


def test_the_number_of_an_annotation_is_no_image(tmp_path: Path, table: Path) -> None:
    """COCO's annotations, one a line: each caption has a number of its own, which other images have too."""
    captions = tmp_path / "annotations.jsonl"
    lines = [{"image_id": number, "id": number % 12 + 1, "caption": f"of {number}"} for number in range(1, 13)]
    captions.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    folder = run_import(table, tmp_path / "out", captions=captions, key_pattern=r"_0*(\d+)$")
    assert {folder.index.image_id(image): folder.captions(image) for image in range(len(folder))} == {
        str(number): (f"of {number}",) for number in range(1, 13)
    }


def test_conceptual_captions_join_by_the_crc_of_their_url(tmp_path: Path) -> None:
    urls = [f"http://example.org/{number}.jpg" for number in range(12)]
    rows = [{**volta_row(found), "img_id": zlib.crc32(url.encode())} for found, url in zip(IMAGES, urls, strict=True)]
    captions = tmp_path / "Train_GCC.tsv"
    captions.write_text("".join(f"caption {number}\t{url}\n" for number, url in enumerate(urls)))
    folder = run_import(write_rows(tmp_path / "f.tsv", rows), tmp_path / "out", captions=captions)
    assert [folder.captions(image) for image in range(12)] == [(f"caption {number}",) for number in range(12)]


def test_two_urls_of_one_crc_give_no_image_a_wrong_caption(tmp_path: Path) -> None:
    # Found by search: these two have the same CRC-32.
    urls = _colliding_urls()
    assert zlib.crc32(urls[0].encode()) == zlib.crc32(urls[1].encode())
    rows = [{**volta_row(IMAGES[0]), "img_id": zlib.crc32(urls[0].encode())}]
    rows.append({**volta_row(IMAGES[1]), "img_id": zlib.crc32(b"http://example.org/x")})
    captions = tmp_path / "cc.tsv"
    captions.write_text(f"one\t{urls[0]}\ntwo\t{urls[1]}\nthree\thttp://example.org/x\n")
    folder = run_import(write_rows(tmp_path / "f.tsv", rows), tmp_path / "out", captions=captions, max_rejects=1)
    assert [line["reason"] for line in rejects(folder)] == ["ambiguous caption"]
    assert folder.captions(0) == ("three",)


def _colliding_urls() -> tuple[str, str]:
    """Return two URLs of one CRC-32: the checksum is linear, so four bytes can be chosen to bring about any value."""
    seen: dict[int, str] = {}
    for number in range(400_000):
        url = f"http://e.org/{number * 2654435761 % 2**32:08x}"
        other = seen.setdefault(zlib.crc32(url.encode()), url)
        if other != url:
            return other, url
    raise AssertionError("no two of 400,000 URLs collide; 18 pairs are expected")


def test_a_key_pattern_finds_the_image_id(tmp_path: Path, table: Path, captions: Path) -> None:
    folder = run_import(table, tmp_path / "out", captions=captions, key_pattern=r"_0*(\d+)$")
    assert folder.index.image_ids.to_pylist() == [str(number) for number in range(1, 13)]


def test_captions_of_other_images_are_refused_with_names_of_both(tmp_path: Path, table: Path) -> None:
    captions = write_captions(tmp_path / "other.json", [make_detections(99)])
    with pytest.raises(
        ConfigError, match=r"none of the images. Images are called 'COCO_val2014_0+1', .* the file has '99'\."
    ):
        run_import(table, tmp_path / "out", captions=captions)


def test_a_format_without_captions_asks_for_them(tmp_path: Path, table: Path) -> None:
    with pytest.raises(ConfigError, match="lxmert stores no captions"):
        run_import(table, tmp_path / "out")


def test_too_many_rejects_fail_the_import_and_mended_input_is_another_import(
    tmp_path: Path, table: Path, captions: Path
) -> None:
    good = table.read_bytes()
    for line in (1, 2):
        damage(table, line, 8, "AAAA")
    with pytest.raises(TooManyRejectsError, match=r"2 of 12 inputs were rejected; --max-rejects allows 0\.05"):
        run_import(table, tmp_path / "out", captions=captions, shard_size=4)
    assert not (tmp_path / "out" / "manifest.json").exists()
    folder = run_import(table, tmp_path / "out", captions=captions, shard_size=4, max_rejects=2)
    assert len(folder) == 10
    table.write_bytes(good)
    with pytest.raises(ConfigError, match="begun with other settings: source"):
        run_import(table, tmp_path / "out", captions=captions, shard_size=4, max_rejects=0.5)


@pytest.mark.parametrize("container", ["lmdb", "hdf5"])
def test_workers_shards_and_repetition_do_not_change_a_byte(
    tmp_path: Path, table: Path, captions: Path, container: str
) -> None:
    folders = [tmp_path / name for name in ("one", "many")]
    for folder, workers in zip(folders, (1, 2), strict=True):
        run_import(table, folder, captions=captions, container=container, shard_size=5, workers=workers)
    names = sorted(entry.name for entry in folders[0].iterdir())
    assert names == sorted(entry.name for entry in folders[1].iterdir())
    assert filecmp.cmpfiles(*folders, names, shallow=False)[0] == names


def test_finished_shards_are_kept_and_not_made_again(tmp_path: Path, table: Path, captions: Path) -> None:
    work = make_import(table, tmp_path / "out", captions=captions, shard_size=4)
    work.maker.state.begin()
    work.maker.make_all([1], lambda _: None)
    before = (tmp_path / "out" / "shard-00001.lmdb").stat()
    result = make_import(table, tmp_path / "out", captions=captions, shard_size=4).run()
    assert result.made == 2
    after = (tmp_path / "out" / "shard-00001.lmdb").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert make_import(table, tmp_path / "out", captions=captions, shard_size=4).run().made == 0


def test_an_import_killed_at_any_moment_ends_as_if_never_interrupted(tmp_path: Path, captions: Path) -> None:
    images = [make_detections(number, num_rois=30, feature_dim=512) for number in range(1, 61)]
    table = write_rows(tmp_path / "f.tsv", [lxmert_row(found) for found in images])
    captions = write_captions(tmp_path / "all.json", images)
    whole = run_import(table, tmp_path / "whole", captions=captions, shard_size=3)
    command = [sys.executable, "-m", "cli.main", "import-features", str(table), "--captions", str(captions)]
    command += ["--out", str(tmp_path / "killed"), "--shard-size", "3", "--workers", "1"]
    kills = 0
    for wait in (0.05, 0.1, 0.15, 0.2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (tmp_path / "killed").exists():
            time.sleep(0.01)
        time.sleep(wait)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills, "at least one run was killed at work"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = sorted(entry.name for entry in whole.path.iterdir())
    assert names == sorted(entry.name for entry in (tmp_path / "killed").iterdir())
    assert filecmp.cmpfiles(whole.path, tmp_path / "killed", names, shallow=False)[0] == names


@pytest.mark.parametrize("num_bytes", [10, 5000], ids=["at once", "in the first shard"])
def test_nothing_is_left_of_an_import_that_fails_before_its_first_shard(
    tmp_path: Path, captions: Path, table: Path, num_bytes: int
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    before = sorted(tmp_path.rglob("*"))
    for out in (tmp_path / "new" / "out", given):
        work = make_import(table, out, captions=captions)
        with files_end_at(num_bytes), pytest.raises(VlbError, match="make room"):
            work.run()
        assert sorted(tmp_path.rglob("*")) == before


def test_an_import_that_is_stopped_keeps_finished_shards_only(tmp_path: Path, captions: Path, table: Path) -> None:
    out = tmp_path / "out"

    def stop_at(done: int) -> None:
        def stop(progress: Progress) -> None:
            if progress.done_inputs >= done:
                raise KeyboardInterrupt

        work = make_import(table, out, captions=captions, shard_size=4)
        work.on_progress = stop
        with pytest.raises(KeyboardInterrupt):
            work.run()

    stop_at(1)
    assert not out.exists()
    stop_at(12)
    assert (out / "shard-00000.lmdb").exists() and not (out / "manifest.json").exists()
    with pytest.raises(ConfigError, match="begun with other settings"):
        make_import(table, out, captions=captions, shard_size=5).run()
    assert make_import(table, out, captions=captions, shard_size=4).run().made < 3


@pytest.mark.parametrize("captioned", [12, 1])
def test_an_import_without_an_image_keeps_its_rejects_alone_and_may_be_begun_anew(
    tmp_path: Path, captions: Path, table: Path, captioned: int
) -> None:
    good = table.read_bytes()
    for line in range(captioned):
        damage(table, line, 8, b64(WIDE * 100))
    some, out = write_captions(tmp_path / "some.json", IMAGES[:captioned]), tmp_path / "out"
    words = rf"of 12 inputs {captioned} were rejected, {12 - captioned} have no caption. The rejects are listed in"
    with pytest.raises(TooManyRejectsError, match=words) as caught:
        run_import(table, out, captions=some, max_rejects=12, shard_size=5)
    assert sum(caught.value.counts.values()) == captioned
    assert [path.relative_to(out) for path in out.rglob("*") if path.is_file()] == [Path(".build/rejects.jsonl")]
    assert len((out / ".build" / "rejects.jsonl").read_text().splitlines()) == captioned
    with files_end_at(3000), pytest.raises(VlbError, match="make room"):
        run_import(table, out, captions=some, max_rejects=12, shard_size=6)
    table.write_bytes(good)
    assert len(run_import(table, out, captions=captions)) == 12


def test_a_lock_whose_file_was_removed_locks_out_others_all_the_same(tmp_path: Path) -> None:
    state = BuildState(tmp_path / "out", {}, 1, "lmdb")
    entered, leave = threading.Event(), threading.Event()

    def second() -> None:
        with state.lock("x", wait=True):
            entered.set()
            leave.wait(10)

    with state.lock("x"):
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.05)  # until the other waits; if it does not yet, less is tested
        state.clear()
    assert entered.wait(10)
    with pytest.raises(VlbError, match="another process is at work"), state.lock("x"):
        pass
    leave.set()
    waiting.join()


def test_the_command_ends_with_0_1_or_2(tmp_path: Path, table: Path, captions: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cli.main", "import-features", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run(str(table), "--captions", str(captions), "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "vg1600-butd, 1600 classes, no background (hard)" in done.stdout
    failed = run(str(table), "--out", str(tmp_path / "other"))
    assert failed.returncode == 1
    assert failed.stderr.startswith("Error: lxmert stores no captions")
    assert run(str(table), "--out", str(tmp_path / "o"), "--background", "middle").returncode == 2
    os.mkfifo(tmp_path / "pipe")
    for beside, complaint in (
        (tmp_path, "a folder; --captions takes a file of COCO JSON, JSONL or a table with tabs. Name the file in it."),
        (tmp_path / "pipe", "a pipe or a device; --captions takes"),
        (tmp_path / "captoins.json", f"no such file; --captions takes .* Did you mean {captions}\\?"),
    ):
        refused = run(str(table), "--captions", str(beside), "--out", str(tmp_path / "o"))
        assert re.match(f"Error: {beside}: {complaint}", refused.stderr)
    assert not (tmp_path / "o").exists()


def test_features_only_can_be_asked_for(tmp_path: Path, table: Path, captions: Path) -> None:
    command = [sys.executable, "-m", "cli.main", "import-features", str(table), "--captions", str(captions)]
    subprocess.run([*command, "--no-labels", "--out", str(tmp_path / "out")], check=True, capture_output=True)
    folder = ShardFolder.open(tmp_path / "out")
    assert folder.manifest.label_space is None
    np.testing.assert_array_equal(folder.read(0).rois.boxes, IMAGES[0].boxes)


def test_lines_longer_than_any_record_are_not_read(
    tmp_path: Path, table: Path, captions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlbert_data.importers.rows.LONGEST_ROW_BYTES", 4000)
    damage(table, 5, 9, "A" * 5000)
    folder = run_import(table, tmp_path / "out", captions=captions, max_rejects=1)
    assert rejects(folder)[0]["reason"] == "line too long"


def test_repeats_are_those_that_a_slow_search_finds() -> None:
    rng = np.random.default_rng(5)
    keys = [str(key) for key in rng.integers(0, 40, 100)]
    repeats = Repeats.among(hash_keys(iter(keys), KeyPattern()))
    for number, key in enumerate(keys):
        earlier = [other for other in range(number) if keys[other] == key]
        assert list(repeats.before(number)) == earlier[::-1]


def test_base64_of_the_rejected_kind_is_truly_damaged() -> None:
    """What the decoder refuses, the lenient decoder of Python reads wrongly or refuses as well."""
    for text in (b"AA*A", b"A\nAA", b"AAA"):
        try:
            lenient = base64.b64decode(text)
        except ValueError:
            continue
        assert len(lenient) < 3


def test_rows_of_features_only_tables_keep_their_numbers_as_ids(tmp_path: Path, captions: Path) -> None:
    folder = run_import(
        write_rows(tmp_path / "f.tsv", [butd_row(found) for found in IMAGES]), tmp_path / "out", captions=captions
    )
    assert folder.index.image_ids.to_pylist() == [str(number) for number in range(1, 13)]
    assert json.loads((folder.path / "manifest.json").read_text())["detector"]["scores"] == "absent, stored as 0"
