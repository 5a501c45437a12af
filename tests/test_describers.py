"""Describers: features of any boxes, the same whatever the batch."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from real_data import real_data
from small_models import (
    save_convnext,
    save_deit,
    save_dinov2,
    save_dinov3_convnext,
    save_hgnet,
    save_mobilenet,
    save_pvt,
    save_resnet,
    save_swin,
    save_vit,
    save_yolos,
)

from vlbert_data.build.config import BuildConfig
from vlbert_data.describe.backbone import BackboneDescriber, ImageSize
from vlbert_data.describe.masked_views import choose_rois, describe_masked_views, zero_pixels
from vlbert_data.describe.open import open_describer
from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.types import Array

SIZE = ImageSize(short_side_px=96, long_side_px=160)
WIDE = ImageSize(short_side_px=96, long_side_px=320)
KINDS = {
    "resnet": save_resnet,
    "vit": save_vit,
    "swin": save_swin,
    "convnext": save_convnext,
    "deit": save_deit,
    "dinov2": save_dinov2,
    "dinov3_convnext": save_dinov3_convnext,
    "mobilenet": save_mobilenet,
    "hgnet": save_hgnet,
}
STRIDES_AND_WIDTHS = [
    ("resnet", 32, 16),
    ("vit", 16, 12),
    ("swin", 32, 32),
    ("convnext", 32, 16),
    ("deit", 16, 12),
    ("dinov2", 14, 12),
    ("dinov3_convnext", 32, 16),
    ("mobilenet", 32, 1280),
    ("hgnet", 32, 16),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("backbones")
    return {name: save(root / name) for name, save in KINDS.items()}


def photo(number: int, width: int = 80, height: int = 60) -> Array:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


BOXES = np.array([[0, 0, 40, 60], [10.5, 3.2, 77, 31.9], [70, 50, 80, 60]], np.float32)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("layer", [None, -2])
def test_features_do_not_depend_on_the_batch(folders: dict[str, Path], kind: str, layer: int | None) -> None:
    describer = BackboneDescriber(str(folders[kind]), WIDE, layer=layer, batch_size=3)
    photos = [photo(0), photo(1), photo(2, 60, 80), photo(3), photo(4, 150, 50)]
    boxes = [BOXES, BOXES[:0], BOXES[:1], BOXES[1:], BOXES[:1]]
    together = describer.describe(photos, boxes)
    for image, own, expected in zip(photos, boxes, together, strict=True):
        (alone,) = describer.describe([image], [own])
        assert alone.features.shape == (len(own), describer.feature_dim)
        assert alone.image_feature.shape == (describer.feature_dim,)
        np.testing.assert_allclose(alone.features, expected.features, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(alone.image_feature, expected.image_feature, rtol=1e-4, atol=1e-4)
    json.dumps(describer.facts())


@pytest.mark.parametrize(("kind", "stride", "dim"), STRIDES_AND_WIDTHS)
def test_stride_and_width_are_the_models(folders: dict[str, Path], kind: str, stride: int, dim: int) -> None:
    describer = BackboneDescriber(str(folders[kind]), SIZE)
    assert describer.facts()["stride_px"] == stride
    assert describer.feature_dim == dim


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_roi_shows_its_place_and_not_another(folders: dict[str, Path], kind: str) -> None:
    """A picture with something on its left only: two boxes of its empty right are alike, left and right are not."""
    describer = BackboneDescriber(str(folders[kind]), ImageSize(short_side_px=256, long_side_px=512))
    image = np.zeros((128, 256, 3), np.uint8)
    image[:, :96] = photo(0, 96, 128)
    boxes = np.array([[0, 0, 60, 128], [196, 0, 256, 128], [200, 10, 250, 100]], np.float32)
    (found,) = describer.describe([image], [boxes])
    left, right, right_too = found.features
    assert np.abs(left - right).mean() > 3 * np.abs(right - right_too).mean()


def test_sides_of_any_length_are_taken(folders: dict[str, Path]) -> None:
    """Swin's maps have a position more where a side is no multiple of its stride."""
    for kind in KINDS:
        describer = BackboneDescriber(str(folders[kind]), SIZE)
        (found,) = describer.describe([photo(0, 60, 90)], [BOXES[:2]])
        assert np.isfinite(found.features).all(), kind


def test_a_model_for_images_of_one_size_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the model does not take an image of 448 x 448 pixels"):
        BackboneDescriber(str(save_pvt(tmp_path / "pvt")), SIZE)


def test_a_model_whose_library_is_absent_is_told(tmp_path: Path) -> None:
    if importlib.util.find_spec("timm") is not None:
        pytest.skip("timm is installed")
    folder = save_resnet(tmp_path / "timm")
    (folder / "config.json").write_text(json.dumps({"model_type": "timm_backbone", "backbone": "resnet50"}))
    with pytest.raises(ConfigError, match=r"requires the timm library.* Install that library beside vlbert"):
        BackboneDescriber(str(folder), SIZE)


def test_the_whole_image_is_described_as_its_full_frame(folders: dict[str, Path]) -> None:
    describer = BackboneDescriber(str(folders["resnet"]), SIZE)
    (found,) = describer.describe([photo(0)], [np.array([[0, 0, 80, 60]], np.float32)])
    np.testing.assert_array_equal(found.features[0], found.image_feature)


