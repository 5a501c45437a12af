"""bench_frcnn: the Visual Genome Faster R-CNN against its convolutions alone, and its operators against torchvision's.

    python -m benchmarks.bench_frcnn [--pairs 5] [--threads 2] [--precision bfloat16] [--device cuda]

Ours: a decoded photo becomes RoIs, classes, attributes and features. Theirs: backbone and res5 alone, on the same input
and the same pooled windows, which lie ready in memory. Weights are random in value; the work does not depend on them.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import absent, compare, parser, pin_threads, real_data, report, seconds, significant
from vlbert_data.detect.base import DecodedImage
from vlbert_data.detect.nms import nms
from vlbert_data.detect.roi_pool import roi_pool
from vlbert_data.detect.vg_faster_rcnn import VgChoice, VgDetector, VgNames
from vlbert_data.detect.vg_frcnn.describer import VgDescriber, VgRun
from vlbert_data.detect.vg_frcnn.network import POOLED_SIZE, PUBLISHED_SIZE, STRIDE_PX, ConvNorm, VgFasterRcnn
from vlbert_data.detect.vg_frcnn.preprocess import preprocess
from vlbert_data.detect.vg_frcnn.proposals import RPN_WEIGHTS, ProposalRule, clip, decode, grid_anchors, propose
from vlbert_data.detect.vg_frcnn.selection import CAFFE_PERCLASS, select_per_class
from vlbert_data.memory import keep_freed_memory
from vlbert_data.types import Array, LabelSpace

PROPOSALS = ProposalRule()


def main() -> None:
    """Measure and keep the result."""
    options = parser(__doc__)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--device", default="cpu")
    options.add_argument("--precision", default="float32")
    options.add_argument("--sides", type=int, nargs=2, default=(600, 1000), metavar=("SHORT", "LONG"))
    asked = options.parse_args()
    pin_threads(asked.threads)
    keep_freed_memory()
    photo = some_photo()
    bench = Stages(random_detector(asked, photo), photo)
    assert len(bench.proposals) == PROPOSALS.after_nms, "as many proposals as real weights give"
    rows, notes = whole_against_convolutions(bench, asked.pairs)
    rows += stage_rows(bench, asked.pairs)
    if not absent("torchvision's operators", ["torchvision"]):
        rows += operator_rows(bench, asked.pairs)
    if bench.device.type == "cuda":
        rows += matrix_unit_rows(bench, asked.pairs)
    notes.append(f"{asked.threads} threads, {asked.precision}, photo of {photo.shape[1]} x {photo.shape[0]} pixels")
    name = "bench_frcnn" + ("" if asked.precision == "float32" else f"_{asked.precision}")
    report(f"{name}_cuda" if bench.device.type == "cuda" else name, rows, notes=notes, keep=not asked.dry)


def random_detector(asked: argparse.Namespace, photo: Array) -> VgDetector:
    """Return the published network with random weights under which the photo's outputs spread as they usually do."""
    torch.manual_seed(0)
    network = VgFasterRcnn(PUBLISHED_SIZE)
    for name, module in network.named_modules():
        if isinstance(module, ConvNorm):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if name.endswith("conv3"):
                nn.init.constant_(module.norm.weight, 0.3)
    network.fold_norms().to(memory_format=torch.channels_last)
    run = VgRun(
        short_side_px=asked.sides[0], long_side_px=asked.sides[1], device=asked.device, precision=asked.precision
    )
    image = preprocess(photo, short_side_px=asked.sides[0], long_side_px=asked.sides[1])[None]
    head, predictor = network.proposal_generator.rpn_head, network.predictor
    with torch.inference_mode():
        res4 = network.feature_map(image)
        logits, deltas = network.objectness(res4)
        features = network.describe(res4, torch.tensor([[0.0, 0.0, 300.0, 300.0], [200.0, 100.0, 500.0, 400.0]]))
        classes = predictor.class_logits(features)
    for layer, output, spread in (
        (head.objectness_logits, logits, 2.0),
        (head.anchor_deltas, deltas, 0.2),
        (predictor.cls_score, classes, 2.0),
    ):
        layer.weight.mul_(spread / output.std())
    return VgDetector(VgDescriber(network, run, digest="random"), random_names(), VgChoice())


def random_names() -> VgNames:
    """Return names that mean nothing."""
    classes = tuple(f"class {number}" for number in range(PUBLISHED_SIZE.num_classes))
    attributes = tuple(f"attribute {number}" for number in range(PUBLISHED_SIZE.num_attributes))
    return VgNames(label_space=LabelSpace(name="random", class_names=classes), attributes=attributes)


