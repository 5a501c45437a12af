"""Photos of every kind become upright RGB, and damaged ones become rejects."""

import io
import pickle
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.images import DEFAULT_MAX_PIXELS, LARGEST_MAX_PIXELS, decode_rgb, encode_thumbnail

WIDTH_PX, HEIGHT_PX = 24, 16
ORIENTATION_TAG = 0x0112
# Numpy's own words for each EXIF orientation: how the stored array was made from the upright one.
STORED_FROM_UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a, -1),
}


def picture() -> np.ndarray:
    """Return uint8 [H, W, 3] smooth and different in every corner, so that any flip or turn shows."""
    y, x = np.mgrid[0:HEIGHT_PX, 0:WIDTH_PX]
    return np.stack([x * 10, y * 15, (x + y) * 6], axis=2).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, file_format: str, **options: Any) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


SAMPLES = {
    "jpeg": encoded(picture(), "JPEG"),
    "progressive jpeg": encoded(picture(), "JPEG", progressive=True),
    "cmyk jpeg": encoded(Image.fromarray(picture()).convert("CMYK"), "JPEG"),
    "png": encoded(picture(), "PNG"),
    "palette png": encoded(Image.fromarray(picture()).quantize(16), "PNG", transparency=3),
    "animated png": encoded(picture(), "PNG", save_all=True, append_images=[Image.fromarray(picture()[::-1])]),
    "gif": encoded(picture(), "GIF"),
    "animated gif": encoded(picture(), "GIF", save_all=True, append_images=[Image.fromarray(picture()[::-1])]),
    "webp": encoded(picture(), "WEBP"),
    "animated webp": encoded(picture(), "WEBP", save_all=True, append_images=[Image.fromarray(picture()[::-1])]),
    "tiff": encoded(picture(), "TIFF"),
    "tiff lzw": encoded(picture(), "TIFF", compression="tiff_lzw"),
    "bmp": encoded(picture(), "BMP"),
    "ppm": encoded(picture(), "PPM"),
    "tga": encoded(picture(), "TGA", compression="tga_rle"),
    "jpeg 2000": encoded(picture(), "JPEG2000"),
    "icon": encoded(picture(), "ICO", sizes=[(16, 16)]),
}


def mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in ("icon",)])
def test_every_format_gives_the_first_picture_it_holds(name: str) -> None:
    pixels = decode_rgb(SAMPLES[name])
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous and pixels.flags.writeable
    opaque = decode_rgb(SAMPLES["palette png"]) != 255 if name == "palette png" else np.True_
    assert mean_difference(np.where(opaque, pixels, 0), np.where(opaque, picture(), 0)) < 14


def test_lossless_formats_keep_every_value() -> None:
    for name in ("png", "tiff", "tiff lzw", "bmp", "ppm", "tga", "jpeg 2000"):
        np.testing.assert_array_equal(decode_rgb(SAMPLES[name]), picture(), err_msg=name)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_orientation_gives_the_upright_picture(file_format: str, orientation: int) -> None:
    stored = np.ascontiguousarray(STORED_FROM_UPRIGHT[orientation](picture()))
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    options: dict[str, Any] = {"exif": exif}
    if file_format in ("JPEG", "WEBP", "AVIF"):
        options["quality"] = 100
    pixels = decode_rgb(encoded(stored, file_format, **options))
    assert mean_difference(pixels, picture()) < (0.1 if file_format in ("PNG", "TIFF") else 6)


def test_orientation_is_read_from_xmp() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    stored = np.ascontiguousarray(STORED_FROM_UPRIGHT[6](picture()))
    pixels = decode_rgb(encoded(stored, "WEBP", lossless=True, xmp=xmp))
    np.testing.assert_array_equal(pixels, picture())


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\1"])
def test_damaged_exif_leaves_the_picture_as_stored(exif: bytes) -> None:
    pixels = decode_rgb(encoded(picture(), "JPEG", quality=100, exif=exif))
    assert mean_difference(pixels, picture()) < 6


