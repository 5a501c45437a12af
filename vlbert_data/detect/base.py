"""What the build asks of a detector. Promise: the same RoIs for an image whatever other images came with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vlbert_data.types import Array, LabelSpace, RoiSet


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedImage:
    """A decoded photo: `pixels` is uint8 [H, W, 3], RGB, EXIF orientation applied.

    boxes (float32 [R, 4]) and class_names are those that the source itself brought, if any.
    """

    image_id: str
    file_name: str
    pixels: Array
    boxes: Array | None = None
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectionRule:
    """Which proposals become RoIs.

    score_threshold: least foreground confidence, 0..1. nms_iou: class-agnostic non-maximum suppression above this
    IoU, None for none. min_rois: the best proposals fill up to this number even below the threshold (never those that
    suppression removed). max_rois: at most this many, the most confident. label_topk: classes kept for each RoI.
    """

    score_threshold: float
    nms_iou: float | None
    min_rois: int
    max_rois: int
    label_topk: int


class Detector(Protocol):
    """Proposes RoIs for decoded images."""

    @property
    def label_space(self) -> LabelSpace:
        """Return what the class ids of this detector's RoIs mean."""
        ...

    @property
    def label_topk(self) -> int:
        """Return K, the number of classes that every RoI keeps."""
        ...

    @property
    def has_attributes(self) -> bool:
        """Return whether every RoI brings an attribute."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return name, weights hash, preprocessing and selection as JSON types, for the manifest."""
        ...

    def detect(self, images: Sequence[DecodedImage]) -> list[RoiSet]:
        """Return a RoiSet for each image, in order; an image may have no RoI.

        Raises:
            RecordRejectedError: never for a whole batch; a detector that cannot take an image raises it when called
                with that image alone.
        """
        ...

    def counts(self) -> dict[str, int]:
        """Return what was left out so far, by reason, such as `{"crowd boxes": 12}`."""
        ...
