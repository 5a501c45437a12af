"""Weights of the Faster R-CNN from every published kind of file: complete and equal, or refused by name."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from real_data import real_data
from safetensors.torch import save_file
from torch import Tensor
from vg_weights import TINY, recipe_tensors, recipe_weights, without_extras

from vlbert_data.detect.vg_frcnn.names import read_label_space, read_names
from vlbert_data.detect.vg_frcnn.weights import ANCHORS, COUNTER, find_weights, load_network, read_weights, save_weights
from vlbert_data.errors import ConfigError
from vlbert_data.importers.safe_pickle import PickleRefusedError


def as_bin(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save(tensors, path)


def as_old_bin(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def as_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, path)


def as_detectron2_pickle(path: Path, tensors: dict[str, Tensor]) -> None:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items() if not name.endswith(COUNTER)}
    arrays |= {"pixel_mean": np.array([[[102.9801]], [[115.9465]], [[122.7717]]]), "pixel_std": np.ones((3, 1, 1))}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "converted", "matching_heuristics": True}))


def as_parallel_bin(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save({f"module.{name}": tensor for name, tensor in tensors.items()}, path)


def as_half_precision(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}, path)


KINDS = [as_bin, as_old_bin, as_safetensors, as_detectron2_pickle, as_parallel_bin]


@pytest.mark.parametrize("write", KINDS)
def test_every_kind_of_file_holds_the_same_weights(
    tmp_path: Path, write: Callable[[Path, dict[str, Tensor]], None]
) -> None:
    write(tmp_path / "weights", recipe_tensors(TINY))
    found, expected = read_weights(tmp_path / "weights", TINY), recipe_weights(TINY)
    assert found.digest == expected.digest
    assert found.size == TINY
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())


def test_saved_weights_are_read_back_equal(tmp_path: Path) -> None:
    save_weights(recipe_weights(TINY), tmp_path / "model.safetensors")
    assert read_weights(tmp_path / "model.safetensors", TINY).digest == recipe_weights(TINY).digest
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    (tmp_path / "other").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1  # who may read other files here may read the weights


def test_nothing_is_left_of_weights_that_could_not_be_written(tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    (target / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        save_weights(recipe_weights(TINY), target)
    with pytest.raises(OSError, match="No such file"):
        save_weights(recipe_weights(TINY), tmp_path / "none" / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_other_values_have_another_digest(tmp_path: Path) -> None:
    as_half_precision(tmp_path / "half", recipe_tensors(TINY))
    assert read_weights(tmp_path / "half", TINY).digest != recipe_weights(TINY).digest


def test_weights_without_attributes_are_complete(tmp_path: Path) -> None:
    parts = ("cls_embedding", "fc_attr", "attr_score")
    bare = {name: t for name, t in recipe_tensors(TINY).items() if not any(part in name for part in parts)}
    as_bin(tmp_path / "w", bare)
    found = read_weights(tmp_path / "w", TINY)
    assert (found.size.num_classes, found.size.num_attributes) == (TINY.num_classes, 0)
    assert not hasattr(load_network(found).predictor, "fc_attr")


def changed(**changes: Any) -> dict[str, Tensor]:
    """Return recipe tensors with one dropped (None) or replaced; dots in names are written as double underscores."""
    tensors = recipe_tensors(TINY)
    for name, value in changes.items():
        tensors[name.replace("__", ".")] = value
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone__stem__conv1__weight": None}, r"1 missing \(backbone.stem.conv1.weight\)"),
        ({"mask_head__weight": torch.zeros(1)}, r"1 not known \(mask_head.weight\)"),
        (
            {"roi_heads__box_predictor__bbox_pred__bias": torch.zeros(32)},
            r"1 of another shape \(roi_heads.box_predictor.bbox_pred.bias \[32\] instead of \[28\]\)",
        ),
        ({"roi_heads__box_predictor__fc_attr__bias": None}, r"1 missing \(roi_heads.box_predictor.fc_attr.bias\)"),
        ({"roi_heads__box_predictor__cls_score__bias": torch.full((8,), float("nan"))}, "NaN or infinity in roi_heads"),
        (
            {"pixel_mean": torch.tensor([123.675, 116.28, 103.53])},
            "pixel_mean begins .*; expected .*102.98.*another network",
        ),
        ({"pixel_std": torch.tensor([57.4])}, "pixel_std begins"),
        ({"proposal_generator__anchor_generator__cell_anchors__0": torch.zeros(15, 4)}, "cell_anchors.0 begins"),
    ],
)
def test_a_wrong_or_incomplete_file_is_refused_with_what_differs(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    as_bin(tmp_path / "w", changed(**changes))
    with pytest.raises(ConfigError, match=message):
        read_weights(tmp_path / "w", TINY)


def test_many_differing_names_are_counted_and_some_named(tmp_path: Path) -> None:
    as_bin(tmp_path / "w", {"conv.weight": torch.zeros(1)})
    with pytest.raises(ConfigError, match=r"\d+ missing \(backbone\..*, and \d+ more\); 1 not known \(conv.weight\)"):
        read_weights(tmp_path / "w", TINY)


class Attack:
    """Would make a file if it were unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


