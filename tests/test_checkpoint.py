"""Checkpoints: whole or absent, damage found and named, the way out said."""

import json
from pathlib import Path

import pytest
import torch
from limits import files_end_at
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlbert_train import checkpoint
from vlbert_train.checkpoint import CheckpointError, TrainingState


def _state(step: int) -> TrainingState:
    return TrainingState(
        step=step,
        config={"run": {"steps": 9}},
        data={"shards": ["ab"]},
        counters={"examples": 3.5},
        world_size=2,
    )


def _save(folder: Path, step: int, keep: int = 3, size: int = 50) -> Path:
    weights = {"w": torch.full((size,), float(step))}
    moments: dict[str, Tensor] = {"mean.w": torch.arange(6.0).reshape(2, 3).T, "num_updates": torch.tensor(step)}

    def save_model(path: Path) -> None:
        save_file(weights, path / "model.safetensors")
        (path / "config.json").write_text("{}")

    return checkpoint.save(folder, _state(step), save_model=save_model, optimizer=moments, keep=keep)


def test_what_is_saved_is_loaded_bit_equal(tmp_path: Path) -> None:
    path = _save(tmp_path, 300)
    assert path.name == "step-00000300"
    assert checkpoint.load_state(path) == _state(300)
    optimizer = checkpoint.read_optimizer(path)
    assert torch.equal(optimizer["mean.w"], torch.arange(6.0).reshape(2, 3).T)
    assert int(optimizer["num_updates"]) == 300
    assert torch.equal(load_file(path / "model.safetensors")["w"], torch.full((50,), 300.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000300"]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (100, 200, 300, 400):
        _save(tmp_path, step, keep=2)
    assert list(checkpoint.list_checkpoints(tmp_path)) == [300, 400]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000300", "step-00000400"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "config.json"])
def test_every_single_damage_is_found_and_the_sound_one_named(name: str, tmp_path: Path) -> None:
    _save(tmp_path, 100)
    sound, damaged = _save(tmp_path, 200), _save(tmp_path, 300)
    whole = (damaged / name).read_bytes()
    flipped = bytes([whole[0] ^ 1]) + whole[1:]
    for bad, words in ((whole[:-1], "it was cut short"), (flipped, "is damaged"), (None, "is missing")):
        if bad is None:
            (damaged / name).unlink()
        else:
            (damaged / name).write_bytes(bad)
        with pytest.raises(CheckpointError) as caught:
            checkpoint.load_state(damaged)
        assert f"{name} " in str(caught.value)
        assert words in str(caught.value)
        assert f"vlb pretrain --resume {sound} goes on from there" in str(caught.value)
        (damaged / name).write_bytes(whole)
    assert checkpoint.load_state(damaged) == _state(300)


def test_a_changed_or_missing_state_is_found(tmp_path: Path) -> None:
    path = _save(tmp_path, 300)
    facts = json.loads((path / "state.json").read_text())
    facts["step"] = 299
    (path / "state.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=r"was changed since it was written\. No other checkpoint"):
        checkpoint.load_state(path)
    (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"state\.json is damaged"):
        checkpoint.load_state(path)
    (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match="cut short"):
        checkpoint.load_state(path)
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        checkpoint.load_state(tmp_path / "step-00000400")


def test_a_newer_format_is_refused_with_both_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 2)
    path = _save(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format version 2; this vlb reads 1"):
        checkpoint.load_state(path)


def test_a_full_disk_costs_the_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    before = _save(folder, 100)
    with files_end_at(20_000), pytest.raises(CheckpointError) as caught:
        _save(folder, 200, keep=1, size=100_000)
    assert "step-00000200: the checkpoint cannot be written:" in str(caught.value)
    assert "File too large" in str(caught.value)
    assert f"The last one is {before}. Make room, then go on with vlb pretrain --resume {tmp_path}" in str(caught.value)
    assert [p.name for p in folder.iterdir()] == ["step-00000100"]
    assert checkpoint.load_state(before) == _state(100)


def test_later_checkpoints_and_leftovers_step_aside(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        _save(tmp_path, step)
    (tmp_path / ".step-00000004.tmp").mkdir()
    assert [path.name for path in checkpoint.set_aside(tmp_path, 1)] == ["aside-step-00000002", "aside-step-00000003"]
    assert list(checkpoint.list_checkpoints(tmp_path)) == [1]
    assert not list(tmp_path.glob(".*"))
    _save(tmp_path, 2)
    checkpoint.set_aside(tmp_path, 1)  # an older one that was set aside gives way
    assert list(checkpoint.list_checkpoints(tmp_path)) == [1]
