"""Weights of the detector from any of their published files. Promise: every name accounted for, nothing executed.

Read are safetensors, PyTorch files (tensors only) and Detectron2-style pickles of numpy arrays, told apart by content.
What differs between them is settled here: counters of batch norms are left out, constants are compared, not believed.
"""

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from vlbert_data.detect.vg_frcnn.names import ATTRIBUTES_FILE, OBJECTS_FILE
from vlbert_data.detect.vg_frcnn.network import PUBLISHED_SIZE, NetworkSize, VgFasterRcnn
from vlbert_data.detect.vg_frcnn.preprocess import MEANS_BGR
from vlbert_data.detect.vg_frcnn.proposals import cell_anchors
from vlbert_data.errors import ConfigError
from vlbert_data.importers.safe_pickle import load_plain
from vlbert_data.weights import resolve

SAFETENSORS_FILE = "model.safetensors"
FILE_NAMES = (SAFETENSORS_FILE, "pytorch_model.bin")
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".pkl")
ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
ATTRIBUTE_HEAD = tuple(f"roi_heads.box_predictor.{part}." for part in ("cls_embedding", "fc_attr", "attr_score"))
# Constants that some files carry: their values are the method's, so others mean another network.
CONSTANTS = {
    ANCHORS: cell_anchors(),
    "pixel_mean": torch.tensor(MEANS_BGR),
    "pixel_std": torch.ones(3),
}
COUNTER = ".num_batches_tracked"
NAMES_SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Tensors by name, complete and of the right shapes. digest: equal for equal values, whatever file they came in."""

    tensors: Mapping[str, Tensor]
    size: NetworkSize
    digest: str


def find_weights(spec: str) -> Path:
    """Return the weights file that `spec` means: a file, a folder with one, or a Hugging Face hub name.

    Raises:
        ConfigError: there is none, or several in a folder, or the hub cannot be asked.
    """
    path = Path(spec).expanduser()
    if path.is_file():
        return path
    path = resolve(spec, wanted=(*FILE_NAMES, OBJECTS_FILE, ATTRIBUTES_FILE))
    for name in FILE_NAMES:
        if (path / name).is_file():
            return path / name
    found = sorted(entry for entry in path.iterdir() if entry.suffix in SUFFIXES)
    if len(found) != 1:
        names = ", ".join(entry.name for entry in found) or "none"
        raise ConfigError(
            f"{spec}: weights files found: {names}; expected {' or '.join(FILE_NAMES)}, or one of any name. Give the "
            "file itself."
        )
    return found[0]


def read_weights(path: Path, size: NetworkSize = PUBLISHED_SIZE) -> Weights:
    """Return the weights in a file, of a network of that size; those without an attribute head are complete too.

    Raises:
        ConfigError: not such a file, names missing or left over, other shapes, numbers that are not finite, or
            constants of another network.
        PickleRefusedError: a pickle with more than plain data.
    """
    tensors = _without_extras(_raw_tensors(path), path)
    if not any(name.startswith(ATTRIBUTE_HEAD) for name in tensors):
        size = replace(size, num_attributes=0)
    return check_weights(tensors, size, what=str(path))


def check_weights(tensors: Mapping[str, Tensor], size: NetworkSize, *, what: str) -> Weights:
    """Return tensors as float32 weights of a network of that size; `what` names them in errors.

    Raises:
        ConfigError: names, shapes or values are not those of such a network.
    """
    expected = expected_shapes(size)
    problems = {
        "missing": [name for name in expected if name not in tensors],
        "not known": [name for name in tensors if name not in expected],
        "of another shape": [
            f"{name} {list(tensors[name].shape)} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in tensors and tensors[name].shape != shape
        ],
    }
    if any(problems.values()):
        raise ConfigError(
            f"{what}: not the weights of this network ({size.num_classes} classes, {size.num_attributes} attributes): "
            + "; ".join(f"{len(names)} {problem} ({_some(names)})" for problem, names in problems.items() if names)
            + "."
        )
    ordered = {name: tensors[name].to(torch.float32).contiguous() for name in expected}
    broken = [name for name, tensor in ordered.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ConfigError(f"{what}: NaN or infinity in {_some(broken)}. The file is damaged.")
    return Weights(tensors=ordered, size=size, digest=_digest(ordered))


def expected_shapes(size: NetworkSize) -> dict[str, torch.Size]:
    """Return the names and shapes of the weights, sorted by name; constants and counters are not among them."""
    with torch.device("meta"):
        network = VgFasterRcnn(size)
    names = sorted(name for name in network.state_dict() if name != ANCHORS and not name.endswith(COUNTER))
    return {name: network.state_dict()[name].shape for name in names}


def load_network(weights: Weights) -> VgFasterRcnn:
    """Return a network with these weights, batch norms folded, in channels-last memory."""
    with torch.device("meta"):
        network = VgFasterRcnn(weights.size)
    counters = {name: torch.zeros((), dtype=torch.long) for name in network.state_dict() if name.endswith(COUNTER)}
    state = {**weights.tensors, **counters, ANCHORS: cell_anchors()}
    network.load_state_dict(state, assign=True)
    network.requires_grad_(False)
    network.fold_norms().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def save_weights(weights: Weights, path: Path) -> None:
    """Write weights as safetensors, by rename, so that a file of this name is always whole.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        # Not by safetensors itself, whose files only their owner may read.
        partial.write_bytes(save(dict(weights.tensors), metadata={"format": "pt", "digest": weights.digest}))
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def _raw_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file as they are, the kind of file told by its first bytes."""
    try:
        with path.open("rb") as stream:
            head = stream.read(16)
        if head[8:9] == b"{":
            return dict(load_file(path))
        if head[:4] == b"PK\x03\x04" or head[2:4] == b"\x8a\x0a":  # PyTorch files: since 2020, and before
            return _checked_tensors(torch.load(path, map_location="cpu", weights_only=True), path)
    except (OSError, SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{path}: cannot be read as weights: {str(error).splitlines()[0]}") from error
    if head[:1] == b"\x80":
        return _checked_tensors(load_plain(path), path)
    raise ConfigError(f"{path}: begins with {head[:4]!r}; expected safetensors, a PyTorch file or a pickle of arrays.")


def _checked_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the mapping of names to tensors that `content` is or holds under `model`; arrays become tensors."""
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise ConfigError(f"{path}: holds a {type(content).__name__}; expected tensors by name.")
    tensors = {}
    for name, stored in content.items():
        value = stored
        if isinstance(stored, np.ndarray) and stored.dtype.kind in "fiu":
            value = torch.from_numpy(stored.astype(stored.dtype.newbyteorder("=")))
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ConfigError(f"{path}: {name!r} is a {type(value).__name__}; expected tensors by name.")
        tensors[name] = value
    return tensors


def _without_extras(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the tensors without counters and constants, and without the prefix that parallel training puts first."""
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    for name, constant in CONSTANTS.items():
        found = tensors.get(name)
        if found is None:
            continue
        same_size = found.numel() == constant.numel()
        # As float16 holds them, for files of half precision.
        if not same_size or not torch.allclose(found.float().reshape(constant.shape), constant, rtol=1e-3):
            begins, expected = (values.flatten()[:4].tolist() for values in (found, constant))
            raise ConfigError(
                f"{path}: {name} begins {begins}; expected {expected}. These are the weights of another network."
            )
    return {name: t for name, t in tensors.items() if name not in CONSTANTS and not name.endswith(COUNTER)}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name} {list(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _some(names: list[str]) -> str:
    more = f", and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
