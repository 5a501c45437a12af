"""Seventy-two odd and broken files from the real world: each gives a sane picture or a reject with a reason."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from real_data import real_data

from vlbert_data.errors import RecordRejectedError
from vlbert_data.images import decode_rgb


def decoded(name: str) -> np.ndarray:
    return decode_rgb(real_data("odd_images", name).read_bytes())


def mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def expected_shape(entry: dict) -> tuple[int, int, int]:
    width_px, height_px = entry["size"]
    if entry.get("exif_orientation") in (5, 6, 7, 8):
        width_px, height_px = height_px, width_px
    return height_px, width_px, 3


def test_each_file_decodes_at_its_size_or_is_rejected_where_pillow_fails() -> None:
    folder = real_data("odd_images")
    reasons: dict[str, int] = {}
    for entry in json.loads((folder / "manifest.json").read_text()):
        data = (folder / entry["file"]).read_bytes()
        try:
            pixels = decode_rgb(data)
        except RecordRejectedError as error:
            reasons[error.reason] = reasons.get(error.reason, 0) + 1
            assert entry["loads"] != "ok", f"{entry['file']}: {error}"
        else:
            assert entry["loads"] == "ok", entry["file"]
            assert pixels.shape == expected_shape(entry), entry["file"]
            assert pixels.dtype == np.uint8
    assert reasons == {"undecodable image": 11, "too many pixels": 1}


@pytest.mark.parametrize(
    "name",
    [
        *(f"exif_rotated/hopper_orientation_{i}.jpg" for i in range(3, 8)),
        "exif_rotated/hopper_orientation_2.webp",
        "exif_rotated/hopper_orientation_7.webp",
        "cmyk_lab_gray/hopper.Lab.tif",
        "other_formats/hopper.bmp",
        "other_formats/hopper.ppm",
        "other_formats/hopper.webp",
    ],
)
def test_all_versions_of_one_portrait_agree(name: str) -> None:
    assert mean_difference(decoded(name), decoded("cmyk_lab_gray/hopper.jpg")) < 9


@pytest.mark.parametrize("name", ["16bit/hopper.pfm", "cmyk_lab_gray/hopper_gray_4bpp.tif"])
def test_gray_versions_of_the_portrait_agree_with_its_luma(name: str) -> None:
    pixels = decoded(name)
    portrait = Image.fromarray(decoded("cmyk_lab_gray/hopper.jpg")).convert("L")
    assert (pixels[:, :, 0] == pixels[:, :, 1]).all() and (pixels[:, :, 0] == pixels[:, :, 2]).all()
    # The 4-bit file is dithered, so compare what the eye would see: 8 x 8 averages.
    small = np.asarray(Image.fromarray(pixels[:, :, 0]).reduce(8))
    assert mean_difference(small, np.asarray(portrait.reduce(8))) < 9


def test_a_sixteen_bit_ramp_spans_black_to_white() -> None:
    rows = decoded("16bit/16_bit_binary.pgm")[:, 0, 0]
    assert {int(rows.min()), int(rows.max())} == {0, 255}
    assert len(np.unique(rows)) > 90  # a hundred rows: not clipped


def test_transparent_versions_of_one_picture_agree() -> None:
    assert mean_difference(decoded("palette_alpha/transparent.png"), decoded("palette_alpha/transparent.webp")) < 3
    assert mean_difference(decoded("palette_alpha/i_trns.png"), decoded("palette_alpha/l_trns.png")) == 0
    assert mean_difference(decoded("palette_alpha/rgb_trns.png"), decoded("palette_alpha/p_trns_single.png")) < 3


def test_animations_give_their_first_frame() -> None:
    assert mean_difference(decoded("animated_multiframe/iss634.gif"), decoded("animated_multiframe/iss634.webp")) < 6
    red = np.broadcast_to(np.array([255, 0, 0], np.uint8), (64, 128, 3))
    np.testing.assert_array_equal(decoded("animated_multiframe/apng_mode_16bit.png"), red)


def test_a_stereo_photo_gives_its_first_view() -> None:
    path: Path = real_data("odd_images", "animated_multiframe", "frozenpond.mpo")
    with Image.open(path) as opened:
        first = np.asarray(opened.convert("RGB"))
        opened.seek(1)
        second = np.asarray(opened.convert("RGB"))
    pixels = decode_rgb(path.read_bytes())
    assert mean_difference(pixels, first) == 0 < mean_difference(pixels, second)


def test_every_photo_of_the_real_set_decodes_at_its_stated_size() -> None:
    folder = real_data("coco")
    for image in json.loads((folder / "captions.json").read_text())["images"]:
        pixels = decode_rgb((folder / "images" / image["file_name"]).read_bytes())
        assert pixels.shape == (image["height"], image["width"], 3), image["file_name"]
