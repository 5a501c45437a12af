"""What a shard stores of a binary format is what its file held: to the bit, in its order, in both containers."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.binary_cases import CASES
from tests.import_world import run_import
from vlbert_data.importers.labels import LabelChoice
from vlbert_data.types import check_image_rois


@pytest.mark.parametrize("name", CASES)
def test_shards_store_what_the_file_held(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    (tmp_path / "in").mkdir()
    given = case.write(tmp_path / "in", case.images)
    captions, sizes = tmp_path / "captions.jsonl", tmp_path / "sizes.jsonl"
    known = {case.key(image): image for image in case.images}
    captions.write_text("\n".join(json.dumps({"image_id": key, "caption": f"of {key}"}) for key in known))
    sizes.write_text(
        "\n".join(json.dumps({"image_id": key, "width": i.width, "height": i.height}) for key, i in known.items())
    )
    container = "hdf5" if list(CASES).index(name) % 2 else "lmdb"
    choice = LabelChoice(background="first") if case.labels == "asked" else LabelChoice()
    folder = run_import(
        given,
        tmp_path / "out",
        captions=captions,
        sizes=None if case.sized else sizes,
        labels=choice,
        container=container,
        shard_size=3,
    )
    assert len(folder) == len(known)
    labels = folder.manifest.label_space
    for number in range(len(folder)):
        record = folder.read(number)
        image = known[record.image_id]
        check_image_rois(record, label_space=labels)
        num = len(image.boxes)
        order = np.arange(num) if record.rois.source_rows is None else record.rois.source_rows.astype(int)
        assert record.captions == (f"of {record.image_id}",)
        assert (record.width_px, record.height_px) == (image.width, image.height)
        assert record.features.tobytes() == image.features.astype(np.float16)[order].tobytes()
        if case.box_units == "pixels":
            assert record.rois.boxes.tobytes() == image.boxes[order].tobytes()
        else:
            sides = np.array([image.width, image.height] * 2)
            shares = image.shares[:, :4].astype(np.float16 if case.half else np.float32)
            expected = np.clip(shares.astype(np.float64) * sides, 0, sides).astype(np.float32)
            assert record.rois.boxes.tobytes() == expected[order].tobytes()
        if labels is None:
            continue
        assert sorted(order.tolist()) == list(range(num))
        offset = 1 if labels.background_index == 0 else 0
        np.testing.assert_array_equal(record.rois.label_ids[:, 0].astype(int) - offset, image.ids[order])
        np.testing.assert_allclose(record.rois.scores, image.scores[order], atol=1e-3)


@pytest.mark.parametrize("name", ["UNITER msgpack", "VLP HDF5", "VL-T5 HDF5", "tensorpack 13, pickle"])
def test_features_only_are_imported_where_asked(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    (tmp_path / "in").mkdir()
    given = case.write(tmp_path / "in", case.images)
    beside = tmp_path / "beside.jsonl"
    lines = [{"image_id": case.key(i), "caption": "of it", "width": i.width, "height": i.height} for i in case.images]
    beside.write_text("\n".join(map(json.dumps, lines)))
    folder = run_import(
        given,
        tmp_path / "out",
        captions=beside,
        sizes=None if case.sized else beside,
        labels=LabelChoice(absent=True),
    )
    assert folder.manifest.label_space is None and len(folder) == len(case.images)
    # Confidences that stand beside the classes still order the RoIs.
    ordered = case.format in ("uniter-lmdb", "vlp-hdf5")
    assert all((folder.read(number).rois.source_rows is not None) == ordered for number in range(len(folder)))
