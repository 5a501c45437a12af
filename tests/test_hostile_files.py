"""Files that are made to do harm end as rejects or refusals: nothing crashes, runs or lies."""

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest

from tests import foreign_writers as write
from tests.foreign_writers import DIM
from tests.hostile import IMAGES, NUMBERED, Runs, check_outcomes
from tests.msgpack_writer import packb
from vlbert_data.errors import VlbError
from vlbert_data.importers.base import RawRecord
from vlbert_data.importers.open import open_importer
from vlbert_data.sources.base import SourceReject

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
