"""Damaged files of every binary format end as rejects or refusals: nothing crashes, hangs or lies."""

import random
from pathlib import Path

import pytest

from tests import foreign_writers as write
from tests.binary_cases import CASES
from tests.damage import mutate
from tests.hostile import IMAGES, NUMBERED, check_outcomes, is_sound
from vlbert_data.errors import RecordRejectedError, VlbError
from vlbert_data.importers.base import RawRecord
from vlbert_data.importers.lmdb_inputs import LmdbImporter
from vlbert_data.importers.lmdb_records import LmdbRecords
from vlbert_data.importers.open import open_importer
from vlbert_data.importers.plain_arrays import RefusedDataError
from vlbert_data.importers.record_dict import RecordPlace
from vlbert_data.sources.base import SourceReject

MUTATIONS_A_VALUE_FORMAT = 400
MUTATIONS_A_FILE_FORMAT = 120


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