def test_gray_has_three_equal_channels() -> None:
    gray = picture()[:, :, 0]
    np.testing.assert_array_equal(decode_rgb(encoded(gray, "PNG")), np.stack([gray] * 3, axis=2))


def test_bilevel_is_black_and_white() -> None:
    bits = picture()[:, :, 0] > 100
    pixels = decode_rgb(encoded(Image.fromarray(bits), "PNG"))
    np.testing.assert_array_equal(pixels[:, :, 1], np.where(bits, 255, 0))


def test_cmyk_jpeg_is_not_inverted() -> None:
    assert mean_difference(decode_rgb(SAMPLES["cmyk jpeg"]), picture()) < 8


def test_lab_white_gray_and_red_come_out_right() -> None:
    # Known values of CIE L*a*b* under D50: white, black, mid gray, and the red of sRGB (54.29, 80.81, 69.89).
    lab = np.array([[[255, 0, 0], [0, 0, 0], [137, 0, 0], [138, 81, 70]]], np.uint8)
    expected = np.array([[[255, 255, 255], [0, 0, 0], [128, 128, 128], [255, 0, 0]]])
    stored = Image.frombytes("LAB", (4, 1), lab.tobytes())
    pixels = decode_rgb(encoded(stored, "TIFF"))
    assert np.abs(pixels.astype(int) - expected).max() <= 6


@pytest.mark.parametrize(
    ("mode", "file_format"), [("RGBA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF"), ("LA", "PNG"), ("LA", "TIFF")]
)
def test_transparency_is_laid_on_white(mode: str, file_format: str) -> None:
    alpha = np.linspace(0, 255, WIDTH_PX * HEIGHT_PX).reshape(HEIGHT_PX, WIDTH_PX).round().astype(np.uint8)
    colour = picture() if mode == "RGBA" else np.repeat(picture()[:, :, :1], 3, axis=2)
    bands = [*np.moveaxis(colour, 2, 0)[: 3 if mode == "RGBA" else 1], alpha]
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    pixels = decode_rgb(encoded(Image.merge(mode, [Image.fromarray(band) for band in bands]), file_format, **options))
    share = alpha[:, :, None] / 255
    expected = colour * share + 255 * (1 - share)
    assert np.abs(pixels - expected).max() <= 1.01


@pytest.mark.parametrize("image", [picture(), picture()[:, :, 0]], ids=["rgb", "gray"])
def test_a_transparent_colour_becomes_white(image: np.ndarray) -> None:
    colour = image[3, 4]
    transparent = tuple(int(value) for value in colour) if image.ndim == 3 else int(colour)
    pixels = decode_rgb(encoded(image, "PNG", transparency=transparent))
    hit = (image == colour).all(axis=2) if image.ndim == 3 else image == colour
    as_rgb = image if image.ndim == 3 else np.stack([image] * 3, axis=2)
    np.testing.assert_array_equal(pixels, np.where(hit[:, :, None], 255, as_rgb))


@pytest.mark.parametrize(("bits", "file_format"), [(16, "PNG"), (16, "TIFF"), (12, "PNG"), (12, "TIFF"), (10, "PNG")])
def test_deep_gray_uses_the_whole_range(bits: int, file_format: str) -> None:
    ramp = np.linspace(0, 2**bits - 1, WIDTH_PX * HEIGHT_PX).astype(np.uint16).reshape(HEIGHT_PX, WIDTH_PX)
    pixels = decode_rgb(encoded(ramp, file_format))
    expected = ramp / (2**bits - 1) * 255
    assert pixels.min() == 0 and pixels.max() == 255
    assert np.abs(pixels[:, :, 0] - expected).max() <= 1


