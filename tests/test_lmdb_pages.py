"""LMDB pages read without LMDB: what was written comes out; what was not ends in a refusal."""

import random
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.damage import num_mutations
from vlbert_data.importers.lmdb_pages import (
    LmdbRefusedError,
    _overlapping,
    index_lmdb,
    looks_like_lmdb,
)
from vlbert_data.importers.lmdb_records import LmdbRecords

MUTATIONS = num_mutations(300)


def make_lmdb(
    path: Path, records: dict[bytes, bytes], *, subdir: bool = True, a_commit: int = 50, **options: Any
) -> Path:
    env = lmdb.open(str(path), map_size=1 << 28, subdir=subdir, **options)
    items = list(records.items())
    for start in range(0, len(items), a_commit):
        with env.begin(write=True) as txn:
            for key, value in items[start : start + a_commit]:
                txn.put(key, value)
    env.close()
    return path


def read_all(path: Path, max_bytes: int = 1 << 20) -> dict[bytes, bytes]:
    index = index_lmdb(path)
    assert index.damages == () and index.num_stated == len(index.nodes)
    records = LmdbRecords(index)
    assert list(records.keys(0, len(index.nodes))) == [
        records.read(i, max_bytes=max_bytes)[0] for i in range(len(index.nodes))
    ]
    read = dict(records.read(i, max_bytes=max_bytes) for i in range(len(index.nodes)))
    records.close()
    return read


def some_records(num: int, *, seed: int = 0) -> dict[bytes, bytes]:
    rng = np.random.default_rng(seed)
    sizes = rng.choice([0, 5, 100, 1500, 2100, 9000], num)
    return {f"COCO_{rng.integers(10**9):012d}".encode(): rng.bytes(int(size)) for size in sizes}


@pytest.mark.parametrize("subdir", [True, False])
@pytest.mark.parametrize("num", [0, 1, 40, 3000])
def test_lmdb_records_come_out_as_liblmdb_reads_them(tmp_path: Path, num: int, *, subdir: bool) -> None:
    records = some_records(num)
    path = make_lmdb(tmp_path / "x", records, subdir=subdir)
    read = read_all(path)
    assert read == records and list(read) == sorted(records)
    assert looks_like_lmdb(path)


def test_deleted_and_replaced_records_of_lmdb_stay_away(tmp_path: Path) -> None:
    records = some_records(2000)
    path = make_lmdb(tmp_path / "x", records)
    env = lmdb.open(str(path), map_size=1 << 28)
    with env.begin(write=True) as txn:
        for key in list(records)[:700]:
            txn.delete(key)
            del records[key]
        for key in list(records)[:100]:
            records[key] = b"new" * 5000
            txn.put(key, records[key])
    env.close()
    assert read_all(path) == records


@pytest.mark.parametrize("page", [0, 1])
def test_a_database_that_may_be_an_older_state_says_so(tmp_path: Path, page: int) -> None:
    records = some_records(100)
    path = make_lmdb(tmp_path / "x", records, subdir=False)
    raw = bytearray(path.read_bytes())
    raw[page * 4096 + 16 : page * 4096 + 20] = bytes(4)  # where the page says what it is
    path.write_bytes(raw)
    index = index_lmdb(path)
    assert "what was written last may be missing" in index.damages[0]
    assert len(index.nodes) in (50, 100)


def test_a_database_of_sparse_pages_is_read_in_place(tmp_path: Path) -> None:
    records = some_records(100)
    path = make_lmdb(tmp_path / "x", records, writemap=True)
    assert (path / "data.mdb").stat().st_size == 1 << 28
    assert read_all(path) == records


