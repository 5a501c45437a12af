"""From what a person names to a `Describer`. Promise: a name not understood is answered with those that are."""

from typing import Any

from vlbert_data.build.config import BuildConfig
from vlbert_data.describe.base import Describer
from vlbert_data.errors import ConfigError

KINDS = {"hf:DIR_OR_NAME[:LAYER]": "a transformers backbone, its last feature map or hidden state LAYER"}


def open_describer(spec: str | None, settings: BuildConfig, detector: Any) -> Describer:
    """Return the describer that `spec` names; None: the detector itself, where it describes too.

    Raises:
        ConfigError: an unknown kind, one that cannot be made, or none given and the detector describes nothing.
    """
    listed = "; ".join(f"{name}: {what}" for name, what in KINDS.items())
    if spec is None:
        if not hasattr(detector, "describe"):
            raise ConfigError(f"--describer is missing; this detector proposes boxes only. There are {listed}.")
        describer: Describer = detector
        return describer
    kind, _, rest = spec.partition(":")
    if kind != "hf" or not rest:
        raise ConfigError(f"--describer {spec}: no such describer. There are {listed}.")
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
