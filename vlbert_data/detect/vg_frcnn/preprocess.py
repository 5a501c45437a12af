"""What the network sees. Promise: one function, one invariant: blue, green, red; means subtracted; never padded.

Every way into the detector hands over decoded RGB pixels, so a path, bytes and an array of one photo become the same
tensor to the bit. The resize is Pillow's on 8-bit pixels, which smooths when it shrinks; then the means are subtracted.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlbert_data.types import Array

# Source: Caffe's ResNet-101 for Visual Genome (Anderson et al. 2018): means of ImageNet in blue, green, red; no scale.
MEANS_BGR = (102.9801, 115.9465, 122.7717)


def resized_shape(height: int, width: int, *, short_side_px: int, long_side_px: int) -> tuple[int, int]:
    """Return (height, width) in whole pixels: the short side as asked for unless the long side would become too long.

    Source: the rounding of Detectron2's shortest-edge resize, which the published features were made with.
    """
    scale = short_side_px / min(height, width)
    new_height, new_width = (short_side_px, scale * width) if height < width else (scale * height, short_side_px)
    longest = max(new_height, new_width)
    if longest > long_side_px:
        new_height, new_width = (side * (long_side_px / longest) for side in (new_height, new_width))
    return max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1)


def resize(pixels: Array, *, short_side_px: int, long_side_px: int) -> Array:
    """Return uint8 [h, w, 3] of uint8 pixels [H, W, 3], channels in the order they came."""
    height, width = resized_shape(*pixels.shape[:2], short_side_px=short_side_px, long_side_px=long_side_px)
    image = Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), Image.Resampling.BILINEAR)
    resized: Array = np.asarray(image)
    return resized


def preprocess(pixels: Array, *, short_side_px: int, long_side_px: int) -> Tensor:
    """Return the network's input float32 [3, h, w] for a photo, uint8 [H, W, 3] RGB."""
    resized = resize(pixels, short_side_px=short_side_px, long_side_px=long_side_px)
    bgr = resized[:, :, ::-1].transpose(2, 0, 1).astype(np.float32)  # [3, h, w]
    return torch.from_numpy(bgr - np.array(MEANS_BGR, np.float32)[:, None, None])
