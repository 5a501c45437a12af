"""Plain data comes out of any pickle protocol as Python itself would read it; nothing else comes out, ever."""

import collections
import os
import pickle
import pickletools
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlbert_data.importers.safe_pickle import PickleLimits, PickleRefusedError, load_plain, loads_plain

PROTOCOLS = range(6)
SAMPLES = [
    None,
    True,
    -(2**70),
    1.5,
    "snow ❄",
    b"\x00\xff",
    [],
    (),
    {},
    {"a": [1, (2, 3), {"b": (4, 5, 6, 7)}], 7: b""},
    {1, 2},
    frozenset({"x"}),
    ["shared"] * 3,
    collections.OrderedDict(a=1, b=2),
]
ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
    np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(1, 0, 2),
    np.array(["ab", "c"]),
    np.array([b"xy"]),
    np.zeros((0, 5)),
    np.array(3.0),
    np.array([True, False]),
    np.float16([1, np.nan]),
    np.int64(7),
    np.float32(0.5),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", SAMPLES, ids=repr)
def test_plain_values_come_out_as_pickle_reads_them(value: object, protocol: int) -> None:
    assert loads_plain(pickle.dumps(value, protocol), what="sample") == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype.str}{a.shape}")
def test_arrays_come_out_as_pickle_reads_them(array: np.ndarray, protocol: int) -> None:
    read = loads_plain(pickle.dumps({"one": array, "two": [array]}, protocol), what="sample")
    assert read["one"].dtype == array.dtype and read["one"].shape == array.shape
    np.testing.assert_array_equal(read["one"], array)
    assert read["two"][0] is read["one"]


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(-9, 9), inner),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(json_like, st.sampled_from(PROTOCOLS))
def test_any_plain_structure_comes_out_as_pickle_reads_it(value: object, protocol: int) -> None:
    assert loads_plain(pickle.dumps(value, protocol), what="sample") == value


def test_python2_strings_come_as_latin1_text() -> None:
    # written by Python 2: {'caption': 'caf\xe9'} and a float32 array whose bytes are an 8-bit string
    assert loads_plain(b"\x80\x02}U\x07captionU\x04caf\xe9s.", what="sample") == {"caption": "caf\xe9"}
    assert loads_plain(b"S'caf\\xe9'\n.", what="sample") == "caf\xe9"
    old = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01\x85"
        b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x04\x00\x00\x80\xbftb."
    )
    np.testing.assert_array_equal(loads_plain(old, what="sample"), np.float32([-1.0]))


