"""Checkpoints. Promise: under its own name a checkpoint is whole and hashed; a damaged one is named, never used.

`step-00000300/` holds model.safetensors and config.json (for `from_pretrained`), optimizer.safetensors and state.json,
written to a hidden folder, synced and renamed. Nothing is pickled. Any number of ranks may load it.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlbert_data.errors import VlbError
from vlbert_data.shards import files

FORMAT_VERSION = 1
STATE_NAME = "state.json"
OPTIMIZER_NAME = "optimizer.safetensors"
MODEL_NAME = "model.safetensors"
NAME = re.compile(r"step-(\d{8,})")


class CheckpointError(VlbError):
    """A checkpoint that is absent, damaged, cannot be written, or belongs to another run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingState:
    """Where a run stands: `step` steps are done, so step number `step` is next.

    config: the run's settings as JSON types. data: the hashes of what it learns from, by name. counters: totals so far.
    """

    step: int
    config: Mapping[str, Any]
    data: Mapping[str, Any]
    counters: Mapping[str, float]
    world_size: int


def checkpoint_name(step: int) -> str:
    """Return the folder name of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """Return step to path of the checkpoints in `folder`, oldest first, sound or not."""
    if not folder.is_dir():
        return {}
    found = {int(match[1]): path for path in folder.iterdir() if (match := NAME.fullmatch(path.name))}
    return dict(sorted(found.items()))


def save(
    folder: Path,
    state: TrainingState,
    *,
    save_model: Callable[[Path], object],
    optimizer: Mapping[str, Tensor],
    keep: int,
) -> Path:
    """Write a checkpoint into `folder`, remove all but the newest `keep`, and return its path.

    save_model: writes model.safetensors and config.json into the folder it is given (`save_pretrained`).

    Raises:
        CheckpointError: it cannot be written; nothing is left of it and the older ones are untouched.
    """
    target = folder / checkpoint_name(state.step)
    temporary = folder / f".{target.name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(temporary, state, save_model, optimizer)
        if target.exists():  # a run that was resumed from an older checkpoint passes here again
            shutil.rmtree(target)
        temporary.replace(target)
        files.sync_folder(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _cannot_write(target, error) from error
    for step, path in list(list_checkpoints(folder).items())[:-keep]:
        if step < state.step:
            # Renamed first: a stop in the middle of removing must not leave what looks like a checkpoint.
            shutil.rmtree(path.rename(folder / f".{path.name}.tmp"))
    return target


def _write(
    temporary: Path, state: TrainingState, save_model: Callable[[Path], object], optimizer: Mapping[str, Tensor]
) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_model(temporary)
    save_file({name: tensor.contiguous() for name, tensor in optimizer.items()}, temporary / OPTIMIZER_NAME)
    written = sorted(path for path in temporary.iterdir() if path.is_file())
    entries = {path.name: {"bytes": path.stat().st_size, "blake3": files.publish(path, path)} for path in written}
    facts = {"format_version": FORMAT_VERSION, **asdict(state), "files": entries}
    facts["content_hash"] = files.blake2b_json(facts)
    files.write_bytes(temporary / STATE_NAME, (json.dumps(facts, indent=1) + "\n").encode())


def _cannot_write(target: Path, error: Exception) -> CheckpointError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    sound = list(list_checkpoints(target.parent).values())
    last = f"The last one is {sound[-1]}" if sound else "There is none yet"
    return CheckpointError(
        f"{target}: the checkpoint cannot be written: {reason}. {last}. "
        f"Make room, then go on with vlb pretrain --resume {target.parent.parent}"
    )


def load_state(path: Path) -> TrainingState:
    """Return where the run stood, after checking every file of the checkpoint against its hash.

    Raises:
        CheckpointError: absent, damaged or cut short; the message names the newest sound checkpoint beside it.
    """
    problem, facts = _inspect(path)
    if problem:
        raise CheckpointError(f"{path}: {problem}. {_way_out(path)}")
    return TrainingState(
        step=int(facts["step"]),
        config=facts["config"],
        data=facts["data"],
        counters=facts["counters"],
        world_size=int(facts["world_size"]),
    )


def _inspect(path: Path) -> tuple[str, dict[str, Any]]:
    """Return what is wrong with a checkpoint ('' for nothing) and the facts in its state.json."""
    if not path.is_dir():
        return "there is no such checkpoint", {}
    if not (path / STATE_NAME).is_file():
        return f"no {STATE_NAME}, so not a checkpoint or one that was cut short", {}
    try:
        facts = json.loads((path / STATE_NAME).read_bytes())
        claimed = facts.pop("content_hash")
        entries = facts["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{STATE_NAME} is damaged", {}
    if claimed != files.blake2b_json(facts):
        return f"{STATE_NAME} was changed since it was written", {}
    if facts["format_version"] != FORMAT_VERSION:
        return f"format version {facts['format_version']}; this vlb reads {FORMAT_VERSION}", {}
    for name, entry in entries:
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found is None:
            return f"{name} is missing", {}
        if found != entry["bytes"]:
            return f"{name} has {found} bytes, {entry['bytes']} were written: it was cut short", {}
        if files.blake3_file(file) != entry["blake3"]:
            return f"{name} is damaged (its hash does not fit)", {}
    return "", facts


def _way_out(path: Path) -> str:
    others = [other for other in reversed(list_checkpoints(path.parent).values()) if other != path]
    sound = next((other for other in others if not _inspect(other)[0]), None)
    if sound is None:
        return "No other checkpoint beside it is sound"
    return f"The newest sound checkpoint is {sound.name}: vlb pretrain --resume {sound} goes on from there"


def read_optimizer(path: Path) -> dict[str, Tensor]:
    """Return the optimizer's tensors of a checkpoint that `load_state` has found sound."""
    tensors: dict[str, Tensor] = load_file(path / OPTIMIZER_NAME)
    return tensors


def set_aside(folder: Path, after_step: int) -> list[Path]:
    """Rename the checkpoints of later steps to `aside-step-...`, out of the way of a run resumed at `after_step`.

    Return the new paths. Unfinished temporary folders are removed.
    """
    moved = []
    for step, path in list_checkpoints(folder).items():
        if step > after_step:
            aside = path.with_name(f"aside-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            moved.append(path.rename(aside))
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    return moved
