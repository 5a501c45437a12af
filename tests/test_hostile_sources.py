"""Sources that somebody wrote to break a build, or that broke on the way: one sentence or one reject, never a crash."""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_inputs import everything, items, photo, rejects, write_jsonl, write_photos, write_tar

from vlbert_data.detect.annotations import CocoAnnotations
from vlbert_data.detect.base import DecodedImage
from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.sources import base, coco, files, tar_members
from vlbert_data.sources.base import InlineImage
from vlbert_data.sources.open import open_source

GOOD = {"image": "a.jpg", "caption": "a photo"}
DEEP = '{"a":' + "[" * 60_000


def test_deeply_nested_json_is_a_reject_in_any_line(tmp_path: Path) -> None:
    write_photos(tmp_path, ["a.jpg"])
    for lines in ([DEEP, GOOD], [GOOD, DEEP]):
        source = open_source([write_jsonl(tmp_path / "x.jsonl", lines)])
        assert len(items(source)) == 1
        assert [reject.reason for reject in rejects(source)] == ["bad line"]


def test_a_line_longer_than_any_record_is_a_reject_and_is_not_held_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LONGEST_LINE_BYTES", 100_000)
    write_photos(tmp_path, ["a.jpg"])
    long = {**GOOD, "note": "y" * 300_000}
    source = open_source([write_jsonl(tmp_path / "x.jsonl", [GOOD, long, GOOD])])
    assert [entry.number for entry in items(source)] == [0, 2]
    assert [(reject.number, reject.reason) for reject in rejects(source)] == [(1, "line too long")]
    lines = files.index_lines(tmp_path / "x.jsonl", name="x", skip_blank=True)
    assert max(map(len, lines.read(0, 3))) == 100_001
    table = tmp_path / "x.tsv"
    table.write_text(f"a\tu\ta.jpg\n{'y' * 300_000}\tu\ta.jpg\nb\tu\ta.jpg\n")
    assert [reject.reason for reject in rejects(open_source([table]))] == ["line too long"]


@pytest.mark.parametrize("lines", [1, 2])
def test_a_record_longer_than_what_is_looked_at_first_is_still_jsonl(tmp_path: Path, lines: int) -> None:
    write_photos(tmp_path, ["a.jpg"])
    record = {**GOOD, "boxes": [[0, 0, 5, 5]] * 5000}
    assert len(items(open_source([write_jsonl(tmp_path / "x.jsonl", [record] * lines)]))) == lines


def write_document(path: Path, **changes: Any) -> Path:
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "a photo"}]}
    path.write_text(json.dumps(content | changes))
    return path


@pytest.mark.parametrize("licenses", [None, ["x"], {"a": 1}, [{"id": [1], "name": "n"}], [{"name": "no id"}]])
def test_odd_licences_cost_nothing(tmp_path: Path, licenses: Any) -> None:
    write_photos(tmp_path, ["a.jpg"])
    image = {"id": 1, "file_name": "a.jpg", "license": [1]}
    source = open_source([write_document(tmp_path / "c.json", licenses=licenses, images=[image])])
    assert [item.captions for item in items(source)] == [("a photo",)]


def test_ids_that_are_no_ids_are_told(tmp_path: Path) -> None:
    write_photos(tmp_path, ["a.jpg"])
    bad = write_document(tmp_path / "c.json", annotations=[{"image_id": [1], "caption": "x"}])
    with pytest.raises(ConfigError, match=r"annotations\[0\] has the image_id \[1\]; expected a number or text"):
        open_source([bad])
    images = [{"id": [1], "file_name": "a.jpg"}, {"id": 1, "file_name": "a.jpg"}]
    source = open_source([write_document(tmp_path / "d.json", images=images)])
    assert len(items(source)) == 1
    assert [reject.reason for reject in rejects(source)] == ["bad record"]


def test_a_document_too_large_to_read_at_once_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "LARGEST_FILE_BYTES", 20)
    with pytest.raises(ConfigError, match=r"one JSON document of \d+ bytes.*JSONL"):
        open_source([write_document(tmp_path / "c.json")])


def pax_header(body: bytes) -> bytes:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, len(body)
    return header.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % 512)


@pytest.mark.parametrize(
    "body",
    [
        b"5020 size=" + b"9" * 5009 + b"\n",
        b"9" * 5000 + b" size=3\n",
        b"0 size=3\n",
        b"12 size=abc\n",
        b"13 size=-99\n",
    ],
)
def test_a_damaged_extended_header_ends_the_archive_with_what_came_before_kept(tmp_path: Path, body: bytes) -> None:
    before = write_tar(tmp_path / "x.tar", [("k.jpg", photo()), ("k.txt", b"a photo")]).read_bytes()
    path = tmp_path / "y.tar"
    path.write_bytes(before[: 4 * 512 + 512] + pax_header(body) + before)
    source = open_source([path])
    assert [item.captions for item in items(source)] == [("a photo",)]
    assert [reject.reason for reject in rejects(source)] == ["damaged archive"]


