"""The whole Faster R-CNN against the outputs of a published port, stage by stage, on weights that a recipe rebuilds.

One photo at a small size is checked always, with some of its RoIs. VLB_SLOW_TESTS=1 checks all RoIs, and the other
photo and sizes where their published values are at hand (golden/vg_frcnn/README.md says what is where).
"""

import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from vg_weights import recipe_tensors, recipe_weights

from vlbert_data.detect.base import DecodedImage
from vlbert_data.detect.vg_faster_rcnn import VgChoice, VgDetector, VgNames
from vlbert_data.detect.vg_frcnn.describer import VgDescriber, VgRun
from vlbert_data.detect.vg_frcnn.network import STRIDE_PX, NetworkSize, VgFasterRcnn
from vlbert_data.detect.vg_frcnn.preprocess import preprocess, resized_shape
from vlbert_data.detect.vg_frcnn.proposals import ROI_WEIGHTS, ProposalRule, clip, decode, propose
from vlbert_data.detect.vg_frcnn.selection import MAXNMS, RoiRule, select_max_nms
from vlbert_data.detect.vg_frcnn.weights import load_network
from vlbert_data.images import decode_rgb
from vlbert_data.types import Array, LabelSpace

HERE = Path(__file__).parent / "golden" / "vg_frcnn"
BESIDE = Path(__file__).parents[2] / "shared" / "golden" / "vg_frcnn"
SIZES = {"s224": (224, 400), "s600": (600, 1000), "s800": (800, 1333)}
ALWAYS = ("000000099053", "s224")
OTHERS = [(photo, size) for photo in ("000000099053", "000000397133") for size in SIZES if (photo, size) != ALWAYS]
SLOW = os.environ.get("VLB_SLOW_TESTS") == "1"
PREP = json.loads((HERE / "prep.json").read_text())
# min_rois, max_rois and IoU limits of the selections that were published for every image.
SELECTIONS = {
    "A": (36, 36, (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
    "B": (36, 36, (0.5, 0.6, 0.7, 0.8, 0.9)),
    "C": (10, 100, (0.6,)),
    "D": (10, 100, (0.3,)),
    "E": (100, 100, (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
}

Case = tuple[str, str]
needs_slow = pytest.mark.skipif(not SLOW, reason="takes a minute; VLB_SLOW_TESTS=1 runs it")
cases = [
    pytest.param(ALWAYS, id="-".join(ALWAYS)),
    *(pytest.param(c, id="-".join(c), marks=needs_slow) for c in OTHERS),
]


def published(name: str) -> Path:
    """Return a file of published values, or skip."""
    for folder in (HERE, Path(os.environ.get("VLB_GOLDEN", BESIDE.parent)) / "vg_frcnn"):
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"needs published values: {name}")


@pytest.fixture(scope="module")
def network() -> VgFasterRcnn:
    return load_network(recipe_weights(NetworkSize()))


@pytest.fixture(params=cases)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def golden(case: Case) -> dict[str, Tensor]:
    with np.load(published(f"net_{case[0]}_{case[1]}.npz")) as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def photo_pixels(case: Case) -> Array:
    """Return RGB pixels: of the small size from stored pixels, else from the JPEG."""
    if case[1] == "s224":
        with np.load(published(f"prep_{case[0]}.npz")) as stored:
            return np.ascontiguousarray(stored["s224/resized_bgr_u8"][:, :, ::-1])
    return np.asarray(Image.open(published(f"val2017_{case[0]}.jpg")).convert("RGB"))


def prepared(case: Case) -> Tensor:
    short, long = SIZES[case[1]]
    return preprocess(photo_pixels(case), short_side_px=short, long_side_px=long)


@pytest.fixture
def res4(network: VgFasterRcnn, case: Case) -> Tensor:
    with torch.inference_mode():
        return network.feature_map(prepared(case)[None])


def assert_near(found: Tensor, expected: Tensor, relative: float) -> None:
    """Compare with the largest published number as the measure."""
    torch.testing.assert_close(found, expected, rtol=0, atol=relative * float(expected.abs().max()))


def sampled(x: Tensor, num: int = 4096) -> Tensor:
    flat = x.contiguous().flatten()
    return flat[:: max(1, len(flat) // num)][:num]


def test_the_recipe_rebuilds_the_published_weights() -> None:
    tensors = recipe_tensors(NetworkSize())
    expected = json.loads((HERE / "keys.json").read_text())["keys"]
    assert sorted(tensors) == [entry["key"] for entry in expected]
    for entry in expected:
        tensor = tensors[entry["key"]]
        assert list(tensor.shape) == entry["shape"]
        assert hashlib.sha256(tensor.numpy().tobytes()).hexdigest() == entry["sha256"], entry["key"]


def test_images_get_the_published_sizes() -> None:
    for height, width, short, long, *expected in PREP["resize_table[h,w,short,long,new_h,new_w]"]:
        assert list(resized_shape(height, width, short_side_px=short, long_side_px=long)) == expected


def test_the_networks_input_is_the_published_one_to_the_bit(case: Case) -> None:
    facts = PREP["images"][f"val2017_{case[0]}.jpg"]["variants"][case[1]]
    tensor = prepared(case)
    assert tensor.shape == (3, facts["h"], facts["w"])
    assert hashlib.sha256(tensor.numpy().tobytes()).hexdigest() == facts["tensor_f32_chw_sha256"]


def test_each_stage_of_the_backbone_gives_the_published_maps(
    network: VgFasterRcnn, case: Case, golden: dict[str, Tensor]
) -> None:
    x = prepared(case)[None].contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for name, stage in network.backbone.named_children():
            x = stage(x)
            relative = 3e-4 if name == "res4" else 1e-5
            assert_near(sampled(x), golden[f"{name}_sample"], relative)
            assert_near(x[0, :16, 2:8, 3:9], golden[f"{name}_crop"], relative)
        if "res4_full" in golden:
            assert_near(x[0], golden["res4_full"], 3e-4)


def test_the_rpn_gives_the_published_maps(network: VgFasterRcnn, res4: Tensor, golden: dict[str, Tensor]) -> None:
    with torch.inference_mode():
        for name, found in zip(("rpn_objectness", "rpn_deltas"), network.objectness(res4), strict=True):
            if name in golden:
                assert_near(found[0], golden[name], 5e-4)
            else:
                assert_near(sampled(found, 2048), golden[f"{name}_sample"], 5e-4)


def test_the_published_maps_give_the_published_proposals(
    network: VgFasterRcnn, case: Case, golden: dict[str, Tensor]
) -> None:
    if "rpn_deltas" not in golden:
        pytest.skip("the maps of larger sizes were not published whole")
    maps = golden["rpn_objectness"], golden["rpn_deltas"]
    size = tuple(prepared(case).shape[1:])
    options = {"image_size": size, "stride_px": STRIDE_PX, "rule": ProposalRule()}
    proposals, scores = propose(*maps, network.cell_anchors, **options)
    torch.testing.assert_close(proposals, golden["proposals"], rtol=0, atol=1e-3)
    assert torch.equal(scores, golden["proposal_scores"])


def test_the_whole_rpn_proposes_what_was_published(
    network: VgFasterRcnn, case: Case, res4: Tensor, golden: dict[str, Tensor]
) -> None:
    with torch.inference_mode():
        logits, deltas = network.objectness(res4)
    size = tuple(prepared(case).shape[1:])
    options = {"image_size": size, "stride_px": STRIDE_PX, "rule": ProposalRule()}
    proposals, _ = propose(logits[0], deltas[0], network.cell_anchors, **options)
    distance = (proposals[:, None] - golden["proposals"][None]).abs().amax(dim=2)  # [found, published]
    assert float((distance.amin(dim=0) < 0.5).float().mean()) >= 0.97
    assert float((distance.amin(dim=1) < 0.5).float().mean()) >= 0.97


def test_any_boxes_get_the_published_features_classes_and_attributes(
    network: VgFasterRcnn, res4: Tensor, golden: dict[str, Tensor]
) -> None:
    boxes, predictor = golden["fixed_boxes"], network.predictor
    with torch.inference_mode():
        features = network.describe(res4, boxes)
        logits = predictor.class_logits(features)
        attributes = predictor.attribute_logits(features, logits.argmax(dim=1))
        best = logits[:, :-1].argmax(dim=1)
        deltas = predictor.box_deltas(features, best)
    assert_near(features, golden["fixed_pooled"], 5e-4)
    assert_near(logits, golden["fixed_obj_logits"], 1e-3)
    assert_near(attributes, golden["fixed_attr_logits"], 1e-3)
    torch.testing.assert_close(logits.softmax(1), golden["fixed_obj_probs"], rtol=0, atol=2e-3)
    torch.testing.assert_close(attributes[:, :-1].softmax(1), golden["fixed_attr_probs"], rtol=0, atol=2e-3)
    assert best.tolist() == golden["fixed_best_class"].tolist()
    assert_near(deltas, golden["fixed_best_deltas"], 1e-3)
    regressed = decode(deltas, boxes, weights=ROI_WEIGHTS)
    assert_near(regressed, golden["fixed_best_box_unclipped"], 1e-3)


def test_pooled_windows_are_the_published_ones(network: VgFasterRcnn, res4: Tensor, golden: dict[str, Tensor]) -> None:
    with torch.inference_mode():
        pooled = torch.cat(list(network.pool(res4, golden["fixed_boxes"])))
    assert_near(pooled[:, ::64, ::3, ::3], golden["fixed_roipool_sample"], 3e-4)


@pytest.mark.parametrize("all_rois", [False, pytest.param(True, marks=needs_slow)], ids=["chosen", "all"])
def test_the_published_proposals_give_the_published_rois(
    network: VgFasterRcnn, case: Case, res4: Tensor, golden: dict[str, Tensor], all_rois: bool
) -> None:
    rois = torch.arange(300) if all_rois else golden["sel_A_roi"].long()[:24]
    proposals, predictor = golden["proposals"][rois], network.predictor
    with torch.inference_mode():
        features = network.describe(res4, proposals)
        logits = predictor.class_logits(features)
        attributes = predictor.attribute_logits(features, logits.argmax(dim=1))[:, :-1].softmax(1).max(dim=1)
        best = logits.softmax(1)[:, :-1].max(dim=1)
        deltas = predictor.box_deltas(features, best.indices)
    same_class = best.indices == golden["roi_best_class"][rois]
    same_attribute = attributes.indices == golden["roi_attr_id"][rois]
    assert float(same_class.float().mean()) >= 0.99
    assert float(same_attribute.float().mean()) >= 0.98
    torch.testing.assert_close(best.values, golden["roi_best_prob"][rois], rtol=0, atol=2e-3)
    torch.testing.assert_close(logits.softmax(1)[:, -1], golden["roi_background_prob"][rois], rtol=0, atol=2e-3)
    assert_near(attributes.values[same_attribute], golden["roi_attr_prob"][rois][same_attribute], 2e-3)
    assert_near(features[:, ::128], golden["roi_pooled_sample"][rois], 1e-3)
    height, width = prepared(case).shape[1:]
    regressed = clip(decode(deltas, proposals, weights=ROI_WEIGHTS), height=height, width=width)
    assert_near(regressed[same_class], golden["roi_best_box_clipped"][rois][same_class], 1e-3)


@pytest.mark.parametrize("name", list(SELECTIONS))
def test_the_maxnms_rule_chooses_the_published_rois(golden: dict[str, Tensor], name: str) -> None:
    least, most, ious = SELECTIONS[name]
    rule = RoiRule(name="maxnms", min_rois=least, max_rois=most, nms_ious=ious)
    chosen = select_max_nms(golden["roi_best_box_clipped"], golden["roi_best_prob"], rule)
    assert chosen.tolist() == golden[f"sel_{name}_roi"].tolist()


@needs_slow
def test_the_detector_finds_what_was_published(network: VgFasterRcnn, case: Case, golden: dict[str, Tensor]) -> None:
    pixels = np.asarray(Image.open(published(f"val2017_{case[0]}.jpg")).convert("RGB"))
    ((rois, description),) = whole_detector(network, case[1]).detect_and_describe([decoded(pixels)])
    found, expected = torch.from_numpy(rois.boxes), golden["final_boxes"]
    # The order of nearly equal confidences is chance; so RoIs are matched by place.
    match = (found[:, None] - expected[None]).abs().amax(dim=2).argmin(dim=0)
    torch.testing.assert_close(found[match], expected, rtol=0, atol=0.5)
    assert rois.attribute_ids is not None and rois.attribute_probs is not None
    assert rois.label_ids[match, 0].tolist() == golden["final_obj_ids"].tolist()
    assert rois.attribute_ids[match].tolist() == golden["final_attr_ids"].tolist()
    np.testing.assert_allclose(rois.scores[match], golden["final_obj_probs"], rtol=0, atol=2e-3)
    np.testing.assert_allclose(rois.attribute_probs[match], golden["final_attr_probs"], rtol=0, atol=2e-3)
    assert_near(torch.from_numpy(description.features)[match], golden["final_features"], 1e-3)


def whole_detector(network: VgFasterRcnn, size: str) -> VgDetector:
    classes = tuple(f"class {number}" for number in range(1600))
    names = VgNames(
        label_space=LabelSpace(name="recipe", class_names=classes),
        attributes=tuple(f"attribute {number}" for number in range(400)),
    )
    short, long = SIZES[size]
    describer = VgDescriber(network, VgRun(short_side_px=short, long_side_px=long), digest="recipe")
    return VgDetector(describer, names, VgChoice(rule=MAXNMS))


def decoded(pixels: Array) -> DecodedImage:
    return DecodedImage(image_id="1", file_name="1.jpg", pixels=pixels)


def test_a_path_bytes_and_an_array_of_a_photo_become_one_input() -> None:
    path = published(f"val2017_{ALWAYS[0]}.jpg")
    from_bytes = decode_rgb(path.read_bytes())
    inputs = [
        np.asarray(Image.open(path).convert("RGB")),
        np.asarray(Image.open(io.BytesIO(path.read_bytes()))),
        from_bytes,
        np.asfortranarray(from_bytes),
        np.ascontiguousarray(from_bytes[:, :, ::-1])[:, :, ::-1],
    ]
    expected = PREP["images"][path.name]["variants"]["s600"]["tensor_f32_chw_sha256"]
    for pixels in inputs:
        tensor = preprocess(pixels, short_side_px=600, long_side_px=1000)
        assert hashlib.sha256(tensor.numpy().tobytes()).hexdigest() == expected
