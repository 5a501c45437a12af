"""A run folder: settings, figures, checkpoints. Promise: one process writes it at a time, and it stays usable.

runs/x/ holds config.json, metrics.jsonl, tensorboard/ and checkpoints/step-NNNNNNNN/.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlbert_data.errors import ConfigError, VlbError
from vlbert_data.nearby import folders_inside, where_it_ends
from vlbert_data.shards import files
from vlbert_train import config as config_module
from vlbert_train.checkpoint import MODEL_NAME, NAME, list_checkpoints
from vlbert_train.config import PretrainConfig

CONFIG_NAME = "config.json"
METRICS_NAME = "metrics.jsonl"
LOCK_NAME = ".lock"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFolder:
    """Where the parts of a run lie."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """Return the file of figures, one JSON object a line."""
        return self.path / METRICS_NAME

    @property
    def tensorboard(self) -> Path:
        """Return the folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    def newest_checkpoint(self) -> Path | None:
        """Return the checkpoint of the latest step, sound or not; None before the first."""
        found = list(list_checkpoints(self.checkpoints).values())
        return found[-1] if found else None

    def read_config(self) -> PretrainConfig:
        """Return the settings the run was started with.

        Raises:
            ConfigError: not a run folder, or settings that this vlb does not know.
        """
        path = self.path / CONFIG_NAME
        if not path.is_file():
            what = f"has no {CONFIG_NAME}, so it is no run folder" if self.path.is_dir() else "there is no such folder"
            hint = self._meant() or f"Start a run with vlb pretrain --out {self.path}"
            raise ConfigError(f"{self.path}: {what}. {hint}")
        try:
            facts = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path}: damaged: {error}. Each checkpoint's state.json holds the settings too"
            ) from error
        try:
            return config_module.from_json(facts)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def _meant(self) -> str:
        """Return a sentence that proposes a run near this path, or in it; empty where there is none."""

        def is_run(path: Path) -> bool:
            return (path / CONFIG_NAME).is_file() and not (path / MODEL_NAME).exists()

        return folders_inside(self.path, is_run) if self.path.is_dir() else where_it_ends(self.path, fits=is_run)

    def write_config(self, config: PretrainConfig) -> None:
        """Write the settings, all or nothing."""
        with explain_disk(self.path):
            files.write_bytes(self.path / CONFIG_NAME, (json.dumps(config.as_json(), indent=1) + "\n").encode())

    def cut_metrics(self, step: int) -> None:
        """Drop the lines of `metrics.jsonl` that belong to later steps, or were cut short."""
        if not self.metrics.is_file():
            return
        kept = [line for line in self.metrics.read_bytes().splitlines(keepends=True) if _step_of(line) <= step]
        with explain_disk(self.path):
            files.write_bytes(self.metrics, b"".join(kept))


def _step_of(line: bytes) -> float:
    """Return the step of a line of figures; infinity for a line that is no such thing."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")


def new_run(path: Path) -> RunFolder:
    """Return a run folder at `path`, made now.

    Raises:
        ConfigError: something is there already.
    """
    run = RunFolder(path=path)
    if (path / CONFIG_NAME).exists() or list_checkpoints(run.checkpoints):
        raise ConfigError(
            f"{path}: holds a run already. Go on with it by vlb pretrain --resume {path}, or choose another --out."
        )
    if path.exists() and (not path.is_dir() or any(entry.name != LOCK_NAME for entry in path.iterdir())):
        raise ConfigError(f"{path}: exists and is no run folder. Choose another --out.")
    with explain_disk(path):
        path.mkdir(parents=True, exist_ok=True)
    return run


def find_run(path: Path) -> tuple[RunFolder, Path | None]:
    """Return the run folder that `path` names, and the checkpoint if `path` is one inside it.

    Raises:
        ConfigError: neither a run folder nor a checkpoint in one.
    """
    if NAME.fullmatch(path.name) and path.parent.name == "checkpoints":
        run = RunFolder(path=path.parent.parent)
        run.read_config()
        return run, path
    run = RunFolder(path=path)
    run.read_config()
    return run, None


@contextlib.contextmanager
def locked(run: RunFolder) -> Iterator[None]:
    """Keep other processes from writing this run folder. The system lifts the lock when this process ends, anyhow.

    Raises:
        ConfigError: another process has it.
    """
    with explain_disk(run.path):
        handle = os.open(run.path / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(handle, 32, 0).decode(errors="replace").strip() or "another process"
            raise ConfigError(
                f"{run.path}: in use by {owner}. Wait until it ends or stop it; or choose another folder."
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def explain_disk(path: Path) -> Iterator[None]:
    """Turn an error of the file system into one sentence about the run folder."""
    try:
        yield
    except OSError as error:
        raise VlbError(
            f"{path}: cannot be written: {error.strerror}. What is there stays as it is; "
            f"once there is room, vlb pretrain --resume {path} goes on."
        ) from error
