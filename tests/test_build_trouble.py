"""Builds in trouble: bad input, refused images, full disks, decoders that die; each is told and costs only itself."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from build_world import COLOURS, MeanColours, build, make_build, make_world
from PIL import Image

from vlbert_data.build.run import TooManyRejectsError
from vlbert_data.build.state import STATE_FOLDER
from vlbert_data.describe.base import Description
from vlbert_data.detect.annotations import SourceBoxes
from vlbert_data.errors import RecordRejectedError, VlbError
from vlbert_data.shards import hdf5
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.synthetic import write_shards
from vlbert_data.types import Array
from vlbert_data.verify import verify


class Picky(MeanColours):
    """Refuses photos of one width, as networks refuse some shapes."""

    def describe(self, images: Sequence[Array], boxes: Sequence[Array]) -> list[Description]:
        if any(image.shape[1] == 50 for image in images):
            raise RecordRejectedError("image does not suit", "50 pixels wide")
        return super().describe(images, boxes)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_what_is_left_out_is_counted_once_whatever_is_refused_beside_it(tmp_path: Path, batch_size: int) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    lines = []
    for number in range(6):
        Image.fromarray(pixels[:, : 50 if number == 2 else 60]).save(tmp_path / f"{number}.png")
        lines.append({"image": f"{number}.png", "caption": "x", "boxes": [[0, 0, 0.5, 9], [0, 0, 9, 9]]})
    lines = [line | {"labels": ["red", "red"]} for line in lines]
    table = tmp_path / "x.jsonl"
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole = make_build(table, tmp_path / "out", batch_size=batch_size, max_rejects=1)
    whole.detector, whole.describer = SourceBoxes(tuple(COLOURS), max_rois=10), Picky()
    manifest = whole.run().manifest
    assert manifest is not None
    assert manifest.left_out == {"degenerate boxes": 6}
    assert manifest.rejects == {"image does not suit": 1}


def test_file_names_that_are_no_text_are_accounted_for(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    table = make_world(folder, 3, broken=[1])
    result = build(table, tmp_path / "out", max_rejects=1)
    assert result.manifest is not None
    line = json.loads((tmp_path / "out" / "rejects.jsonl").read_bytes())
    assert line["where"] == str(folder / "0001.png")
    assert verify(tmp_path / "out").sound


def test_decoders_that_cannot_start_fail_the_build_and_not_the_images(tmp_path: Path) -> None:
    table = make_world(tmp_path / "world", 3)
    script = tmp_path / "no_guard.py"
    script.write_text(
        "from pathlib import Path\nfrom build_world import build\n"
        f"build(Path({str(table)!r}), Path({str(tmp_path / 'out')!r}), workers=1)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{Path.cwd()}{os.pathsep}{Path(__file__).parent}"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, check=False)
    assert "a helper process died before it was given anything" in done.stderr


def test_too_many_rejects_fail_at_the_end_and_keep_the_shards(tmp_path: Path) -> None:
    table = make_world(tmp_path / "world", 8, broken=[1, 2, 6])
    out = tmp_path / "out"
    with pytest.raises(TooManyRejectsError, match=r"3 of 8 inputs were rejected.*--retry-rejected") as caught:
        build(table, out)
    assert sum(caught.value.counts.values()) == 3
    listed = (out / STATE_FOLDER / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in listed] == [1, 2, 6]
    assert str(out / STATE_FOLDER / "rejects.jsonl") in str(caught.value)
    assert not (out / "manifest.json").exists()
    make_world(tmp_path / "world", 8)  # mended
    again = make_build(table, out)
    again.retry_rejected = True
    result = again.run()
    assert result.built == 2
    assert result.manifest is not None
    assert result.manifest.num_images == 8
    accepted = tmp_path / "accepted"
    make_world(tmp_path / "world", 8, broken=[1, 2, 6])
    assert build(table, accepted, max_rejects=0.5).manifest is not None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_speak_of_the_upright_photo_however_it_is_stored(tmp_path: Path, orientation: int) -> None:
    upright = np.full((40, 60, 3), 128, np.uint8)
    upright[5:20, 30:50] = COLOURS["red"]
    undone_by = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL's numbers of transposes
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(undone_by[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    line = {"image": "a.png", "caption": "x", "boxes": [[30, 5, 50, 20]], "labels": ["red"], "width": 60, "height": 40}
    (tmp_path / "x.jsonl").write_text(json.dumps(line))
    build(tmp_path / "x.jsonl", tmp_path / "out")
    record = ShardFolder.open(tmp_path / "out").read(0)
    assert (record.width_px, record.height_px) == (60, 40)
    assert record.features[0].tolist() == [*COLOURS["red"], 0, 0, 0]


def test_nothing_but_rejects_fails_whatever_is_allowed(tmp_path: Path) -> None:
    table = make_world(tmp_path / "world", 3, broken=[0, 1, 2])
    with pytest.raises(TooManyRejectsError, match=r"3 of 3 inputs were rejected; nothing is left to store"):
        build(table, tmp_path / "out", max_rejects=100)


@pytest.mark.parametrize("container", ["lmdb", "hdf5"])
def test_a_shard_may_hold_no_image_and_images_no_roi(tmp_path: Path, container: str) -> None:
    table = make_world(tmp_path / "world", 12, broken=[4, 5, 6, 7])
    lines = [json.loads(line) for line in table.read_text().splitlines()]
    for line in lines[8:]:
        line["boxes"] = line["labels"] = []
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out"
    manifest = build(table, out, container=container, max_rejects=4).manifest
    assert manifest is not None
    assert [(shard.images, shard.rois > 0) for shard in manifest.shards] == [(4, True), (0, False), (4, False)]
    assert verify(out).sound
    assert all(verify(out / shard.file).sound for shard in manifest.shards)
    folder = ShardFolder.open(out)
    assert [folder.read(image).num_rois for image in range(4, 8)] == [0] * 4
    assert folder.read(5).image_feature.shape == (6,)


def test_a_feature_beyond_float16_is_a_reject_that_names_the_image(tmp_path: Path) -> None:
    table = make_world(tmp_path / "world", 3)
    with pytest.raises(TooManyRejectsError):
        build(table, tmp_path / "out", scale=1000.0)
    state = json.loads((tmp_path / "out" / STATE_FOLDER / "shard-00000.json").read_text())
    first = json.loads(state["rejects"][0])
    assert first["reason"] == "feature overflow"
    assert first["where"].endswith("0000.png")
    assert "float16 ends at 65504" in first["detail"]


@pytest.mark.parametrize("container", ["lmdb", "hdf5"])
@pytest.mark.parametrize("limit", [100, 9_000, 20_000, 60_000])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(
    tmp_path: Path, container: str, limit: int, capfd: pytest.CaptureFixture[str]
) -> None:
    table = make_world(tmp_path / "world", 12)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    out = tmp_path / "out"
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        # A limit on file size stands in for a full disk: the same failing write, without a disk of our own to fill.
        with pytest.raises(VlbError, match=r"Finished shards are kept; make room"):
            build(table, out, shard_size=12, container=container)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [entry.name for entry in out.iterdir() if entry.name != STATE_FOLDER]
    assert "Traceback" not in capfd.readouterr().err
    assert build(table, out, shard_size=12, container=container).manifest is not None
    assert verify(out).sound


def test_shards_begun_when_the_disk_is_full_are_not_left_behind(tmp_path: Path) -> None:
    table = make_world(tmp_path / "world", 12)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, limits[1]))
    try:
        with pytest.raises(VlbError, match=r"make room"):
            build(table, tmp_path / "out", shard_size=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == [STATE_FOLDER]


def test_a_disk_without_room_is_told_before_hdf5_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path).free
    monkeypatch.setattr(hdf5, "LAYOUT_BYTES", free * 2)
    with pytest.raises(OSError, match="No space left on device"):
        write_shards(tmp_path / "out", container="hdf5")
    assert not list((tmp_path / "out").iterdir())
