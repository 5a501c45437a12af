"""Files that are damaged, or made to do harm, end as rejects or refusals: nothing crashes, hangs, runs or lies."""

import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest

from tests import foreign_writers as write
from tests.damage import mutate
from tests.foreign_writers import DIM, make_images
from tests.msgpack_writer import packb
from tests.test_binary_formats import CASES
from vlbert_data.errors import RecordRejectedError, VlbError
from vlbert_data.importers import child as child_module
from vlbert_data.importers.base import Importer, RawRecord
from vlbert_data.importers.child import Child, ChildRefusedError
from vlbert_data.importers.hdf5_inputs import read_datasets
from vlbert_data.importers.labels import LabelChoice, settle_labels
from vlbert_data.importers.lmdb_inputs import LmdbImporter
from vlbert_data.importers.lmdb_records import LmdbRecords
from vlbert_data.importers.meaning import Meaning
from vlbert_data.importers.open import open_importer
from vlbert_data.importers.plain_arrays import RefusedDataError
from vlbert_data.importers.record_dict import RecordPlace
from vlbert_data.sources.base import SourceReject
from vlbert_data.types import check_image_rois

IMAGES = make_images(3, num_rois=10)
NUMBERED = make_images(3, num_rois=10, prefix="")
MUTATIONS_A_VALUE_FORMAT = 400
MUTATIONS_A_FILE_FORMAT = 120


