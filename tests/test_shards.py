"""The contract of shards, for both containers alike."""

import dataclasses
import filecmp
import itertools
from pathlib import Path

import h5py
import lmdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from vlbert_data import index
from vlbert_data.errors import RecordRejectedError, ShardError
from vlbert_data.index import ImageIndex
from vlbert_data.manifest import INDEX_NAME
from vlbert_data.shards.folder import ShardFolder, new_writer, open_shard_file
from vlbert_data.shards.job import FolderFacts, write_records
from vlbert_data.shards.lmdb import HEADER, LmdbShard
from vlbert_data.shards.schema import FORMAT_VERSION, content_crc, record_arrays
from vlbert_data.synthetic import FakeShards, make_record, make_records, write_shards

FULL = FakeShards(
    num_images=23,
    num_rois=(0, 7),
    feature_dim=40,
    masked_views=2,
    has_attributes=True,
    has_source_rows=True,
    thumbnails=True,
    seed=3,
)
PLAIN = FakeShards(num_images=5, num_rois=(1, 3), feature_dim=7, label_topk=0, captions_an_image=1)
LARGE = FakeShards(num_images=3, num_rois=(30, 40), feature_dim=2048)


@pytest.fixture(params=["lmdb", "hdf5"])
def container(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("fake", [FULL, PLAIN, LARGE], ids=["full", "plain", "large"])
def test_records_come_back_to_the_bit(tmp_path: Path, container: str, fake: FakeShards) -> None:
    folder = ShardFolder.open(write_shards(tmp_path / "s", fake, container=container, shard_size=10))
    assert len(folder) == fake.num_images
    for image, written in enumerate(make_records(fake)):
        read = folder.read(image)
        for (field, ours), (_, theirs) in zip(
            record_arrays(written, fake.schema()), record_arrays(read, fake.schema()), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs, err_msg=field.name, strict=True)
        assert (read.image_id, read.captions, read.thumbnail) == (written.image_id, written.captions, written.thumbnail)
        assert (read.width_px, read.height_px) == (written.width_px, written.height_px)
        assert folder.captions(image) == written.captions


def test_both_containers_hold_the_same_contents(tmp_path: Path) -> None:
    folders = [ShardFolder.open(write_shards(tmp_path / c, FULL, container=c)) for c in ("lmdb", "hdf5")]
    np.testing.assert_array_equal(folders[0].index.crc32, folders[1].index.crc32)
    crcs = [content_crc(record, record_arrays(record, FULL.schema())) for record in make_records(FULL)]
    assert folders[0].index.crc32.tolist() == crcs


def test_the_same_records_give_the_same_bytes(tmp_path: Path, container: str) -> None:
    first, second = (write_shards(tmp_path / name, FULL, container=container, shard_size=10) for name in "ab")
    names = sorted(entry.name for entry in first.iterdir())
    assert names == sorted(entry.name for entry in second.iterdir())
    assert filecmp.cmpfiles(first, second, names, shallow=False)[0] == names


def test_reads_are_views_of_the_mapped_file_and_cannot_be_written(tmp_path: Path, container: str) -> None:
    folder = ShardFolder.open(write_shards(tmp_path / "s", LARGE, container=container))
    features = folder.read(1).features
    assert np.shares_memory(features, folder.shard(0).mapped)
    with pytest.raises(ValueError, match="read-only"):
        features[0, 0] = 1


def test_lmdb_arrays_start_on_64_bytes(tmp_path: Path) -> None:
    for fake in (FULL, LARGE):
        folder = ShardFolder.open(write_shards(tmp_path / str(fake.feature_dim), fake, container="lmdb"))
        for _, array in record_arrays(folder.read(2), fake.schema()):
            assert array.__array_interface__["data"][0] % 64 == 0 or array.size == 0


def test_places_find_each_rows_array(tmp_path: Path, container: str) -> None:
    folder = ShardFolder.open(write_shards(tmp_path / "s", FULL, container=container))
    shard = folder.shard(0)
    for row in range(len(shard)):
        boxes = make_record(FULL, row).rois.boxes
        start = int(shard.places("boxes")[row])
        assert shard.mapped[start : start + boxes.nbytes].tobytes() == boxes.tobytes()


def test_lmdb_shards_read_the_ordinary_way_too(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "s", FULL, container="lmdb")
    with (
        lmdb.open(str(folder / "shard-00000.lmdb"), subdir=False, readonly=True, lock=False) as env,
        env.begin() as txn,
    ):
        value = txn.get((4).to_bytes(4, "big"))
    record = make_record(FULL, 4)
    assert HEADER.unpack_from(value)[4] == record.num_rois
    assert value[HEADER.size : HEADER.size + record.features.nbytes] == record.features.tobytes()


def test_hdf5_shards_read_with_h5py_alone(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "s", FULL, container="hdf5")
    with h5py.File(folder / "shard-00000.h5") as file:
        start, stop = file["image/roi_offset"][4:6]
        np.testing.assert_array_equal(file["roi/features"][start:stop], make_record(FULL, 4).features)
        assert file["roi/features"].chunks is None
        assert file["roi/features"].compression is None


def test_one_file_is_read_by_several_readers_at_once(tmp_path: Path, container: str) -> None:
    path = write_shards(tmp_path / "s", FULL, container=container)
    first, second = ShardFolder.open(path), ShardFolder.open(path)
    np.testing.assert_array_equal(first.read(3).features, second.read(3).features)
    assert open_shard_file(path / first.manifest.shards[0].file).read(3).image_id == "00000003"


def test_nothing_has_the_shards_name_before_close(tmp_path: Path, container: str) -> None:
    path = tmp_path / "shard-00000.x"
    writer = new_writer(path, FULL.schema(), container)
    record = make_record(FULL, 0)
    writer.add(record, record_arrays(record, FULL.schema()), 0)
    assert not path.exists()
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_hdf5_columns_larger_than_memory_allows_go_through_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlbert_data.shards.hdf5.HELD_BYTES", 1000)
    monkeypatch.setattr("vlbert_data.shards.hdf5.COPY_BYTES", 300)
    folder = ShardFolder.open(write_shards(tmp_path / "s", FULL, container="hdf5"))
    for image, record in enumerate(make_records(FULL)):
        np.testing.assert_array_equal(folder.read(image).features, record.features)


def test_a_lmdb_shard_grows_beyond_its_first_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlbert_data.shards.lmdb.FIRST_MAP_BYTES", 1 << 20)
    monkeypatch.setattr("vlbert_data.shards.lmdb.COMMIT_BYTES", 1 << 18)
    fake = dataclasses.replace(LARGE, num_images=20)
    folder = ShardFolder.open(write_shards(tmp_path / "s", fake, container="lmdb"))
    assert folder.manifest.shards[0].bytes > 2 << 20
    for image, record in enumerate(make_records(fake)):
        np.testing.assert_array_equal(folder.read(image).features, record.features)


def test_the_index_finds_images_by_id(tmp_path: Path, container: str) -> None:
    index: ImageIndex = ShardFolder.open(write_shards(tmp_path / "s", FULL, container=container, shard_size=4)).index
    assert index.find("00000011") == 11
    assert index.find("nobody") is None
    assert (index.shard_slice(2).start, index.shard_slice(2).stop) == (8, 12)


def test_a_record_that_breaks_a_promise_is_refused(tmp_path: Path) -> None:
    from vlbert_data.shards.job import ShardJob

    job = ShardJob(tmp_path, 0, FULL.schema(), "lmdb")
    good = make_record(FULL, 1)
    with pytest.raises(RecordRejectedError, match="empty caption"):
        job.add(dataclasses.replace(good, captions=(" ",)))
    outside = dataclasses.replace(good.rois, boxes=good.rois.boxes + 10_000)
    with pytest.raises(RecordRejectedError, match=r"bad box.*in an image of"):
        job.add(dataclasses.replace(good, rois=outside))
    with pytest.raises(RecordRejectedError, match="expected float16"):
        job.add(dataclasses.replace(good, features=good.features.astype(np.float32)))
    with pytest.raises(ShardError, match=r"lacks view_chosen"):
        job.add(dataclasses.replace(good, masked_views=None))
    job.abort()


def test_a_truncated_shard_is_a_clear_error_not_a_crash(tmp_path: Path, container: str) -> None:
    folder = write_shards(tmp_path / "s", LARGE, container=container)
    path = folder / ShardFolder.open(folder).manifest.shards[0].file
    whole = path.read_bytes()
    for kept in (0, 17, 5000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(ShardError, match=r"manifest says \d+ bytes"):
            ShardFolder.open(folder).read(0)
        with pytest.raises(ShardError, match=r"cut short|damaged|empty|neither|not an LMDB"):
            open_shard_file(path)


def test_a_future_version_is_refused_with_what_this_one_reads(tmp_path: Path, container: str) -> None:
    path = tmp_path / "shard"
    writer = new_writer(path, FULL.schema(), container)
    module = f"vlbert_data.shards.{container}.FORMAT_VERSION"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, FORMAT_VERSION + 3)
        record = make_record(FULL, 0)
        writer.add(record, record_arrays(record, FULL.schema()), 0)
        writer.close()
    with pytest.raises(ShardError, match=f"format version {FORMAT_VERSION + 3}; this vlb reads 1-{FORMAT_VERSION}"):
        open_shard_file(path)


def test_files_of_other_kinds_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a shard at all, but long enough to look like something")
    with pytest.raises(ShardError, match="neither an LMDB nor an HDF5 file"):
        open_shard_file(tmp_path / "text")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1, 2, 3]
    with pytest.raises(ShardError, match="not a vlb shard"):
        open_shard_file(tmp_path / "other.h5")
    with lmdb.open(str(tmp_path / "other.lmdb"), subdir=False, lock=False) as env, env.begin(write=True) as txn:
        txn.put(b"k", b"v")
    with pytest.raises(ShardError, match="not a vlb shard"):
        open_shard_file(tmp_path / "other.lmdb")
    with pytest.raises(ShardError, match="no such file"):
        open_shard_file(tmp_path / "nothing")


