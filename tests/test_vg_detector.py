"""The Faster R-CNN as the build meets it: a detector and a describer, on a small network with weights by the recipe."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from build_world import make_world
from PIL import Image
from vg_weights import TINY, recipe_weights

from vlbert_data.build.config import BuildConfig
from vlbert_data.build.run import Build
from vlbert_data.describe.base import Description
from vlbert_data.describe.masked_views import choose_rois, zero_pixels
from vlbert_data.detect.base import DecodedImage
from vlbert_data.detect.vg_faster_rcnn import VgChoice, VgDetector, VgNames
from vlbert_data.detect.vg_frcnn.describer import VgDescriber, VgRun
from vlbert_data.detect.vg_frcnn.network import VgFasterRcnn
from vlbert_data.detect.vg_frcnn.preprocess import preprocess
from vlbert_data.detect.vg_frcnn.proposals import ProposalRule
from vlbert_data.detect.vg_frcnn.selection import CAFFE_PERCLASS, MAXNMS, RoiRule
from vlbert_data.detect.vg_frcnn.weights import load_network
from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.images import decode_rgb
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.sources.base import SourceItem
from vlbert_data.sources.jsonl import JsonlSource
from vlbert_data.types import ImageRois, LabelSpace, RoiSet, check_image_rois, to_float16

CLASSES = LabelSpace(name="tiny", class_names=tuple("abcdefg"))
ATTRIBUTES = ("red", "tall", "wet", "old", "odd")
NAMES = VgNames(label_space=CLASSES, attributes=ATTRIBUTES)


RUN = {"short_side_px": 96, "long_side_px": 160}


def tiny(*, network: VgFasterRcnn | None = None, **options: Any) -> VgDetector:
    chosen = {name: value for name, value in options.items() if name in {"rule", "proposals"}}
    run = VgRun(**{**RUN, **{name: value for name, value in options.items() if name not in chosen}})
    describer = VgDescriber(network or load_network(recipe_weights(TINY)), run, digest="d")
    return VgDetector(describer, NAMES, VgChoice(**chosen, label_topk=3))


def photo(number: int, width: int = 80, height: int = 60) -> DecodedImage:
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return DecodedImage(image_id=str(number), file_name=f"{number}.png", pixels=pixels)


def photos() -> list[DecodedImage]:
    sizes = [(80, 60), (80, 60), (60, 90), (80, 60), (44, 200), (80, 60)]
    return [photo(number, *size) for number, size in enumerate(sizes)]


def check(image: DecodedImage, rois: RoiSet, found: Description) -> None:
    height, width = image.pixels.shape[:2]
    record = ImageRois(
        image_id="x",
        width_px=width,
        height_px=height,
        captions=("c",),
        rois=rois,
        features=to_float16(found.features, what="features"),
        image_feature=to_float16(found.image_feature, what="feature"),
    )
    check_image_rois(record, label_space=CLASSES, feature_dim=TINY.feature_dim)
    assert rois.attribute_ids is not None and rois.attribute_probs is not None


@pytest.mark.parametrize("rule", [CAFFE_PERCLASS, MAXNMS], ids=lambda rule: rule.name)
def test_rois_are_sound_and_within_the_rules_numbers(rule: RoiRule) -> None:
    detector = tiny(rule=rule)
    for image, (rois, found) in zip(photos(), detector.detect_and_describe(photos()), strict=True):
        check(image, rois, found)
        assert rule.min_rois <= rois.num_rois <= rule.max_rois
        assert rois.attribute_ids is not None and rois.attribute_ids.max() < len(ATTRIBUTES)
    facts = json.loads(json.dumps(detector.facts()))
    assert facts["selection"]["name"] == rule.name
    assert facts["background"] == {"index_in_network": 7, "stored": False}
    assert facts["attribute_names"] == list(ATTRIBUTES)


@pytest.mark.parametrize("rule", [CAFFE_PERCLASS, MAXNMS], ids=lambda rule: rule.name)
def test_an_images_rois_do_not_depend_on_the_other_images(rule: RoiRule) -> None:
    together = tiny(rule=rule, batch_size=4).detect_and_describe(photos())
    alone = [tiny(rule=rule).detect_and_describe([image])[0] for image in photos()]
    for (rois, found), (own_rois, own_found) in zip(together, alone, strict=True):
        np.testing.assert_allclose(rois.boxes, own_rois.boxes, atol=1e-2)
        np.testing.assert_array_equal(rois.label_ids[:, 0], own_rois.label_ids[:, 0])
        np.testing.assert_allclose(found.features, own_found.features, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found.image_feature, own_found.image_feature, rtol=1e-3, atol=1e-3)


def test_describing_the_found_boxes_gives_the_found_features() -> None:
    detector = tiny()
    pairs = detector.detect_and_describe(photos())
    described = detector.describer.describe([image.pixels for image in photos()], [rois.boxes for rois, _ in pairs])
    for (_, found), again in zip(pairs, described, strict=True):
        # Boxes go to pixels of the photo and back: one that stood on the border of a map cell may change sides.
        same = np.isclose(found.features, again.features, rtol=1e-3, atol=1e-3).all(axis=1)
        assert same.mean() > 0.9
        np.testing.assert_allclose(found.image_feature, again.image_feature, rtol=1e-4, atol=1e-4)


def test_the_whole_image_is_described_as_one_box() -> None:
    image = photo(5)
    (found,) = tiny().describer.describe([image.pixels], [np.array([[0, 0, 80, 60]], np.float32)])
    np.testing.assert_allclose(found.features[0], found.image_feature, rtol=1e-5, atol=1e-6)


def test_maxnms_stores_moved_boxes_and_features_of_the_proposals() -> None:
    detector, image = tiny(rule=MAXNMS), photo(1)
    ((rois, found),) = detector.detect_and_describe([image])
    assert found.described_boxes is not None
    assert np.abs(found.described_boxes - rois.boxes).max() > 1
    (of_proposals,) = detector.describer.describe([image.pixels], [found.described_boxes])
    same = np.isclose(found.features, of_proposals.features, rtol=1e-3, atol=1e-3).all(axis=1)
    assert same.mean() > 0.9
    assert detector.facts()["boxes"] == "regressed to the best class"


def test_a_path_bytes_and_an_array_become_one_input_blue_first(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    pixels[5, 7] = (250, 100, 10)  # RGB; at this size nothing is resized
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    given = [
        pixels,
        np.asarray(Image.open(path)),
        decode_rgb(path.read_bytes()),
        np.asfortranarray(pixels),
        np.ascontiguousarray(pixels[:, :, ::-1])[:, :, ::-1],
    ]
    for one in given:
        tensor = preprocess(one, short_side_px=60, long_side_px=80)
        assert tensor.shape == (3, 60, 80)
        expected = torch.tensor([10.0, 100.0, 250.0]) - torch.tensor([102.9801, 115.9465, 122.7717])
        assert torch.equal(tensor[:, 5, 7], expected)
        assert torch.equal(tensor, preprocess(pixels, short_side_px=60, long_side_px=80))


def rule(least: int, most: int, threshold: float) -> RoiRule:
    return RoiRule(name="caffe-perclass", min_rois=least, max_rois=most, nms_ious=(0.3,), score_threshold=threshold)


def test_an_image_without_a_detection_has_no_roi_and_still_its_own_feature() -> None:
    image = photo(3)
    ((rois, found),) = tiny(rule=rule(0, 10, 1.0)).detect_and_describe([image])
    check(image, rois, found)
    assert rois.num_rois == 0
    assert found.features.shape == (0, TINY.feature_dim)
    assert (found.image_feature != 0).any()


def test_an_image_with_a_thousand_rois_has_them_all() -> None:
    proposals = ProposalRule(after_nms=1000, nms_iou=1.0)
    detector = tiny(rule=rule(1000, 1000, 0.0), proposals=proposals, short_side_px=160, long_side_px=200)
    image = photo(4, 200, 160)
    ((rois, found),) = detector.detect_and_describe([image])
    check(image, rois, found)
    assert rois.num_rois == 1000


def test_more_rois_than_proposals_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_rois is 1000, but RoIs are chosen from 300 proposals"):
        tiny(rule=rule(10, 1000, 0.0))


@pytest.mark.parametrize("size", [(1, 1), (150, 3), (4, 200)])
def test_images_of_nearly_any_shape_are_taken(size: tuple[int, int]) -> None:
    image = photo(6, *size)
    ((rois, found),) = tiny().detect_and_describe([image])
    check(image, rois, found)


def test_an_image_of_a_line_is_told_what_is_wrong_with_it() -> None:
    with pytest.raises(RecordRejectedError, match="2 x 200 pixels become 2 x 160; at least 3 are needed each way"):
        tiny().detect([photo(6, 2, 200)])


def test_bfloat16_finds_nearly_the_same_features() -> None:
    boxes = np.array([[0, 0, 40, 40], [20, 10, 79, 59]], np.float32)
    exact, rounded = (
        tiny(precision=name).describer.describe([photo(2).pixels], [boxes])[0] for name in ("float32", "bfloat16")
    )
    assert rounded.features.dtype == np.float32
    cosine = (exact.features * rounded.features).sum(1) / np.prod(
        [np.linalg.norm(found.features, axis=1) for found in (exact, rounded)], axis=0
    )
    assert cosine.min() > 0.99
    assert tiny(precision="bfloat16").facts()["precision"] == "bfloat16"


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="precision 'float8'; it is one of float32, tf32, bfloat16"):
        tiny(precision="float8")


def test_how_cuda_multiplies_is_put_back() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    tiny(precision="tf32").describer.describe([photo(2).pixels], [np.zeros((0, 4), np.float32)])
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_outputs_that_are_not_finite_cost_one_record() -> None:
    network = load_network(recipe_weights(TINY))
    network.backbone.stem.conv1.weight.fill_(float("nan"))
    with pytest.raises(RecordRejectedError, match="NaN or infinity"):
        tiny(network=network).detect([photo(1)])


def make_build(tmp_path: Path, detector: VgDetector, **settings: Any) -> ShardFolder:
    table = make_world(tmp_path / "photos", 3)
    config = BuildConfig(shard_size=2, workers=0, **settings)
    build = Build(
        folder=tmp_path / "out",
        source=JsonlSource([table]),
        detector=detector,
        describer=detector.describer,
        config=config,
    )
    assert build.run().manifest is not None
    return ShardFolder.open(tmp_path / "out")


@pytest.mark.parametrize("selection", [CAFFE_PERCLASS, MAXNMS], ids=lambda rule: rule.name)
def test_masked_views_hide_the_pixels_of_what_is_stored_and_of_what_is_described(
    tmp_path: Path, selection: RoiRule
) -> None:
    detector = tiny(rule=selection)
    folder = make_build(tmp_path, detector, masked_views=2)
    record = folder.read(1)
    assert record.masked_views is not None
    image = next(decoded for decoded in world_images(tmp_path) if decoded.image_id == record.image_id)
    ((rois, found),) = detector.detect_and_describe([image])
    described = rois.boxes if found.described_boxes is None else found.described_boxes
    chosen = choose_rois(record.image_id, rois.num_rois, num_views=2, seed=0)
    np.testing.assert_array_equal(record.masked_views.chosen, chosen)
    for view in range(2):
        hidden = zero_pixels(zero_pixels(image.pixels, rois.boxes[chosen[view]]), described[chosen[view]])
        (expected,) = detector.describer.describe([hidden], [described])
        np.testing.assert_allclose(record.masked_views.features[view], expected.features, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(
            record.masked_views.image_features[view], expected.image_feature, rtol=2e-3, atol=2e-3
        )


def world_images(tmp_path: Path) -> list[DecodedImage]:
    source = JsonlSource([tmp_path / "photos" / "world.jsonl"])
    return [
        DecodedImage(
            image_id=item.image_id,
            file_name=item.file_name,
            pixels=decode_rgb((tmp_path / "photos" / item.file_name).read_bytes()),
        )
        for item in source.read(0, len(source))
        if isinstance(item, SourceItem)
    ]


def test_a_build_looks_at_each_image_once(tmp_path: Path) -> None:
    network, looks = load_network(recipe_weights(TINY)), []
    network.backbone.register_forward_hook(lambda *_: looks.append(1))
    make_build(tmp_path, tiny(network=network))
    assert len(looks) == 3
