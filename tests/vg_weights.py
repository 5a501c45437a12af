"""Weights of the Visual Genome detector by a recipe: random in value, equal on every machine, of any network size.

The published outputs under golden/vg_frcnn were made with them. Every step is exact or one rounded operation.
"""

import functools
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from vlbert_data.detect.vg_frcnn.network import NetworkSize, VgFasterRcnn
from vlbert_data.detect.vg_frcnn.proposals import cell_anchors
from vlbert_data.detect.vg_frcnn.weights import ANCHORS, COUNTER, Weights, check_weights
from vlbert_data.types import Array

SEED = 20240607
STEPS = 2.0**20
GAINS = {"objectness_logits": 1.0, "anchor_deltas": 0.3, "cls_score": 4.0, "bbox_pred": 2.0, "attr_score": 4.0}
TINY = NetworkSize(num_classes=7, num_attributes=5, width=4, num_blocks=(1, 1, 2, 1))


def published_names(size: NetworkSize) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of everything in a published weights file, constants and counters included."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in VgFasterRcnn(size).state_dict().items()}


def recipe_tensors(size: NetworkSize) -> dict[str, Tensor]:
    """Return everything in a weights file; a tensor depends on its name, its shape and its place among the names."""
    tensors = {}
    for number, (name, shape) in enumerate(sorted(published_names(size).items())):
        if name.endswith(COUNTER):
            tensors[name] = torch.zeros(shape, dtype=torch.long)
        elif name == ANCHORS:
            tensors[name] = cell_anchors()
        else:
            steps = np.floor(np.random.default_rng([SEED, number]).random(shape) * 2 * STEPS) - STEPS
            tensors[name] = torch.from_numpy(_values(name, steps).astype(np.float32))
    return tensors


def _values(name: str, steps: Array) -> Array:
    """Return float64 values for whole numbers `steps` from -2^20 to 2^20."""
    layer, kind = name.split(".")[-2:]
    x = steps / STEPS
    if layer == "norm":
        return _norm_values(name, kind, x)
    if kind == "bias":
        values = 0.1 * x
        if layer == "cls_score":
            values[-1] += 8.0  # the background wins for some RoIs
        return values
    if layer == "cls_embedding":
        return x
    gain = 0.02 if name.startswith("backbone.stem") else GAINS.get(layer, 1.4142)
    rows = steps.reshape(len(steps), -1)
    num = rows.shape[1]
    centred = rows - rows.sum(axis=1, keepdims=True) / num
    values = (centred * (gain * np.sqrt(3.0 / num) / STEPS)).reshape(steps.shape)
    return np.asarray(values)


def _norm_values(name: str, kind: str, x: Array) -> Array:
    last = ".conv3.norm." in name
    if kind == "running_var":
        return 1.0 + 0.5 * x
    if kind == "running_mean":
        return 0.1 * x
    if kind == "weight":
        return (0.5 if last else 1.0) * (1.0 + 0.3 * x)
    values = (0.05 if last or ".shortcut.norm." in name else 0.2) * x
    # Sparse features, as after the real network's last addition.
    return values - 0.7 if name == "roi_heads.res5.2.conv3.norm.bias" else values


@functools.cache
def recipe_weights(size: NetworkSize) -> Weights:
    """Return the weights, checked as those from a file are."""
    return check_weights(without_extras(recipe_tensors(size)), size, what="the recipe")


def without_extras(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without counters and anchors."""
    return {name: t for name, t in tensors.items() if name != ANCHORS and not name.endswith(COUNTER)}
