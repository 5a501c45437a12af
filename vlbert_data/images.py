"""Bytes of any photo to RGB pixels, and pixels to a thumbnail.

Promise: `decode_rgb` gives the whole picture, upright, or raises RecordRejectedError; never half a picture, never
another exception for bad bytes, never a warning, and nothing larger than the limit is ever decoded.

What is chosen where formats leave a choice:
- the first frame or page of animations and multi-page files, the largest picture of an icon;
- transparent pixels are laid on white: what a transparent picture is made for is a page, and pages are white;
- colours are taken as sRGB whatever profile is embedded, except L*a*b*, which has no meaning otherwise;
- deep grey images (16 or 32 bits, float) are scaled by the range they use, see `_grey_to_uint8`.
"""

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.types import Array

# Medium-format cameras make 100 megapixels; the decoded picture is then 0.3 GB, and Pillow holds 0.4 GB beside it.
DEFAULT_MAX_PIXELS = 100_000_000
# Pillow itself refuses twice its MAX_IMAGE_PIXELS (2^28 / 3 pixels unless somebody changed it).
LARGEST_MAX_PIXELS = 2 * (2**28 // 3)

# Only formats that hold pixels and are decoded inside the process: no EPS (runs Ghostscript), no WMF, no video.
# The order matters: TGA has no signature, so it is tried last.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "QOI", "ICO", "TGA")

# What Pillow's decoders raise on damaged files, seen or documented. There is no common base below Exception.
_DECODER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImageCms.PyCMSError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    struct.error,
    SyntaxError,
    TypeError,
    ValueError,
    zlib.error,
)

# EXIF tag 0x0112. Source: TIFF 6.0 specification, "Orientation"; what to do to make the stored picture upright.
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_rgb(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Array:
    """Return the picture in `data` as uint8 [H, W, 3], RGB, upright (EXIF, XMP, PNG and TIFF orientation applied).

    The array is contiguous, writable and owned by the caller. max_pixels: the most pixels (H times W) that are taken;
    it is checked on the size that the file states, before anything is decoded.

    Raises:
        RecordRejectedError: "empty image", "too many pixels", "out of memory" or "undecodable image".
        ConfigError: `max_pixels` is out of range, or Pillow is set to make up the missing part of cut files.
    """
    if not 1 <= max_pixels <= LARGEST_MAX_PIXELS:
        raise ConfigError(f"the limit of pixels is {max_pixels}; expected 1 to {LARGEST_MAX_PIXELS}.")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ConfigError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on in this process, so cut photos would turn half grey unnoticed. "
            "Switch it off."
        )
    if not data:
        raise RecordRejectedError("empty image", "0 bytes")
    try:
        with _pillow_warnings.ignored():
            return _decode(data, max_pixels)
    except Image.DecompressionBombError as error:
        raise RecordRejectedError("too many pixels", f"Pillow: {error}") from error
    except UnidentifiedImageError as error:
        # Pillow's own text holds a memory address; what the bytes look like says more, and the same in every run.
        raise RecordRejectedError("undecodable image", _describe_bytes(data)) from error
    except MemoryError as error:
        raise RecordRejectedError("out of memory", f"while decoding an image of {len(data)} bytes") from error
    except _DECODER_ERRORS as error:
        raise RecordRejectedError("undecodable image", f"{type(error).__name__}: {error}") from error


def encode_thumbnail(pixels: Array, *, longest_side_px: int, quality: int) -> bytes:
    """Return a JPEG of uint8 pixels [H, W, 3], shrunk so that no side exceeds `longest_side_px`, never enlarged.

    quality: 1..95, JPEG's own scale.

    Raises:
        ConfigError: a number is out of range.
    """
    if not 1 <= longest_side_px <= 4096:
        raise ConfigError(f"a thumbnail's longest side of {longest_side_px} pixels; expected 1 to 4096.")
    if not 1 <= quality <= 95:
        raise ConfigError(f"a JPEG quality of {quality}; expected 1 to 95.")
    image = Image.fromarray(pixels)
    scale = longest_side_px / max(image.size)
    if scale < 1:
        width_px, height_px = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width_px, height_px), Image.Resampling.LANCZOS, reducing_gap=3.0)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


class _PillowWarnings:
    """Keeps Pillow's warnings about odd files out of the way while any thread decodes.

    Python keeps one list of warning filters for all threads, so threads that decode at the same time share one change:
    the first one in makes it, the last one out takes it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved: warnings.catch_warnings[None] | None = None

    @contextmanager
    def ignored(self) -> Iterator[None]:
        """Ignore warnings that Pillow's modules raise until the block ends; those of other modules pass."""
        with self._lock:
            if self._inside == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0 and self._saved is not None:
                    self._saved.__exit__(None, None, None)
                    self._saved = None


