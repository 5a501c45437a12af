"""A subset holds the very records that were asked for, and nothing half-made."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from limits import files_end_at
from run_vlb import Answer

from vlbert_data.errors import ConfigError, ShardError
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.subset import choose_ids, choose_sample, extract, read_ids
from vlbert_data.synthetic import FakeShards, write_shards
from vlbert_data.verify import verify

FULL = FakeShards(
    num_images=30, masked_views=2, has_attributes=True, has_source_rows=True, thumbnails=True, num_rois=(0, 5)
)


@pytest.fixture(params=["lmdb", "hdf5"])
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> ShardFolder:
    return ShardFolder.open(write_shards(tmp_path / "whole", FULL, container=request.param, shard_size=7))


def test_chosen_ids_come_in_the_folders_order_and_to_the_bit(tmp_path: Path, whole: ShardFolder) -> None:
    chosen = choose_ids(whole, ["00000021", "nobody", "00000003", "00000021", "00000008"])
    assert chosen.missing == ("nobody",)
    extract(whole, chosen, tmp_path / "small", shard_size=2)
    small = ShardFolder.open(tmp_path / "small")
    assert small.index.image_ids.to_pylist() == ["00000003", "00000008", "00000021"]
    for image, place in enumerate((3, 8, 21)):
        assert small.index.crc32[image] == whole.index.crc32[place]
        assert small.captions(image) == whole.captions(place)
    assert small.manifest.schema == whole.manifest.schema
    assert small.manifest.source["subset_of"]["content_hash"] == whole.manifest.content_hash
    assert verify(tmp_path / "small").sound


def test_a_sample_is_the_same_for_the_same_seed_and_has_no_image_twice(tmp_path: Path, whole: ShardFolder) -> None:
    first, again, other = (choose_sample(whole, 12, seed).images.tolist() for seed in (1, 1, 2))
    assert first == again != other
    assert first == sorted(set(first))
    assert len(first) == 12
    with pytest.raises(ConfigError, match="has 30 images; --sample is 31"):
        choose_sample(whole, 31, 0)


def test_ids_of_another_folder_are_refused(whole: ShardFolder) -> None:
    with pytest.raises(ConfigError, match="none of the 1 ids asked for, such as x; its first id is 00000000"):
        choose_ids(whole, ["x"])


def test_nothing_is_left_of_a_subset_that_failed(tmp_path: Path, whole: ShardFolder) -> None:
    last = whole.path / whole.manifest.shards[-1].file
    last.write_bytes(last.read_bytes()[:-4096])
    with pytest.raises(ShardError, match="Copy it again"):
        extract(whole, choose_sample(whole, 30, 0), tmp_path / "new" / "small", shard_size=2)
    assert [entry.name for entry in tmp_path.iterdir()] == ["whole"]


def test_a_full_disk_is_told_and_leaves_nothing_of_a_subset(
    vlb: Callable[..., Answer], tmp_path: Path, whole: ShardFolder
) -> None:
    with files_end_at(1000):
        answer = vlb("extract-subset", whole.path, "--sample", 30, "--out", tmp_path / "small")
    assert answer.code == 1
    assert ". Nothing of the subset is kept; mend this and run the same command." in answer.err
    assert [entry.name for entry in tmp_path.iterdir()] == ["whole"]


def test_the_command_makes_a_folder_once(tmp_path: Path, whole: ShardFolder) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("00000002\n\n00000004\n00000099\n")
    assert read_ids(ids) == ["00000002", "00000004", "00000099"]
    command = [sys.executable, "-m", "cli.main", "extract-subset", str(whole.path)]
    command += ["--ids", str(ids), "--out", str(tmp_path / "small")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "2 of 30" in done.stdout, done
    assert "1 ids are not in" in done.stderr, done
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 1, again
    assert "is there already" in again.stderr, again
    both = subprocess.run([*command, "--sample", "3"], capture_output=True, text=True, check=False)
    assert both.returncode == 2, both