def test_reading_lmdb_leaves_nothing_behind(tmp_path: Path) -> None:
    path = make_lmdb(tmp_path / "x", some_records(10), subdir=False)
    (tmp_path / "x-lock").unlink()
    path.chmod(0o400)
    read_all(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_value_larger_than_the_limit_is_refused(tmp_path: Path) -> None:
    path = make_lmdb(tmp_path / "x", {b"a": bytes(5000)})
    with pytest.raises(LmdbRefusedError, match="key b'a' has 5000 bytes; at most 4999"):
        LmdbRecords(index_lmdb(path)).read(0, max_bytes=4999)


def test_a_truncated_lmdb_costs_the_records_that_are_gone(tmp_path: Path) -> None:
    records = some_records(600)
    path = make_lmdb(tmp_path / "x", records, subdir=False)
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size * 2 // 3)
    index = index_lmdb(path)
    assert any("cut short" in damage for damage in index.damages)
    read = LmdbRecords(index)
    taken, lost = {}, 0
    for i in range(len(index.nodes)):
        try:
            key, value = read.read(i, max_bytes=1 << 20)
            taken[key] = value
        except LmdbRefusedError:
            lost += 1
    assert taken.items() <= records.items() and lost


def test_other_files_are_not_lmdb(tmp_path: Path) -> None:
    for name, data in {"empty": b"", "text": b"hello" * 1000, "zeros": bytes(9000)}.items():
        path = tmp_path / name
        path.write_bytes(data)
        assert not looks_like_lmdb(path)
        with pytest.raises(LmdbRefusedError, match=r"not an LMDB file of data version 1"):
            index_lmdb(path)
    assert not looks_like_lmdb(tmp_path / "absent") and not looks_like_lmdb(tmp_path)


def test_a_database_of_several_values_a_key_is_refused(tmp_path: Path) -> None:
    env = lmdb.open(str(tmp_path / "x"), map_size=1 << 20, max_dbs=2)
    inner = env.open_db(b"inner")
    with env.begin(write=True) as txn:
        txn.put(b"a", b"b", db=inner)
    env.close()
    assert "a database inside the database" in str(index_lmdb(tmp_path / "x").damages)


def test_values_that_are_said_to_share_pages_are_given_to_no_key(tmp_path: Path) -> None:
    records = {f"key{number}".encode(): bytes([number]) * 9000 for number in range(9)}
    path = make_lmdb(tmp_path / "x", records, subdir=False)
    index = index_lmdb(path)
    raw = bytearray(path.read_bytes())
    places = [int(node) + 8 + 4 for node in index.nodes]  # behind a node's head and key: the number of the first page
    for victim, other in ((2, 6), (4, 6)):
        raw[places[victim] : places[victim] + 8] = raw[places[other] : places[other] + 8]
    path.write_bytes(raw)
    found = index_lmdb(path)
    assert found.damages == ("3 records are said to lie on pages of others; whose they are is not known",)
    reader = LmdbRecords(found)
    taken = dict(reader.read(number, max_bytes=1 << 20) for number in range(len(found.nodes)))
    reader.close()
    assert taken == {key: value for key, value in records.items() if key not in (b"key2", b"key4", b"key6")}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), max_size=12))
def test_overlaps_are_those_that_comparing_all_pairs_finds(pairs: list[tuple[int, int]]) -> None:
    spans = [range(first, first + count) for first, count in pairs]
    expected = [
        any(set(span) & set(other) for place, other in enumerate(spans) if place != own)
        for own, span in enumerate(spans)
    ]
    assert _overlapping(np.array(pairs, np.int64).reshape(-1, 2)).tolist() == expected


def test_mutated_lmdb_files_give_true_records_or_damages(tmp_path: Path) -> None:
    records = some_records(400)
    raw = make_lmdb(tmp_path / "x", records, subdir=False).read_bytes()
    rng, path, damaged = random.Random(3), tmp_path / "y", 0
    for _ in range(MUTATIONS):
        changed = bytearray(raw)
        # The first pages and those of keys hold what leads to the rest: damage them most.
        for _ in range(rng.randint(1, 6)):
            place = rng.randrange(2 * 4096 if rng.random() < 0.3 else len(raw))
            changed[place : place + 2] = bytes([rng.choice([0, 1, 0x7F, 0xFF, rng.randrange(256)])] * 2)
        path.write_bytes(changed if rng.random() < 0.8 else changed[: rng.randrange(len(raw))])
        try:
            index = index_lmdb(path)
        except LmdbRefusedError:
            damaged += 1
            continue
        reader, refused = LmdbRecords(index), 0
        for i in range(len(index.nodes)):
            try:
                reader.read(i, max_bytes=1 << 20)
            except LmdbRefusedError:
                refused += 1
        reader.close()
        damaged += bool(index.damages or refused)
    assert damaged > MUTATIONS // 6
