"""The detector of bottom-up attention: 1600 classes and 400 attributes of Visual Genome, and its own RoI features.

Promise: detector and describer in one network; an image's RoIs and features do not depend on other images.

pixels ─▶ preprocess ─▶ res4 map ─▶ proposals ─▶ RoIPool, res5, mean = features ─▶ classes ─▶ selection ─▶ RoIs
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlbert_data import boxes as box_geometry
from vlbert_data.describe.base import Description
from vlbert_data.detect.base import DecodedImage
from vlbert_data.detect.vg_frcnn.names import ATTRIBUTES_FILE, OBJECTS_FILE, read_label_space, read_names
from vlbert_data.detect.vg_frcnn.network import POOLED_SIZE, STRIDE_PX, VgFasterRcnn
from vlbert_data.detect.vg_frcnn.precision import PRECISIONS, check_precision, multiplying
from vlbert_data.detect.vg_frcnn.preprocess import MEANS_BGR, preprocess
from vlbert_data.detect.vg_frcnn.proposals import ROI_WEIGHTS, ProposalRule, clip, decode, nonempty, propose
from vlbert_data.detect.vg_frcnn.selection import CAFFE_PERCLASS, RoiRule, select_max_nms, select_per_class
from vlbert_data.detect.vg_frcnn.weights import find_weights, load_network, read_weights
from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.types import Array, LabelSpace, RoiSet


@dataclass(frozen=True, kw_only=True, slots=True)
class VgOptions:
    """How to run the detector.

    short_side_px, long_side_px: image size; 600/1000 as in Caffe, 800/1333 as in later ports. label_topk: classes kept
    for each RoI. batch_size: images of equal size that go through the backbone together; on a CPU 1 is as fast.
    precision: one of `PRECISIONS`.
    """

    rule: RoiRule = CAFFE_PERCLASS
    proposals: ProposalRule = ProposalRule()  # noqa: RUF009 (frozen)
    short_side_px: int = 600
    long_side_px: int = 1000
    label_topk: int = 32
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
class VgIdentity:
    """What the outputs mean and whose they are. attribute_names: None for weights without attributes."""

    label_space: LabelSpace
    attribute_names: tuple[str, ...] | None
    weights_digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """An image after the backbone: res4 [1, 1024, H, W]; (height, width) of the network's input and of the original."""

    index: int
    res4: Tensor
    input_size: tuple[int, int]
    original_size: tuple[int, int]


def open_vg_faster_rcnn(spec: str, options: VgOptions) -> "VgDetector":
    """Return the detector with the weights at `spec`, see `find_weights`; the files of names are beside them.

    Raises:
        ConfigError: weights or names are missing, incomplete or of another network.
    """
    path = find_weights(spec)
    weights = read_weights(path)
    attribute_names = None
    if weights.size.num_attributes:
        attribute_names = read_names(_beside(path, ATTRIBUTES_FILE, spec), weights.size.num_attributes)
    identity = VgIdentity(
        label_space=read_label_space(_beside(path, OBJECTS_FILE, spec), weights.size.num_classes),
        attribute_names=attribute_names,
        weights_digest=weights.digest,
    )
    return VgDetector(load_network(weights), identity, options)


def _beside(weights: Path, name: str, spec: str) -> Path:
    path = weights.parent / name
    if not path.is_file():
        raise ConfigError(
            f"{path}: not found; it must stand beside the weights. vlb convert-weights {spec} --objects FILE "
            "--attributes FILE --out FOLDER puts weights and names together."
        )
    return path