def test_an_index_of_another_build_is_noticed(tmp_path: Path) -> None:
    first = write_shards(tmp_path / "a", dataclasses.replace(FULL, seed=1))
    second = write_shards(tmp_path / "b", dataclasses.replace(FULL, seed=2))
    (first / "index.parquet").write_bytes((second / "index.parquet").read_bytes())
    with pytest.raises(ShardError, match="of another build"):
        ShardFolder.open(first)


def test_a_row_that_is_not_where_the_index_says_is_noticed(tmp_path: Path) -> None:
    path = write_shards(tmp_path / "s", FULL, container="lmdb") / "shard-00000.lmdb"
    index = ShardFolder.open(tmp_path / "s").index
    moved = LmdbShard(path, FULL.schema(), index.num_rois.astype(np.int64), index.value_offset + 64)
    with pytest.raises(ShardError, match=r"no record of this folder at row 0"):
        moved.read(0)


def test_an_index_out_of_order_is_refused_and_one_in_order_finds_each_shards_rows(tmp_path: Path) -> None:
    folder = ShardFolder.open(write_shards(tmp_path / "s", PLAIN, shard_size=2))
    table = pq.read_table(folder.path / INDEX_NAME)
    for shard in range(len(folder.manifest.shards)):
        rows = np.flatnonzero(folder.index.shard == shard)
        assert folder.index.shard_slice(shard) == slice(int(rows[0]), int(rows[-1]) + 1)
    num = len(folder)
    for order in ([1, 0, *range(2, num)], [num - 1, *range(1, num - 1), 0], [0, *range(num - 1)]):
        index.save([table.take(order)], tmp_path / "index.parquet")
        with pytest.raises(ShardError, match="not ordered by shard and row"):
            index.load(tmp_path / "index.parquet")


def test_an_index_has_the_same_bytes_whatever_the_tables_it_comes_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "ROWS_A_GROUP", 3)
    folder = ShardFolder.open(write_shards(tmp_path / "s", PLAIN, shard_size=2))
    table = pq.read_table(folder.path / INDEX_NAME)
    for name, cuts in (("whole", [0, len(table)]), ("parts", [0, 1, 1, 4, len(table)])):
        parts = (table.slice(begin, end - begin) for begin, end in itertools.pairwise(cuts))
        index.save(parts, tmp_path / name)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()
    assert pq.read_table(tmp_path / "whole").equals(table)


def test_two_images_of_one_id_are_refused_and_named(tmp_path: Path) -> None:
    records = list(make_records(PLAIN))
    facts = FolderFacts(container="lmdb", schema=PLAIN.schema(), detector={}, describer={}, source={}, build={})
    with pytest.raises(ShardError, match=rf"image id '{records[1].image_id}' occurs 2 times; ids must be unique"):
        write_records(tmp_path, [*records, records[1]], facts, shard_size=2)
    assert not (tmp_path / "manifest.json").exists()
