"""How long examples may be. Promise: what is cut is cut before anything is masked, so no target is ever lost.

Lengths of text count [CLS] and [SEP]; lengths of RoIs count the whole image, which stands first among them.
"""

import numpy as np

from vlbert_data.types import Array
from vlbert_train.config import DataConfig


def kept_lengths(text: Array, num_rois: Array, data: DataConfig) -> tuple[Array, Array]:
    """Return how much of captions with images is kept, int64 [n] each: tokens, 2 or more, and RoIs, 1 or more.

    text: int64 [n], tokens of each caption, [CLS] and [SEP] counted. num_rois: int64 [n], RoIs of its image, the whole
    image not counted. What is kept are the first tokens and [SEP], the whole image and the first RoIs.
    """
    rois = 1 + np.minimum(num_rois, data.max_rois)
    if data.truncation == "separate":
        return np.minimum(text, data.max_text), rois
    return _joint(text, rois, data.max_length)


def text_limit(data: DataConfig) -> int:
    """Return the most tokens of a text-only example, which has neither [CLS] nor [SEP]."""
    return data.max_text if data.truncation == "separate" else data.max_length


def _joint(text: Array, rois: Array, limit: int) -> tuple[Array, Array]:
    """Return lengths whose sum is at most `limit`, 4 or more: while it is not, the longer side loses one.

    At equal lengths text loses first. So in the end either one side is whole and the other has the rest, or both are
    halves, with the odd one for the RoIs. Source: VL-BERT's released code, which takes away one by one, down to 2
    tokens and 1 RoI; from a limit of 4 on, neither side ever comes to that.
    """
    half_text = limit // 2
    half_rois = limit - half_text
    fits = text + rois <= limit
    kept_text = np.where(fits, text, np.where(rois <= half_rois, limit - rois, np.minimum(text, half_text)))
    kept_rois = np.where(fits, rois, limit - kept_text)
    return kept_text, kept_rois
