"""Pretrained weights from disk or a hub. Promise: they are known by the hash of their files, never by a name alone."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlbert_data.errors import ConfigError, RecordRejectedError, VlbError
from vlbert_data.hub import is_out_of_reach
from vlbert_data.nearby import is_no_hub_name, where_it_ends

# What decides a model's output: its configuration, its tensors and how images are prepared.
WANTED = ("*.json", "*.safetensors", "*.bin")
READ_BYTES = 1 << 22


def resolve(name: str, *, wanted: Sequence[str] = WANTED) -> Path:
    """Return the local folder of a model: `name` itself, or a snapshot of the hub's model of that name.

    wanted: patterns of the files to fetch from a hub.

    Raises:
        ConfigError: neither a folder nor a model of the hub that can be had.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    refuse_missing(name)
    if path.exists():
        raise ConfigError(f"{name}: a file, not a folder. Give a model's folder, or its hub name.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(wanted), local_files_only=is_out_of_reach()))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{name}: no folder of that name, and the hub gave no model ({type(error).__name__}). Check the name and "
            "the network, or give a local folder."
        ) from error


def refuse_missing(name: str) -> None:
    """Raise a ConfigError where `name` can only be a path of this machine and nothing is there; no hub is asked."""
    path = Path(name).expanduser()
    if is_no_hub_name(name) and not path.exists():
        hint = where_it_ends(path) or "Give a model's folder, or its hub name."
        raise ConfigError(f"{name}: not a folder: there is no such path. {hint}")


def choose_device(name: str) -> Any:
    """Return the torch device of that name, such as `cpu`, `cuda` or `cuda:1`; `auto`: CUDA where there is one.

    Raises:
        ConfigError: there is no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"--device {name}: cannot be used here ({reason}). Use cpu, cuda or cuda:NUMBER.") from error
    return device


def hash_files(folder: Path) -> str:
    """Return a hex digest of the names and bytes of all model files in a folder.

    Raises:
        ConfigError: the folder holds no config.json or a file cannot be read.
    """
    files = sorted({path for pattern in WANTED for path in folder.glob(pattern) if path.is_file()})
    if folder / "config.json" not in files:
        raise ConfigError(f"{folder}: no config.json in this folder. Expected a model saved by transformers.")
    digest = hashlib.blake2b(digest_size=16)
    try:
        for path in files:
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as stream:
                while chunk := stream.read(READ_BYTES):
                    digest.update(chunk)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    return digest.hexdigest()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from reporting what our own checks report."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()


def load_pretrained(auto_class: Any, folder: Path, *, unused: tuple[str, ...] = ()) -> Any:
    """Return `auto_class.from_pretrained(folder)` in evaluation mode, float32, every weight of it from the folder.

    Weights of other heads in the folder may stay unused; a weight that the folder does not hold would be random, which
    is allowed only to parts of the model named in `unused`.

    Raises:
        ConfigError: transformers cannot load the folder, or weights are missing or of another shape.
    """
    import torch

    try:
        with quiet_transformers():
            model, found = auto_class.from_pretrained(
                folder, output_loading_info=True, local_files_only=True, dtype=torch.float32
            )
    except ImportError as error:
        # What follows the first sentence is transformers' advice over several lines.
        lacking = str(error).strip().partition(" You can install")[0]
        raise ConfigError(f"{folder}: {lacking} Install that library beside vlbert, or give another model.") from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"{folder}: transformers cannot load this model: {first_line}") from error
    _check_complete(folder, found, unused)
    return model.eval()


@contextlib.contextmanager
def running(what: str) -> Iterator[None]:
    """Turn what goes wrong inside a model into what it means for the build; `what`: detector or describer.

    Raises:
        VlbError: memory ran out; another image would meet the same.
        RecordRejectedError: the model cannot take these images; few models take any shape.
    """
    import torch

    try:
        yield
    except (RuntimeError, ValueError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in first_line:
            raise VlbError(
                f"the {what} ran out of memory: {first_line} Take a smaller --batch-size, or fewer --workers."
            ) from error
        raise RecordRejectedError(f"image does not suit the {what}", first_line) from error


def _check_complete(folder: Path, found: Mapping[str, Any], unused: tuple[str, ...]) -> None:
    lacking = sorted(str(name) for name in found.get("missing_keys", ()))
    lacking += sorted(str(entry[0]) for entry in found.get("mismatched_keys", ()))
    lacking = [name for name in lacking if not set(unused) & set(name.split("."))]
    if lacking:
        named = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
        raise ConfigError(
            f"{folder}: {len(lacking)} weights of this model are missing or of another shape: {named}. They would be "
            "random. Give the folder of a model trained for this task."
        )


def load_processor(folder: Path) -> Any:
    """Return the image processor saved beside a model.

    Raises:
        ConfigError: there is none that transformers can load.
    """
    from transformers import AutoImageProcessor

    try:
        with quiet_transformers():
            # PIL's arithmetic everywhere: the same pixels whether torchvision is installed or not.
            return AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"{folder}: no usable preprocessor_config.json ({str(error).splitlines()[0]}). Save the model's image "
            "processor beside it."
        ) from error
