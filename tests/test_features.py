"""Features of a batch, copied from where they lie: every bit as a slow version makes it, RoI after RoI."""

import numpy as np
import pytest

from vlbert_data.addresses import address
from vlbert_data.types import Array
from vlbert_train.features import StoredFeatures, WholeImages

WIDTH = 37
LENGTHS = (5, 0, 1, 2, 7)


def stored(features: Array, images: Array, counted: Array, weights: Array) -> StoredFeatures:
    """Return these features of one batch, float16 [R, F] and [C, F], as if they lay in a mapped file."""
    starts = np.cumsum([0, *LENGTHS[:-1]])
    return StoredFeatures(
        places=np.stack([address(features) + starts * features.strides[0], address(images) + np.arange(5) * 2 * WIDTH]),
        lengths=np.array(LENGTHS),
        cuts=[0, len(LENGTHS)],
        roi_cuts=[0, len(features)],
        whole=WholeImages(weights=weights, counted=counted),
        feature_dim=WIDTH,
        held=[],
    )


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_whole_images_are_made_of_sums_in_the_order_of_the_rois(share: float) -> None:
    random = np.random.default_rng(int(share * 10))
    features = random.standard_normal((sum(LENGTHS), WIDTH)).astype(np.float16) / 256
    # What is added before or between two such RoIs loses bits that it would keep in another order.
    features[[2, 8]], features[[3, 11]] = 30_000, -30_000
    images = random.standard_normal((len(LENGTHS), WIDTH)).astype(np.float16)
    counted = random.random(len(features)) < share
    weights = random.random((2, len(LENGTHS))).astype(np.float32)
    found = stored(features, images, counted, weights).read(0, 2, pin_memory=False).numpy()
    first = 0
    for number, length in enumerate(LENGTHS):
        total = np.zeros(WIDTH, np.float32)
        for roi in range(first, first + length):
            if counted[roi]:
                total = total + features[roi].astype(np.float32)
        wanted = weights[0, number] * images[number].astype(np.float32) + weights[1, number] * total
        assert np.array_equal(found[len(features) + number], wanted.astype(np.float16))
        first += length
    assert np.array_equal(found[: len(features)], features)
    assert not found[len(features) + len(LENGTHS) :].any()
