"""The Faster R-CNN as a person runs it: weights put together, shards built, attributes shown."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from build_world import make_world
from vg_weights import recipe_tensors, recipe_weights

from cli.main import main
from vlbert_data.detect.vg_frcnn.names import ATTRIBUTES_FILE, OBJECTS_FILE
from vlbert_data.detect.vg_frcnn.network import PUBLISHED_SIZE
from vlbert_data.detect.vg_frcnn.weights import SAFETENSORS_FILE
from vlbert_data.shards.folder import ShardFolder

# A photo at this size costs a second or so: the work is that of the proposals.
SMALL = "num_proposals = 6\nshort_side_px = 48\nlong_side_px = 80\n"


@pytest.fixture
def vlb(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*args: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(arg) for arg in args])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return int(stop.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a published port's file, and lists of names elsewhere."""
    folder = tmp_path_factory.mktemp("port")
    torch.save(recipe_tensors(PUBLISHED_SIZE), folder / "pytorch_model.bin")
    (folder / "lists").mkdir()
    (folder / "lists" / "objects.txt").write_text("\n".join(f"Thing {n},object {n}" for n in range(1600)))
    (folder / "lists" / "attributes.txt").write_text("\n".join(f"quality {n}" for n in range(400)))
    return folder


def names(port: Path) -> list[str]:
    lists = port / "lists"
    return ["--objects", str(lists / "objects.txt"), "--attributes", str(lists / "attributes.txt")]


def test_from_a_published_file_to_shards_with_attributes(
    vlb: Callable[..., tuple[int, str, str]], port: Path, tmp_path: Path
) -> None:
    code, _, err = vlb("convert-weights", port, *names(port), "--out", tmp_path / "weights")
    assert code == 0, err
    assert "535 tensors" in err and recipe_weights(PUBLISHED_SIZE).digest in err
    assert {path.name for path in (tmp_path / "weights").iterdir()} == {SAFETENSORS_FILE, OBJECTS_FILE, ATTRIBUTES_FILE}

    table = make_world(tmp_path / "photos", 2)
    (tmp_path / "small.toml").write_text(SMALL + "masked_views = 1\nmax_rois = 5\n")
    out, detector = tmp_path / "out", f"vg-frcnn:{tmp_path / 'weights'}"
    command = ["build-shards", table, "--detector", detector, "--config", tmp_path / "small.toml", "--workers", 0]
    code, _, err = vlb(*command, "--out", out)
    assert code == 0, err

    facts = json.loads(vlb("inspect-shard", out, "--json")[1])
    assert (facts["feature_dim"], facts["has_attributes"], facts["masked_views"]) == (2048, True, 1)
    assert facts["label_space"]["class_names"][3] == "thing 3"
    assert facts["label_space"]["background_index"] is None
    assert facts["detector"]["selection"]["name"] == "caffe-perclass"
    assert facts["detector"]["background"] == {"index_in_network": 1600, "stored": False}
    assert "selection" not in facts["describer"]
    assert facts["describer"]["weights_blake2b"] == recipe_weights(PUBLISHED_SIZE).digest

    record = ShardFolder.open(out).read(0)
    assert record.rois.attribute_ids is not None
    shown = json.loads(vlb("inspect-shard", out, "--record", record.image_id, "--json")[1])
    attribute = int(record.rois.attribute_ids[0])
    assert shown["rois"][0]["attribute"]["id"] == attribute
    assert shown["rois"][0]["attribute"]["name"] == f"quality {attribute}"
    assert f"quality {attribute}" in vlb("inspect-shard", out, "--record", record.image_id)[1]
    # A shard alone has no list of names.
    alone = json.loads(vlb("inspect-shard", out / "shard-00000.lmdb", "--record", record.image_id, "--json")[1])
    assert alone["rois"][0]["attribute"]["name"] is None
    assert vlb("inspect-shard", out, "--verify")[0] == 0


def test_the_describer_alone_needs_no_names_and_takes_any_boxes(
    vlb: Callable[..., tuple[int, str, str]], port: Path, tmp_path: Path
) -> None:
    table = make_world(tmp_path / "photos", 2)
    (tmp_path / "small.toml").write_text(SMALL.replace("num_proposals = 6\n", ""))
    code, _, err = vlb(
        *("build-shards", table, "--detector", "annotations:source", "--describer", f"vg-frcnn:{port}"),
        *("--config", tmp_path / "small.toml", "--workers", 0, "--out", tmp_path / "out"),
    )
    assert code == 0, err
    record = ShardFolder.open(tmp_path / "out").read(0)
    assert record.feature_dim == 2048
    assert np.isfinite(record.features).all()


def test_missing_names_are_told_with_the_command_that_helps(
    vlb: Callable[..., tuple[int, str, str]], port: Path, tmp_path: Path
) -> None:
    table = make_world(tmp_path / "photos", 1)
    code, _, err = vlb("build-shards", table, "--detector", f"vg-frcnn:{port}", "--out", tmp_path / "out")
    assert code == 1
    assert f"not found; it must stand beside the weights. vlb convert-weights {port} --objects FILE" in err


def test_lists_that_are_nowhere_are_asked_for(
    vlb: Callable[..., tuple[int, str, str]], port: Path, tmp_path: Path
) -> None:
    for option, given in (("--objects", []), ("--attributes", names(port)[:2])):
        code, _, err = vlb("convert-weights", port, *given, "--out", tmp_path / "weights")
        assert code == 1
        assert f"not found. Say where the list of names is: {option} FILE" in err
    assert not (tmp_path / "weights").exists()


def test_a_folder_that_cannot_be_written_is_told(
    vlb: Callable[..., tuple[int, str, str]], port: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    code, _, err = vlb("convert-weights", port, *names(port), "--out", tmp_path / "file")
    assert code == 1
    assert "file: cannot be written: File exists" in err


def test_another_file_than_expected_is_refused_by_its_hash(
    vlb: Callable[..., tuple[int, str, str]], port: Path, tmp_path: Path
) -> None:
    right = hashlib.sha256((port / "pytorch_model.bin").read_bytes()).hexdigest()
    command = ["convert-weights", port, *names(port), "--out", tmp_path / "weights", "--sha256"]
    code, _, err = vlb(*command, "0" * 64)
    assert code == 1 and f"SHA-256 {right}; expected 0000" in err
    assert not (tmp_path / "weights").exists()
    assert vlb(*command, right.upper())[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--selection", "best"], "--selection best: it is one of caffe-perclass and maxnms"),
        (["--selection", "maxnms", "--score-threshold", "0.2"], "maxnms heeds no score_threshold"),
        (["--max-rois", "400"], "max_rois is 400, but RoIs are chosen from 300 proposals"),
        (["--detector", "annotations:source", "--selection", "maxnms"], "selection is 'maxnms', but --detector"),
    ],
)
def test_options_that_do_not_fit_are_told(
    vlb: Callable[..., tuple[int, str, str]], port: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    table = make_world(tmp_path / "photos", 1)
    detector = [] if "--detector" in options else ["--detector", f"vg-frcnn:{port}"]
    code, _, err = vlb("build-shards", table, *detector, *options, "--out", tmp_path / "out")
    assert code == 1
    assert message in err