def test_nothing_in_a_pickle_is_executed(tmp_path: Path) -> None:
    target = tmp_path / "touched"
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": {"backbone": Attack(target)}}))
    with pytest.raises(PickleRefusedError, match="only plain data is read"):
        read_weights(tmp_path / "w.pkl", TINY)
    torch.save({"model": Attack(target)}, tmp_path / "w.bin")
    with pytest.raises(ConfigError, match="cannot be read as weights"):
        read_weights(tmp_path / "w.bin", TINY)
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "begins with b''"), (b"\x89PNG....", "expected safetensors, a PyTorch file or a pickle of arrays")],
)
def test_another_kind_of_file_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_weights(tmp_path / "w", TINY)


@pytest.mark.parametrize("write", [as_bin, as_safetensors])
def test_a_cut_file_is_told(tmp_path: Path, write: Callable[[Path, dict[str, Tensor]], None]) -> None:
    write(tmp_path / "w", recipe_tensors(TINY))
    (tmp_path / "w").write_bytes((tmp_path / "w").read_bytes()[:-2000])
    with pytest.raises(ConfigError, match="cannot be read as weights"):
        read_weights(tmp_path / "w", TINY)


def test_a_pickle_of_something_else_is_told(tmp_path: Path) -> None:
    (tmp_path / "w.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ConfigError, match="holds a list; expected tensors by name"):
        read_weights(tmp_path / "w.pkl", TINY)
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": {"a": "b"}}))
    with pytest.raises(ConfigError, match="'a' is a str"):
        read_weights(tmp_path / "w.pkl", TINY)


def test_a_folders_weights_are_found(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="weights files found: none"):
        find_weights(str(tmp_path))
    (tmp_path / "a.pkl").touch()
    assert find_weights(str(tmp_path)) == tmp_path / "a.pkl"
    (tmp_path / "b.pkl").touch()
    with pytest.raises(ConfigError, match=r"a.pkl, b.pkl; .* Give the file itself"):
        find_weights(str(tmp_path))
    assert find_weights(str(tmp_path / "b.pkl")) == tmp_path / "b.pkl"
    (tmp_path / "pytorch_model.bin").touch()
    assert find_weights(str(tmp_path)).name == "pytorch_model.bin"
    (tmp_path / "model.safetensors").touch()
    assert find_weights(str(tmp_path)).name == "model.safetensors"
    with pytest.raises(ConfigError, match=r"no such path. Give a model's folder, or its hub name"):
        find_weights(str(tmp_path / "none"))


def test_the_published_names_are_read_once_each() -> None:
    objects = real_data("vocab", "objects_vocab.txt")
    space = read_label_space(objects, 1600)
    assert (space.num_classes, space.background_index, len(set(space.class_names))) == (1600, None, 1600)
    # Synonyms stand between commas; the first is the name.
    first = [line.split(",")[0] for line in objects.read_text().split("\n")]
    assert [name.lower() for name in first] == list(space.class_names)
    assert len(read_names(real_data("vocab", "attributes_vocab.txt"), 400)) == 400


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat\ndog", "2 names; the weights have 3. Use the list that came with them"),
        ("cat\ndog\ncat,kitten", "line 3: the name 'cat' is empty or there twice"),
        ("cat\n\ndog", "line 2: the name '' is empty"),
    ],
)
def test_a_wrong_list_of_names_is_told(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "names.txt").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_names(tmp_path / "names.txt", 3)


def test_anchors_and_counters_are_not_believed_but_made() -> None:
    names = recipe_weights(TINY).tensors
    assert not any(name == ANCHORS or name.endswith(COUNTER) for name in names)
    assert set(names) == set(without_extras(recipe_tensors(TINY)))