class Runs:
    """A class whose pickle makes a folder when Python reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def is_sound(importer: Importer, record: RawRecord) -> bool:
    """Return whether a record is one that a shard may hold: `meaning` takes it and all promises of a shard are kept."""
    traits = importer.traits
    asked = traits.labels.targets != "absent" and traits.labels.background is None
    choice = LabelChoice(background="first") if asked else LabelChoice()
    space = settle_labels(traits.labels, choice, traits.format)
    meaning = Meaning(traits=traits, label_space=space, label_topk=5)
    size = (record.width_px or 700, record.height_px or 500)
    try:
        image, _ = meaning.convert(record, "id", ("a caption",), size)
    except RecordRejectedError:
        return False
    check_image_rois(image, label_space=space, feature_dim=traits.feature_dim)
    return True


def check_outcomes(importer: Importer, start: int = 0) -> tuple[int, int]:
    """Read all inputs; return how many were taken and how many refused, each taken one sound."""
    taken = refused = 0
    for number, outcome in enumerate(importer.read(start, len(importer)), start=start):
        if isinstance(outcome, SourceReject):
            assert outcome.number == number and outcome.reason and outcome.detail
            refused += 1
        elif is_sound(importer, outcome):
            taken += 1
        else:
            refused += 1
    assert taken + refused == len(importer) - start
    return taken, refused


VALUE_CASES = [name for name in CASES if CASES[name].format.endswith("-lmdb") and "protocol" not in name]


@pytest.mark.parametrize("name", VALUE_CASES)
def test_mutated_values_of_lmdb_formats_are_refused_or_sound(tmp_path: Path, name: str) -> None:
    importer = open_importer([str(CASES[name].write(tmp_path, IMAGES))])
    assert isinstance(importer, LmdbImporter)
    key, value = LmdbRecords(importer.indexes[0]).read(0, max_bytes=1 << 24)
    place = RecordPlace(key=key.decode(), where="here", num_bytes=len(value))
    rng, refused = random.Random(11), 0
    # Numbers of features change unseen; where the arrays begin and what they are called is what the reader lives by.
    edges = [spot for spot in range(len(value)) if spot < 600 or spot > len(value) - 600]
    for _ in range(MUTATIONS_A_VALUE_FORMAT):
        changed = mutate(value, rng)
        if rng.random() < 0.5:
            changed = bytearray(value)
            for _ in range(rng.randint(1, 3)):
                changed[rng.choice(edges)] = rng.randrange(256)
            changed = bytes(changed)
        try:
            record = importer.decode(0, changed, place)
            is_sound(importer, record)
        except (RecordRejectedError, RefusedDataError):
            refused += 1
    assert refused > MUTATIONS_A_VALUE_FORMAT // 5


LOOSE_CASES = ["ViLBERT npy", "MMF npy", "MILVLG npz", "UNITER npz files"]


@pytest.mark.parametrize("name", LOOSE_CASES)
def test_mutated_loose_files_are_refused_or_sound(tmp_path: Path, name: str) -> None:
    folder = CASES[name].write(tmp_path, IMAGES)
    importer = open_importer([str(folder)])
    files = sorted(folder.iterdir())[: 2 if name == "MMF npy" else 1]
    rng, refused = random.Random(5), 0
    for _ in range(300):
        victim = rng.choice(files)
        whole = victim.read_bytes()
        victim.write_bytes(mutate(whole, rng))
        outcome = next(iter(importer.read(0, 1)))
        refused += isinstance(outcome, SourceReject) or not is_sound(importer, outcome)
        victim.write_bytes(whole)
    assert refused > 60
    assert isinstance(next(iter(importer.read(0, 1))), RawRecord)


FILE_CASES = {
    "VL-T5 HDF5": lambda path: write.write_groups(path / "a.h5", IMAGES),
    "dense HDF5": lambda path: write.write_dense(path / "val36.hdf5", IMAGES),
    "HF Arrow": lambda path: write.write_arrow(path / "val.arrow", NUMBERED, kept=9),
    "UNITER LMDB": lambda path: write.write_uniter(path / "x", IMAGES, counts=False) / "data.mdb",
    "VLP HDF5": lambda path: write.write_vlp(path / "vlp", IMAGES[:1]),
    "tensorpack LMDB": lambda path: write.write_tensorpack(
        path / "x.lmdb", [write.volta_list(image) for image in IMAGES], codec="pickle"
    ),
}


@pytest.mark.parametrize("name", FILE_CASES)
def test_mutated_files_are_refused_or_give_sound_records(tmp_path: Path, name: str) -> None:
    given = FILE_CASES[name](tmp_path)
    path = max(given.glob("*_bbox.h5")) if given.is_dir() else given
    whole = path.read_bytes()
    format_name = CASES[name].format if name in CASES else f"{name.split(maxsplit=1)[0].lower()}-lmdb"
    rng, outcomes = random.Random(23), {"refused whole": 0, "refused": 0, "taken": 0}
    for _ in range(MUTATIONS_A_FILE_FORMAT):
        changed = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            spot = rng.randrange(min(len(whole), 12_000) if rng.random() < 0.7 else len(whole))
            changed[spot] = rng.choice([0, 0xFF, 0x7F, rng.randrange(256)])
        path.write_bytes(changed if rng.random() < 0.8 else changed[: rng.randrange(len(whole))])
        try:
            importer = open_importer([str(given)], format_name=format_name)
            list(importer.keys())
            taken, refused = check_outcomes(importer)
        except VlbError as error:
            assert str(error)
            outcomes["refused whole"] += 1
        else:
            outcomes["taken"] += taken
            outcomes["refused"] += refused
    assert outcomes["refused whole"] + outcomes["refused"] > 10, outcomes


# Numbers


def odd_numbers(dtype: str) -> dict[str, Any]:
    """Return numbers that are none, or that no image has; a signalling NaN makes numpy warn where others do not."""
    bits = {"f2": ("u2", 0x7C01), "f4": ("u4", 0x7F800001), "f8": ("u8", 0x7FF0000000000001)}[dtype]
    largest = np.finfo(dtype).max
    return {
        "signalling NaN": np.array(bits[1], bits[0]).view(dtype)[()],
        **{"NaN": np.nan, "infinite": np.inf, "largest": largest, "least": -largest},
    }


@pytest.mark.parametrize("field", ["features", "boxes", "scores", "attribute_scores"])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_odd_numbers_in_any_field_are_rejects_without_a_warning(tmp_path: Path, field: str, dtype: str) -> None:
    names = {"features": "features", "boxes": "boxes", "scores": "obj_conf", "attribute_scores": "attr_conf"}
    records = {"0": write.lxmert_arrays(IMAGES[0])}
    for name, number in odd_numbers(dtype).items():
        odd = write.lxmert_arrays(IMAGES[1])
        odd[names[field]] = odd[names[field]].astype(dtype)
        odd[names[field]][1] = number
        records[name] = odd
    importer = open_importer([str(write.write_pickles(tmp_path / "x", records))])
    # The largest number of float16 is one that a feature may be.
    assert check_outcomes(importer) == ((3, 3) if (field, dtype) == ("features", "f2") else (1, 5))
    path = write.write_dense(tmp_path / "val36.hdf5", IMAGES)
    for number in odd_numbers("f4").values():
        for name in ("image_features", "image_bb", "spatial_features"):
            write.write_dense(path, IMAGES)
            with h5py.File(path, "a") as file:
                file[name][1, 1] = number
            taken, refused = check_outcomes(open_importer([str(path)]))
            assert (taken, refused) == (3, 0) if name == "spatial_features" else (2, 1)


@pytest.mark.parametrize("member", ["norm_bb", "features", "conf", "soft_labels"])
def test_odd_numbers_in_uniters_arrays_are_rejects_without_a_warning(tmp_path: Path, member: str) -> None:
    records = {b"0.npz": packb(write.uniter_members(IMAGES[0]))}
    for dtype in ("f2", "f4", "f8"):
        for name, number in odd_numbers(dtype).items():
            odd = write.uniter_members(IMAGES[0])
            odd[member] = odd[member].astype(dtype)
            odd[member][1] = number
            records[f"{dtype} {name}.npz".encode()] = packb(odd)
    importer = open_importer([str(write.write_lmdb(tmp_path / "x", records))])
    assert check_outcomes(importer) == ((3, 13) if member == "features" else (1, 15))


# Code


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_code_in_pickled_records_is_refused_by_name_and_not_run(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "made"
    bad = {**write.vilbert_fields(IMAGES[0]), "num_boxes": Runs(target)}
    fields = {image.key: write.vilbert_fields(image) for image in IMAGES}
    path = write.write_pickles(tmp_path / "x", {**fields, "zzz": bad}, protocol=protocol)
    importer = open_importer([str(path)])
    outcome = list(importer.read(0, 4))[3]
    assert isinstance(outcome, SourceReject) and outcome.reason == "damaged or unsafe"
    assert "mkdir, which is not plain data" in outcome.detail and not target.exists()


def test_code_under_the_list_of_keys_is_not_looked_at(tmp_path: Path) -> None:
    target = tmp_path / "made"
    records = {image.key.encode(): pickle.dumps(write.vilbert_fields(image)) for image in IMAGES}
    path = write.write_lmdb(tmp_path / "x", {**records, b"keys": pickle.dumps(Runs(target))})
    assert len(open_importer([str(path)])) == 3 and not target.exists()


def test_code_in_loose_files_and_maps_of_ids_is_not_run(tmp_path: Path) -> None:
    target = tmp_path / "made"
    folder = write.write_mmf_npy(tmp_path / "npy", IMAGES)
    np.save(folder / f"{IMAGES[0].key}_info.npy", np.array({**write.mmf_info(IMAGES[0]), "x": Runs(target)}, object))
    assert check_outcomes(open_importer([str(folder)])) == (2, 1)
    path = write.write_dense(tmp_path / "val36.hdf5", IMAGES, ids="pkl")
    (tmp_path / "val36_imgid2idx.pkl").write_bytes(pickle.dumps({"a": Runs(target)}, 2))
    with pytest.raises(VlbError, match="mkdir, which is not plain data"):
        open_importer([str(path)])
    assert not target.exists()


def test_extension_types_that_older_pyarrow_unpickles_are_read_as_what_they_hold(tmp_path: Path) -> None:
    target = tmp_path / "made"
    path = write.write_arrow(tmp_path / "val.arrow", NUMBERED, kept=9)
    table = pa.ipc.open_stream(path.read_bytes()).read_all()
    name = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Runs(target)),
    }
    fields = [field.with_metadata(name) if field.name == "boxes" else field for field in table.schema]
    with path.open("wb") as sink, pa.ipc.new_stream(sink, pa.schema(fields)) as writer:
        for batch in table.to_batches():
            writer.write_batch(pa.record_batch(batch.columns, schema=pa.schema(fields)))
    assert pickle.dumps(Runs(target)) in path.read_bytes()
    found = list(open_importer([str(path)]).read(0, 3))
    assert all(isinstance(out, RawRecord) for out in found) and not target.exists()


# Size and shape


def test_huge_declared_shapes_are_refused_without_memory(tmp_path: Path) -> None:
    huge = {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [10**9, 10**9], b"data": b"abcd"}
    points = [write.vilbert_list(image) for image in IMAGES]
    points.append([huge, *points[0][1:]])
    importer = open_importer([str(write.write_tensorpack(tmp_path / "x.lmdb", points, codec="msgpack"))])
    assert check_outcomes(importer) == (3, 1)


def hdf5(path: Path, change: Callable[[Any], None]) -> Path:
    """Write three images and let `change` add a fourth, `zbad`, that has all fields of the first."""
    write.write_groups(path, IMAGES)
    with h5py.File(path, "a") as file:
        group = file.create_group("zbad")
        for name, value in write.lxmert_arrays(IMAGES[0]).items():
            group[name] = value
        change(group)
    return path


def external_link(group: Any) -> None:
    del group["features"]
    group["features"] = h5py.ExternalLink("other.h5", "/features")


def external_link_behind_a_soft_one(group: Any) -> None:
    group.parent["out"] = h5py.ExternalLink("other.h5", "/")
    del group["features"]
    group["features"] = h5py.SoftLink("/out/features")


def external_storage(group: Any) -> None:
    del group["features"]
    group.create_dataset("features", (10, DIM), np.float32, external=[("/etc/hostname", 0, 4 * 10 * DIM)])


def virtual(group: Any) -> None:
    del group["features"]
    layout = h5py.VirtualLayout((10, DIM), np.float32)
    layout[:] = h5py.VirtualSource("other.h5", "features", (10, DIM))
    group.create_virtual_dataset("features", layout)


def loop_of_links(group: Any) -> None:
    del group["features"]
    group["features"], group["again"] = h5py.SoftLink("again"), h5py.SoftLink("features")


def huge(group: Any) -> None:
    del group["features"]
    group.create_dataset("features", (2**40, DIM), np.float32, chunks=(1024, DIM))


def bomb(group: Any) -> None:
    del group["features"]
    group.create_dataset("features", data=np.zeros((10, 2**20), np.float32), compression="gzip", compression_opts=9)


def references(group: Any) -> None:
    del group["features"]
    group.create_dataset("features", (10, DIM), h5py.ref_dtype)


def text(group: Any) -> None:
    del group["features"]
    group.create_dataset("features", (10, DIM), h5py.string_dtype())


def itself(group: Any) -> None:
    del group["features"]
    group["features"] = group


def never_written(group: Any) -> None:
    del group["features"]
    group.create_dataset("features", (10, DIM), np.float32)


def half_written(group: Any) -> None:
    del group["features"]
    group.create_dataset("features", (10, DIM), np.float32, chunks=(5, DIM))[:5] = 1


HOSTILE_HDF5 = {
    never_written: "was never written",
    half_written: "has 1 of 2 chunks; the rest was never written",
    external_link: "is a link to another file, 'other.h5'",
    external_link_behind_a_soft_one: "is a link to another file, 'other.h5'",
    external_storage: "lie in other files",
    virtual: "lie in other files",
    loop_of_links: "no features|leads from link to link|no zbad/again",
    huge: "the rest was never written",
    bomb: "says it has 41943040 bytes",
    references: "only numbers are read",
    text: "only numbers are read",
    itself: "a group where a data set is expected",
}


@pytest.mark.parametrize("change", HOSTILE_HDF5, ids=lambda change: change.__name__)
def test_hostile_hdf5_costs_its_image_and_says_why(tmp_path: Path, change: Callable[[Any], None]) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["features"] = IMAGES[0].features
    importer = open_importer([str(hdf5(tmp_path / "a.h5", change))])
    found = list(importer.read(0, 4))
    assert [isinstance(out, RawRecord) for out in found] == [True, True, True, False]
    assert isinstance(found[3], SourceReject)
    assert re.search(HOSTILE_HDF5[change], found[3].detail), found[3].detail


def test_soft_links_and_packed_data_inside_a_file_are_fine(tmp_path: Path) -> None:
    def change(group: Any) -> None:
        values = group["features"][()]
        del group["features"]
        group.create_dataset("packed", data=values, compression="gzip", shuffle=True, fletcher32=True)
        group["features"] = h5py.SoftLink("packed")

    importer = open_importer([str(hdf5(tmp_path / "a.h5", change))])
    record = next(iter(importer.read(3, 4)))
    assert isinstance(record, RawRecord) and record.features.tobytes() == IMAGES[0].features.tobytes()


def test_names_that_are_no_utf8_are_rejects_at_most(tmp_path: Path) -> None:
    folder = write.write_milvlg(tmp_path / "npz", IMAGES)
    (folder / f"{IMAGES[0].key}.npz").rename(folder / os.fsdecode(b"\xff.npz"))
    path = write.write_groups(tmp_path / "a.h5", IMAGES)
    with h5py.File(path, "a") as file:
        file.move(IMAGES[0].key, b"\xff")
    loose = open_importer([str(folder)])
    assert [out.key for out in loose.read(0, 3) if isinstance(out, RawRecord)] == list(loose.keys())
    assert sorted(loose.keys())[-1] == os.fsdecode(b"\xff")
    assert check_outcomes(open_importer([str(path)])) == (2, 1)


# Processes


def killing_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str) -> Child:
    """Return a helper whose process does `body` when it is asked about a file whose name has "bad" in it."""
    package = tmp_path / "fake_child.py"
    package.write_text(
        "import os, signal, time\nimport numpy as np\nfrom vlbert_data.importers.child_side import serve\n"
        f"def answer(request):\n    if 'bad' in request['path']:\n        {body}\n"
        "    return {'fine': True}, [np.arange(3)]\nserve(answer, (OSError,))\n"
    )
    monkeypatch.setitem(child_module.MODULES, "fake", "fake_child")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Child("fake", seconds_an_answer=2.0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"ended the process that tried \(SIGSEGV\)"),
        ("os.kill(os.getpid(), signal.SIGBUS)", r"ended the process that tried \(SIGBUS\)"),
        ("os._exit(3)", "ended the process that tried"),
        ("raise ZeroDivisionError", "ended the process that tried"),
        ("time.sleep(60)", "no answer within 2 s"),
        ("print('noise' * 100, flush=True)", "gave no sense"),
        ("np.ones(2**40)", "ended the process that tried"),
    ],
)
def test_a_reader_that_dies_or_stalls_costs_one_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, message: str
) -> None:
    with killing_child(monkeypatch, tmp_path, body) as child:
        assert child.ask(Path("good"), {})[1][0].tolist() == [0, 1, 2]
        with pytest.raises(ChildRefusedError, match=f"^bad: .*{message}"):
            child.ask(Path("bad"), {})
        assert child.ask(Path("good"), {})[0] == {"fine": True}


def test_a_helper_that_does_not_start_ends_the_import_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(child_module.MODULES, "absent", "no.such.module")
    with Child("absent") as child:
        for _ in range(2):
            with pytest.raises(VlbError, match="the process that reads absent files did not start") as caught:
                child.ask(Path("x"), {})
            assert not isinstance(caught.value, RefusedDataError), "no input is to blame"


@pytest.mark.parametrize("name", ["VL-T5 HDF5", "UNITER npz", "HF Arrow", "tensorpack 13, msgpack", "MILVLG npz"])
def test_threads_read_the_same_as_one_after_another(tmp_path: Path, name: str) -> None:
    images = make_images(24, num_rois=10, prefix="" if name == "HF Arrow" else "COCO_")
    path = (
        CASES[name].write(tmp_path, images)
        if name != "HF Arrow"
        else write.write_arrow(tmp_path / "a.arrow", images, kept=10)
    )
    importer = open_importer([str(path)])
    expected = [out.features.tobytes() for out in importer.read(0, 24) if isinstance(out, RawRecord)]
    copy = pickle.loads(pickle.dumps(importer))
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda number: next(iter(copy.read(number, number + 1))), range(24)))
    assert [out.features.tobytes() for out in found if isinstance(out, RawRecord)] == expected


def test_a_survey_may_take_longer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with killing_child(monkeypatch, tmp_path, "time.sleep(2.5)") as child:
        assert child.ask(Path("bad"), {}, seconds=60)[0] == {"fine": True}


def test_a_file_that_always_kills_its_reader_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with killing_child(monkeypatch, tmp_path, "os._exit(1)") as child:
        for _ in range(child_module.MAX_DEATHS):
            with pytest.raises(ChildRefusedError, match="ended the process"):
                child.ask(Path("bad"), {})
        with pytest.raises(ChildRefusedError, match=r"ended 10 processes; it is not tried again\."):
            child.ask(Path("bad"), {})


def test_no_helper_outlives_its_parent(tmp_path: Path) -> None:
    path = write.write_groups(tmp_path / "a.h5", IMAGES)
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom vlbert_data.importers.child import Child\n"
        f"child = Child('hdf5')\nchild.ask(Path({str(path)!r}), {{'op': 'names', 'name': '/'}})\n"
        "print(child._process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    helper = Path(f"/proc/{int(done.stdout)}/cmdline")
    for _ in range(100):
        if not helper.exists() or b"hdf5_child" not in helper.read_bytes():
            return
        time.sleep(0.05)
    pytest.fail("the helper process is still there")


def test_hdf5_is_never_opened_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write.write_groups(tmp_path / "a.h5", IMAGES)
    monkeypatch.setattr(h5py, "File", None)
    assert check_outcomes(open_importer([str(path)])) == (3, 0)
    with pytest.raises(ChildRefusedError, match="there is no nothing in the file"):
        read_datasets(path, ["nothing"])