def test_deep_gray_with_a_transparent_value_is_laid_on_white() -> None:
    ramp = (np.arange(WIDTH_PX * HEIGHT_PX, dtype=np.uint16) * 150).reshape(HEIGHT_PX, WIDTH_PX)
    pixels = decode_rgb(encoded(ramp, "PNG", transparency=int(ramp[2, 2])))
    assert (pixels[2, 2] == 255).all()
    assert pixels[2, 1, 0] == ramp[2, 1] >> 8


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 255.0), (0.0, 4000.0), (-3.0, 7.0)])
def test_float_images_use_the_whole_range(low: float, high: float) -> None:
    ramp = np.linspace(low, high, WIDTH_PX * HEIGHT_PX, dtype=np.float32).reshape(HEIGHT_PX, WIDTH_PX)
    pixels = decode_rgb(encoded(ramp, "TIFF"))
    expected = (ramp - low) / (high - low) * 255
    assert np.abs(pixels[:, :, 0] - expected).max() <= 0.51


def test_signed_integers_put_the_lowest_value_at_black() -> None:
    ramp = np.linspace(-(2**31), 2**31 - 1, WIDTH_PX * HEIGHT_PX).astype(np.int32).reshape(HEIGHT_PX, WIDTH_PX)
    pixels = decode_rgb(encoded(ramp, "TIFF"))
    assert pixels.min() == 0 and pixels.max() == 255
    assert (np.diff(pixels[:, :, 0].ravel().astype(int)) >= 0).all()


def test_a_float_image_with_nan_is_rejected() -> None:
    with pytest.raises(RecordRejectedError, match="NaN or infinity"):
        decode_rgb(encoded(np.array([[0.5, np.nan]], np.float32), "TIFF"))


