"""Pickles of the plainest kind read in one pass: always what the stack machine gives, or left to it."""

import base64
import pickle
import random
from typing import Any

import numpy as np
import pytest

from vlbert_data.errors import RecordRejectedError
from vlbert_data.importers.flat_pickle import MOST_FIELDS, read_flat
from vlbert_data.importers.record_dict import RecordPlace, record_of, whole_number
from vlbert_data.importers.safe_pickle import PickleLimits, PickleRefusedError, loads_plain

RECORD = {
    "img_id": "COCO_é_1",
    "img_h": 480,
    "img_w": 70_000,
    "num_boxes": 36,
    "less": -5,
    "none": None,
    "yes": True,
    "no": False,
    "boxes": b"AAAA" * 20,
    "long": "é" * 300,
    "features": b"QUFB" * 30_000,
}


def by_the_machine(data: bytes) -> Any:
    """Return what the stack machine gives, or a word that it refused."""
    try:
        return loads_plain(memoryview(data), what="a pickle")
    except PickleRefusedError:
        return "refused"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_dict_of_a_converter_is_read_at_once(protocol: int) -> None:
    record = {name: value for name, value in RECORD.items() if protocol > 2 or not isinstance(value, bytes)}
    data = pickle.dumps(record, protocol)
    assert read_flat(data) == record == by_the_machine(data)


def test_long_values_come_as_views_where_they_are_wanted() -> None:
    data = pickle.dumps(RECORD)
    fields = loads_plain(data, what="a pickle", views=True)
    assert fields == RECORD
    assert [name for name, value in fields.items() if isinstance(value, memoryview)] == ["features"]


@pytest.mark.parametrize("fault", [b"!", b"\xff", b"=", b""])
def test_a_view_is_decoded_or_rejected_as_its_bytes_are(fault: bytes) -> None:
    text = base64.b64encode(bytes(36 * 8 * 4 * 16))[:-1] + fault
    place = RecordPlace(key="a", where="a", num_bytes=0)
    answers = []
    for features in (text, memoryview(text)):
        with pytest.raises(RecordRejectedError) as raised:
            record_of({"features": features, "boxes": features, "num_boxes": 36}, place)
        with pytest.raises(RecordRejectedError) as counted:
            whole_number(features, "number of boxes", 0, 100)
        answers.append((str(raised.value), raised.value.reason, str(counted.value)))
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1},
        {"a": 1, "b": 1.5},
        {"a": 1, "b": [2]},
        {"a": np.zeros(3), "b": 1},
        {"a": 2**40, "b": 1},
        {1: 2, 3: 4},
        {},
        [1, 2],
        {str(number): number for number in range(MOST_FIELDS + 1)},
    ],
)
def test_any_other_pickle_is_left_to_the_machine(value: Any) -> None:
    assert read_flat(pickle.dumps(value)) is None


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_each_changed_cut_or_doubled_byte_is_judged_as_by_the_machine(protocol: int) -> None:
    data = pickle.dumps({**RECORD, "features": b"QUFB" * 20, "long": "é" * 130}, protocol)
    rng = random.Random(protocol)
    for place in range(len(data)):
        opcodes = rng.choices(b"}(uNXBCKMJqrstR.\x80\x85\x88\x8c\x94\x95", k=4)
        changed = [bytes([*data[:place], code, *data[place + 1 :]]) for code in (*opcodes, 0, 255, data[place] ^ 1)]
        changed += [data[:place], data[: place + 1] + data[place:], data[:place] + b"\x94" + data[place:]]
        for case in changed:
            found = read_flat(case)
            assert found is None or (found == by_the_machine(case)), (place, case)


@pytest.mark.parametrize("repeated", [b"\x94", b"\x95" + bytes(8)], ids=["kept", "framed"])
def test_a_value_kept_or_framed_time_and_again_is_left_to_the_machine_and_its_limits(repeated: bytes) -> None:
    data = pickle.dumps({"a": b"b"}, 4).replace(b"b\x94", b"b" + repeated * 2000)
    assert read_flat(data) is None
    assert loads_plain(data, what="a pickle") == {"a": b"b"}
    with pytest.raises(PickleRefusedError, match="more than 1500 steps"):
        loads_plain(data, what="a pickle", limits=PickleLimits(max_steps=1500))


def test_tight_limits_hold() -> None:
    data = pickle.dumps(RECORD)
    with pytest.raises(PickleRefusedError, match="steps"):
        loads_plain(data, what="a pickle", limits=PickleLimits(max_steps=10))
    with pytest.raises(PickleRefusedError, match="nested"):
        loads_plain(data, what="a pickle", limits=PickleLimits(max_depth=0))
    with pytest.raises(PickleRefusedError, match="bytes; at most"):
        loads_plain(data, what="a pickle", limits=PickleLimits(max_bytes=10))
