"""From what a person names to a `Detector`. Promise: a name not understood is answered with those that are."""

from pathlib import Path

from vlbert_data.build.config import BuildConfig
from vlbert_data.detect.base import Detector, SelectionRule
from vlbert_data.errors import ConfigError
from vlbert_data.sources.base import Source

KINDS = {
    "annotations:FILE.json": "boxes of a COCO instances file",
    "annotations:source": "boxes and labels that the input's own records bring",
    "hf:DIR_OR_NAME": "a transformers model for object detection",
    "vg-frcnn:WEIGHTS": "the Visual Genome Faster R-CNN, which describes too",
}


def open_detector(spec: str, settings: BuildConfig, source: Source) -> Detector:
    """Return the detector that `spec` names; source: the build's input, whose records may bring boxes.

    Raises:
        ConfigError: an unknown kind, or one that cannot be made.
    """
    kind, _, rest = spec.partition(":")
    if not rest or kind not in {known.partition(":")[0] for known in KINDS}:
        listed = "; ".join(f"{name}: {what}" for name, what in KINDS.items())
        raise ConfigError(f"--detector {spec}: no such detector. There are {listed}.")
    if kind == "vg-frcnn":
        from vlbert_data.detect.vg_faster_rcnn import open_vg_faster_rcnn, vg_choice, vg_run

        return open_vg_faster_rcnn(rest, vg_run(settings), vg_choice(settings))
    _refuse_choice(spec, settings)
    if kind == "annotations":
        from vlbert_data.detect.annotations import CocoAnnotations, SourceBoxes, class_names_of

        if rest == "source":
            return SourceBoxes(class_names_of(source), max_rois=settings.max_rois)
        return CocoAnnotations(Path(rest), max_rois=settings.max_rois)
    from vlbert_data.detect.huggingface import HuggingFaceDetector

    return HuggingFaceDetector(rest, selection_rule(settings), device=settings.device, batch_size=settings.batch_size)


def _refuse_choice(spec: str, settings: BuildConfig) -> None:
    """Refuse what this detector would not heed.

    Raises:
        ConfigError: a setting of vg-frcnn is not the default.
    """
    default = BuildConfig()
    for name in ("selection", "num_proposals"):
        if getattr(settings, name) != getattr(default, name):
            raise ConfigError(
                f"{name} is {getattr(settings, name)!r}, but --detector {spec} has no such choice; only vg-frcnn has. "
                "Leave it out."
            )


def selection_rule(settings: BuildConfig) -> SelectionRule:
    """Return the selection that the settings ask for."""
    return SelectionRule(
        score_threshold=settings.score_threshold,
        nms_iou=settings.nms,
        min_rois=settings.min_rois,
        max_rois=settings.max_rois,
        label_topk=settings.label_topk,
    )