def png_header(width_px: int, height_px: int) -> bytes:
    """Return a PNG that states a size and ends where its picture data begin."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return header + struct.pack(">I", 1000) + b"IDAT"


@pytest.mark.parametrize(
    "data",
    [
        png_header(12_000, 12_000),
        png_header(100_000, 100_000),
        SAMPLES["bmp"][:18] + struct.pack("<ii", 30_000, 30_000) + SAMPLES["bmp"][26:],
        b"P6 20000 20000 255\n",
        # An icon whose directory says 16 x 16 and whose picture is a PNG of 12,000 x 12,000.
        b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, 41, 22) + png_header(12_000, 12_000),
    ],
    ids=["png", "beyond Pillow's limit", "bmp", "ppm", "icon"],
)
def test_too_many_pixels_are_rejected_before_decoding(data: bytes) -> None:
    with pytest.raises(RecordRejectedError) as caught:
        decode_rgb(data)  # there is no picture data behind these headers: decoding would say "undecodable image"
    assert caught.value.reason == "too many pixels"


def test_the_limit_of_pixels_is_exact() -> None:
    assert decode_rgb(SAMPLES["png"], max_pixels=WIDTH_PX * HEIGHT_PX).shape == (HEIGHT_PX, WIDTH_PX, 3)
    with pytest.raises(RecordRejectedError, match="24 x 16 = 384 pixels; at most 383 are taken"):
        decode_rgb(SAMPLES["png"], max_pixels=WIDTH_PX * HEIGHT_PX - 1)


@pytest.mark.parametrize("limit", [0, -1, LARGEST_MAX_PIXELS + 1])
def test_an_impossible_limit_is_refused(limit: int) -> None:
    with pytest.raises(ConfigError, match=f"limit of pixels is {limit}; expected 1 to"):
        decode_rgb(SAMPLES["png"], max_pixels=limit)
    assert DEFAULT_MAX_PIXELS <= LARGEST_MAX_PIXELS


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b"", "empty image", "0 bytes"),
        (b"<!DOCTYPE html><html>404</html>", "undecodable image", "HTML page"),
        (b"\n  <html>moved</html>", "undecodable image", "HTML page"),
        (b'<?xml version="1.0"?><svg width="4"/>', "undecodable image", "SVG drawing"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "undecodable image", "they begin with b'%!PS"),
        (b"\0" * 5000, "undecodable image", "no known image format"),
        (png_header(4, 4), "undecodable image", "truncated"),
    ],
)
def test_what_is_no_image_is_rejected_with_what_it_looks_like(data: bytes, reason: str, words: str) -> None:
    with pytest.raises(RecordRejectedError) as caught:
        decode_rgb(data)
    assert caught.value.reason == reason
    assert words in caught.value.detail
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("name", list(SAMPLES))
def test_a_cut_file_gives_the_whole_picture_or_none(name: str) -> None:
    data = SAMPLES[name]
    whole = decode_rgb(data)
    num_rejected = 0
    for size in range(0, len(data), max(1, len(data) // 60)):
        try:
            np.testing.assert_array_equal(decode_rgb(data[:size]), whole)
        except RecordRejectedError:
            num_rejected += 1
    assert num_rejected > 20


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(SAMPLES)),
    edits=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=8),
    dropped=st.tuples(st.integers(0, 4000), st.integers(0, 40)),
)
def test_changed_bytes_never_raise_anything_but_a_reject(
    name: str, edits: list[tuple[int, int]], dropped: tuple[int, int]
) -> None:
    data = bytearray(SAMPLES[name])
    for place, value in edits:
        data[place % len(data)] = value
    start = dropped[0] % len(data)
    del data[start : start + dropped[1]]
    try:
        pixels = decode_rgb(bytes(data), max_pixels=1_000_000)
    except RecordRejectedError as error:
        assert error.reason in {"empty image", "too many pixels", "undecodable image"}
        assert " at 0x" not in error.detail
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size > 0


def test_a_process_that_completes_cut_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ConfigError, match="LOAD_TRUNCATED_IMAGES is on"):
        decode_rgb(SAMPLES["png"])


def image_that_makes_pillow_warn() -> bytes:
    """Return a good PNG with an animation chunk that is not: Pillow warns and shows the still picture."""
    chunk = b"acTL" + struct.pack(">II", 0, 0)
    return (
        SAMPLES["png"][:33] + struct.pack(">I", 8) + chunk + struct.pack(">I", zlib.crc32(chunk)) + SAMPLES["png"][33:]
    )


def test_pillow_warnings_do_not_leak_and_the_filters_come_back() -> None:
    data = image_that_makes_pillow_warn()
    with pytest.warns(UserWarning, match="Invalid APNG"), Image.open(io.BytesIO(data)) as opened:
        opened.load()  # or this test would prove nothing
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        for pixels in pool.map(decode_rgb, [data] * 200):
            np.testing.assert_array_equal(pixels, picture())
    assert list(warnings.filters) == before


def test_import_changes_no_global_state() -> None:
    program = (
        "import sys, warnings, numpy; from PIL import Image, ImageFile\n"
        "state = lambda: (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))\n"
        "before = state(); import vlbert_data.images; assert state() == before\n"
        "assert not {'torch', 'transformers', 'pandas', 'pyarrow'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_thumbnail_keeps_the_shape_and_looks_alike() -> None:
    large = np.asarray(Image.fromarray(picture()).resize((480, 320), Image.Resampling.BICUBIC))
    small = decode_rgb(encode_thumbnail(large, longest_side_px=48, quality=90))
    assert small.shape == (32, 48, 3)
    expected = np.asarray(Image.fromarray(picture()).resize((48, 32), Image.Resampling.BICUBIC))
    assert mean_difference(small, expected) < 5


@pytest.mark.parametrize(("shape", "expected"), [((10, 20), (10, 20)), ((1, 900), (1, 90)), ((900, 2), (90, 1))])
def test_a_thumbnail_is_never_enlarged_nor_empty(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    pixels = np.full((*shape, 3), 90, np.uint8)
    assert decode_rgb(encode_thumbnail(pixels, longest_side_px=90, quality=80)).shape[:2] == expected


@pytest.mark.parametrize(("side", "quality", "words"), [(0, 80, "side of 0"), (64, 0, "quality of 0"), (64, 99, "99")])
def test_impossible_thumbnails_are_refused(side: int, quality: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        encode_thumbnail(picture(), longest_side_px=side, quality=quality)
