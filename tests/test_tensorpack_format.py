"""tensorpack's LMDB: several files, lost records, and data points that are none."""

import os
from pathlib import Path
from typing import Any

import lmdb
import pytest

from tests import foreign_writers as write
from tests.binary_cases import (
    IMAGES,
    named_arrays,
)
from tests.foreign_writers import make_images
from vlbert_data.importers.base import RawRecord
from vlbert_data.importers.open import open_importer
from vlbert_data.sources.base import SourceReject


def test_parts_of_tensorpack_are_one_input(tmp_path: Path) -> None:
    for part, images in enumerate((IMAGES[:2], IMAGES[2:])):
        points = [write.vilbert_list(image) for image in images]
        write.write_tensorpack(tmp_path / f"training_feat_part_{part}.lmdb", points, codec="msgpack")
    for lock in tmp_path.glob("*-lock"):
        lock.unlink()
    importer = open_importer([str(tmp_path)])
    assert list(importer.keys()) == [image.key for image in IMAGES] and len(importer.facts()["files"]) == 2


@pytest.mark.parametrize("codec", ["msgpack", "pickle"])
@pytest.mark.parametrize("parts", [8, 13])
def test_ids_are_found_without_reading_arrays(tmp_path: Path, codec: str, parts: int) -> None:
    make = write.vilbert_list if parts == 8 else write.volta_list
    path = write.write_tensorpack(
        tmp_path / "x.lmdb", [make(image) for image in make_images(3, num_rois=300)], codec=codec
    )
    importer = open_importer([str(path)])
    expected = [record.key for record in importer.read(0, 3) if isinstance(record, RawRecord)]
    sparse = importer.records(0).read_sparse(0, max_bytes=1 << 24)
    size, reads, pread = len(sparse), [], os.pread
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", lambda *where: (reads.append(where[1]), pread(*where))[1])
        assert list(importer.keys()) == expected
    assert sum(reads) < 3 * size / 10


def test_tensorpack_is_told_though_its_first_records_are_lost(tmp_path: Path) -> None:
    path = write.write_tensorpack(tmp_path / "x.lmdb", [named_arrays(image) for image in IMAGES], codec="pickle")
    env = lmdb.open(str(path), subdir=False, map_size=1 << 28)
    with env.begin(write=True) as txn:
        txn.delete(b"00000000")
    env.close()
    importer = open_importer([str(path)])
    assert importer.traits.format == "tensorpack-lmdb"
    assert list(importer.keys()) == [*(image.key for image in IMAGES[1:]), ""]


def test_records_that_tensorpack_lost_are_told(tmp_path: Path) -> None:
    points = [write.vilbert_list(image) for image in make_images(9)]
    folder = tmp_path / "part: one"
    folder.mkdir()
    path = write.write_tensorpack(folder / "x.lmdb", points, codec="pickle")
    env = lmdb.open(str(path), subdir=False, map_size=1 << 28)
    with env.begin(write=True) as txn:
        for number in (3, 4, 5):
            txn.delete(f"{number:08d}".encode())
    env.close()
    importer = open_importer([str(path)])
    rejects = [out for out in importer.read(0, len(importer)) if isinstance(out, SourceReject)]
    assert len(importer) == 7 and list(importer.keys())[-1] == ""
    assert [(out.number, out.reason, out.where) for out in rejects] == [(6, "damaged file", str(path))]
    assert rejects[0].detail.startswith("records 3 to 5 are missing")


@pytest.mark.parametrize(
    ("point", "reason", "detail"),
    [
        ([1, 2, 3], "bad record", "a list of 3 parts; expected 8 parts (ViLBERT) or 13 (VOLTA)"),
        ("text", "bad record", "a str; expected"),
        ([*write.vilbert_list(IMAGES[0])[:6], None, "caption"], "bad key", "the image's id is 'None'"),
        ([*write.vilbert_list(IMAGES[0])[:7], 5], "bad caption", "'5'; expected text"),
        ([*write.vilbert_list(IMAGES[0])[:3], 11, *write.vilbert_list(IMAGES[0])[4:]], "wrong length", "11 boxes"),
        ([*write.vilbert_list(IMAGES[0])[:5], "wide", "a", "b"], "bad field", "image width: 'wide'"),
    ],
)
def test_bad_data_points_are_rejects(tmp_path: Path, point: Any, reason: str, detail: str) -> None:
    points = [write.vilbert_list(IMAGES[0]), point]
    path = write.write_tensorpack(tmp_path / "x.lmdb", points, codec="msgpack")
    reject = list(open_importer([str(path)]).read(0, 2))[1]
    assert isinstance(reject, SourceReject) and reject.reason == reason and detail in reject.detail
