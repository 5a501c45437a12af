"""The Faster R-CNN's operators, against published values and slow obvious versions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlbert_data.detect.nms import nms
from vlbert_data.detect.roi_pool import roi_pool
from vlbert_data.detect.vg_frcnn.network import ConvNorm, Stem
from vlbert_data.detect.vg_frcnn.proposals import (
    ROI_WEIGHTS,
    RPN_WEIGHTS,
    ProposalRule,
    cell_anchors,
    clip,
    decode,
    grid_anchors,
    nonempty,
    propose,
)
from vlbert_data.detect.vg_frcnn.selection import (
    CAFFE_PERCLASS,
    RoiRule,
    select_max_nms,
    select_per_class,
    surviving_confidence,
)
from vlbert_data.errors import ConfigError

GOLDEN = Path(__file__).parent / "golden" / "ops"
CASES: dict[str, Any] = json.loads((GOLDEN / "ops.json").read_text())
WEIGHTS = {"w1": RPN_WEIGHTS, "w10": ROI_WEIGHTS}


def golden(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"ops_{name}.npz") as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files}


def named(case: dict[str, Any]) -> str:
    return str(case["name"])


@pytest.mark.parametrize("case", CASES["roipool"], ids=named)
def test_roi_pool_gives_torchvisions_values_to_the_bit(case: dict[str, Any]) -> None:
    stored = golden("roipool")
    maps, boxes, expected = (stored[f"{case['name']}/{part}"] for part in ("input", "boxes", "output"))
    pooled = roi_pool(maps, boxes, output_size=case["output_size"], spatial_scale=case["spatial_scale"])
    assert torch.equal(pooled, expected)


def slow_roi_pool(maps: Tensor, boxes: Tensor, size: int, scale: float) -> Tensor:
    """Cell by cell, in float32 as published."""
    one = np.float32(1)
    height, width = maps.shape[2:]
    out = torch.zeros(len(boxes), maps.shape[1], size, size)
    for r, box in enumerate(boxes.numpy().astype(np.float32)):
        x0, y0, x1, y1 = (float(np.trunc(v + np.copysign(0.5, v))) for v in (box[1:] * np.float32(scale)).astype(float))
        tall, wide = (max(np.float32(b - a) + one, one) / np.float32(size) for a, b in ((y0, y1), (x0, x1)))
        for i in range(size):
            for j in range(size):
                top, bottom = np.floor(np.float32(i) * tall) + y0, np.ceil(np.float32(i + 1) * tall) + y0
                left, right = np.floor(np.float32(j) * wide) + x0, np.ceil(np.float32(j + 1) * wide) + x0
                rows = slice(int(np.clip(top, 0, height)), int(np.clip(bottom, 0, height)))
                columns = slice(int(np.clip(left, 0, width)), int(np.clip(right, 0, width)))
                cell = maps[int(box[0]), :, rows, columns]
                if cell.numel():
                    out[r, :, i, j] = cell.amax(dim=(1, 2))
    return out


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    sides=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.sampled_from([1, 3, 7]),
    scale=st.sampled_from([1.0, 0.25, 1 / 16]),
)
def test_roi_pool_equals_the_largest_of_each_cell(seed: int, sides: tuple[int, int], size: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    maps = torch.from_numpy(rng.normal(-1, 1, (2, 3, *sides)).astype(np.float32))
    corners = rng.uniform(-0.3, 1.2, (6, 4)) * np.array([sides[1], sides[0]] * 2) / scale
    boxes = np.concatenate([rng.integers(0, 2, (6, 1)), np.round(corners * 4) / 4], axis=1).astype(np.float32)
    pooled = roi_pool(maps, torch.from_numpy(boxes), output_size=size, spatial_scale=scale)
    assert torch.equal(pooled, slow_roi_pool(maps, torch.from_numpy(boxes), size, scale))


def test_anchors_are_the_published_ones() -> None:
    stored = golden("anchors")
    assert torch.equal(cell_anchors(), stored["cell_anchors"])
    for height, width in ((1, 1), (2, 3), (14, 21)):
        grid = grid_anchors(cell_anchors(), height, width, stride_px=16)
        assert torch.equal(grid, stored[f"grid_{height}x{width}"])


@pytest.mark.parametrize("name", list(WEIGHTS))
def test_boxes_are_decoded_as_published(name: str) -> None:
    stored = golden("boxdecode")
    boxes, deltas = stored["boxes"], stored["deltas"]
    decoded = decode(deltas, boxes, weights=WEIGHTS[name])
    torch.testing.assert_close(decoded, stored[f"{name}/decoded"], rtol=1e-6, atol=1e-4)
    clipped = clip(decoded, height=224, width=336)
    torch.testing.assert_close(clipped, stored[f"{name}/decoded_clipped_h224_w336"], rtol=1e-6, atol=1e-4)
    assert nonempty(clipped).tolist() == stored[f"{name}/nonempty_after_clip"].tolist()
    for k in range(3):
        one = decode(stored["deltas_k3"][:, 4 * k : 4 * k + 4], boxes, weights=WEIGHTS[name])
        torch.testing.assert_close(one, stored[f"{name}/decoded_k3"][:, 4 * k : 4 * k + 4], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("numbers", [(6000, 300, 0), (200, 50, 0), (6000, 100, 16)])
def test_proposals_of_given_maps_are_the_published_ones(numbers: tuple[int, int, int]) -> None:
    stored = golden("rpn_select")
    case = CASES["rpn_select"]
    before, after, min_side = numbers
    rule = ProposalRule(before_nms=before, after_nms=after, nms_iou=case["nms"], min_side_px=min_side)
    size = tuple(case["image_hw_for_clipping"])
    maps = stored["logits"], stored["deltas"]
    boxes, scores = propose(*maps, cell_anchors(), image_size=size, stride_px=case["stride"], rule=rule)
    torch.testing.assert_close(boxes, stored[f"pre{before}_post{after}_min{min_side}/boxes"], rtol=0, atol=1e-4)
    assert torch.equal(scores, stored[f"pre{before}_post{after}_min{min_side}/scores"])


@pytest.mark.parametrize("sides", ["8x8", "9x7", "112x168", "300x4"])
def test_the_stem_pools_as_caffe_does(sides: str) -> None:
    stored = golden("layers")
    assert torch.equal(Stem.pool(stored[f"maxpool_{sides}/input"]), stored[f"maxpool_{sides}/output"])


def test_a_folded_norm_does_what_the_batch_norm_did() -> None:
    stored = golden("layers")
    layer = ConvNorm(4, 4, 1).eval().requires_grad_(False)
    layer.weight.copy_(torch.eye(4)[:, :, None, None])
    names = ("weight", "bias", "running_mean", "running_var")
    layer.norm.load_state_dict({name: stored[f"bn/{name}"] for name in names}, strict=False)
    layer.fold_norm()
    torch.testing.assert_close(layer(stored["bn/input"]), stored["bn/output"], rtol=1e-6, atol=1e-6)


def random_boxes(rng: np.random.Generator, num: int) -> Tensor:
    corners = rng.integers(0, 40, (num, 2))
    return torch.from_numpy(np.concatenate([corners, corners + rng.integers(0, 20, (num, 2))], axis=1)).float()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), num=st.integers(0, 90), classes=st.integers(1, 6))
def test_suppression_within_all_classes_at_once_equals_class_by_class(seed: int, num: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, num)
    probs = torch.from_numpy(rng.integers(1, 9, (num, classes))).float() / 10  # with ties
    expected = torch.zeros(num)
    for number in range(classes):
        kept = nms(boxes, probs[:, number], 0.3)
        expected[kept] = torch.maximum(expected[kept], probs[kept, number])
    assert torch.equal(surviving_confidence(boxes, probs, 0.3), expected)


def test_suppression_of_a_long_chain_is_greedy() -> None:
    """Each box overlaps its neighbours only: every other one stays."""
    left = torch.arange(700.0) * 10
    boxes = torch.stack([left, torch.zeros(700), left + 16, torch.full((700,), 9.0)], dim=1)
    assert nms(boxes, 1 - left / 1e4, 0.2).tolist() == list(range(0, 700, 2))


def test_the_caffe_rule_keeps_the_confident_and_at_least_and_at_most_so_many() -> None:
    boxes = torch.tensor([[20.0 * n, 0, 20 * n + 15, 10] for n in range(5)])
    probs = torch.tensor([[0.1, 0.0], [0.6, 0.2], [0.2, 0.3], [0.0, 0.5], [0.2, 0.2]])

    def chosen(**numbers: Any) -> list[int]:
        rule = {"name": "caffe-perclass", "min_rois": 0, "max_rois": 9, "nms_ious": (0.3,), "score_threshold": 0.4}
        return select_per_class(boxes, probs, RoiRule(**{**rule, **numbers}))[0].tolist()

    assert chosen() == [1, 3]
    assert chosen(min_rois=4) == [1, 3, 2, 4]
    assert chosen(max_rois=1) == [1]
    assert chosen(score_threshold=0.95) == []


def test_the_maxnms_rule_loosens_until_enough_are_left() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 2, 10, 12], [0, 5, 10, 15], [50, 50, 60, 60]])
    probs = torch.tensor([0.9, 0.8, 0.7, 0.6])

    def chosen(least: int, most: int = 9) -> list[int]:
        rule = RoiRule(name="maxnms", min_rois=least, max_rois=most, nms_ious=(0.3, 0.5, 0.9))
        return select_max_nms(boxes, probs, rule).tolist()

    assert chosen(1) == [0, 3]  # IoU of neighbours: 2/3, 7/13, 1/3
    assert chosen(3) == [0, 2, 3]
    assert chosen(4) == [0, 1, 2, 3]
    assert chosen(9) == [0, 1, 2, 3]  # no limit leaves nine: these are all there are
    assert chosen(1, 1) == [0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "best"}, "selection rule 'best'; it is one of caffe-perclass and maxnms"),
        ({"min_rois": 101}, "min_rois 101, max_rois 100"),
        ({"nms_ious": (0.3, 0.4)}, "it takes exactly one"),
        ({"nms_ious": ()}, "it takes exactly one"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RoiRule(**{**CAFFE_PERCLASS.facts(), "nms_ious": (0.3,), **changes})
