"""RoIAlign in plain torch. Promise: the values of torchvision.ops.roi_align, on any device.

Every sampling weight of RoIAlign is a product of one weight along y and one along x, and so is every mean of samples.
So pooling a map is two matrix products with a weight matrix a side, and the mean over the window is a single one; this
is exact, not an approximation. Source: He et al., Mask R-CNN (ICCV 2017), section 3; half-pixel offset (`aligned`) as
in Detectron2.
"""

import torch
from torch import Tensor


def axis_weights(
    starts: Tensor, sizes: Tensor, *, num_bins: int, map_size: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Return float32 [R, num_bins, map_size]: how much each map position adds to each bin, along one axis.

    starts, sizes: float32 [R], begin and length of each RoI in map positions. sampling_ratio: samples of a bin along
    this axis; 0: as many as the bin has positions, rounded up, so none in a RoI without extent: its weights are 0.
    """
    if not aligned:
        sizes = sizes.clamp(min=1)
    bins = sizes / num_bins  # [R]
    counts = torch.full_like(sizes, sampling_ratio) if sampling_ratio else torch.ceil(bins).clamp(min=0)  # [R]
    most = max(1, int(counts.max())) if len(counts) else 1
    sample = torch.arange(most, device=starts.device, dtype=torch.float32)  # [s]
    bin_number = torch.arange(num_bins, device=starts.device, dtype=torch.float32)  # [b]
    # The order of operations is torchvision's, so that samples on a border fall on the same side of it.
    bin_starts = starts[:, None] + bin_number * bins[:, None]  # [R, b]
    steps = (sample + 0.5) * bins[:, None] / counts.clamp(min=1)[:, None]  # [R, s]
    at = bin_starts[:, :, None] + steps[:, None, :]  # [R, b, s]
    used = (sample < counts[:, None])[:, None, :] & (at >= -1) & (at <= map_size)  # [R, b, s]
    at = at.clamp(min=0)
    low = at.floor().clamp(max=map_size - 1)
    at = torch.where(low >= map_size - 1, low, at)
    share = torch.where(used, 1 / counts.clamp(min=1)[:, None, None], torch.zeros_like(at))  # [R, b, s]
    weights = torch.zeros(*at.shape[:2], map_size, device=at.device)  # [R, b, m]
    weights.scatter_add_(2, low.long(), share * (1 - (at - low)))
    weights.scatter_add_(2, (low.long() + 1).clamp(max=map_size - 1), share * (at - low))
    return weights


def _both_axes(
    feature_map: Tensor, boxes: Tensor, *, scale: tuple[float, float], num_bins: int, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Return the weights along y [R, num_bins, H] and x [R, num_bins, W]; see `roi_align`."""
    offset = 0.5 if aligned else 0.0
    boxes = boxes.to(feature_map.device, torch.float32)
    factors = boxes.new_tensor([scale[1], scale[0], scale[1], scale[0]])
    corners = boxes * factors - offset  # [R, 4] in map positions
    weights = [
        axis_weights(
            corners[:, axis],
            corners[:, axis + 2] - corners[:, axis],
            num_bins=num_bins,
            map_size=feature_map.shape[size],
            sampling_ratio=sampling_ratio,
            aligned=aligned,
        )
        for axis, size in ((1, 1), (0, 2))
    ]
    return weights[0], weights[1]


def roi_align(
    feature_map: Tensor,
    boxes: Tensor,
    *,
    scale: tuple[float, float],
    num_bins: int = 7,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """Return float32 [R, C, num_bins, num_bins]: each RoI resampled to a square window.

    feature_map: float32 [C, H, W] of one image. boxes: float32 [R, 4] xyxy pixels of that image. scale: map positions a
    pixel along (y, x).
    """
    along_y, along_x = _both_axes(
        feature_map, boxes, scale=scale, num_bins=num_bins, sampling_ratio=sampling_ratio, aligned=aligned
    )
    rows = torch.einsum("ryh,chw->rcyw", along_y, feature_map)  # [R, C, num_bins, W]
    return torch.einsum("rcyw,rxw->rcyx", rows, along_x)


def roi_align_mean(
    feature_map: Tensor, boxes: Tensor, *, scale: tuple[float, float], num_bins: int = 7, sampling_ratio: int = 0
) -> Tensor:
    """Return float32 [R, C]: the mean of `roi_align(..., aligned=True)` over its window, without making the window."""
    along_y, along_x = _both_axes(
        feature_map, boxes, scale=scale, num_bins=num_bins, sampling_ratio=sampling_ratio, aligned=True
    )
    window = along_y.mean(dim=1)[:, :, None] * along_x.mean(dim=1)[:, None, :]  # [R, H, W]
    return window.flatten(1) @ feature_map.flatten(1).T