def test_images_are_resized_whole_to_the_asked_sides() -> None:
    assert SIZE.of(80, 60, multiple=1) == (128, 96)
    assert SIZE.of(400, 60, multiple=1) == (160, 24)
    assert SIZE.of(60, 80, multiple=16) == (96, 128)
    assert SIZE.of(3000, 1, multiple=16) == (160, 16)


def test_preparation_is_the_processors_own(folders: dict[str, Path]) -> None:
    facts = BackboneDescriber(str(folders["resnet"]), SIZE).facts()["preprocessing"]
    assert facts["mean"] == pytest.approx([0.5, 0.4, 0.3])
    assert facts["std"] == pytest.approx([0.2, 0.2, 0.25])
    assert facts["rescale"] == pytest.approx(1 / 255)


def test_a_layer_that_is_not_there_is_told(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"hf:resnet:9: the model has 5 hidden states"):
        BackboneDescriber(str(folders["resnet"]), SIZE, layer=9)
    with pytest.raises(ConfigError, match="layer 'last' is not a whole number"):
        open_describer(f"hf:{folders['resnet']}:last", BuildConfig(), None)


def test_a_detector_that_only_proposes_needs_a_describer() -> None:
    with pytest.raises(ConfigError, match="--describer is missing; this detector proposes boxes only"):
        open_describer(None, BuildConfig(), object())
    with pytest.raises(ConfigError, match="no such describer"):
        open_describer("clip:x", BuildConfig(), object())


def test_a_model_without_feature_map_is_told(tmp_path: Path) -> None:
    folder = save_yolos(tmp_path / "yolos")
    # A patch transformer with tokens for detections after its patches: the last H * W tokens are no map.
    with pytest.raises(
        ConfigError, match=r"output of shape \[1, 805, 16\] for an image of 448 x 448 pixels is no feature"
    ):
        BackboneDescriber(str(folder), SIZE)


def test_an_image_that_the_model_cannot_take_is_one_reject(folders: dict[str, Path]) -> None:
    describer = BackboneDescriber(str(folders["swin"]), SIZE)
    with pytest.raises(RecordRejectedError) as caught:
        describer.describe([photo(0, 200, 30)], [BOXES[:0]])  # a map one position high, its windows are two
    assert caught.value.reason == "image does not suit the describer"


def test_masked_views_show_nothing_of_what_they_hide(folders: dict[str, Path]) -> None:
    describer = BackboneDescriber(str(folders["resnet"]), SIZE)
    image, other = photo(0), photo(0)
    x0, y0, x1, y1 = (int(edge) for edge in BOXES[0])
    other[y0:y1, x0:x1] = 255 - other[y0:y1, x0:x1]  # differs inside RoI 0 only
    one = describe_masked_views(describer, image, BOXES, image_id="a", num_views=8, seed=0)
    two = describe_masked_views(describer, other, BOXES, image_id="a", num_views=8, seed=0)
    hidden = one.chosen[:, 0]
    assert hidden.any()
    assert not hidden.all()
    np.testing.assert_array_equal(one.features[hidden], two.features[hidden])
    np.testing.assert_array_equal(one.image_features[hidden], two.image_features[hidden])
    assert (one.features[~hidden] != two.features[~hidden]).any()


def test_masked_pixels_are_all_that_a_box_touches() -> None:
    image = np.full((10, 10, 3), 9, np.uint8)
    masked = zero_pixels(image, np.array([[1.5, 2.2, 3.1, 4.0]], np.float32))
    expected = image.copy()
    expected[2:4, 1:4] = 0
    np.testing.assert_array_equal(masked, expected)
    assert image.min() == 9


def test_each_view_chooses_fifteen_percent_and_at_least_one() -> None:
    chosen = choose_rois("x", 40, num_views=500, seed=1)
    assert chosen.any(axis=1).all()
    assert 0.13 < chosen.mean() < 0.17
    assert choose_rois("x", 1, num_views=4, seed=1).all()
    assert choose_rois("x", 0, num_views=4, seed=1).shape == (4, 0)
    np.testing.assert_array_equal(chosen, choose_rois("x", 40, num_views=500, seed=1))
    assert (chosen != choose_rois("y", 40, num_views=500, seed=1)).any()


def test_mobilenet_features_of_a_real_photo_are_those_of_its_own_map() -> None:
    """A box of whole map cells is, away from the borders, the mean of samples between exactly those cells."""
    from PIL import Image
    from transformers import AutoModel

    weights = real_data("weights", "mobilenetv2")
    path = sorted(real_data("coco", "images").glob("*.jpg"))[0]
    image = np.asarray(Image.open(path).convert("RGB").resize((640, 448)))
    size = ImageSize(short_side_px=448, long_side_px=640)
    describer = BackboneDescriber(str(weights), size)
    (found,) = describer.describe([image], [np.array([[64, 96, 288, 320]], np.float32)])
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        feature_map = AutoModel.from_pretrained(weights)(pixel_values=pixels).last_hidden_state[0]
    # 7 x 7 bins over 7 x 7 cells, one sample a bin: every sample is the middle of a cell.
    expected = feature_map[:, 3:10, 2:9].mean(dim=(1, 2))
    np.testing.assert_allclose(found.features[0], expected, rtol=1e-3, atol=1e-4)
