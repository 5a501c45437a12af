"""Settings of a build. Promise: what changes records is in `identity`; how fast they are made is not.

Two builds of equal identity write equal records, so one may finish what the other began.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from vlbert_data.errors import ConfigError
from vlbert_data.manifest import CONTAINERS
from vlbert_data.nearby import unreadable


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildConfig:
    """What `vlb build-shards` was asked for.

    shard_size: inputs (images) of one shard. min_rois, max_rois, score_threshold, nms, label_topk: see
    `detect.base.SelectionRule`; 10 to 100 RoIs above 0.2 are the numbers of the bottom-up-attention features.
    selection: by which rule vg-frcnn chooses RoIs, None for its own. num_proposals: how many vg-frcnn chooses from.
    precision: in which numbers vg-frcnn computes. masked_views: V. thumbnail_px: longest side of the stored JPEG, 0 for
    none. max_rejects: as a share below 1, or a number of inputs from 1 on. max_pixels: an image of more is rejected
    before it is decoded. short_side_px, long_side_px: the describer's image size. seed: chooses the RoIs of masked
    views.
    """

    container: str = "lmdb"
    shard_size: int = 1000
    min_rois: int = 10
    max_rois: int = 100
    score_threshold: float = 0.2
    nms: float | None = None
    label_topk: int = 32
    selection: str | None = None
    num_proposals: int = 300
    precision: str = "float32"
    masked_views: int = 0
    thumbnail_px: int = 0
    max_pixels: int = 100_000_000
    short_side_px: int = 600
    long_side_px: int = 1000
    seed: int = 0
    # how, not what:
    max_rejects: float = 0.05
    workers: int = 1
    batch_size: int = 1
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.container not in CONTAINERS:
            raise ConfigError(f"container {self.container!r}; it is one of {', '.join(CONTAINERS)}.")
        for name, low, high in LIMITS:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{name} is {value}; it must be from {low:,} to {high:,}.")
        if self.min_rois > self.max_rois:
            raise ConfigError(f"min_rois is {self.min_rois}, more than max_rois, {self.max_rois}.")

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide what the records hold."""
        return {name: value for name, value in asdict(self).items() if name not in HOW}

    def allows(self, num_rejects: int, num_inputs: int) -> bool:
        """Return whether so many rejects of so many inputs are within `max_rejects`."""
        limit = self.max_rejects if self.max_rejects >= 1 else self.max_rejects * num_inputs
        return num_rejects <= limit

    def updated(self, changes: Mapping[str, Any]) -> "BuildConfig":
        """Return this config with `changes`.

        Raises:
            ConfigError: a name that is no setting (the nearest is named) or a value of another type.
        """
        kinds = {entry.name: entry.type for entry in fields(self)}
        for name, value in changes.items():
            if name not in kinds:
                near = get_close_matches(name, kinds, n=1)
                hint = f"Did you mean {near[0]}?" if near else f"The settings are {', '.join(kinds)}."
                raise ConfigError(f"there is no setting {name!r}. {hint}")
            allowed = get_args(kinds[name]) or (kinds[name],)
            if isinstance(value, bool) or not isinstance(value, (*allowed, int) if float in allowed else allowed):
                wanted = " or ".join(getattr(kind, "__name__", str(kind)) for kind in allowed)
                raise ConfigError(f"{name} is {value!r}; it must be {wanted}.")
        return replace(self, **changes)


# Numbers of RoIs that a selection rule was published with, where they are not the defaults.
# Source: the extraction script of LXMERT's detector port.
PUBLISHED_ROIS = {"maxnms": {"min_rois": 36, "max_rois": 36}}
# Settings that have no option of their own, but a line in the file that --config names.
RARER = ("short_side_px", "long_side_px", "max_pixels", "seed")
HOW = frozenset({"max_rejects", "workers", "batch_size", "device"})
LIMITS = (
    ("shard_size", 1, 1_000_000),
    ("min_rois", 0, 10_000),
    ("max_rois", 1, 10_000),
    ("score_threshold", 0, 1),
    ("nms", 0, 1),
    ("label_topk", 1, 65535),
    ("num_proposals", 1, 6000),
    ("masked_views", 0, 1000),
    ("thumbnail_px", 0, 2048),
    ("max_pixels", 1, 178_956_970),  # images.LARGEST_MAX_PIXELS, which is not imported: it takes Pillow
    ("short_side_px", 32, 8192),
    ("long_side_px", 32, 8192),
    ("max_rejects", 0, 10**12),
    ("workers", 0, 256),
    ("batch_size", 1, 1024),
    ("seed", 0, 2**63 - 1),
)


# How people write a setting, by its place in a build's identity.
SETTING_OPTIONS = {
    f"settings.{entry.name}": entry.name if entry.name in RARER else f"--{entry.name.replace('_', '-')}"
    for entry in fields(BuildConfig)
} | {"settings.thumbnail_px": "--thumbnails", "format_version": "the version of the shard format"}


def read_toml(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file, unchecked.

    Raises:
        ConfigError: missing or not TOML.
    """
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise ConfigError(unreadable(path, error)) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}.") from error


def parse_part(text: str) -> tuple[int, int]:
    """Return (i - 1, n) of `i/n`: this process builds every n-th shard from the i-th on.

    Raises:
        ConfigError: not of that form, or i outside 1..n.
    """
    head, slash, tail = text.partition("/")
    if not (slash and head.isdigit() and tail.isdigit() and 1 <= int(head) <= int(tail)):
        raise ConfigError(f"--part is {text!r}; it must be i/n with i from 1 to n, such as 2/8.")
    return int(head) - 1, int(tail)
