"""The detector of bottom-up attention: 1600 classes and 400 attributes of Visual Genome, and its own RoI features.

Promise: detector and describer in one network; an image's RoIs and features do not depend on other images.

pixels ─▶ preprocess ─▶ res4 map ─▶ proposals ─▶ RoIPool, res5, mean = features ─▶ classes ─▶ selection ─▶ RoIs
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlbert_data.build.config import BuildConfig
from vlbert_data.describe.base import Description
from vlbert_data.detect.base import DecodedImage
from vlbert_data.detect.vg_frcnn.describer import SeenImage, VgDescriber, VgRun, rescale
from vlbert_data.detect.vg_frcnn.names import ATTRIBUTES_FILE, OBJECTS_FILE, read_label_space, read_names
from vlbert_data.detect.vg_frcnn.network import STRIDE_PX
from vlbert_data.detect.vg_frcnn.proposals import ROI_WEIGHTS, ProposalRule, clip, decode, nonempty, propose
from vlbert_data.detect.vg_frcnn.selection import (
    CAFFE_PERCLASS,
    MAXNMS,
    RULES,
    RoiRule,
    select_max_nms,
    select_per_class,
)
from vlbert_data.detect.vg_frcnn.weights import find_weights, load_network, read_weights
from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.types import Array, LabelSpace, RoiSet

WITHOUT_AREA = "RoIs without area in the image"


@dataclass(frozen=True, kw_only=True, slots=True)
class VgChoice:
    """Which RoIs become of an image: from which proposals, by which rule. label_topk: classes kept for each RoI."""

    rule: RoiRule = CAFFE_PERCLASS
    proposals: ProposalRule = ProposalRule()  # noqa: RUF009 (frozen)
    label_topk: int = 32

    def __post_init__(self) -> None:
        if self.rule.max_rois > self.proposals.after_nms:
            raise ConfigError(
                f"max_rois is {self.rule.max_rois}, but RoIs are chosen from {self.proposals.after_nms} proposals. "
                "Set num_proposals in a --config file to at least as many."
            )

    @property
    def moves_boxes(self) -> bool:
        """Return whether the stored boxes are not the proposals, which the features are of."""
        return self.rule.name == MAXNMS.name


@dataclass(frozen=True, kw_only=True, slots=True)
class VgNames:
    """What the outputs mean. attributes: None for weights without attributes."""

    label_space: LabelSpace
    attributes: tuple[str, ...] | None


def vg_run(settings: BuildConfig) -> VgRun:
    """Return how a build's settings ask the network to run.

    Raises:
        ConfigError: an unknown precision.
    """
    return VgRun(
        short_side_px=settings.short_side_px,
        long_side_px=settings.long_side_px,
        batch_size=settings.batch_size,
        device=settings.device,
        precision=settings.precision,
    )


def vg_choice(settings: BuildConfig) -> VgChoice:
    """Return which RoIs a build's settings ask for.

    Raises:
        ConfigError: an unknown selection rule, or numbers that do not fit together.
    """
    name = settings.selection or CAFFE_PERCLASS.name
    if name not in RULES:
        raise ConfigError(f"--selection {name}: it is one of {' and '.join(RULES)}.")
    rule = RoiRule(
        name=name,
        min_rois=settings.min_rois,
        max_rois=settings.max_rois,
        nms_ious=RULES[name].nms_ious if settings.nms is None else (settings.nms,),
        score_threshold=0.0 if name == MAXNMS.name else settings.score_threshold,
    )
    proposals = ProposalRule(after_nms=settings.num_proposals)
    return VgChoice(rule=rule, proposals=proposals, label_topk=settings.label_topk)


def open_vg_faster_rcnn(spec: str, run: VgRun, choice: VgChoice) -> "VgDetector":
    """Return the detector with the weights at `spec`, see `find_weights`; the files of names are beside them.

    Raises:
        ConfigError: weights or names are missing, incomplete or of another network, or there is no such device.
    """
    path = find_weights(spec)
    weights = read_weights(path)
    attributes = None
    if weights.size.num_attributes:
        attributes = read_names(_beside(path, ATTRIBUTES_FILE, spec), weights.size.num_attributes)
    label_space = read_label_space(_beside(path, OBJECTS_FILE, spec), weights.size.num_classes)
    describer = VgDescriber(load_network(weights), run, digest=weights.digest)
    return VgDetector(describer, VgNames(label_space=label_space, attributes=attributes), choice)


def _beside(weights: Path, name: str, spec: str) -> Path:
    path = weights.parent / name
    if not path.is_file():
        raise ConfigError(
            f"{path}: not found; it must stand beside the weights. vlb convert-weights {spec} --objects FILE "
            "--attributes FILE --out FOLDER puts weights and names together."
        )
    return path


class VgDetector:
    """A `DetectorDescriber`: `detect_and_describe` is both with one pass of the network."""

    def __init__(self, describer: VgDescriber, names: VgNames, choice: VgChoice) -> None:
        """Make a detector of a describer's network.

        Raises:
            ConfigError: more classes are to be kept than there are.
        """
        size = describer.network.size
        if not 1 <= choice.label_topk <= size.num_classes:
            raise ConfigError(f"label_topk is {choice.label_topk}; the detector has {size.num_classes} classes.")
        self.describer = describer
        self._network = describer.network
        self._names = names
        self._choice = choice
        self._without_area = 0

    @property
    def label_space(self) -> LabelSpace:
        """Return the classes, ids from 0, without background."""
        return self._names.label_space

    @property
    def label_topk(self) -> int:
        """Return K."""
        return self._choice.label_topk

    @property
    def has_attributes(self) -> bool:
        """Return whether every RoI brings an attribute."""
        return self._names.attributes is not None

    def facts(self) -> dict[str, Any]:
        """Return what decides the RoIs, for the manifest."""
        return {
            **self.describer.facts(),
            "proposals": asdict(self._choice.proposals),
            "selection": self._choice.rule.facts(),
            "boxes": "regressed to the best class" if self._choice.moves_boxes else "the proposals",
            "background": {"index_in_network": self._network.size.num_classes, "stored": False},
            "attribute_names": None if self._names.attributes is None else list(self._names.attributes),
        }

    def counts(self) -> dict[str, int]:
        """Return what was left out so far, by reason."""
        return dict(+Counter({WITHOUT_AREA: self._without_area}))

    def detect(self, images: Sequence[DecodedImage]) -> list[RoiSet]:
        """Return the RoIs of each image, in order.

        Raises:
            RecordRejectedError: an image is too narrow, or the network's outputs for one are not finite.
        """
        return [rois for rois, _ in self.detect_and_describe(images)]

    def detect_and_describe(self, images: Sequence[DecodedImage]) -> list[tuple[RoiSet, Description]]:
        """Return the RoIs of each image with their features and that of the whole image.

        The features are of the proposals, as published, also where `maxnms` moved the boxes.

        Raises:
            RecordRejectedError: an image is too narrow, or the network's outputs for one are not finite.
        """
        with self.describer.computing("detector"):
            found = {seen.index: self._find(seen) for seen in self.describer.see([image.pixels for image in images])}
        self._without_area += sum(without_area for _, _, without_area in found.values())
        return [found[index][:2] for index in range(len(images))]

    def _find(self, seen: SeenImage) -> tuple[RoiSet, Description, int]:
        """Return the RoIs of one image, its description, and how many RoIs were left out for want of area."""
        network = self._network
        logits, deltas = network.objectness(seen.res4)
        _check_finite(logits, deltas)
        proposals, _ = propose(
            logits[0],
            deltas[0],
            network.cell_anchors,
            image_size=seen.input_size,
            stride_px=STRIDE_PX,
            rule=self._choice.proposals,
        )
        features = self.describer.features(seen, proposals)  # [P + 1, 2048]
        features, image_feature = features[:-1], features[-1]
        class_logits = network.predictor.class_logits(features)  # [P, C + 1]
        _check_finite(class_logits)
        probs = class_logits.softmax(dim=1)[:, :-1]  # [P, C]
        chosen, scores, boxes = self._select(proposals, features, probs, seen.input_size)
        in_original = partial(rescale, source=seen.input_size, target=seen.original_size)
        original = in_original(boxes.cpu().numpy())
        solid = torch.from_numpy((original[:, 2:] > original[:, :2]).all(axis=1))
        chosen, scores, original = chosen.cpu()[solid], scores.cpu()[solid], original[solid.numpy()]
        rois = self._roi_set(original, scores, probs[chosen], features[chosen], class_logits[chosen])
        description = Description(
            features=features[chosen].cpu().numpy(),
            image_feature=image_feature.cpu().numpy(),
            described_boxes=in_original(proposals[chosen].cpu().numpy()) if self._choice.moves_boxes else None,
        )
        return rois, description, int((~solid).sum())

    def _select(
        self, proposals: Tensor, features: Tensor, probs: Tensor, input_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the chosen proposals int64 [n], best first, their confidence [n] and boxes [n, 4] in input pixels."""
        rule = self._choice.rule
        if not self._choice.moves_boxes:
            chosen, scores = select_per_class(proposals, probs, rule)
            return chosen, scores, proposals[chosen]
        best_probs, best_classes = probs.max(dim=1)  # [P] each
        deltas = self._network.predictor.box_deltas(features, best_classes)
        regressed = decode(deltas, proposals, weights=ROI_WEIGHTS)
        regressed = clip(regressed, height=input_size[0], width=input_size[1])
        solid = nonempty(regressed).nonzero().flatten()
        chosen = solid[select_max_nms(regressed[solid], best_probs[solid], rule)]
        return chosen, best_probs[chosen], regressed[chosen]

    def _roi_set(self, boxes: Array, scores: Tensor, probs: Tensor, features: Tensor, class_logits: Tensor) -> RoiSet:
        """Return n RoIs: probs [n, C], features [n, 2048] and class_logits [n, C + 1] are those of the chosen ones."""
        label_probs, label_ids = probs.sort(dim=1, descending=True, stable=True)
        topk = self._choice.label_topk
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


def _check_finite(*outputs: Tensor) -> None:
    if not all(bool(torch.isfinite(output).all()) for output in outputs):
        raise RecordRejectedError("detector failed", "the network's outputs hold NaN or infinity")