def some_photo() -> Array:
    """Return a real photo, RGB, or noise of its size."""
    photos = sorted(real_data("coco", "images").glob("*000000000139.jpg"))
    if photos:
        return np.asarray(Image.open(photos[0]).convert("RGB"))
    return np.random.default_rng(0).integers(0, 256, (426, 640, 3), dtype=np.uint8)


class Stages:
    """Every stage of one photo, each with its input at hand."""

    def __init__(self, detector: VgDetector, photo: Array) -> None:
        self.detector, self.photo = detector, photo
        self.image = DecodedImage(image_id="1", file_name="1.jpg", pixels=photo)
        self.network, self.run = detector.describer.network, detector.describer.run
        self.device = self.network.cell_anchors.device
        with self.computing():
            self.tensor = self.preprocess()[None].to(self.device)
            self.size = tuple(self.tensor.shape[2:])
            self.res4 = self.network.feature_map(self.tensor)
            self.maps = self.network.objectness(self.res4)
            self.proposals = self.propose()
            whole = self.proposals.new_tensor([[0, 0, self.size[1], self.size[0]]])
            self.boxes = torch.cat([self.proposals, whole])
            self.windows = self.pool()
            self.features = torch.cat(self.res5())[:-1]
            self.logits = self.network.predictor.class_logits(self.features)

    def computing(self) -> Any:
        """Arrange precision and gradients as the detector does."""
        return self.detector.describer.computing("benchmark")

    def timed(self, work: Callable[[], object]) -> Callable[[], None]:
        """Return work that ends when the device has done it."""

        def run() -> None:
            with self.computing():
                work()
                if self.device.type == "cuda":
                    torch.cuda.synchronize()

        return run

    def whole(self) -> object:
        """The detector as the build calls it."""
        return self.detector.detect_and_describe([self.image])

    def convolutions(self) -> None:
        """Backbone and res5."""
        self.backbone()
        self.res5()

    def preprocess(self) -> Tensor:
        """Decoded pixels to the network's input."""
        return preprocess(self.photo, short_side_px=self.run.short_side_px, long_side_px=self.run.long_side_px)

    def backbone(self) -> Tensor:
        """The input to the res4 map."""
        return self.network.feature_map(self.tensor)

    def rpn(self) -> object:
        """The RPN's convolutions."""
        return self.network.objectness(self.res4)

    def propose(self) -> Tensor:
        """RPN maps to 300 boxes."""
        logits, deltas = self.maps
        cell = self.network.cell_anchors
        size = (int(self.size[0]), int(self.size[1]))
        return propose(logits[0], deltas[0], cell, image_size=size, stride_px=STRIDE_PX, rule=PROPOSALS)[0]

    def pool(self) -> list[Tensor]:
        """RoIPool."""
        return list(self.network.pool(self.res4, self.boxes))

    def res5(self) -> list[Tensor]:
        """Pooled windows to features."""
        return [self.network.roi_heads.res5(part).mean(dim=(2, 3), dtype=torch.float32) for part in self.windows]

    def heads(self) -> None:
        """Classes of all proposals, attributes of a hundred."""
        logits = self.network.predictor.class_logits(self.features)
        self.network.predictor.attribute_logits(self.features[:100], logits[:100].argmax(dim=1))

    def select(self) -> object:
        """Suppression within each of 1600 classes."""
        return select_per_class(self.proposals, self.logits.softmax(dim=1)[:, :-1], CAFFE_PERCLASS)

    def candidates(self) -> tuple[Tensor, Tensor]:
        """Return the boxes and scores that the RPN's suppression chooses from."""
        logits, deltas = self.maps
        flat = logits[0].permute(1, 2, 0).flatten()
        order = flat.argsort(descending=True, stable=True)[: PROPOSALS.before_nms]
        anchors = grid_anchors(self.network.cell_anchors, *logits.shape[2:], stride_px=STRIDE_PX)[order]
        height, width = logits.shape[2:]
        each = deltas[0].view(12, 4, height, width).permute(2, 3, 0, 1).reshape(-1, 4)[order]
        boxes = clip(decode(each, anchors, weights=RPN_WEIGHTS), height=int(self.size[0]), width=int(self.size[1]))
        return boxes, flat[order]


