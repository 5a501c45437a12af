"""Any transformers backbone with a feature map as a describer. Promise: an image's features do not depend on its batch.

The image is resized as a whole (no crop, no padding), so map positions and pixels keep one fixed ratio; a RoI's feature
is the mean of RoIAlign over it, the whole image's that over its full frame.
"""

import inspect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlbert_data.describe.base import Description
from vlbert_data.describe.roi_align import roi_align_mean
from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.types import Array
from vlbert_data.weights import choose_device, hash_files, load_pretrained, load_processor, resolve, running

# Bins a side of a RoI's window (He et al., Mask R-CNN, section 3.1 pools 7 x 7 for classes).
NUM_BINS = 7
# Side of the blank image whose map tells the stride: a multiple of all strides and of most patch sizes.
PROBE_PX = 448
CHANNELS = 3
# Pixels between map positions of hierarchical transformers (Swin), whose tokens do not say so.
STRIDES_PX = (4, 8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSize:
    """Short side and largest long side, in pixels, that the describer resizes to; the aspect ratio stays."""

    short_side_px: int
    long_side_px: int

    def of(self, width: int, height: int, *, multiple: int) -> tuple[int, int]:
        """Return (width, height) in pixels for an image of that size, each side a multiple of `multiple`."""
        scale = min(self.short_side_px / min(width, height), self.long_side_px / max(width, height))
        return tuple(max(1, round(side * scale / multiple)) * multiple for side in (width, height))  # type: ignore[return-value]


class BackboneDescriber:
    """Describes RoIs by a backbone's feature map; see the module."""

    def __init__(
        self, name: str, size: ImageSize, *, layer: int | None = None, device: str = "cpu", batch_size: int = 1
    ) -> None:
        """Load a model from a folder or the hub; layer: number of a hidden state, None for the last feature map.

        Raises:
            ConfigError: there is no such model, its weights are incomplete, or it has no feature map.
        """
        from transformers import AutoModel

        folder = resolve(name)
        self._name, self._hash = folder.name, hash_files(folder)
        self._size, self._layer, self._batch_size = size, layer, batch_size
        self._device = choose_device(device)
        model = load_pretrained(AutoModel, folder, unused=("pooler",))
        # Where a vision part can be had alone, as in CLIP, only that one is asked.
        self._model = getattr(model, "vision_model", model).to(self._device)
        if self._device.type == "cuda":
            self._model = self._model.to(memory_format=torch.channels_last)
        self._mean, self._std, self._scale = _normalisation(folder, self._device)
        self.feature_dim, self._stride_px, self._multiple_px = self._probe()

    def facts(self) -> dict[str, Any]:
        """Return the model's name and weights hash, the layer, the pooling and the preparation of images."""
        return {
            "name": f"hf:{self._name}",
            "architecture": type(self._model).__name__,
            "weights_blake2b": self._hash,
            "layer": "last feature map" if self._layer is None else f"hidden state {self._layer}",
            "stride_px": self._stride_px,
            "pooling": f"mean of RoIAlign {NUM_BINS} x {NUM_BINS}, half-pixel offset, adaptive sampling",
            "preprocessing": {
                "resize": "bilinear with antialiasing, whole image",
                "short_side_px": self._size.short_side_px,
                "long_side_px": self._size.long_side_px,
                "multiple_px": self._multiple_px,
                "mean": self._mean.flatten().tolist(),
                "std": self._std.flatten().tolist(),
                "rescale": self._scale,
            },
        }

    def describe(self, images: Sequence[Array], boxes: Sequence[Array]) -> list[Description]:
        """Return a Description for each image; see `Describer`. Images resized to one size share a batch."""
        by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, image in enumerate(images):
            size = self._size.of(image.shape[1], image.shape[0], multiple=self._multiple_px)
            by_size[size].append(number)
        found: dict[int, Description] = {}
        for size, numbers in by_size.items():
            for start in range(0, len(numbers), self._batch_size):
                batch = numbers[start : start + self._batch_size]
                with torch.inference_mode(), running("describer"):
                    maps = self._feature_maps(self._prepare([images[number] for number in batch], size))
                    for number, feature_map in zip(batch, maps, strict=True):
                        found[number] = self._pool(feature_map, images[number].shape, boxes[number], size)
        return [found[number] for number in range(len(images))]

    def _prepare(self, images: Sequence[Array], size: tuple[int, int]) -> Tensor:
        """Return float32 [B, 3, h, w], normalised."""
        resized = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)) for image in images]
        batch = torch.from_numpy(np.stack(resized)).to(self._device)  # uint8 [B, h, w, 3]
        return (batch.permute(0, 3, 1, 2).float() * self._scale - self._mean) / self._std

    def _feature_maps(self, batch: Tensor) -> Tensor:
        """Return float32 [B, F, H, W]."""
        found = self._output(batch)
        if found.ndim == 4:
            return found.float()
        height, width = (int(side / self._stride_px) for side in batch.shape[2:])
        return _grid(found[:, found.shape[1] - height * width :], height, width).float()

    def _output(self, batch: Tensor) -> Tensor:
        """Return the asked layer's output: a map [B, F, H, W], or tokens [B, n + H * W, F].

        Raises:
            ConfigError: the model has no such layer.
        """
        options: dict[str, Any] = {"output_hidden_states": self._layer is not None}
        if "interpolate_pos_encoding" in inspect.signature(self._model.forward).parameters:
            options["interpolate_pos_encoding"] = True
        with torch.inference_mode():
            output = self._model(pixel_values=batch, **options)
        if self._layer is None:
            # What transformers calls a backbone has a list of maps instead.
            last: Tensor = output["feature_maps"][-1] if "feature_maps" in output else output["last_hidden_state"]
            return last
        states = output.get("reshaped_hidden_states") or output.get("hidden_states")
        if states is None or not -len(states) <= self._layer < len(states):
            raise ConfigError(f"hf:{self._name}:{self._layer}: the model has {len(states or ())} hidden states.")
        chosen: Tensor = states[self._layer]
        return chosen

    def _probe(self) -> tuple[int, float, int]:
        """Return the feature width, the pixels between map positions, and what sides of images must be multiples of.

        Raises:
            ConfigError: the model takes only images of one size, or gives no feature map.
        """
        patch_px = _patch_size(self._model.config)
        side = -(-PROBE_PX // patch_px) * patch_px
        try:
            with running("describer"):
                found = self._output(torch.zeros(1, CHANNELS, side, side, device=self._device))
        except RecordRejectedError as error:
            raise ConfigError(
                f"hf:{self._name}: the model does not take an image of {side} x {side} pixels ({error.detail}). Give a "
                "backbone that takes images of any size."
            ) from error
        if found.ndim == 4:
            return int(found.shape[1]), side / found.shape[2], patch_px
        # A transformer's tokens: the first few (class, distillation, registers) stand for no place.
        most_leading = 2 + int(getattr(self._model.config, "num_register_tokens", 0) or 0)
        for stride in (patch_px,) if patch_px > 1 else STRIDES_PX:
            if found.ndim == 3 and 0 <= found.shape[1] - (side // stride) ** 2 <= most_leading:
                return int(found.shape[2]), stride, stride
        raise ConfigError(
            f"hf:{self._name}: an output of shape {list(found.shape)} for an image of {side} x {side} pixels is "
            "no feature map. Give a convolutional or patch-based backbone."
        )

    def _pool(self, feature_map: Tensor, shape: Sequence[int], boxes: Array, size: tuple[int, int]) -> Description:
        height, width = shape[:2]
        whole = np.array([[0, 0, width, height]], np.float32)
        all_boxes = torch.from_numpy(np.concatenate([boxes.astype(np.float32).reshape(-1, 4), whole]))
        scale = (size[1] / height / self._stride_px, size[0] / width / self._stride_px)
        features = roi_align_mean(feature_map, all_boxes, scale=scale, num_bins=NUM_BINS).cpu().numpy()  # [R + 1, F]
        return Description(features=features[:-1], image_feature=features[-1])


def _grid(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return [B, F, height, width] of tokens [B, height * width, F], row by row."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], height, width)


def _patch_size(config: Any) -> int:
    """Return the pixels of a patch's side of a plain patch transformer, 1 for all else."""
    patch = getattr(config, "patch_size", 1)
    hierarchical = hasattr(config, "depths") or hasattr(config, "hidden_sizes")
    if isinstance(patch, (list, tuple)):
        patch = patch[0]
    return int(patch) if isinstance(patch, int) and not hierarchical else 1


def _normalisation(folder: Any, device: torch.device) -> tuple[Tensor, Tensor, float]:
    """Return mean and std, float32 [1, 3, 1, 1], and the factor before them, of the model's image processor."""
    processor = load_processor(folder)
    scale = float(processor.rescale_factor) if getattr(processor, "do_rescale", True) else 1.0
    mean, std = [0.0] * CHANNELS, [1.0] * CHANNELS
    if getattr(processor, "do_normalize", True):
        mean, std = list(processor.image_mean), list(processor.image_std)
    if len(mean) != CHANNELS or len(std) != CHANNELS:
        raise ConfigError(f"{folder}: the image processor has mean {mean} and std {std}; expected three channels each.")
    shape = (1, CHANNELS, 1, 1)
    return torch.tensor(mean, device=device).view(shape), torch.tensor(std, device=device).view(shape), scale
