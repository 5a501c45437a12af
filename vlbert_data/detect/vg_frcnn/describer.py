"""Features of any boxes by the detector's network. Promise: an image's features do not depend on other images.

pixels ─▶ preprocess ─▶ res4 map ─▶ RoIPool, res5, mean = features
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlbert_data import boxes as box_geometry
from vlbert_data.describe.base import Description
from vlbert_data.detect.vg_frcnn.network import POOLED_SIZE, SMALLEST_SIDE_PX, VgFasterRcnn
from vlbert_data.detect.vg_frcnn.precision import PRECISIONS, check_precision, multiplying
from vlbert_data.detect.vg_frcnn.preprocess import MEANS_BGR, preprocess
from vlbert_data.detect.vg_frcnn.weights import find_weights, load_network, read_weights
from vlbert_data.errors import RecordRejectedError
from vlbert_data.types import Array
from vlbert_data.weights import choose_device, running


@dataclass(frozen=True, kw_only=True, slots=True)
class VgRun:
    """How images go through the network.

    short_side_px, long_side_px: image size; 600/1000 as in Caffe, 800/1333 as in later ports. batch_size: images of
    equal size that go through the backbone together; on a CPU 1 is as fast. precision: one of `PRECISIONS`.
    """

    short_side_px: int = 600
    long_side_px: int = 1000
    batch_size: int = 1
    device: str = "cpu"
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_precision(self.precision)

    def preprocessing(self) -> dict[str, Any]:
        """Return how pixels become the network's input, as JSON types."""
        return {
            "channels": "BGR",
            "means_bgr": list(MEANS_BGR),
            "resize": "bilinear, antialiased, on 8-bit pixels",
            "short_side_px": self.short_side_px,
            "long_side_px": self.long_side_px,
            "padding": "none",
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenImage:
    """An image after the backbone: res4 [1, 1024, H, W]; (height, width) of the network's input and of the original."""

    index: int
    res4: Tensor
    input_size: tuple[int, int]
    original_size: tuple[int, int]


def open_vg_describer(spec: str, run: VgRun) -> "VgDescriber":
    """Return the describer with the weights at `spec`, see `find_weights`; it needs no names.

    Raises:
        ConfigError: weights are missing, incomplete or of another network, or there is no such device.
    """
    weights = read_weights(find_weights(spec))
    return VgDescriber(load_network(weights), run, digest=weights.digest)


class VgDescriber:
    """A `Describer`; the detector builds on it. Only `describe` arranges precision and gradients itself."""

    def __init__(self, network: VgFasterRcnn, run: VgRun, *, digest: str) -> None:
        """Move a network to where it runs; digest: of its weights.

        Raises:
            ConfigError: there is no such device.
        """
        self.network = network.to(choose_device(run.device), PRECISIONS[run.precision][0])
        self.run = run
        self._digest = digest

    @property
    def feature_dim(self) -> int:
        """Return F: 2048."""
        return self.network.size.feature_dim

    def facts(self) -> dict[str, Any]:
        """Return what decides a feature, for the manifest."""
        return {
            "name": "vg-frcnn",
            "architecture": "Faster R-CNN ResNet-101-C4, Visual Genome",
            "weights_blake2b": self._digest,
            "pooling": f"RoIPool {POOLED_SIZE} x {POOLED_SIZE} of res4, res5, mean",
            "preprocessing": self.run.preprocessing(),
            "precision": self.run.precision,
        }

    def describe(self, images: Sequence[Array], boxes: Sequence[Array]) -> list[Description]:
        """Return a Description for each image; see `Describer`.

        Raises:
            RecordRejectedError: an image is too narrow.
        """
        with self.computing("describer"):
            described = {seen.index: self._describe(seen, boxes[seen.index]) for seen in self.see(images)}
        return [described[index] for index in range(len(images))]

    @contextlib.contextmanager
    def computing(self, what: str) -> Iterator[None]:
        """Arrange precision and gradients, and turn what goes wrong into what it means for the build."""
        with torch.inference_mode(), multiplying(self.run.precision), running(what):
            yield

    def see(self, images: Sequence[Array]) -> Iterator[SeenImage]:
        """Yield every image after the backbone, those of equal input size together, never padded."""
        waiting: dict[torch.Size, list[tuple[int, Tensor]]] = {}
        for index, pixels in enumerate(images):
            tensor = preprocess(pixels, short_side_px=self.run.short_side_px, long_side_px=self.run.long_side_px)
            _check_size(pixels, tensor)
            group = waiting.setdefault(tensor.shape, [])
            group.append((index, tensor))
            if len(group) == self.run.batch_size:
                yield from self._see_group(images, waiting.pop(tensor.shape))
        for group in waiting.values():
            yield from self._see_group(images, group)

    def features(self, seen: SeenImage, boxes: Tensor) -> Tensor:
        """Return the features float32 [R + 1, 2048] of boxes [R, 4], in input pixels, and, last, of the whole image."""
        height, width = seen.input_size
        whole = boxes.new_tensor([[0, 0, width, height]])
        return self.network.describe(seen.res4, torch.cat([boxes, whole]))

    def _see_group(self, images: Sequence[Array], group: list[tuple[int, Tensor]]) -> Iterator[SeenImage]:
        res4 = self.network.feature_map(torch.stack([tensor for _, tensor in group]))  # [N, 1024, H, W]
        for row, (index, tensor) in enumerate(group):
            height, width = tensor.shape[1:]
            yield SeenImage(
                index=index,
                res4=res4[row : row + 1],
                input_size=(height, width),
                original_size=(images[index].shape[0], images[index].shape[1]),
            )

    def _describe(self, seen: SeenImage, boxes: Array) -> Description:
        scaled = rescale(boxes, source=seen.original_size, target=seen.input_size)
        features = self.features(seen, torch.from_numpy(scaled)).cpu().numpy()  # [R + 1, 2048]
        return Description(features=features[:-1], image_feature=features[-1])


def rescale(boxes: Array, *, source: tuple[int, int], target: tuple[int, int]) -> Array:
    """Return float32 boxes [R, 4] of an image of size `source`, (height, width), in pixels of size `target`.

    In float64, multiplied before divided: an edge on the border of one image is exactly on that of the other.
    """
    height, width = target
    scaled = boxes.astype(np.float64) * [width, height, width, height]
    scaled /= [source[1], source[0], source[1], source[0]]
    rescaled: Array = box_geometry.clip(scaled.astype(np.float32), width_px=width, height_px=height)
    return rescaled


def _check_size(pixels: Array, tensor: Tensor) -> None:
    """Refuse an image too narrow for the network's first layers; its sides have a ratio of hundreds."""
    height, width = tensor.shape[1:]
    if min(height, width) < SMALLEST_SIDE_PX:
        raise RecordRejectedError(
            "image does not suit the detector",
            f"{pixels.shape[1]} x {pixels.shape[0]} pixels become {width} x {height}; at least {SMALLEST_SIDE_PX} are "
            "needed each way",
        )
