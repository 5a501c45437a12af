"""The features of a group of batches. Promise: a feature is copied once, from mapped shard to batch.

Letters: D batches, C caption sequences, R their RoIs without whole images, F feature width. Where every feature lies is
found for the group at once; features are copied batch by batch, during which other threads run. A hidden RoI's feature
is copied too: it stays where it is, and the model never looks at it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlbert_data import runs
from vlbert_data.compiled import compiled, float_to_half, half_to_float, memmove
from vlbert_data.shards.gather import Picked
from vlbert_data.types import Array
from vlbert_train.buffers import Buffers
from vlbert_train.images import Images, Part

BUFFERS = Buffers()
# In the released code's division by the number of visible RoIs.
PUBLISHED_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class WholeImages:
    """How whole images are described: a weight times the stored feature + another one times the sum of counted RoIs.

    weights: float32 [2, C]. counted: bool [R]. The sum is float32, in the order of the RoIs, then rounded to float16.
    """

    weights: Array
    counted: Array


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFeatures:
    """Where the features of C sequences lie in mapped files, and how whole images are described.

    places: int64 [2, C], addresses of the first RoI's feature and of the whole image's. lengths: int64 [C], RoIs. cuts,
    roi_cuts: D + 1 numbers, the captions and the RoIs before each batch.
    """

    places: Array
    lengths: Array
    cuts: Sequence[int]
    roi_cuts: Sequence[int]
    whole: WholeImages
    feature_dim: int
    # Keeps the files mapped.
    held: Sequence[Picked]

    def read(self, batch: int, num_texts: int, *, pin_memory: bool) -> Tensor:
        """Return f16 [R + n + t, F]: a batch's RoIs, the whole image of each of its n captions, t rows of zeros."""
        (begin, end), (first, last) = self.cuts[batch : batch + 2], self.roi_cuts[batch : batch + 2]
        num_rows = last - first + end - begin
        shape = (num_rows + num_texts, self.feature_dim)
        # torch itself keeps page-locked memory for its next use.
        features = torch.empty(shape, dtype=torch.float16, pin_memory=True) if pin_memory else BUFFERS.empty(*shape)
        _copy_features(
            features.numpy().view(np.uint16),
            features.data_ptr(),
            self.places[:, begin:end],
            self.lengths[begin:end],
            self.whole.weights[:, begin:end],
            self.whole.counted[first:last],
        )
        return features


@compiled
def _copy_features(out: Array, out_address: int, places: Array, lengths: Array, weights: Array, counted: Array) -> None:
    """Fill `out`, the bits of float16 [R + n + t, F]; see `StoredFeatures.read` for its rows."""
    width, row, image_row = out.shape[1], 0, len(counted)
    row_bytes = 2 * width
    total = np.empty(width, np.float32)
    for number, length in enumerate(lengths):
        rois_address, image_address = places[:, number]
        of_stored, of_rois = weights[:, number]
        memmove(out_address + row * row_bytes, rois_address, length * row_bytes)
        memmove(out_address + image_row * row_bytes, image_address, row_bytes)
        if of_rois != 0 or of_stored != 1:
            # The RoIs just copied lie in the nearest cache.
            _sum(out, counted, row, row + length, total)
            whole = out[image_row]
            for place in range(width):
                stored = of_stored * half_to_float(whole[place])
                whole[place] = float_to_half(stored + of_rois * total[place])
        row += length
        image_row += 1
    out[image_row:] = 0


@compiled
def _sum(bits: Array, counted: Array, begin: int, end: int, total: Array) -> None:
    """Fill total, float32 [F], with the sum of the counted ones of rows begin .. end - 1, one after another.

    bits: those of float16 [N, F]. counted: bool [N].
    """
    total[:] = 0
    waiting = -1
    for row in range(begin, end):
        if not counted[row]:
            continue
        if waiting < 0:
            waiting = row
            continue
        # Two rows a pass over the sum, in the order in which one a pass would add them.
        for place in range(len(total)):
            total[place] = total[place] + half_to_float(bits[waiting, place]) + half_to_float(bits[row, place])
        waiting = -1
    if waiting >= 0:
        for place in range(len(total)):
            total[place] += half_to_float(bits[waiting, place])


def find_features(
    images: Images, parts: Sequence[Part], hidden: Array, leakage: str, *, feature_dim: int, views: Array | None
) -> StoredFeatures:
    """Return where features lie. hidden: bool [R]. views: int64 [C], which masked view of each image, if of views."""
    places = np.empty((2, len(images.lengths)), np.int64)
    prefix, name = ("", "image_feature") if views is None else ("view_", "view_image_features")
    for part in parts:
        own_views = None if views is None else views[part.own]
        for row, field in enumerate((f"{prefix}features", name)):
            places[row, part.own] = part.picked.spans(field, views=own_views)[0]
    return StoredFeatures(
        places=places,
        lengths=images.lengths,
        cuts=images.cuts.tolist(),
        roi_cuts=runs.borders(images.lengths)[images.cuts].tolist(),
        whole=_whole_images(images, hidden, leakage),
        feature_dim=feature_dim,
        held=[part.picked for part in parts],
    )


def _whole_images(images: Images, hidden: Array, leakage: str) -> WholeImages:
    """Return how whole images are described so that they show nothing of hidden RoIs.

    overlap: the mean of the visible RoIs, zero where none is visible; an image without RoIs keeps its stored feature.
    published: the stored feature times the number of stored RoIs, minus the hidden RoIs, divided by the number of the
    others + 1e-5, as in VL-BERT's released code; zero where all are hidden. pixels: the stored feature, of a view.
    """
    lengths, num = images.lengths, len(images.lengths)
    counted = hidden if leakage == "published" else ~hidden
    cu_counted = np.concatenate([np.zeros(1, np.int64), np.cumsum(counted)])
    counts = np.diff(cu_counted[runs.borders(lengths)])  # [C]
    of_stored, of_rois = np.ones(num), np.zeros(num)
    if leakage == "overlap":
        of_stored = np.where(lengths > 0, 0.0, 1.0)
        of_rois = 1.0 / np.maximum(counts, 1)
    elif leakage == "published":
        others = images.stored - counts
        shares = np.where(others > 0, 1.0 / (others + PUBLISHED_EPSILON), 0.0)
        of_stored, of_rois = np.where(counts > 0, shares * images.stored, 1.0), np.where(counts > 0, -shares, 0.0)
    return WholeImages(weights=np.stack([of_stored, of_rois]).astype(np.float32), counted=counted)
