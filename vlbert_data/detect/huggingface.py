"""Any object-detection model of transformers as a detector. Promise: a proper class distribution for each proposal.

Two kinds of heads exist. A softmax head (DETR, YOLOS) has one logit more than the model has classes, the last one for
"no object". A sigmoid head (Deformable DETR, RT-DETR) asks about each class alone; its logits with a 0 beside them for
"no object" go through one softmax, which for a single class is the sigmoid itself. So both give probabilities over all
classes and the background, which is the last class of the label space.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlbert_data.detect.base import DecodedImage, SelectionRule
from vlbert_data.detect.selection import kept_classes, select
from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.types import Array, LabelSpace, RoiSet
from vlbert_data.weights import choose_device, hash_files, load_pretrained, load_processor, resolve, running

NO_OBJECT = "no object"
DEGENERATE = "proposals without area in the image"


class HuggingFaceDetector:
    """Proposes with a `transformers` model for object detection, batching images of equal prepared size only."""

    has_attributes = False

    def __init__(self, name: str, rule: SelectionRule, *, device: str = "cpu", batch_size: int = 1) -> None:
        """Load a model from a folder or the hub.

        Raises:
            ConfigError: there is no such model, it does not detect objects, or its weights are incomplete.
        """
        from transformers import AutoModelForObjectDetection

        folder = resolve(name)
        self._name, self._hash = folder.name, hash_files(folder)
        self._rule, self._device, self._batch_size = rule, choose_device(device), batch_size
        self._model = load_pretrained(AutoModelForObjectDetection, folder).to(self._device)
        self._processor = load_processor(folder)
        names = self._model.config.id2label
        classes = tuple(str(names.get(number, f"class {number}")) for number in range(len(names)))
        self.label_space = LabelSpace(
            name=folder.name, class_names=(*classes, NO_OBJECT), background_index=len(classes)
        )
        self.label_topk = kept_classes(self.label_space, rule.label_topk)
        self._degenerate = 0

    def facts(self) -> dict[str, Any]:
        """Return the model's name and weights hash, its preparation of images and the selection rule."""
        return {
            "name": f"hf:{self._name}",
            "architecture": type(self._model).__name__,
            "weights_blake2b": self._hash,
            "preprocessing": "the model's own image processor, without padding",
            "selection": asdict(self._rule),
        }

    def counts(self) -> dict[str, int]:
        """Return what was left out so far, by reason."""
        return dict(+Counter({DEGENERATE: self._degenerate}))

    def detect(self, images: Sequence[DecodedImage]) -> list[RoiSet]:
        """Return the RoIs of each image; images that are prepared to one size share a batch.

        Raises:
            RecordRejectedError: the model gave no finite box for an image; see `Detector`.
        """
        prepared = [self._prepare(image.pixels) for image in images]
        by_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, tensor in enumerate(prepared):
            by_size[tuple(tensor.shape)].append(number)
        found: dict[int, tuple[RoiSet, int]] = {}
        for numbers in by_size.values():
            for start in range(0, len(numbers), self._batch_size):
                batch = numbers[start : start + self._batch_size]
                proposals = self._propose(torch.stack([prepared[number] for number in batch]))
                for number, (boxes, probs) in zip(batch, proposals, strict=True):
                    found[number] = self._select(images[number], boxes, probs)
        self._degenerate += sum(degenerate for _, degenerate in found.values())
        return [found[number][0] for number in range(len(images))]

    def _prepare(self, pixels: Array) -> Tensor:
        """Return float32 [3, h, w], as the model's processor makes it.

        Raises:
            RecordRejectedError: the processor cannot, as some cannot for images much longer than wide.
        """
        try:
            prepared = self._processor(
                images=[pixels], return_tensors="pt", input_data_format="channels_last", **NO_PADDING
            )
        except (ValueError, ZeroDivisionError) as error:
            size = f"{pixels.shape[1]} x {pixels.shape[0]} pixels"
            raise RecordRejectedError("image does not suit the detector", f"{size}: {error}") from error
        tensor: Tensor = prepared["pixel_values"][0]
        return tensor

    def _propose(self, batch: Tensor) -> list[tuple[Array, Array]]:
        """Return (boxes float32 [P, 4] as shares of the image's sides, probabilities float32 [P, C + 1]) an image."""
        with torch.inference_mode(), running("detector"):
            output = self._model(pixel_values=batch.to(self._device))
        probs = class_distribution(output.logits.float(), num_classes=self.label_space.num_classes - 1)
        centre_x, centre_y, width, height = output.pred_boxes.float().unbind(-1)
        corners = [centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2]
        boxes = torch.stack(corners, dim=-1)  # [B, P, 4]
        return list(zip(boxes.cpu().numpy(), probs.cpu().numpy(), strict=True))

    def _select(self, image: DecodedImage, boxes: Array, probs: Array) -> tuple[RoiSet, int]:
        if not (np.isfinite(boxes).all() and np.isfinite(probs).all()):
            raise RecordRejectedError("detector failed", "the detector's boxes or classes are not finite numbers")
        height, width = image.pixels.shape[:2]
        in_pixels = boxes * np.array([width, height, width, height], np.float32)
        return select(in_pixels, probs, self._rule, self.label_space, (width, height))


# Each image is prepared alone, so there is nothing to pad to; processors of this family understand the switch.
NO_PADDING = {"do_pad": False}


def class_distribution(logits: Tensor, *, num_classes: int) -> Tensor:
    """Return probabilities [..., num_classes + 1], "no object" last, of logits [..., num_classes or one more].

    Raises:
        ConfigError: another number of logits.
    """
    if logits.shape[-1] == num_classes:
        logits = torch.cat([logits, torch.zeros_like(logits[..., :1])], dim=-1)
    elif logits.shape[-1] != num_classes + 1:
        raise ConfigError(
            f"the detector gives {logits.shape[-1]} logits a box for {num_classes} named classes; expected "
            f"{num_classes}, or {num_classes + 1} with one for no object."
        )
    return logits.softmax(dim=-1)
