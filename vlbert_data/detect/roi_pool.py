"""RoIPool: the largest value in each cell of a grid over a box. Promise: equal to torchvision's operator to the bit.

A cell covers whole positions of the feature map, so what is asked for is the maximum of a rectangle. The maxima of all
windows whose sides are powers of two are made once for the map; four such windows, overlapping, cover any rectangle.
So a cell costs four look-ups whatever its size, and no loop runs over boxes.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


def roi_pool(features: Tensor, boxes: Tensor, *, output_size: int, spatial_scale: float) -> Tensor:
    """Return the pooled features [R, C, P, P] in channels-last memory, P = output_size; a cell without position is 0.

    features: [B, C, H, W], no NaN. boxes: float32 [R, 5], (image index, x0, y0, x1, y1), pixels, finite;
    `spatial_scale` turns pixels into positions. Corners are rounded half away from zero and are both inclusive.

    Source: Girshick, Fast R-CNN, ICCV 2015, section 2.1; the edges of cells in float32, as torchvision has them.
    """
    parts = list(roi_pool_parts(features, boxes, output_size=output_size, spatial_scale=spatial_scale, rois_a_part=16))
    if not parts:
        return features.new_zeros(0, features.shape[1], output_size, output_size)
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def roi_pool_parts(
    features: Tensor, boxes: Tensor, *, output_size: int, spatial_scale: float, rois_a_part: int
) -> Iterator[Tensor]:
    """Yield what `roi_pool` returns in parts of `rois_a_part` RoIs, so that not all need be in memory at once."""
    channels, height, width = features.shape[1:]
    if not len(boxes) or not features.numel():
        return
    rows = _cell_edges(boxes[:, 2], boxes[:, 4], height, output_size, spatial_scale)
    columns = _cell_edges(boxes[:, 1], boxes[:, 3], width, output_size, spatial_scale)
    num_levels = int(_level(rows).max()) + 1, int(_level(columns).max()) + 1
    table = _window_maxima(features, *num_levels)  # [levels * levels * B * H * W + 1, C]
    level_size = len(features) * height * width
    row_windows = _windows(rows, step=width, level_step=num_levels[1] * level_size)  # [2, R, P]
    column_windows = _windows(columns, step=1, level_step=level_size)  # [2, R, P]
    image = boxes[:, 0].long()[:, None, None] * (height * width)
    filled = (rows[1] > rows[0])[:, :, None] & (columns[1] > columns[0])[:, None, :]  # [R, P, P]
    for start in range(0, len(boxes), rois_a_part):
        part = slice(start, start + rois_a_part)
        cells = [
            torch.where(filled[part], image[part] + r[part, :, None] + c[part, None, :], len(table) - 1)
            for r in row_windows
            for c in column_windows
        ]
        pooled = _largest(table, [places.flatten() for places in cells])  # [r * P * P, C]
        yield pooled.view(-1, output_size, output_size, channels).permute(0, 3, 1, 2)


def _cell_edges(low: Tensor, high: Tensor, limit: int, size: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return the first position of each cell and the one behind its last, int64 [R, P] each, within 0..limit."""
    start = _round_half_away(low.float() * scale)
    length = (_round_half_away(high.float() * scale) - start + 1).clamp(min=1)  # [R]
    cell = (length / size)[:, None]  # [R, 1]
    numbers = torch.arange(size, device=low.device, dtype=torch.float32)  # [P]
    first = (numbers * cell).floor() + start[:, None]  # [R, P]
    behind = ((numbers + 1) * cell).ceil() + start[:, None]
    return first.clamp(0, limit).long(), behind.clamp(0, limit).long()


def _round_half_away(values: Tensor) -> Tensor:
    """Return C's `round`: `torch.round` takes halves to the even neighbour, and adding 0.5 may itself round."""
    whole = values.trunc()
    return torch.where((values - whole).abs() >= 0.5, whole + values.sign(), whole)


def _level(edges: tuple[Tensor, Tensor]) -> Tensor:
    """Return int64 [R, P]: the largest k such that 2^k positions fit into the cell; 0 for a cell without position."""
    powers = 2 ** torch.arange(1, 31, device=edges[0].device)
    return torch.bucketize(edges[1] - edges[0], powers, right=True)


def _windows(edges: tuple[Tensor, Tensor], *, step: int, level_step: int) -> Tensor:
    """Return int64 [2, R, P]: where in the table the windows stand that begin and end with the cell."""
    level = _level(edges)
    return torch.stack([edges[0], edges[1] - 2**level]) * step + level * level_step


def _window_maxima(features: Tensor, row_levels: int, column_levels: int) -> Tensor:
    """Return the maxima [row_levels * column_levels * B * H * W + 1, C] of windows that begin at each position.

    Number (i, j) of the tables has windows of 2^i rows and 2^j columns. Where a window would leave the map, the value
    is that of a smaller one; no cell asks for it. The last row is 0, for cells without position.
    """
    wide = [features.permute(0, 2, 3, 1)]  # [B, H, W, C]
    for j in range(1, column_levels):
        wide.append(_shifted_maximum(wide[-1], 2 ** (j - 1), dim=2))
    tables = [wide]
    for i in range(1, row_levels):
        tables.append([_shifted_maximum(table, 2 ** (i - 1), dim=1) for table in tables[-1]])
    flat = [table.reshape(-1, features.shape[1]) for row in tables for table in row]
    return torch.cat([*flat, features.new_zeros(1, features.shape[1])])


def _shifted_maximum(table: Tensor, shift: int, *, dim: int) -> Tensor:
    """Return the larger of each value and the one `shift` places on; the last values have none and stay."""
    length = table.shape[dim]
    both = torch.maximum(table.narrow(dim, 0, length - shift), table.narrow(dim, shift, length - shift))
    return torch.cat([both, table.narrow(dim, length - shift, shift)], dim=dim)


def _largest(table: Tensor, places: list[Tensor]) -> Tensor:
    """Return the elementwise maximum [N, C] of the table's rows at each of the places, int64 [N] each."""
    result = table.index_select(0, places[0])
    for place in places[1:]:
        result = torch.maximum(result, table.index_select(0, place))
    return result