class VgDetector:
    """A `Detector` and a `Describer`; `detect_and_describe` is both with one pass of the network."""

    def __init__(self, network: VgFasterRcnn, identity: VgIdentity, options: VgOptions) -> None:
        if not 1 <= options.label_topk <= network.size.num_classes:
            raise ConfigError(f"label_topk {options.label_topk}; the detector has {network.size.num_classes} classes.")
        self._network = network.to(torch.device(options.device), PRECISIONS[options.precision][0])
        self._identity = identity
        self._options = options
        self._counts = {"RoIs without area": 0}

    @property
    def label_space(self) -> LabelSpace:
        """Return the classes, ids from 0, without background."""
        return self._identity.label_space

    @property
    def label_topk(self) -> int:
        """Return K."""
        return self._options.label_topk

    @property
    def has_attributes(self) -> bool:
        """Return whether every RoI brings an attribute."""
        return self._identity.attribute_names is not None

    @property
    def feature_dim(self) -> int:
        """Return F: 2048."""
        return self._network.size.feature_dim

    def facts(self) -> dict[str, Any]:
        """Return what decides RoIs and features, for the manifest; as detector and as describer."""
        rule, names = self._options.rule, self._identity.attribute_names
        return {
            "name": "vg-frcnn",
            "network": "Faster R-CNN ResNet-101-C4, Visual Genome",
            "weights": self._identity.weights_digest,
            "preprocessing": self._options.preprocessing(),
            "precision": self._options.precision,
            "proposals": asdict(self._options.proposals),
            "selection": rule.facts(),
            "boxes": "regressed to the best class" if rule.name == "maxnms" else "the proposals",
            "features": f"of the proposals: RoIPool {POOLED_SIZE} of res4, res5, mean",
            "background": {"index_in_network": self._network.size.num_classes, "stored": False},
            "attribute_names": list(names) if names else None,
        }

    def counts(self) -> dict[str, int]:
        """Return what was left out so far, by reason."""
        return dict(self._counts)

    def detect(self, images: Sequence[DecodedImage]) -> list[RoiSet]:
        """Return the RoIs of each image, in order.

        Raises:
            RecordRejectedError: the network's outputs for an image are not finite.
        """
        return [rois for rois, _ in self.detect_and_describe(images)]

    def detect_and_describe(self, images: Sequence[DecodedImage]) -> list[tuple[RoiSet, Description]]:
        """Return the RoIs of each image with their features and that of the whole image.

        The features are of the proposals, as published, also where `maxnms` moved the boxes.

        Raises:
            RecordRejectedError: the network's outputs for an image are not finite.
        """
        with torch.inference_mode(), multiplying(self._options.precision):
            found = {seen.index: self._find(seen) for seen in self._see([image.pixels for image in images])}
        return [found[index] for index in range(len(images))]

    def describe(self, images: Sequence[Array], boxes: Sequence[Array]) -> list[Description]:
        """Return the features of any boxes, float32 [R, 4] in pixels of each image, uint8 [H, W, 3] RGB."""
        with torch.inference_mode(), multiplying(self._options.precision):
            described = {seen.index: self._describe(seen, boxes[seen.index]) for seen in self._see(images)}
        return [described[index] for index in range(len(images))]

    def _see(self, images: Sequence[Array]) -> Iterator[_Seen]:
        """Yield every image after the backbone, those of equal input size together, never padded."""
        short, long = self._options.short_side_px, self._options.long_side_px
        waiting: dict[torch.Size, list[tuple[int, Tensor]]] = {}
        for index, pixels in enumerate(images):
            tensor = preprocess(pixels, short_side_px=short, long_side_px=long)
            group = waiting.setdefault(tensor.shape, [])
            group.append((index, tensor))
            if len(group) == self._options.batch_size:
                yield from self._see_group(images, waiting.pop(tensor.shape))
        for group in waiting.values():
            yield from self._see_group(images, group)

    def _see_group(self, images: Sequence[Array], group: list[tuple[int, Tensor]]) -> Iterator[_Seen]:
        res4 = self._network.feature_map(torch.stack([tensor for _, tensor in group]))  # [N, 1024, H, W]
        for row, (index, tensor) in enumerate(group):
            height, width = tensor.shape[1:]
            yield _Seen(
                index=index,
                res4=res4[row : row + 1],
                input_size=(height, width),
                original_size=(images[index].shape[0], images[index].shape[1]),
            )

    def _describe(self, seen: _Seen, boxes: Array) -> Description:
        (height, width), (original_height, original_width) = seen.input_size, seen.original_size
        scaled = _rescale(boxes, source=(original_height, original_width), target=(height, width))
        features = self._features(seen, torch.from_numpy(scaled))  # [R + 1, 2048]
        return Description(features=features[:-1].cpu().numpy(), image_feature=features[-1].cpu().numpy())

    def _features(self, seen: _Seen, boxes: Tensor) -> Tensor:
        """Return the features float32 [R + 1, 2048] of boxes [R, 4] and, last, of the whole image."""
        height, width = seen.input_size
        whole = boxes.new_tensor([[0, 0, width, height]])
        return self._network.describe(seen.res4, torch.cat([boxes, whole]))

    def _find(self, seen: _Seen) -> tuple[RoiSet, Description]:
        """Return the RoIs of one image and its description."""
        network, options = self._network, self._options
        logits, deltas = network.objectness(seen.res4)
        if not bool(torch.isfinite(logits).all() & torch.isfinite(deltas).all()):
            raise RecordRejectedError("network not finite", "the detector's outputs hold NaN or infinity")
        proposals, _ = propose(
            logits[0], deltas[0], network.cell_anchors, image_size=seen.input_size, stride_px=STRIDE_PX,
            rule=options.proposals,
        )  # fmt: skip
        features = self._features(seen, proposals)  # [P + 1, 2048]
        features, image_feature = features[:-1], features[-1]
        class_logits = network.predictor.class_logits(features)  # [P, C + 1]
        probs = class_logits.softmax(dim=1)[:, :-1]  # [P, C]
        chosen, scores, boxes = self._select(proposals, features, probs, seen.input_size)
        original = _rescale(boxes.cpu().numpy(), source=seen.input_size, target=seen.original_size)
        solid = torch.from_numpy((original[:, 2:] > original[:, :2]).all(axis=1))
        self._counts["RoIs without area"] += int((~solid).sum())
        chosen, scores = chosen.cpu()[solid], scores.cpu()[solid]
        rois = self._roi_set(original[solid.numpy()], scores, probs[chosen], features[chosen], class_logits[chosen])
        description = Description(features=features[chosen].cpu().numpy(), image_feature=image_feature.cpu().numpy())
        return rois, description

    def _select(
        self, proposals: Tensor, features: Tensor, probs: Tensor, input_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the chosen proposals int64 [n], best first, their confidence [n] and boxes [n, 4] in input pixels."""
        rule = self._options.rule
        if rule.name == "caffe-perclass":
            chosen, scores = select_per_class(proposals, probs, rule)
            return chosen, scores, proposals[chosen]
        best_probs, best_classes = probs.max(dim=1)  # [P] each
        deltas = self._network.predictor.box_deltas(features, best_classes)
        regressed = decode(deltas, proposals, weights=ROI_WEIGHTS)
        regressed = clip(regressed, height=input_size[0], width=input_size[1])
        solid = nonempty(regressed).nonzero().flatten()
        self._counts["RoIs without area"] += len(regressed) - len(solid)
        chosen = solid[select_max_nms(regressed[solid], best_probs[solid], rule)]
        return chosen, best_probs[chosen], regressed[chosen]

    def _roi_set(self, boxes: Array, scores: Tensor, probs: Tensor, features: Tensor, class_logits: Tensor) -> RoiSet:
        """Return n RoIs: probs [n, C], features [n, 2048] and class_logits [n, C + 1] are those of the chosen ones."""
        label_probs, label_ids = probs.sort(dim=1, descending=True, stable=True)
        topk = self._options.label_topk
        attribute_ids = attribute_probs = None
        if self.has_attributes:
            logits = self._network.predictor.attribute_logits(features, class_logits.argmax(dim=1))
            best = logits[:, :-1].softmax(dim=1).max(dim=1)  # "none", the last, never competes
            attribute_ids = best.indices.cpu().numpy().astype(np.uint16)
            attribute_probs = best.values.cpu().numpy().astype(np.float16)
        return RoiSet(
            boxes=boxes,
            scores=scores.numpy().astype(np.float16),
            label_ids=label_ids[:, :topk].cpu().numpy().astype(np.uint16),
            label_probs=label_probs[:, :topk].cpu().numpy().astype(np.float16),
            attribute_ids=attribute_ids,
            attribute_probs=attribute_probs,
        )


def _rescale(boxes: Array, *, source: tuple[int, int], target: tuple[int, int]) -> Array:
    """Return float32 boxes [R, 4] of an image of size `source`, (height, width), in pixels of size `target`.

    In float64, multiplied before divided: an edge on the border of one image is exactly on that of the other.
    """
    height, width = target
    scaled = boxes.astype(np.float64) * [width, height, width, height]
    scaled /= [source[1], source[0], source[1], source[0]]
    rescaled: Array = box_geometry.clip(scaled.astype(np.float32), width_px=width, height_px=height)
    return rescaled
