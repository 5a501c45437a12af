"""MessagePack and numpy files: what was written comes out; what was not ends in a refusal."""

import io
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.damage import mutate, num_mutations
from tests.msgpack_writer import numpy_map, packb
from vlbert_data.importers.msgpack import MsgpackLimits, MsgpackRefusedError, loads_msgpack
from vlbert_data.importers.npy import NpyLimits, NpyRefusedError, loads_npy, loads_npz
from vlbert_data.importers.plain_arrays import RefusedDataError
from vlbert_data.importers.safe_pickle import PickleRefusedError, loads_plain

MUTATIONS = num_mutations(1500)
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
    for _ in range(MUTATIONS):
        try:
            loads(mutate(raw, rng), what="sample")
        except RefusedDataError:
            refused += 1
    assert refused > MUTATIONS // 5, "most damage is seen"