def test_a_member_that_claims_more_than_the_archive_has_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    whole = write_tar(path, [("a.jpg", photo()), ("a.txt", b"a"), ("b.jpg", photo()), ("b.txt", b"b")]).read_bytes()
    claims = tarfile.TarInfo("bomb.jpg")
    claims.size = 1 << 45
    path.write_bytes(whole[: -(-whole.rindex(b"b.txt") // 512) * 512] + claims.tobuf(tarfile.GNU_FORMAT))
    found = everything(open_source([path]))
    assert found[-1].reason == "damaged archive"  # type: ignore[union-attr]
    assert "inside the member bomb.jpg" in found[-1].detail  # type: ignore[union-attr]


def test_an_archive_of_endless_members_is_read_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_members, "MOST_MEMBERS", 4)
    files_of = [(f"{number}.{ending}", photo()) for number in range(3) for ending in ("jpg", "txt")]
    members, damage = tar_members.list_members(write_tar(tmp_path / "x.tar", files_of))
    assert len(members) == 4
    assert damage == "it has more than 4 files; split it"


IMAGE = {"id": 1, "file_name": "a.jpg", "width": 12, "height": 8}
BOX = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 5, 5]}


@pytest.mark.parametrize(
    "changes",
    [
        {"annotations": ["x"]},
        {"annotations": [[]]},
        {"annotations": [BOX | {"bbox": None}]},
        {"annotations": [BOX | {"bbox": [1, 2, 3]}]},
        {"annotations": [BOX | {"bbox": ["a"] * 4}]},
        {"annotations": [BOX | {"category_id": [3]}]},
        {"annotations": [BOX | {"image_id": {}}]},
        {"annotations": [{}]},
        {"images": [IMAGE | {"width": float("inf")}]},
        {"images": [IMAGE | {"id": [1]}]},
        {"images": [7]},
        {"categories": [{"id": float("inf"), "name": "x"}]},
        {"categories": [{"id": 3, "name": "\ud800"}]},
        {"categories": [3]},
        {"categories": []},
    ],
)
def test_instances_that_are_not_as_coco_writes_them_are_one_sentence(tmp_path: Path, changes: dict[str, Any]) -> None:
    content = {"images": [IMAGE], "annotations": [BOX], "categories": [{"id": 3, "name": "cat"}]}
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    CocoAnnotations(path, max_rois=5)
    path.write_text(json.dumps(content | changes))
    with pytest.raises(ConfigError):
        CocoAnnotations(path, max_rois=5)


def test_boxes_that_are_not_finite_are_left_out_and_counted(tmp_path: Path) -> None:
    boxes = [BOX, BOX | {"bbox": [0, 0, float("inf"), 5]}, BOX | {"bbox": [float("nan"), 0, 5, 5]}]
    content = {"images": [IMAGE], "annotations": boxes, "categories": [{"id": 3, "name": "cat"}]}
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    detector = CocoAnnotations(path, max_rois=5)
    image = DecodedImage(image_id="1", file_name="a.jpg", pixels=np.zeros((8, 12, 3), np.uint8))
    (rois,) = detector.detect([image])
    assert np.isfinite(rois.boxes).all()
    assert rois.num_rois + sum(detector.counts().values()) == 3


def test_an_image_of_too_many_bytes_in_a_table_is_a_reject(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MAX_IMAGE_BYTES", 10)
    with pytest.raises(RecordRejectedError, match="too many bytes"):
        InlineImage("x.parquet!row 3", bytes(11)).read()
    assert InlineImage("x.parquet!row 3", bytes(10)).read() == bytes(10)


def write_table(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_nulls_at_any_depth_of_a_table_are_told_row_by_row(tmp_path: Path) -> None:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": photo(), "path": None}] * 3 + [None, {"bytes": None, "path": None}]
    path = write_table(
        tmp_path / "x.parquet",
        image=pa.array(cells, image),
        caption=pa.array([["a", None, "b"], [None], None, ["c"], ["d"]], pa.list_(pa.string())),
        boxes=pa.array([None, None, None, None, [[None, 1.0, 2.0, 3.0]]], pa.list_(pa.list_(pa.float64()))),
    )
    source = open_source([path])
    assert [item.captions for item in items(source)] == [("a", "b")]
    assert [reject.reason for reject in rejects(source)] == ["empty caption", "no caption", "no image", "no image"]
    boxes = pa.array([[None], [[1.0, None, 2.0, 3.0]], [[0.0, 0.0, 2.0, 3.0]]], pa.list_(pa.list_(pa.float64())))
    path = write_table(tmp_path / "y.parquet", image=[photo()] * 3, caption=["a"] * 3, boxes=boxes)
    assert [reject.reason for reject in rejects(open_source([path]))] == ["bad boxes", "bad boxes"]


@pytest.mark.parametrize("column", ["caption", "id"])
def test_text_of_a_table_that_is_not_utf8_costs_its_row_only(tmp_path: Path, column: str) -> None:
    bad = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0\4\0\0\0"), pa.py_buffer(b"p\xff\xfeq")]
    )
    columns = {"caption": ["a", "b", "c"], "id": ["1", "2", "3"]} | {column: bad}
    source = open_source([write_table(tmp_path / "x.parquet", image=[photo()] * 3, **columns)])
    assert [item.number for item in items(source)] == [0, 2]
    assert [reject.detail for reject in rejects(source)] == ["text that is not UTF-8: invalid start byte"]


def test_captions_stored_once_in_a_dictionary_are_read(tmp_path: Path) -> None:
    captions = pa.array(["a", "b", "a"]).dictionary_encode()
    source = open_source([write_table(tmp_path / "x.parquet", image=[photo()] * 3, caption=captions)])
    assert [item.captions for item in items(source)] == [("a",), ("b",), ("a",)]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays(
        [pa.array([photo()]), pa.array(["a"]), pa.array(["b"])], ["image", "caption", "caption"]
    )
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match="two columns are called caption"):
        open_source([tmp_path / "x.parquet"])
