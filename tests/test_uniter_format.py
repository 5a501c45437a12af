"""UNITER's features: how many RoIs of an image count."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests import foreign_writers as write
from tests.binary_cases import (
    IMAGES,
    records,
    same,
)
from vlbert_data.errors import ConfigError
from vlbert_data.importers import uniter_counts, uniter_lmdb
from vlbert_data.importers.open import open_importer
from vlbert_data.sources.base import SourceReject


def test_uniter_takes_the_rois_that_its_file_counts(tmp_path: Path) -> None:
    path = write.write_uniter(tmp_path / "feat_th0.2_max100_min10", IMAGES)
    counts = {f"{image.key}.npz": 10 + number for number, image in enumerate(IMAGES)}
    (path / "nbb_th0.2_max100_min10.json").write_text(json.dumps(counts))
    found = records(open_importer([str(path / "data.mdb")]))
    assert {key: len(record.boxes) for key, record in found.items()} == counts
    assert {key: len(record.boxes) for key, record in records(open_importer([str(path)])).items()} == counts
    first = found[f"{IMAGES[0].key}.npz"].confidence
    assert first is not None and same(np.ascontiguousarray(first), IMAGES[0].scores.astype(np.float16)[:10])


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("feat_th0.2_max100_min10", 12),
        ("feat_th0.2_max100_min15_compressed", 15),
        ("feat_th0.2_max11_min2", 11),
        ("feat_th0.01_max100_min10", 20),
        ("feat_numbb7", 7),
        ("all", 12),
    ],
)
def test_uniter_counts_by_the_rule_in_its_folders_name(tmp_path: Path, folder: str, expected: int) -> None:
    path = write.write_uniter(tmp_path / folder, IMAGES, counts=False)
    importer = open_importer([str(path)])
    assert {len(record.boxes) for record in records(importer).values()} == {expected}
    assert "rule" in importer.facts()["roi_counts"][0]


BAD_COUNTS = (
    *(
        "",
        "[1]",
        "{",
        "{}x",
        '{"a": 1',
        '{"a": 1,}',
        '{"a": 1}{',
        '{"a": 1} x',
        '{"a": "b"}',
        '{"a": true}',
        '{"a": 1.5}',
    ),
    *(
        '{"a": 0}',
        '{"a": -1}',
        '{"a": 70000}',
        '{"a": 1, "a": 2}',
        "{a: 1}",
        '{"\\ud800": 1}',
        '{"\\x": 1}',
        "[" * 100_000,
    ),
    *('{"' + "a" * 3_000_000 + '": 1}', '{"a": {"b": 1}}'),
)


def test_counts_come_out_as_json_reads_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    names = [f"coco_{number:012d}.npz" for number in range(150_000)] + ['sn\u00f6w "q" \\.npz']
    counts = {name: int(number) for name, number in zip(names, rng.integers(1, 101, len(names)), strict=True)}
    for text in (json.dumps(counts), json.dumps(counts, indent=1), json.dumps(counts, ensure_ascii=False) + "\n"):
        (tmp_path / "nbb_x.json").write_text(text)
        found = uniter_counts.find_counts(tmp_path)
        asked = [*names[::997], names[-1]]
        assert [found.count(name, np.zeros(0)) for name in asked] == [counts[name] for name in asked]
        assert found.numbers is not None and int(found.numbers.sum()) == sum(counts.values())


def test_uniter_rejects_what_its_counts_do_not_fit(tmp_path: Path) -> None:
    path = write.write_uniter(tmp_path / "x", IMAGES)
    counts = {f"{IMAGES[0].key}.npz": 21, f"{IMAGES[1].key}.npz": 12}
    (path / "nbb_th0.2_max100_min10.json").write_text(json.dumps(counts))
    importer = open_importer([str(path)])
    reasons = sorted(out.reason for out in importer.read(0, 4) if isinstance(out, SourceReject))
    assert reasons == ["field missing", "field missing", "wrong length"]
    for text in BAD_COUNTS:
        (path / "nbb_th0.2_max100_min10.json").write_text(text)
        with pytest.raises(ConfigError, match=r"nbb_th0\.2_max100_min10\.json: "):
            uniter_lmdb.UniterLmdb([path])
