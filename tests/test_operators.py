"""Suppression and RoIAlign, against torchvision's published values and slow obvious versions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlbert_data import boxes as geometry
from vlbert_data.describe.roi_align import roi_align, roi_align_mean
from vlbert_data.detect.nms import nms

GOLDEN = Path(__file__).parent / "golden" / "ops"
CASES: dict[str, Any] = json.loads((GOLDEN / "ops.json").read_text())


@pytest.mark.parametrize("case", [case for case in CASES["nms"] if not case["batched"]], ids=lambda case: case["name"])
def test_suppression_keeps_what_torchvision_keeps(case: dict[str, Any]) -> None:
    with np.load(GOLDEN / "ops_nms.npz") as golden:
        boxes, scores, keep = (
            torch.from_numpy(golden[f"{case['name']}/{part}"]) for part in ("boxes", "scores", "keep")
        )
    kept = nms(boxes, scores, case["threshold"])
    assert kept.tolist() == keep.tolist()
    assert nms(boxes, scores, case["threshold"], max_kept=7).tolist() == keep.tolist()[:7]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), num=st.integers(0, 1200), threshold=st.sampled_from([0.0, 0.3, 0.7, 1.0]))
def test_suppression_equals_the_rule_box_by_box(seed: int, num: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 60, (num, 2))
    boxes = np.concatenate([corners, corners + rng.integers(0, 30, (num, 2))], axis=1).astype(np.float32)
    scores = rng.integers(0, 20, num).astype(np.float32)
    expected: list[int] = []
    for index in sorted(range(num), key=lambda i: -scores[i]):
        mine = boxes[index : index + 1]
        if not expected or not (geometry.iou(boxes[expected], mine).astype(np.float64) > threshold).any():
            expected.append(index)
    assert nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold).tolist() == expected


@pytest.mark.parametrize("case", CASES["roialign"], ids=lambda case: case["name"])
def test_roi_align_gives_torchvisions_values(case: dict[str, Any]) -> None:
    with np.load(GOLDEN / "ops_roialign.npz") as golden:
        if case["name"] not in golden:
            pytest.skip("a gradient, not a value")
        maps = torch.from_numpy(golden[f"{case['input']}/input"])
        rois = torch.from_numpy(golden[f"{case['input']}/boxes"])
        expected = torch.from_numpy(golden[case["name"]])
    options = {key: case[key] for key in ("sampling_ratio", "aligned")}
    scale = (case["spatial_scale"],) * 2
    for number in range(len(maps)):
        own = rois[:, 0] == number
        pooled = roi_align(maps[number], rois[own, 1:], scale=scale, num_bins=case["output_size"], **options)
        torch.testing.assert_close(pooled, expected[own], rtol=0, atol=1e-5)
        if case["aligned"]:
            mean = roi_align_mean(
                maps[number],
                rois[own, 1:],
                scale=scale,
                num_bins=case["output_size"],
                sampling_ratio=case["sampling_ratio"],
            )
            torch.testing.assert_close(mean, expected[own].mean(dim=(2, 3)), rtol=0, atol=1e-5)


def test_the_mean_of_a_plane_is_its_value_at_the_rois_centre() -> None:
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    boxes = torch.tensor([[40.0, 32.0, 200.0, 160.0], [64.0, 64.0, 65.0, 65.0]])
    mean = roi_align_mean(torch.stack([y, x]), boxes, scale=(1 / 16, 1 / 16))
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / 16 - 0.5
    torch.testing.assert_close(mean, centres.flip(1))


def test_no_roi_gives_no_feature() -> None:
    assert roi_align_mean(torch.zeros(5, 4, 4), torch.zeros(0, 4), scale=(1.0, 1.0)).shape == (0, 5)
    assert roi_align(torch.zeros(5, 4, 4), torch.zeros(0, 4), scale=(1.0, 1.0)).shape == (0, 5, 7, 7)


def test_torchvision_agrees_where_it_is_installed() -> None:
    ops = pytest.importorskip("torchvision.ops", reason="torchvision is not installed")
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(300, 2, generator=generator) * 400
    boxes = torch.cat([corners, corners + torch.rand(300, 2, generator=generator) * 200], dim=1)
    scores = torch.rand(300, generator=generator)
    assert nms(boxes, scores, 0.5).tolist() == ops.nms(boxes, scores, 0.5).tolist()
    feature_map = torch.rand(1, 3, 30, 40, generator=generator)
    theirs = ops.roi_align(feature_map, [boxes], 7, spatial_scale=1 / 16, aligned=True)
    torch.testing.assert_close(roi_align(feature_map[0], boxes, scale=(1 / 16, 1 / 16)), theirs, rtol=0, atol=1e-5)