def whole_against_convolutions(bench: Stages, pairs: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the row that the target is about, and what else it says."""
    found = compare(
        "whole detector / convolutions",
        bench.timed(bench.whole),
        bench.timed(bench.convolutions),
        pairs=pairs,
        warm_up=True,
    )
    flops = FlopCounterMode(display=False)
    with flops, bench.computing():
        bench.convolutions()
    row = {
        "measure": f"{found.name}, input {bench.size[1]} x {bench.size[0]}",
        "ours s": significant(statistics.median(found.ours)),
        "theirs s": significant(statistics.median(found.theirs)),
        "time ratio (median)": round(found.time_ratio, 3),
        "time ratios": " ".join(f"{ratio:.3f}" for ratio in found.time_ratios),
        "ours images/s": significant(1 / statistics.median(found.ours)),
    }
    rate = flops.get_total_flops() / statistics.median(found.theirs) / 1e9
    notes = [
        f"convolutions: {flops.get_total_flops() / 1e12:.2f} TFLOP, {rate:.0f} GFLOP/s; target: a ratio of at most 1.15"
    ]
    return [row], notes


def stage_rows(bench: Stages, pairs: int) -> list[dict[str, Any]]:
    """Return the median milliseconds of each stage."""
    names = ("preprocess", "backbone", "rpn", "propose", "pool", "res5", "heads", "select")
    rows = []
    for name in names:
        work = bench.timed(getattr(bench, name))
        work()
        rows.append(
            {"stage": name, "ms": significant(1000 * statistics.median(seconds(work) for _ in range(max(pairs, 3))))}
        )
    return rows


def operator_rows(bench: Stages, pairs: int) -> list[dict[str, Any]]:
    """Return our operators beside torchvision's on the photo's own boxes: speeds, and whether results are equal."""
    from torchvision import ops

    with bench.computing():
        boxes, scores = (tensor.clone() for tensor in bench.candidates())
        features, rois = bench.res4.clone(), nn.functional.pad(bench.boxes, (1, 0))
    scale = 1 / STRIDE_PX
    choices: list[tuple[str, Callable[[], Tensor], Callable[[], Tensor]]] = [
        (
            f"nms of {len(boxes)} boxes, the first 300",
            partial(nms, boxes, scores, PROPOSALS.nms_iou, max_kept=300),
            lambda: ops.nms(boxes, scores, PROPOSALS.nms_iou)[:300],
        ),
        (
            f"nms of {len(boxes)} boxes, all",
            partial(nms, boxes, scores, PROPOSALS.nms_iou),
            lambda: ops.nms(boxes, scores, PROPOSALS.nms_iou),
        ),
        (
            f"RoIPool of {len(rois)} RoIs",
            partial(roi_pool, features, rois, output_size=POOLED_SIZE, spatial_scale=scale),
            lambda: ops.roi_pool(features, rois, POOLED_SIZE, scale).contiguous(memory_format=torch.channels_last),
        ),
    ]
    rows = []
    for name, ours, theirs in choices:
        with bench.computing():
            equal = torch.equal(ours(), theirs())
        found = compare(name, bench.timed(ours), bench.timed(theirs), pairs=pairs, warm_up=True)
        rows.append(
            {
                "operator": name,
                "ours ms": significant(1000 * statistics.median(found.ours)),
                "torchvision ms": significant(1000 * statistics.median(found.theirs)),
                "speed ratio (median)": round(found.speed_ratio, 3),
                "equal to the bit": equal,
            }
        )
    return rows


def matrix_unit_rows(bench: Stages, pairs: int) -> list[dict[str, Any]]:
    """Return the share of the speed of a large matrix product in the same precision, on CUDA."""
    side = 8192
    kind = bench.res4.dtype
    a, b = (torch.randn(side, side, device=bench.device, dtype=kind) for _ in range(2))
    flops = FlopCounterMode(display=False)
    with flops, bench.computing():
        bench.convolutions()
    rates = []
    for work, num in ((partial(torch.matmul, a, b), 2 * side**3), (bench.whole, flops.get_total_flops())):
        run = bench.timed(work)
        run()
        rates.append(num / statistics.median(seconds(run) for _ in range(max(pairs, 3))) / 1e12)
    return [
        {
            "device": torch.cuda.get_device_name(),
            "matrix product TFLOP/s": significant(rates[0]),
            "whole detector TFLOP/s": significant(rates[1]),
            "share": round(rates[1] / rates[0], 3),
        }
    ]


if __name__ == "__main__":
    main()
