"""Weights to start from. Promise: every name is accounted for, and no pickle is executed.

Three layouts are read: our own, BERT's in Hugging Face's naming, and the state dict of a published VL-BERT `.model`
file. A name that belongs to none of them is refused; one that has no place here is left out for a reason that is told.
"""

import pickle
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vlbert_data.errors import ConfigError, VlbError
from vlbert_data.shards import files
from vlbert_data.weights import quiet_transformers, resolve
from vlbert_train.model import GEOMETRY_DIM, VLBertConfig, VLBertForPreTraining

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
NAMES_SHOWN = 5
USUAL_HEAD_WIDTH = 64

# Prefixes of names, the longest that fits decides: ours, or why the tensor has no place here.
PUBLISHED = {
    "vlbert.word_embeddings.weight": "vlbert.embeddings.words.weight",
    "vlbert.position_embeddings.weight": "vlbert.embeddings.positions.weight",
    "vlbert.token_type_embeddings.weight": "vlbert.embeddings.segments.weight",
    "vlbert.end_embedding.weight": "vlbert.embeddings.end_word",
    "object_linguistic_embeddings.weight": "vlbert.embeddings.roi_word",
    "object_mask_word_embedding.weight": "vlbert.embeddings.hidden_roi_word",
    "object_mask_visual_embedding.weight": "vlbert.embeddings.hidden_roi_feature",
    "aux_text_visual_embedding.weight": "vlbert.embeddings.text_visual",
    "image_feature_extractor.obj_downsample.1.": "vlbert.embeddings.roi_projection.",
    "vlbert.visual_ln_text.": "vlbert.embeddings.text_visual_norm.",
    "vlbert.visual_ln_object.": "vlbert.embeddings.roi_visual_norm.",
    "vlbert.embedding_LayerNorm.": "vlbert.embeddings.norm.",
    "vlbert.encoder.": "vlbert.encoder.",
    "vlbert.mlm_head.predictions.transform.": "word_head.transform.",
    "vlbert.mlm_head.predictions.bias": "word_head.bias",
    "vlbert.mvrc_head.transform.dense.": "roi_head.dense.",
    "vlbert.mvrc_head.region_cls_pred.": "roi_head.classes.",
    "vlbert.pooler.": "relation_head.pooler.",
    "vlbert.relationsip_head.caption_image_relationship.": "relation_head.classes.",  # so spelt
}
BERT = {
    "embeddings.word_embeddings.weight": "vlbert.embeddings.words.weight",
    "embeddings.position_embeddings.weight": "vlbert.embeddings.positions.weight",
    "embeddings.token_type_embeddings.weight": "vlbert.embeddings.segments.weight",
    "embeddings.LayerNorm.": "vlbert.embeddings.norm.",
    "encoder.": "vlbert.encoder.",
    "cls.predictions.transform.": "word_head.transform.",
    "cls.predictions.bias": "word_head.bias",
    "pooler.": "relation_head.pooler.",
}
LEFT_OUT = {
    "vlbert.mlm_head.predictions.decoder.weight": "the word embeddings once more",
    "image_feature_extractor.": "layers of the detector; here its features come from shards",
    "cls.predictions.decoder.": "the word embeddings and the bias once more",
    "cls.seq_relationship.": "next sentence prediction",
    "embeddings.position_ids": "numbers that are counted, not learned",
}
# What a published model may lack, having been trained without text-only examples or without masked RoIs.
OPTIONAL = ("text_visual", "hidden_roi_word", "hidden_roi_feature")
# Layers whose size the data decide: they begin fresh where the weights were made for other classes or features.
OF_THE_DATA = ("roi_head.classes.", "vlbert.embeddings.roi_projection.", "vlbert.embeddings.hidden_roi_feature")


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """What became of every tensor. taken: our names. left_out: their name -> why. fresh: our names that begin anew."""

    taken: tuple[str, ...]
    left_out: Mapping[str, str]
    fresh: tuple[str, ...]


def init_from(model: VLBertForPreTraining, source: str) -> Account:
    """Put the weights at `source` into `model` and return what became of them.

    source: a folder with config.json and weights (BERT's, or a checkpoint of ours), a hub name, or a published VL-BERT
    state dict. Segment 2, of RoIs, begins fresh where BERT has only two.

    Raises:
        ConfigError: nothing readable there, unknown names, or weights of another size; the message names the setting.
    """
    path = Path(source).expanduser()
    path = path if path.is_file() else resolve(source)
    tensors = read_tensors(_weights_in(path) if path.is_dir() else path)
    own: dict[str, nn.Parameter] = dict(model.named_parameters())
    found, left_out = _translate(tensors, path)
    _refuse_other_depth(found, own, path)
    for name in sorted(found.keys() - own.keys()):
        left_out[name] = "a head that this model does not have"
    found = {name: tensor for name, tensor in found.items() if name in own}
    for name in [name for name in found if name.startswith(OF_THE_DATA)]:
        if found[name].shape != own[name].shape:
            left_out[name] = "made for other classes or features"
            del found[name]
    with torch.no_grad():
        for name, tensor in found.items():
            _copy(name, tensor, own[name], path)
    return Account(taken=tuple(sorted(found)), left_out=left_out, fresh=tuple(sorted(own.keys() - found.keys())))


