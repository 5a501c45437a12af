"""Damage is found, and named."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from vlbert_data import manifest as manifest_module
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.synthetic import FakeShards, write_shards
from vlbert_data.verify import check_shard, check_single, verify

FAKE = FakeShards(num_images=9, num_rois=(0, 4), feature_dim=24, thumbnails=True)


@pytest.fixture(params=["lmdb", "hdf5"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_shards(tmp_path / "s", FAKE, container=request.param, shard_size=5)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << random.Random(place).randrange(8)
    path.write_bytes(data)


def test_a_sound_folder_has_no_findings(folder: Path) -> None:
    verdict = verify(folder, workers=2)
    assert verdict.sound
    assert verdict.images == FAKE.num_images
    assert verdict.bytes == sum(file.stat().st_size for file in folder.iterdir())
    for entry in ShardFolder.open(folder).manifest.shards:
        assert verify(folder / entry.file).sound


def test_one_flipped_byte_anywhere_is_found_and_its_file_named(folder: Path) -> None:
    rejects = folder / manifest_module.REJECTS_NAME
    assert rejects.exists()
    shuffled = random.Random(5)
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        if not whole:
            continue
        for place in shuffled.sample(range(len(whole)), 2):
            flip(file, place)
            verdict = verify(folder)
            assert not verdict.sound, (file, place)
            assert file.name in {finding.file for finding in verdict.findings}, (file, place, verdict.findings)
            file.write_bytes(whole)
    assert verify(folder).sound


def test_damage_in_a_record_names_its_image(folder: Path) -> None:
    opened = ShardFolder.open(folder)
    image = int(opened.index.num_rois[:5].argmax())
    shard = opened.shard(0)
    place = int(shard.places("features")[image]) + 3
    flip(folder / opened.manifest.shards[0].file, place)
    found = check_shard(folder, 0)
    assert [finding.image_id for finding in found] == [None, f"{image:08d}"]
    assert "its bytes have changed" in found[0].problem
    assert "do not fit their CRC" in found[1].problem
    alone = check_single(folder / opened.manifest.shards[0].file)
    assert [finding.image_id for finding in alone] == [f"{image:08d}"]


def test_damage_that_would_kill_a_reader_is_a_finding(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "s", FAKE, container="lmdb")
    path = folder / "shard-00000.lmdb"
    data = bytearray(path.read_bytes())
    # Every page after the two meta pages that is not an overflow page: the tree itself.
    for page in range(2, len(data) // 4096):
        if data[page * 4096 + 10] & 3:
            data[page * 4096 + 16 : (page + 1) * 4096] = b"\xff" * 4080
    path.write_bytes(data)
    assert not verify(path).sound
    verdict = verify(folder)
    assert {finding.file for finding in verdict.findings} == {path.name}


def test_missing_and_shortened_files_are_named(folder: Path) -> None:
    first, second = (folder / entry.file for entry in ShardFolder.open(folder).manifest.shards)
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    problems = {finding.file: finding.problem for finding in verify(folder).findings}
    assert "missing" in problems[first.name]
    assert "the manifest says" in problems[second.name]


def test_a_hand_edited_manifest_is_noticed(folder: Path) -> None:
    path = folder / manifest_module.FILE_NAME
    facts = json.loads(path.read_text())
    facts["detector"]["name"] = "another"
    path.write_bytes(manifest_module.render(facts))
    findings = verify(folder).findings
    assert [finding.file for finding in findings] == [manifest_module.FILE_NAME]
    assert "changed since it was written" in findings[0].problem


def test_helpers_that_cannot_start_are_not_called_damage(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "s", FAKE)
    script = tmp_path / "no_guard.py"
    script.write_text(
        f"from vlbert_data.verify import verify\nprint(verify(__import__('pathlib').Path({str(folder)!r})))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "a helper process died before it was given anything" in done.stderr
