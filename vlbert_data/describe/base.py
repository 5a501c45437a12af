"""What the build asks of a describer. Promise: any boxes of any image, and always the whole image too."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from vlbert_data.detect.base import DecodedImage
from vlbert_data.types import Array, RoiSet


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """Features of one image: `features` is float32 [R, F], `image_feature` float32 [F] (the whole image as one box).

    described_boxes: float32 [R, 4], what the features are of, where it is not the RoIs' boxes themselves.
    """

    features: Array
    image_feature: Array
    described_boxes: Array | None = None


class Describer(Protocol):
    """Turns (image, boxes) into features."""

    @property
    def feature_dim(self) -> int:
        """Return F."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return name, weights hash, layer, pooling and preprocessing as JSON types, for the manifest."""
        ...

    def describe(self, images: Sequence[Array], boxes: Sequence[Array]) -> list[Description]:
        """Return a Description for each image.

        images: uint8 [H, W, 3] RGB each. boxes: float32 [R, 4] xyxy pixels of that image each; R may be 0.
        """
        ...


@runtime_checkable
class DetectorDescriber(Protocol):
    """A detector whose own network describes; for both together it looks at an image once."""

    describer: Describer

    def detect_and_describe(self, images: Sequence[DecodedImage]) -> list[tuple[RoiSet, Description]]:
        """Return the RoIs of each image and their Description, in order; raises what `Detector.detect` does."""
        ...
