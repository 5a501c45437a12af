"""Damaged files of every binary format end as rejects or refusals: nothing crashes, hangs or lies."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest

from tests import foreign_writers as write
from tests.binary_cases import CASES
from tests.damage import mutate, num_mutations
from tests.foreign_writers import make_images
from tests.hostile import IMAGES, NUMBERED, check_outcomes, is_sound
from vlbert_data.errors import RecordRejectedError, VlbError
from vlbert_data.importers.base import RawRecord
from vlbert_data.importers.lmdb_inputs import LmdbImporter
from vlbert_data.importers.lmdb_records import LmdbRecords
from vlbert_data.importers.open import open_importer
from vlbert_data.importers.plain_arrays import RefusedDataError
from vlbert_data.importers.record_dict import RecordPlace
from vlbert_data.sources.base import SourceReject

MUTATIONS_A_VALUE_FORMAT = num_mutations(400)
MUTATIONS_A_FILE_FORMAT = num_mutations(1000)
MUTATIONS_OF_LOOSE_FILES = num_mutations(300)
NAMES_USED = 8
FEW = make_images(2, num_rois=4)


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
    for _ in range(MUTATIONS_OF_LOOSE_FILES):
        victim = rng.choice(files)
        whole = victim.read_bytes()
        victim.write_bytes(mutate(whole, rng))
        outcome = next(iter(importer.read(0, 1)))
        refused += isinstance(outcome, SourceReject) or not is_sound(importer, outcome)
        victim.write_bytes(whole)
    assert refused > MUTATIONS_OF_LOOSE_FILES // 5
    assert isinstance(next(iter(importer.read(0, 1))), RawRecord)


def write_changing(folder: Path) -> Path:
    """Write the HDF5 file of images with different numbers of RoIs."""
    path = write.write_dense(folder / "val.hdf5", FEW)
    with h5py.File(path, "w") as file:
        for name, values in (
            ("image_features", [image.features for image in FEW]),
            ("image_bb", [image.boxes for image in FEW]),
            ("spatial_features", [image.shares for image in FEW]),
        ):
            file[name] = np.concatenate([values[0], values[1][:3]])
        file["pos_boxes"] = np.int32([[0, 4], [4, 7]])
    return path


def write_arrow_file(folder: Path) -> Path:
    """Write the Arrow table as a file with a directory at its end, and not as a stream."""
    table = pa.ipc.open_stream(write.write_arrow(folder / "stream", NUMBERED, kept=9).read_bytes()).read_all()
    (folder / "stream").unlink()
    with pa.ipc.new_file(folder / "val.arrow", table.schema) as writer:
        writer.write_table(table)
    return folder / "val.arrow"


def write_tensorpack(folder: Path) -> Path:
    points = [write.volta_list(image) for image in IMAGES]
    return write.write_tensorpack(folder / "x.lmdb", points, codec="pickle")


# What is written, and its format. Of a folder each file is damaged in turn.
FILE_CASES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "VL-T5 HDF5": (lambda folder: write.write_groups(folder / "a.h5", FEW), "group-hdf5"),
    "dense HDF5": (lambda folder: write.write_dense(folder / "val36.hdf5", FEW), "dense-hdf5"),
    "dense HDF5 of changing numbers": (write_changing, "dense-hdf5"),
    "VLP HDF5": (lambda folder: write.write_vlp(folder / "vlp", FEW[:1]), "vlp-hdf5"),
    "HF Arrow stream": (lambda folder: write.write_arrow(folder / "val.arrow", NUMBERED, kept=9), "lxmert-arrow"),
    "HF Arrow file": (write_arrow_file, "lxmert-arrow"),
    "UNITER LMDB": (
        lambda folder: write.write_uniter(folder / "x", IMAGES, counts=False) / "data.mdb",
        "uniter-lmdb",
    ),
    "tensorpack LMDB": (write_tensorpack, "tensorpack-lmdb"),
}


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """Return a file with up to eight bytes changed, most of them at its beginning, or cut short."""
    changed = bytearray(whole)
    for _ in range(rng.randint(1, 8)):
        spot = rng.randrange(min(len(whole), 12_000) if rng.random() < 0.7 else len(whole))
        changed[spot] = rng.choice([0, 0xFF, 0x7F, rng.randrange(256)])
    return bytes(changed if rng.random() < 0.8 else changed[: rng.randrange(len(whole))])


def replace_file(path: Path, data: bytes) -> None:
    path.unlink()  # to write over a file waits for the disk
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILE_CASES)
def test_mutated_files_are_refused_or_give_sound_records(tmp_path: Path, name: str) -> None:
    writer, format_name = FILE_CASES[name]
    (tmp_path / "whole").mkdir()
    given = writer(tmp_path / "whole").relative_to(tmp_path / "whole")
    rng, outcomes = random.Random(23), {"refused whole": 0, "refused": 0, "taken": 0}
    for number in range(MUTATIONS_A_FILE_FORMAT):
        # A file that has ended its reader ten times is given up, so no name is used as often.
        folder = tmp_path / str(number // NAMES_USED)
        if number % NAMES_USED == 0:
            shutil.copytree(tmp_path / "whole", folder)
        path = folder / given
        victim = sorted(path.iterdir())[number % len(list(path.iterdir()))] if path.is_dir() else path
        whole = victim.read_bytes()
        replace_file(victim, damaged(whole, rng))
        try:
            importer = open_importer([str(path)], format_name=format_name)
            list(importer.keys())
            taken, refused = check_outcomes(importer)
        except VlbError as error:
            assert str(error) and "no answer within" not in str(error)
            outcomes["refused whole"] += 1
        else:
            outcomes["taken"] += taken
            outcomes["refused"] += refused
        replace_file(victim, whole)
        if number % NAMES_USED == NAMES_USED - 1:
            shutil.rmtree(folder)
    assert outcomes["refused whole"] + outcomes["refused"] > MUTATIONS_A_FILE_FORMAT // 12, outcomes
    assert outcomes["taken"] > MUTATIONS_A_FILE_FORMAT // 12, outcomes