class Runs:
    """A class whose pickle calls `os.mkdir` when Python reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_call_in_a_pickle_is_refused_by_name_and_never_made(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "made"
    data = pickle.dumps({"model": [Runs(target)]}, protocol)
    with pytest.raises(PickleRefusedError, match=r"weights\.pkl: names (posix|nt)\.mkdir, which is not plain data"):
        loads_plain(data, what="weights.pkl")
    assert not target.exists()
    pickle.loads(data)
    assert target.exists(), "the same bytes do run in Python's own reader"


class Plain:
    pass


@pytest.mark.parametrize(
    "value",
    [Plain(), Plain, len, complex(1, 2), range(3), np.array([None]), np.zeros(2, "i4,f4"), np.dtype("f4"), np.ndarray,
     np.datetime64("2020-01-01"), collections.defaultdict(list), slice(1), ..., Path("x")],
    ids=lambda value: type(value).__name__ + str(value)[:20],
)  # fmt: skip
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_not_plain_is_refused(value: object, protocol: int) -> None:
    with pytest.raises(PickleRefusedError, match=r"^sample: .*only plain data is read\.$"):
        loads_plain(pickle.dumps([value], protocol), what="sample")


BASE = pickle.dumps({"img": "a", "feat": np.arange(4, dtype=np.float32), "n": [1, 2.5, None]}, 4)
HOSTILE = {
    "empty": b"",
    "no stop": b"N",
    "two values": b"NN.",
    "nothing": b".",
    "bytes after the end": b"N.N",
    "truncated bytes": b"\x80\x04B\xff\xff\xff\x7fabc.",
    "huge length": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff.",
    "negative length": b"T\xff\xff\xff\xff.",
    "memo of nothing": b"h\x05.",
    "sparse memo": b"Nr\xff\xff\xff\x7fj\xff\xff\xff\x7f0h\x01.",
    "persistent id": b"Pfoo\n.",
    "extension": b"\x82\x01.",
    "out-of-band buffer": b"\x80\x05\x97.",
    "protocol 6": b"\x80\x06N.",
    "reduce of text": b"X\x01\x00\x00\x00a)R.",
    "append to none": b"NNa.",
    "append across a mark": b"](Na.",
    "odd dict": b"(Nd.",
    "list key": b"}]Ns.",
    "huge int key": b"}\x8a\x0a" + b"\x01" * 10 + b"Ns.",
    "build of a list": b"]}b.",
    "symbol alone": b"cnumpy\ndtype\n.",
    "itself": b"]q\x00h\x00a.",
    "itself by tuple": b"]q\x00h\x00\x85a.",
    "not UTF-8": b"X\x01\x00\x00\x00\xff.",
    "not a number": b"Iabc\n.",
    "long integer": b"\x8b\x01\x04\x00\x00" + b"\x01" * 1025 + b".",
    "long number": b"I" + b"9" * 5000 + b"\n.",
    "array without state": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R.",
    "object dtype": pickle.dumps(np.array([{}]), 4),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_end_in_a_refusal(name: str) -> None:
    with pytest.raises(PickleRefusedError, match=r"^sample: .* \(at byte \d+\); only plain data is read\.$"):
        loads_plain(HOSTILE[name], what="sample")


def test_the_refused_opcodes_are_exactly_those_that_make_objects() -> None:
    from vlbert_data.importers.safe_pickle import STEPS

    known = {op.code: op.name for op in pickletools.opcodes}
    absent = {name for code, name in known.items() if ord(code) not in STEPS}
    assert absent == {"STOP", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ", "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4",
                      "NEXT_BUFFER", "READONLY_BUFFER"}  # fmt: skip
    assert {chr(code) for code in STEPS} <= set(known)


def test_deep_nesting_is_refused_at_the_stated_depth() -> None:
    value: list[object] = []
    for _ in range(31):
        value = [value]
    assert loads_plain(pickle.dumps(value), what="sample") == value
    with pytest.raises(PickleRefusedError, match="nested too deeply"):
        loads_plain(pickle.dumps([value]), what="sample")
    with pytest.raises(PickleRefusedError, match="nested too deeply"):
        loads_plain(b"(" + b"]" * 1 + b"\x85" * 100_000 + b"t.", what="sample")


def test_shared_parts_cannot_hide_depth_or_multiply_work() -> None:
    chain: list[list[object]] = [[]]
    for _ in range(60):
        chain.append([chain[-1], chain[-1]])
    with pytest.raises(PickleRefusedError, match="nested too deeply"):
        loads_plain(pickle.dumps(chain), what="sample")
    assert loads_plain(pickle.dumps(chain[25]), what="sample")[0][0][0] is not None


def test_one_large_text_given_to_many_calls_is_refused() -> None:
    text = "x" * 100_000
    once = b"X" + len(text).to_bytes(4, "little") + text.encode() + b"q\x00"
    call = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
    with pytest.raises(PickleRefusedError, match="makes far more data than it holds"):
        loads_plain(once + b"(" + call * 5000 + b"t.", what="sample")


def test_limits_are_kept_and_named() -> None:
    data = pickle.dumps(list(range(1000)))
    with pytest.raises(PickleRefusedError, match=r"sample: \d+ bytes; at most 100 are read"):
        loads_plain(data, what="sample", limits=PickleLimits(max_bytes=100))
    with pytest.raises(PickleRefusedError, match="more than 500 steps"):
        loads_plain(data, what="sample", limits=PickleLimits(max_steps=500))


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_mutated_pickles_give_plain_data_or_a_refusal(data: st.DataObject) -> None:
    protocol = data.draw(st.sampled_from(PROTOCOLS))
    raw = bytearray(pickle.dumps({"a": ARRAYS[0], "b": [SAMPLES[9], ARRAYS[3]], "c": {1, 2}}, protocol))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["byte", "cut", "repeat", "drop"])):
            case "byte":
                raw[place] = data.draw(st.integers(0, 255))
            case "cut":
                del raw[place + 1 :]
            case "repeat":
                raw[place:place] = raw[place : place + 20]
            case "drop":
                del raw[place : min(place + 3, len(raw) - 1)]
    try:
        read = loads_plain(bytes(raw), what="sample")
    except PickleRefusedError:
        return
    assert type(read) in (type(None), bool, int, float, str, bytes, list, tuple, dict, set, frozenset) or isinstance(
        read, np.ndarray | np.generic
    )


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_random_bytes_give_plain_data_or_a_refusal(raw: bytes) -> None:
    try:
        loads_plain(raw + b".", what="sample")
    except PickleRefusedError:
        return


def test_files_are_mapped_and_errors_name_them(tmp_path: Path) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"model": {"w": np.ones((3, 4), np.float32)}}, 2))
    assert loads_plain(path.read_bytes(), what="x")["model"]["w"].sum() == load_plain(path)["model"]["w"].sum() == 12
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(PickleRefusedError, match=r"weights\.pkl: truncated \(at byte"):
        load_plain(path)
    path.write_bytes(b"")
    with pytest.raises(PickleRefusedError, match=r"weights\.pkl: empty; expected a pickle"):
        load_plain(path)
    with pytest.raises(PickleRefusedError, match=r"absent: cannot be read: No such file"):
        load_plain(tmp_path / "absent")


def test_reading_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "this", raising=False)
    with pytest.raises(PickleRefusedError, match=r"names this\.s"):
        loads_plain(b"cthis\ns\n.", what="sample")
    assert "this" not in sys.modules