def convert_published(path: Path, *, num_heads: int | None = None) -> tuple[VLBertForPreTraining, Account]:
    """Return the model in a published VL-BERT state dict, and what became of every tensor.

    num_heads: attention heads of a layer, which a state dict does not tell; none: one for each 64 of the width, as in
    BERT. Parameters that the file may lack begin as those of a new model, seeded with 0.

    Raises:
        ConfigError: not a readable state dict, not of VL-BERT's pretraining, or unknown names.
    """
    tensors = read_tensors(path)
    absent = [
        name for name in ("vlbert.word_embeddings.weight", "vlbert.visual_ln_object.weight") if name not in tensors
    ]
    if absent:
        raise ConfigError(f"{path}: no VL-BERT: it holds no {' and no '.join(absent)}.{_names_seen(tensors)}")
    _check_tied(tensors, path)
    found, left_out = _translate(tensors, path)
    if "relation_head.classes.weight" not in found:
        for name in [name for name in found if name.startswith("relation_head.")]:
            left_out[name] = "a pooler without a head that uses it"
            del found[name]
    config = _config_in(found, num_heads, path)
    torch.manual_seed(0)
    model = VLBertForPreTraining(config)
    own: dict[str, nn.Parameter] = dict(model.named_parameters())
    fresh = sorted(own.keys() - found.keys())
    missing = [name for name in fresh if not name.endswith(OPTIONAL)]
    if missing:
        raise ConfigError(f"{path}: lacks what becomes {_some(missing)}. Is it a checkpoint of VL-BERT's pretraining?")
    with torch.no_grad():
        for name, tensor in found.items():
            _copy(name, tensor, own[name], path)
    return model, Account(taken=tuple(sorted(found)), left_out=left_out, fresh=tuple(fresh))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file by name: safetensors, or what torch.save wrote, of which only data are read.

    A state dict inside a checkpoint is found under `state_dict`; `module.` before every name is taken off.

    Raises:
        ConfigError: not such a file.
    """
    try:
        if path.suffix == ".safetensors":
            loaded: Any = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise ConfigError(
            f"{path}: not a file of weights, or damaged: {_first_sentence(error)}. Expected safetensors, or what "
            "torch.save wrote of tensors alone; nothing else in such a file is ever run."
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()) or not loaded:
        raise ConfigError(f"{path}: holds no state dict, which is tensors by name.")
    if all(str(name).startswith("module.") for name in loaded):
        loaded = {name.removeprefix("module."): tensor for name, tensor in loaded.items()}
    return {str(name): tensor for name, tensor in loaded.items()}


def _weights_in(folder: Path) -> Path:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    newest = sorted(folder.glob("checkpoints/step-*"))
    hint = (
        f"It is a run; give one of its checkpoints, such as {newest[-1]}." if newest else "Give a folder with weights."
    )
    raise ConfigError(f"{folder}: holds no {' and no '.join(WEIGHT_FILES)}. {hint}")


def _translate(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return (our name -> tensor, their name -> why it is left out)."""
    is_ours = any(name.startswith(("vlbert.embeddings.words.", "embeddings.words.")) for name in tensors)
    is_published = "vlbert.word_embeddings.weight" in tensors
    found, left_out, unknown = {}, {}, []
    for name, tensor in tensors.items():
        if is_ours:
            found[name if not name.startswith(("embeddings.", "encoder.")) else f"vlbert.{name}"] = tensor
            continue
        plain = name if is_published else _plain(name)
        places, reasons = (PUBLISHED if is_published else BERT), LEFT_OUT
        if (place := _longest(places, plain)) is not None:
            found[places[place] + plain.removeprefix(place)] = tensor
        elif (reason := _longest(reasons, plain)) is not None:
            left_out[name] = reasons[reason]
        else:
            unknown.append(name)
    if unknown:
        raise ConfigError(
            f"{path}: {len(unknown)} tensors of unknown names: {_some(unknown)}. Expected the weights of BERT, of a "
            "published VL-BERT after pretraining, or of a checkpoint of ours."
        )
    return found, left_out


def _plain(name: str) -> str:
    """Return a name of BERT's without the prefix of a larger model, norms named as now."""
    name = name.removeprefix("bert.")
    return re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))


