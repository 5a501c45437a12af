"""`vlb inspect-shard --html`: what is on the page, said without a browser."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages_world import HOSTILE, write_folder
from PIL import Image
from run_vlb import Answer

from cli.pages.page import asset, render
from cli.pages.pictures import PictureFolder, from_folder, stored_picture
from vlbert_data.errors import ConfigError, ShardError
from vlbert_data.report import Images, facts
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.synthetic import FakeShards, write_shards

ROOT = Path(__file__).parents[1]
ASSETS = sorted((ROOT / "cli" / "pages" / "assets").iterdir())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fake = FakeShards(num_images=24, masked_views=2, has_attributes=True)
    return write_folder(tmp_path_factory.mktemp("pages") / "shards", fake, captions=HOSTILE, shard_size=8)


def data_of(page: str, name: str = "data") -> Any:
    """Return what a page holds, read as a browser reads it: an element ends at the first `</script`."""
    body = page.split(f'<script type="application/json" id="{name}">', 1)[1]
    return json.loads(re.split(r"</script", body, maxsplit=1, flags=re.IGNORECASE)[0])


def test_a_page_holds_what_the_shards_hold(vlb: Callable[..., Answer], folder: Path, tmp_path: Path) -> None:
    answer = vlb("inspect-shard", folder, "--html", tmp_path / "new" / "report.html")
    assert (answer.code, answer.out) == (0, "")
    assert "report.html: 24 images, 24 with pictures" in answer.err
    page = (tmp_path / "new" / "report.html").read_text()
    data, pictures = data_of(page), data_of(page, "pictures")
    stored = ShardFolder.open(folder)
    assert data["shown"] == {"images": 24, "of": 24, "sound": 24, "pictures": 24, "from": "stored thumbnails"}
    for number, (image, picture) in enumerate(zip(data["images"], pictures, strict=True)):
        record = stored.read(number)
        assert (image["id"], image["captions"]) == (record.image_id, list(record.captions))
        assert base64.b64decode(picture) == record.thumbnail
        assert record.masked_views is not None
        assert image["views"] == [np.flatnonzero(view).tolist() for view in record.masked_views.chosen]
        for roi, (x0, y0, x1, y1, score, classes, attribute, _) in enumerate(image["rois"]):
            np.testing.assert_allclose([x0, y0, x1, y1], record.rois.boxes[roi], atol=0.051)
            assert score == pytest.approx(float(record.rois.scores[roi]), abs=0.001)
            assert classes[0] == record.rois.label_ids[roi, 0]
            assert attribute == record.rois.attribute_ids[roi]
    assert data["attribute_names"][1] == "striped"
    assert data["facts"] == json.loads(json.dumps(facts(Images.open(folder))))


def test_no_text_ends_its_element_or_becomes_markup(vlb: Callable[..., Answer], folder: Path, tmp_path: Path) -> None:
    vlb("inspect-shard", folder, "--html", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert [image["captions"][0] for image in data_of(page)["images"][: len(HOSTILE)]] == list(HOSTILE)
    assert len(re.findall(r"</script", page, flags=re.IGNORECASE)) == 3
    assert len(re.findall(r"<script", page, flags=re.IGNORECASE)) == 3
    assert "<!--" not in page
    assert "onerror=" not in page.split('id="data">')[0]
    titled = render('</title><script>alert("1")</script>', (), {"facts": None}, []).decode()
    assert "<title>&lt;/title&gt;&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;</title>" in titled


def test_the_pages_policy_allows_its_own_script_and_style_and_no_request(folder: Path) -> None:
    page = render("x", (), {"facts": None}, []).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data:")
    for kind, pattern in (("script-src", r"<script>(.*?)</script>"), ("style-src", r"<style>(.*?)</style>")):
        body = re.search(pattern, page, re.DOTALL)
        assert body is not None
        assert rules[kind] == f"'sha256-{base64.b64encode(hashlib.sha256(body[1].encode()).digest()).decode()}'"


@pytest.mark.parametrize("path", ASSETS, ids=[path.name for path in ASSETS])
def test_assets_build_no_markup_from_text_and_name_no_address(path: Path) -> None:
    text = asset(path.name)
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "@import"):
        assert way not in text
    addresses = set(re.findall(r"(?:https?:)?//[\w.]+[^\s\"']*", re.sub(r"(?m)^\s*//.*$|;\s*//.*$", "", text)))
    assert addresses <= {"http://www.w3.org/2000/svg"}


def test_more_images_than_wanted_are_sampled_evenly_and_it_is_said(
    vlb: Callable[..., Answer], folder: Path, tmp_path: Path
) -> None:
    answer = vlb("inspect-shard", folder, "--html", tmp_path / "r.html", "--html-images", 5)
    assert "5 of 24 images" in answer.err
    data = data_of((tmp_path / "r.html").read_text())
    assert [int(image["id"]) for image in data["images"]] == [0, 6, 12, 17, 23]
    assert (data["shown"]["images"], data["shown"]["of"]) == (5, 24)


def test_what_verifying_finds_stands_on_the_page_and_damaged_images_are_left_out(
    vlb: Callable[..., Answer], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    assert vlb("inspect-shard", out, "--verify", "--html", tmp_path / "r.html").code == 0
    assert data_of((tmp_path / "r.html").read_text())["verdict"]["sound"] is True
    shard = bytearray((out / "shard-00001.lmdb").read_bytes())
    shard[shard.find(b"in picture 9")] ^= 1
    (out / "shard-00001.lmdb").write_bytes(shard)
    answer = vlb("inspect-shard", out, "--verify", "--html", tmp_path / "r.html")
    assert (answer.code, "damaged: shard-00001.lmdb" in answer.out) == (1, True)
    data = data_of((tmp_path / "r.html").read_text())
    assert {finding["file"] for finding in data["verdict"]["findings"]} == {"shard-00001.lmdb"}
    assert [int(image["id"]) for image in data["images"]] == [i for i in range(24) if i != 9]
    assert data["shown"]["sound"] == 23
    (out / "shard-00002.lmdb").write_bytes((out / "shard-00002.lmdb").read_bytes()[:-4096])
    assert vlb("inspect-shard", out, "--verify", "--html", tmp_path / "r.html").code == 1
    data = data_of((tmp_path / "r.html").read_text())
    assert [int(image["id"]) for image in data["images"]] == [i for i in range(16) if i != 9]
    alone = vlb("inspect-shard", out / "shard-00002.lmdb", "--verify", "--html", tmp_path / "r.html")
    assert (alone.code, data_of((tmp_path / "r.html").read_text())["facts"]) == (1, None)


def test_a_folder_that_cannot_be_opened_still_has_a_page_of_what_was_found(
    vlb: Callable[..., Answer], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "manifest.json").write_text((folder / "manifest.json").read_text().replace("24", "25"))
    assert vlb("inspect-shard", tmp_path, "--html", tmp_path / "r.html").code == 1
    assert not (tmp_path / "r.html").exists()
    assert vlb("inspect-shard", tmp_path, "--verify", "--html", tmp_path / "r.html").code == 1
    data = data_of((tmp_path / "r.html").read_text())
    assert data["facts"] is None
    assert data["verdict"]["findings"][0]["file"] == "manifest.json"


def test_a_single_shard_file_has_a_page(vlb: Callable[..., Answer], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "alone.lmdb").write_bytes((folder / "shard-00002.lmdb").read_bytes())
    assert vlb("inspect-shard", tmp_path / "alone.lmdb", "--html", tmp_path / "r.html").code == 0
    assert len(data_of((tmp_path / "r.html").read_text())["images"]) == 8


def test_thumbnails_that_are_no_jpeg_are_not_shown(vlb: Callable[..., Answer], tmp_path: Path) -> None:
    assert stored_picture(b"<svg onload=alert(1)>") is None
    assert stored_picture(b"\xff\xd8\xff") == b"\xff\xd8\xff"
    out = write_shards(tmp_path / "bare", num_images=3)
    vlb("inspect-shard", out, "--html", tmp_path / "r.html")
    assert data_of((tmp_path / "r.html").read_text(), "pictures") == [None, None, None]


def test_pictures_are_found_by_path_name_or_number_and_never_guessed(tmp_path: Path) -> None:
    for name in ("a/one.jpg", "b/one.png", "two.webp", "train_000000000139.jpg", "val_7.jpg", "test_7.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (640, 320), "red").save(tmp_path / name)
    found = PictureFolder(tmp_path)
    wanted = {
        "a/one.jpg": "a/one.jpg",
        "b/one": "b/one.png",
        "two": "two.webp",
        "shard-3/two": "two.webp",
        "139": "train_000000000139.jpg",
        "one": None,
        "7": None,
        "/etc/passwd": None,
    }
    for image_id, name in wanted.items():
        assert found.find(image_id) == (None if name is None else tmp_path / name), image_id
    (tmp_path / "two.webp").write_bytes(b"RIFF and nothing")
    pictures = from_folder(found, ["two", "139", "none"])
    assert [picture is None for picture in pictures] == [True, False, True]
    with Image.open(tmp_path / "train_000000000139.jpg") as image:
        assert image.size == (640, 320)
    with pytest.raises(ConfigError, match=r"none of its 6 files.*ids look like '9'"):
        from_folder(found, ["9"])


def test_a_damaged_record_is_named_and_no_page_is_written(
    vlb: Callable[..., Answer], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    shard = bytearray((out / "shard-00000.lmdb").read_bytes())
    place = shard.find(ShardFolder.open(folder).read(3).rois.scores.tobytes())
    assert place > 0
    shard[place : place + 2] = np.float16(np.nan).tobytes()
    (out / "shard-00000.lmdb").write_bytes(shard)
    answer = vlb("inspect-shard", out, "--html", tmp_path / "r.html")
    assert answer.code == 1
    assert "image '00000003' is damaged (not finite: scores" in answer.err
    with pytest.raises(ShardError, match="--verify"):
        facts(Images.open(out))


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--images", "."], 2, "--images DIR brings pictures for the page"),
        (["--html", "r.html", "--record", "1"], 2, "give one of the two"),
        (["--html", "r.html", "--images", "/none"], 1, "--images /none: there is no such folder"),
        (["--html", "/proc/none/r.html"], 1, "/proc/none/r.html: cannot be written"),
        (["--html", "r.html", "--html-images", "0"], 2, "0 is not in the range"),
    ],
)
def test_what_is_wrong_is_said(
    vlb: Callable[..., Answer],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = vlb("inspect-shard", folder, *options)
    assert (answer.code, words in answer.err) == (code, True), answer.err


def test_sizes_and_scores_are_counted_as_a_loop_counts_them(folder: Path) -> None:
    stored = ShardFolder.open(folder)
    sides, scores = [], []
    for number in range(len(stored)):
        record = stored.read(number)
        for (x0, y0, x1, y1), score in zip(record.rois.boxes.tolist(), record.rois.scores.tolist(), strict=True):
            sides.append(((x1 - x0) * (y1 - y0) / (record.width_px * record.height_px)) ** 0.5)
            scores.append(score)
    found = facts(Images.open(folder))["sample"]
    for name, values in (("roi_sides", sides), ("scores", scores)):
        counts = [sum(i / 20 <= value < (i + 1) / 20 for value in values) for i in range(20)]
        assert found[name]["bin_counts"] == counts
        assert found[name]["mean"] == pytest.approx(sum(values) / len(values), abs=1e-4)
