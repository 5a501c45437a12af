"""From what a person names to a `Describer`. Promise: a name not understood is answered with those that are."""

from typing import Any

from vlbert_data.build.config import BuildConfig
from vlbert_data.describe.base import Describer, DetectorDescriber
from vlbert_data.errors import ConfigError

KINDS = {
    "hf:DIR_OR_NAME[:LAYER]": "a transformers backbone, its last feature map or hidden state LAYER",
    "vg-frcnn:WEIGHTS": "the Visual Genome Faster R-CNN",
}


def open_describer(spec: str | None, settings: BuildConfig, detector: Any) -> Describer:
    """Return the describer that `spec` names; None: the detector's own, where it has one.

    Raises:
        ConfigError: an unknown kind, one that cannot be made, or none given and the detector describes nothing.
    """
    own = detector.describer if isinstance(detector, DetectorDescriber) else None
    listed = "; ".join(f"{name}: {what}" for name, what in KINDS.items())
    if spec is None:
        if own is None:
            raise ConfigError(f"--describer is missing; this detector proposes boxes only. There are {listed}.")
        return own
    kind, _, rest = spec.partition(":")
    if kind not in {known.partition(":")[0] for known in KINDS} or not rest:
        hint = " Without --describer the detector's own is taken." if own is not None else ""
        raise ConfigError(f"--describer {spec}: no such describer. There are {listed}.{hint}")
    if kind == "vg-frcnn":
        from vlbert_data.detect.vg_faster_rcnn import vg_run
        from vlbert_data.detect.vg_frcnn.describer import open_vg_describer

        made = open_vg_describer(rest, vg_run(settings))
        # The same weights twice: looking once at each image is enough.
        return own if own is not None and own.facts() == made.facts() else made
    if own is None and settings.precision != BuildConfig().precision:
        raise ConfigError(f"precision is {settings.precision!r}; only vg-frcnn has a choice. Leave it out.")
    from vlbert_data.describe.backbone import BackboneDescriber, ImageSize

    name, layer = _split_layer(rest)
    size = ImageSize(short_side_px=settings.short_side_px, long_side_px=settings.long_side_px)
    return BackboneDescriber(name, size, layer=layer, device=settings.device, batch_size=settings.batch_size)


def _split_layer(text: str) -> tuple[str, int | None]:
    name, colon, layer = text.rpartition(":")
    if not colon:
        return text, None
    try:
        return name, int(layer)
    except ValueError:
        raise ConfigError(f"--describer hf:{text}: layer {layer!r} is not a whole number.") from None