def _longest(prefixes: Mapping[str, str], name: str) -> str | None:
    # What does not end in a dot is a whole name.
    fitting = [prefix for prefix in prefixes if name == prefix or (prefix.endswith(".") and name.startswith(prefix))]
    return max(fitting, key=len, default=None)


def _refuse_other_depth(found: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    theirs, ours = _num_layers(found), _num_layers(own)
    if theirs != ours:
        raise ConfigError(f"{path}: has {theirs} layers, this model {ours}. Set model.num_hidden_layers={theirs}.")


def _num_layers(names: Iterable[str]) -> int:
    return len({match[1] for name in names if (match := re.match(r"vlbert\.encoder\.layer\.(\d+)\.", name))})


def _copy(name: str, tensor: Tensor, target: nn.Parameter, path: Path) -> None:
    if tensor.shape == (1, *target.shape):  # an embedding of one row
        tensor = tensor[0]
    if name == "vlbert.embeddings.segments.weight" and len(tensor) < len(target):
        target[: len(tensor)].copy_(tensor)
    elif tensor.shape == target.shape:
        target.copy_(tensor)
    else:
        raise ConfigError(
            f"{path}: {name} has the shape {tuple(tensor.shape)}, this model's has {tuple(target.shape)}. "
            f"{_setting_of(name)}"
        )


def _setting_of(name: str) -> str:
    if name in ("vlbert.embeddings.words.weight", "word_head.bias"):
        return "Give the tokenizer that the weights were made with, and their model.hidden_size."
    if name == "vlbert.embeddings.positions.weight":
        return "Set model.max_position_embeddings and model.hidden_size to theirs."
    return "Set model.hidden_size and model.intermediate_size to theirs."


def _check_tied(tensors: Mapping[str, Tensor], path: Path) -> None:
    head = tensors.get("vlbert.mlm_head.predictions.decoder.weight")
    if head is not None and not torch.equal(head, tensors["vlbert.word_embeddings.weight"]):
        raise ConfigError(
            f"{path}: its masked-word head is not tied to its word embeddings, as VL-BERT's is; not a published model."
        )


def _config_in(found: Mapping[str, Tensor], num_heads: int | None, path: Path) -> VLBertConfig:
    """Return the sizes that the tensors tell."""
    words = found["vlbert.embeddings.words.weight"]
    projection, inner = (
        found.get("vlbert.embeddings.roi_projection.weight"),
        found.get("vlbert.encoder.layer.0.intermediate.dense.weight"),
    )
    positions, segments = (
        found.get("vlbert.embeddings.positions.weight"),
        found.get("vlbert.embeddings.segments.weight"),
    )
    if projection is None or inner is None or positions is None or segments is None:
        raise ConfigError(
            f"{path}: lacks a projection of RoIs, an encoder, positions or segments; not a whole VL-BERT."
        )
    width = words.shape[1]
    heads = num_heads or width // USUAL_HEAD_WIDTH
    if not heads or width % heads:
        raise ConfigError(f"{path}: {width} numbers wide; say of how many attention heads (--heads), a divisor of it.")
    classes = found.get("roi_head.classes.weight")
    return VLBertConfig(
        vocab_size=words.shape[0],
        hidden_size=width,
        num_hidden_layers=_num_layers(found),
        num_attention_heads=heads,
        intermediate_size=inner.shape[0],
        max_position_embeddings=positions.shape[0],
        type_vocab_size=segments.shape[0],
        feature_dim=projection.shape[1] - GEOMETRY_DIM,
        num_roi_classes=0 if classes is None else classes.shape[0],
        has_relation_head="relation_head.classes.weight" in found,
    )


def save_model(model: VLBertForPreTraining, folder: Path) -> None:
    """Write model.safetensors and config.json into `folder`, made if missing; each whole or not at all.

    Raises:
        VlbError: the disk does not take them.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as temporary, quiet_transformers():
            model.save_pretrained(temporary)
            for path in sorted(Path(temporary).iterdir(), reverse=True):
                files.publish(path, folder / path.name)
    except (OSError, SafetensorError) as error:
        raise VlbError(f"{folder}: cannot be written: {error}. Make room, or choose another folder.") from error


def describe(account: Account) -> list[str]:
    """Return lines for people: how many tensors were taken, and which were left out and begin fresh, with reasons."""
    lines = [f"{len(account.taken)} tensors taken"]
    by_reason: dict[str, list[str]] = {}
    for name, reason in account.left_out.items():
        by_reason.setdefault(reason, []).append(name)
    lines += [f"{len(names)} left out ({reason}): {_some(names)}" for reason, names in by_reason.items()]
    if account.fresh:
        lines.append(f"{len(account.fresh)} begin fresh: {_some(account.fresh)}")
    return lines


def _some(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def _names_seen(tensors: Mapping[str, Tensor]) -> str:
    return f" Its names begin with {_some(list(tensors))}."


def _first_sentence(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(". ")[0].rstrip(".:")