_pillow_warnings = _PillowWarnings()


def _decode(data: bytes, max_pixels: int) -> Array:
    for size in _icon_sizes(data):
        _check_size(size, max_pixels)
    with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
        _check_size(opened.size, max_pixels)
        opened.load()
        _check_size(opened.size, max_pixels)  # a first frame may be larger than what the header states
        upright = _make_upright(opened)
        return _to_rgb(upright)


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width_px, height_px = size
    if width_px <= 0 or height_px <= 0:
        raise RecordRejectedError("empty image", f"{width_px} x {height_px} pixels")
    if width_px * height_px > max_pixels:
        raise RecordRejectedError(
            "too many pixels",
            f"{width_px} x {height_px} = {width_px * height_px} pixels; at most {max_pixels} are taken",
        )


def _icon_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the true (width, height) of each picture in an icon file; nothing for other files.

    Needed because Pillow decodes icons when it opens them, and their directory cannot state more than 256 pixels.
    """
    if data[:4] != b"\0\0\1\0":
        return
    (num_pictures,) = struct.unpack_from("<H", data, 4)
    for i in range(num_pictures):
        (offset,) = struct.unpack_from("<I", data, 6 + 16 * i + 12)
        if data[offset : offset + 4] == b"\x89PNG":
            yield struct.unpack_from(">II", data, offset + 16)
        else:
            width_px, twice_height_px = struct.unpack_from("<ii", data, offset + 4)
            yield width_px, abs(twice_height_px) // 2


def _make_upright(image: Image.Image) -> Image.Image:
    """Return the image turned as its metadata ask; damaged metadata ask for nothing, as in every viewer."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODER_ERRORS:
        return image
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Array:
    if image.mode.startswith(("I", "F")):
        return _grey_to_rgb(image)
    if image.mode == "LAB":
        image = _lab_to_rgb(image)
    elif image.has_transparency_data:
        image = _on_white(image)
    elif image.mode != "RGB":
        image = image.convert("RGB")
    return np.array(image)  # [H, W, 3] uint8


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    page = Image.new("RGBA", image.size, (255, 255, 255, 255))
    page.alpha_composite(image.convert("RGBA"))
    return page.convert("RGB")


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    """Return CIE L*a*b* (white point D50) as sRGB."""
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None, "profileToProfile returns an image unless it works in place"
    return converted


def _grey_to_rgb(image: Image.Image) -> Array:
    values = np.asarray(image)  # [H, W] uint16, int32 or float32
    grey = _grey_to_uint8(values)  # [H, W]
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey = np.where(values == transparent, np.uint8(255), grey)
    return np.repeat(grey[:, :, None], 3, axis=2)  # [H, W, 3]


def _grey_to_uint8(values: Array) -> Array:
    """Return deep grey values [H, W] as uint8 [H, W], 0 black.

    The white level is not stored with such values, so it is taken from them: for integers all ones in the fewest bits
    that hold the largest value (8 at least: 12-bit sensors write into 16-bit files), for floats 1 or 255 when nothing
    exceeds it, else the largest value. Black is 0. With negative values black is the lowest value, and the range above
    it counts instead of the largest value (for floats without the two usual levels).

    Raises:
        RecordRejectedError: NaN or infinity.
    """
    if not np.isfinite(values).all():
        raise RecordRejectedError("undecodable image", "a float image with NaN or infinity")
    signed = bool(values.min() < 0)
    if signed:
        values = values.astype(np.float64 if values.dtype.kind == "f" else np.int64)
        values = values - values.min()
    brightest = values.max()
    grey: Array
    if values.dtype.kind == "f":
        usual = () if signed else (1.0, 255.0)
        white = next((level for level in usual if brightest <= level), float(brightest) or 1.0)
        grey = np.round(values * (255.0 / white)).astype(np.uint8)
    else:
        surplus_bits = max(8, int(brightest).bit_length()) - 8
        grey = np.right_shift(values, surplus_bits).astype(np.uint8)
    return grey


def _describe_bytes(data: bytes) -> str:
    start = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return f"{len(data)} bytes of an HTML page, not an image"
    if b"<svg" in start:
        return f"{len(data)} bytes of an SVG drawing, which has no pixels"
    return f"{len(data)} bytes of no known image format, or with a damaged header; they begin with {data[:16]!r}"
