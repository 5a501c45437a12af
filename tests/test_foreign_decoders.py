"""MessagePack, numpy files and LMDB pages: what was written comes out; what was not ends in a refusal."""

import io
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.damage import mutate
from tests.msgpack_writer import numpy_map, packb
from vlbert_data.importers.lmdb_pages import (
    LmdbRefusedError,
    _overlapping,
    index_lmdb,
    looks_like_lmdb,
)
from vlbert_data.importers.lmdb_records import LmdbRecords
from vlbert_data.importers.msgpack import MsgpackLimits, MsgpackRefusedError, loads_msgpack
from vlbert_data.importers.npy import NpyLimits, NpyRefusedError, loads_npy, loads_npz
from vlbert_data.importers.plain_arrays import RefusedDataError
from vlbert_data.importers.safe_pickle import PickleRefusedError, loads_plain

ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
    np.zeros((0, 5)),
    np.array(3.0),
    np.array(["ab", "c"]),
    np.array([True, False]),
    np.float16([1, np.nan]),
]


class Runs:
    """A class whose pickle makes a folder when Python reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def npy_bytes(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def npz_bytes(*, compressed: bool = True, **members: Any) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **members)
    return stream.getvalue()


def zip_bytes(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return stream.getvalue()


# MessagePack

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text() | st.integers(-9, 9), inner, max_size=20),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(values)
def test_any_message_comes_out_as_it_was_written(value: Any) -> None:
    if isinstance(value, dict) and "nd" in value:
        return
    assert loads_msgpack(packb(value), what="sample") == value


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype.str}{a.shape}")
def test_arrays_in_messages_come_out_to_the_bit(array: np.ndarray) -> None:
    read = loads_msgpack(packb({"a": np.ascontiguousarray(array).reshape(array.shape)}), what="sample")["a"]
    assert read.dtype == array.dtype and read.shape == array.shape and read.tobytes() == array.tobytes()
    assert not read.flags.writeable


def test_scalars_in_messages_keep_their_type() -> None:
    read = loads_msgpack(packb([np.int64(-7), np.float32(0.5)]), what="sample")
    assert [(type(value), value) for value in read] == [(np.int64, -7), (np.float32, 0.5)]


def test_messages_of_the_old_specification_store_bytes_as_text() -> None:
    data = np.float32([-1.5, 2]).tobytes()
    fields = {b"nd": b"\xc3", b"type": b"\xa3<f4", b"shape": b"\x91\x02", b"data": b"\xa8" + data}
    old = b"\x84" + b"".join(bytes([0xA0 | len(key)]) + key + value for key, value in fields.items())
    np.testing.assert_array_equal(loads_msgpack(old, what="sample"), np.float32([-1.5, 2]))


def test_arrays_of_objects_in_messages_are_refused_and_not_unpickled(tmp_path: Path) -> None:
    target = tmp_path / "made"
    fields = {b"nd": True, b"type": "|O", b"kind": b"O", b"shape": [1], b"data": pickle.dumps(Runs(target))}
    for changed in (fields, {**fields, b"kind": b""}, {**fields, b"type": "<f4"}):
        with pytest.raises(MsgpackRefusedError, match=r"^sample: an array of .*only plain data is read"):
            loads_msgpack(packb(changed), what="sample")
    assert not target.exists()


GOOD_MAP = numpy_map(np.zeros((2, 3), np.float32))
BAD_MESSAGES = {
    "empty": b"",
    "bytes after the end": b"\xc0\xc0",
    "unused code": b"\xc1",
    "extension": b"\xd4\x01\x00",
    "huge list": b"\xdd\xff\xff\xff\xff",
    "huge map": b"\xdf\xff\xff\xff\xff",
    "huge bytes": b"\xc6\xff\xff\xff\xffabc",
    "list as key": b"\x81\x90\xc0",
    "key twice": b"\x82\xa1a\xc0\xa1a\xc0",
    "deep": b"\x91" * 5000 + b"\xc0",
    "deep maps": b"\x81\x01" * 5000 + b"\xc0",
    "huge shape": packb({**GOOD_MAP, b"shape": [2**40 - 1, 2**40 - 1]}),
    "huge empty shape": packb({**GOOD_MAP, b"shape": [0, 2**39, 2**39], b"data": b""}),
    "negative shape": packb({**GOOD_MAP, b"shape": [-1, 6]}),
    "wrong shape": packb({**GOOD_MAP, b"shape": [2, 4]}),
    "shape of text": packb({**GOOD_MAP, b"shape": ["2", 3]}),
    "no data": packb({b"nd": True, b"type": "<f4", b"shape": [1]}),
    "structure": packb({**GOOD_MAP, b"type": [["a", "<f4"]], b"kind": b"V"}),
    "nd of 1": packb({**GOOD_MAP, b"nd": 1}),
    "complex": packb({**GOOD_MAP, b"type": "<c8", b"shape": [3]}),
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_bad_messages_end_in_a_refusal(name: str) -> None:
    with pytest.raises(MsgpackRefusedError, match=r"^sample: .* \(at byte \d+\); only plain data is read\.$"):
        loads_msgpack(BAD_MESSAGES[name], what="sample")


def test_limits_of_messages_are_kept() -> None:
    with pytest.raises(MsgpackRefusedError, match="11 bytes; at most 10"):
        loads_msgpack(b"\x9a" + b"\xc0" * 10, what="sample", limits=MsgpackLimits(max_bytes=10))
    with pytest.raises(MsgpackRefusedError, match="more values than are read"):
        loads_msgpack(b"\x9a" + b"\xc0" * 10, what="sample", limits=MsgpackLimits(max_values=10))


# .npy and .npz


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype.str}{a.shape}")
def test_npy_files_come_out_as_numpy_reads_them(array: np.ndarray) -> None:
    read = loads_npy(npy_bytes(array), what="sample")
    assert read.dtype == array.dtype and read.shape == array.shape
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_one_dict_in_an_npy_file_comes_out(protocol: int) -> None:
    info = {"bbox": np.ones((2, 4), np.float32), "num_boxes": 2, "image_id": "a"}
    held = np.array(info, dtype=object)
    raw = npy_bytes(held)
    head = raw[: 10 + struct.unpack("<H", raw[8:10])[0]]
    read = loads_npy(head + pickle.dumps(held, protocol), what="sample")
    assert read.keys() == info.keys() and read["bbox"].tobytes() == info["bbox"].tobytes()


@pytest.mark.parametrize("value", [[{}], [{}, {}], [[{}]], ["a"], None], ids=repr)
def test_other_arrays_of_objects_are_refused(value: object) -> None:
    held = np.array(value, object)
    with pytest.raises(RefusedDataError):
        loads_npy(npy_bytes(held), what="sample")
    with pytest.raises(PickleRefusedError):
        loads_plain(pickle.dumps(held), what="sample")


def test_code_in_npy_and_npz_files_is_never_run(tmp_path: Path) -> None:
    target = tmp_path / "made"
    with pytest.raises(PickleRefusedError, match="mkdir, which is not plain data"):
        loads_npy(npy_bytes(np.array({"a": Runs(target)}, object)), what="sample")
    with pytest.raises(PickleRefusedError, match="mkdir, which is not plain data"):
        loads_npz(npz_bytes(info=np.array({"a": Runs(target)}, object)), what="sample")
    assert not target.exists()


def header(text: bytes, payload: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + payload


BAD_NPY = {
    "empty": b"",
    "text": b"hello, this is no numpy file",
    "version 9": b"\x93NUMPY\x09\x00" + bytes(20),
    "header cut": npy_bytes(ARRAYS[0])[:40],
    "header of code": header(b"{'descr': __import__('os').getcwd(), 'fortran_order': False, 'shape': (1,), }"),
    "nested header": header(b"(" * 4000 + b")" * 4000),
    "huge shape": header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (999999999, 999999999), }", bytes(16)),
    "negative": header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", bytes(16)),
    "long number": header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"9" * 500 + b",), }"),
    "void": header(b"{'descr': '|V8', 'fortran_order': False, 'shape': (1,), }", bytes(8)),
    "short data": npy_bytes(ARRAYS[0])[:-1],
    "long data": npy_bytes(ARRAYS[0]) + b"\0",
}


@pytest.mark.parametrize("name", BAD_NPY)
def test_bad_npy_files_end_in_a_refusal(name: str) -> None:
    with pytest.raises(NpyRefusedError, match=r"^sample: .*expected a \.npy file"):
        loads_npy(BAD_NPY[name], what="sample")


def test_python2_wrote_shapes_with_an_l() -> None:
    old = header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 1L), }          \n", bytes(8))
    assert loads_npy(old, what="sample").shape == (2, 1)


@pytest.mark.parametrize("compressed", [True, False])
def test_npz_members_come_out_and_others_stay_packed(*, compressed: bool) -> None:
    raw = npz_bytes(compressed=compressed, a=ARRAYS[0], b=ARRAYS[3], bad=np.array([{}], object))
    read = loads_npz(raw, what="sample", names=("a", "b", "absent"))
    assert read.keys() == {"a", "b"} and read["a"].tobytes() == ARRAYS[0].tobytes() and read["b"] == 3.0
    with pytest.raises(NpyRefusedError, match="sample!bad: an array of objects of shape"):
        loads_npz(raw, what="sample")


BAD_NPZ = {
    "not a zip": b"PK\x03\x04 nothing more",
    "name outside": zip_bytes(("../../x.npy", npy_bytes(ARRAYS[0]))),
    "absolute name": zip_bytes(("/etc/x.npy", npy_bytes(ARRAYS[0]))),
    "windows name": zip_bytes(("c:\\x.npy", npy_bytes(ARRAYS[0]))),
    "bzip2": zip_bytes(("x.npy", npy_bytes(ARRAYS[0])), method=zipfile.ZIP_BZIP2),
    "bomb": zip_bytes(("x.npy", npy_bytes(np.zeros(8 << 20, np.uint8)))),
    "many": zip_bytes(*((f"{i}.npy", b"") for i in range(100))),
    "truncated": npz_bytes(a=ARRAYS[0])[:-10],
}


@pytest.mark.parametrize("name", BAD_NPZ)
def test_bad_npz_files_end_in_a_refusal(name: str) -> None:
    with pytest.raises(NpyRefusedError, match=r"^sample: .*\.$"):
        loads_npz(BAD_NPZ[name], what="sample")


def test_a_member_that_lies_about_its_size_is_refused() -> None:
    raw = zip_bytes(("x.npy", npy_bytes(np.zeros(8 << 20, np.uint8))))
    size = len(npy_bytes(np.zeros(8 << 20, np.uint8)))
    lying = raw.replace(struct.pack("<I", size), struct.pack("<I", 1000))
    assert lying != raw
    with pytest.raises(NpyRefusedError):
        loads_npz(lying, what="sample")


def test_members_together_stay_within_the_limit() -> None:
    raw = npz_bytes(a=np.arange(1000), b=np.arange(1000))
    assert len(loads_npz(raw, what="sample")) == 2
    with pytest.raises(NpyRefusedError, match="unpacks to 8128 bytes; at most"):
        loads_npz(raw, what="sample", limits=NpyLimits(max_bytes=12_000))


SEEDS = {
    "msgpack": (packb({"a": ARRAYS[0], "n": [1, 2.5, None, "x"]}), loads_msgpack),
    "npy": (npy_bytes(ARRAYS[0]), loads_npy),
    "npy dict": (npy_bytes(np.array({"a": ARRAYS[0]}, object)), loads_npy),
    "npz": (npz_bytes(a=ARRAYS[0], b=ARRAYS[6]), loads_npz),
}


@pytest.mark.parametrize("name", SEEDS)
def test_mutated_bytes_give_data_or_a_refusal(name: str) -> None:
    raw, loads = SEEDS[name]
    rng = random.Random(7)
    refused = 0
    for _ in range(1500):
        try:
            loads(mutate(raw, rng), what="sample")
        except RefusedDataError:
            refused += 1
    assert refused > 300, "most damage is seen"


# LMDB


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
    for _ in range(300):
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
    assert damaged > 50
