"""Settings of a pretraining run. Promise: checked at birth, and the same after a round trip through JSON or TOML.

`identity` holds what decides the weights that a run gives; two configs of equal identity may continue one another.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from vlbert_data.errors import ConfigError
from vlbert_data.nearby import unreadable
from vlbert_train.settings import build, check_ranges, parse_assignment, setting

RECIPES = Path(__file__).parent / "recipes"
MAX_STEPS = 2**40


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """How long, how often, on what."""

    steps: int = setting(1000, "optimizer steps of the whole run", low=1, high=MAX_STEPS)
    seed: int = setting(0, "decides weights, order, masks and dropout", low=0, high=2**63 - 1)
    checkpoint_every: int = setting(1000, "steps between checkpoints; the last step always makes one", low=1)
    keep_checkpoints: int = setting(3, "newest checkpoints that are kept", low=1)
    validate_every: int = setting(1000, "steps between validations, where there are validation images", low=1)
    validate_examples: int = setting(1000, "examples (image-caption pairs) of a validation, at most", low=1)
    log_every: int = setting(10, "steps that one line of figures sums up", low=1)
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "where the model computes; auto: CUDA where there is one")
    precision: Literal["auto", "fp32", "bf16"] = setting("auto", "auto: bf16 autocast on CUDA, fp32 on CPU")
    compile: Literal["auto", "on", "off"] = setting("auto", "torch.compile; auto: on CUDA")
    tensorboard: bool = setting(True, "write TensorBoard events beside metrics.jsonl")

    def __post_init__(self) -> None:
        check_ranges("run", self)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What is learned from, and how it is brought. Batch sizes are those of a step over all ranks together."""

    shards: tuple[str, ...] = setting((), "shard folders, trained together")
    corpus: str | None = setting(None, "corpus folder for text-only examples; none: captions only")
    tokenizer: str = setting("bert-base-uncased", "tokenizer.json, vocab.txt, a directory or a hub name")
    val_shards: tuple[str, ...] = setting((), "shard folders that are only validated on")
    val_fraction: float = setting(0.0, "share of images kept aside by a hash of their id", low=0.0, high=0.9)
    interleave: Literal["joint", "alternate"] = setting(
        "joint", "joint: captions and text in every step; alternate: steps of captions, then steps of text"
    )
    caption_batch: int = setting(32, "image-caption pairs of a step", low=0, high=2**20)
    text_batch: int = setting(32, "text-only examples of a step", low=0, high=2**20)
    caption_steps: int = setting(1, "alternate: so many steps of captions ...", low=1, high=2**20)
    text_steps: int = setting(1, "alternate: ... then so many steps of text", low=1, high=2**20)
    truncation: Literal["joint", "separate"] = setting(
        "joint", "joint: text and RoIs share max_length and the longer side loses first; separate: each its own limit"
    )
    max_length: int = setting(
        64, "joint: most positions of a sequence, [CLS], [SEP] and RoIs counted, [END] not", low=4, high=2**20
    )
    max_text: int = setting(64, "separate: most text tokens of an example, [CLS] and [SEP] counted", low=4, high=2**20)
    max_rois: int = setting(100, "most RoIs of an image, the most confident ones", low=0)
    text_windows: Literal["document", "flat", "lines-joined"] = setting(
        "document",
        "text-only examples: document cuts each document evenly; flat cuts the whole corpus, across documents; "
        "lines-joined begins one at every line, as the released code",
    )
    min_text_tokens: int = setting(8, "shorter remains of documents are left out", low=1, high=2**20)
    shuffle: Literal["global", "windows"] = setting(
        "global", "global: any image after any other; windows: within window_shards shards at a time"
    )
    window_shards: int = setting(8, "shards that are shuffled together where shuffle is windows", low=1)
    loader_threads: int = setting(2, "threads that read and mask ahead", low=1, high=256)
    prefetch_steps: int = setting(4, "steps that are made ready ahead", low=1, high=256)

    def __post_init__(self) -> None:
        check_ranges("data", self)
        if self.caption_batch + self.text_batch == 0:
            raise ConfigError("data.caption_batch and data.text_batch are both 0; a step needs at least one example.")
        if self.corpus is not None and self.text_batch == 0:
            raise ConfigError(
                "data.corpus is given but data.text_batch is 0; leave the corpus out or raise text_batch."
            )
        if self.interleave == "alternate" and 0 in (self.caption_batch, self.text_batch):
            raise ConfigError(
                "data.interleave is alternate, which needs data.caption_batch and data.text_batch above 0."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskingConfig:
    """What is asked. Source of the defaults: VL-BERT, section 3.3, and BERT, section 3.1."""

    word_share: float = setting(0.15, "share of words asked, whole words", low=0.0, high=1.0)
    word_mask_share: float = setting(0.8, "of the asked words, the share shown as [MASK]", low=0.0, high=1.0)
    word_random_share: float = setting(0.1, "of the asked words, the share shown as random tokens", low=0.0, high=1.0)
    roi_share: float = setting(0.15, "share of RoIs asked", low=0.0, high=1.0)
    roi_hide_share: float = setting(0.9, "of the asked RoIs, the share whose feature is hidden", low=0.0, high=1.0)
    leakage: Literal["overlap", "pixels", "published"] = setting(
        "overlap",
        "overlap: also hide RoIs that show a masked one, and average what is visible into the whole image; "
        "pixels: masked views made at build time; published: as the released code, neighbours stay visible",
    )
    roi_targets: Literal["auto", "required"] = setting(
        "auto", "auto: RoIs are masked where shards store their classes; required: shards without are refused"
    )
    overlap_threshold: float = setting(
        0.5, "overlap: a RoI is hidden too if this share of a masked RoI lies in it, or of it in one", low=0.0, high=1.0
    )

    def __post_init__(self) -> None:
        check_ranges("masking", self)
        if self.word_mask_share + self.word_random_share > 1.0 + 1e-9:
            raise ConfigError(
                f"masking.word_mask_share and word_random_share are {self.word_mask_share} and "
                f"{self.word_random_share}; together they must be at most 1: the rest is shown unchanged."
            )
        if self.word_share == 0.0 and self.roi_share == 0.0:
            raise ConfigError("masking.word_share and masking.roi_share are both 0; nothing would be asked.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The encoder's size; vocabulary, feature width and classes come from tokenizer and shards.

    Source of the defaults: VL-BERT-base, which is BERT-base.
    """

    hidden_size: int = setting(768, "width of the encoder", low=4, high=2**16)
    num_hidden_layers: int = setting(12, "Transformer layers", low=1, high=1000)
    num_attention_heads: int = setting(12, "attention heads of a layer", low=1, high=1024)
    intermediate_size: int = setting(3072, "width inside a layer's feed-forward part", low=1, high=2**20)
    max_position_embeddings: int = setting(512, "positions that have an embedding", low=4, high=2**20)
    hidden_dropout_prob: float = setting(0.1, "dropout of embeddings and layer outputs", low=0.0, high=0.99)
    attention_probs_dropout_prob: float = setting(0.1, "dropout of attention weights", low=0.0, high=0.99)
    feature_dropout_prob: float | None = setting(
        None,
        "dropout of RoIs' features and boxes before their projection; none: as hidden_dropout_prob",
        low=0.0,
        high=0.99,
    )
    initializer_range: float = setting(0.02, "spread of the first weights; narrow models want more", low=0.0, high=10.0)
    visual_gain_init: float = setting(
        0.0, "gain of the visual norms at the start; 0, as published: a model started from BERT begins blind", low=0.0
    )
    geometry_waves: int = setting(
        256,
        "wavelengths in which each of a box's four numbers is written before the projection; 256, as published: "
        "2,048 numbers, many beside narrow features",
        low=1,
        high=2**16,
    )
    attention: Literal["auto", "sdpa", "varlen"] = setting("auto", "attention kernel; auto: varlen where it can run")
    init_from: str | None = setting(None, "BERT or VL-BERT weights to start from: a directory or a hub name")

    def __post_init__(self) -> None:
        check_ranges("model", self)
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"model.hidden_size is {self.hidden_size}, model.num_attention_heads {self.num_attention_heads}; "
                "the width must be a multiple of the number of heads."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW, warm-up, decay and clipping. Source of the defaults: the published VL-BERT-base configuration."""

    peak_lr: float = setting(2.56e-5, "learning rate at the end of the warm-up, for the whole batch", low=0.0, high=1e3)
    warmup_steps: int = setting(16_000, "steps in which the learning rate rises linearly from 0", low=0)
    schedule: Literal["linear", "constant"] = setting(
        "linear", "after the warm-up: linear falls to 0 at decay_steps, constant stays"
    )
    decay_steps: int | None = setting(None, "step at which the learning rate is 0; none: run.steps", low=1)
    weight_decay: float = setting(1e-4, "decoupled weight decay, on all parameters", low=0.0, high=1e3)
    beta1: float = setting(0.9, "AdamW's decay of the mean gradient", low=0.0, high=0.999999999)
    beta2: float = setting(0.999, "AdamW's decay of the mean squared gradient", low=0.0, high=0.999999999)
    eps: float = setting(1e-6, "AdamW's epsilon", low=1e-30, high=1.0)
    clip_norm: float | None = setting(10.0, "largest global norm of the gradient; none: not clipped", low=1e-30)
    micro_batches: int = setting(1, "parts in which a rank computes its share of a step", low=1, high=2**20)

    def __post_init__(self) -> None:
        check_ranges("optim", self)


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """All settings of a run."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        decay = self.optim.decay_steps
        if decay is not None and decay <= self.optim.warmup_steps:
            raise ConfigError(
                f"optim.decay_steps is {decay}, optim.warmup_steps {self.optim.warmup_steps}; "
                "the learning rate must reach its peak before it reaches 0."
            )
        # Positions run over the text; all RoIs share the next one and [END] takes the one after (VL-BERT, section 3.2).
        longest = 2 + (self.data.max_length if self.data.truncation == "joint" else self.data.max_text)
        if longest > self.model.max_position_embeddings:
            raise ConfigError(
                f"model.max_position_embeddings is {self.model.max_position_embeddings}, but the limits of data allow "
                f"sequences that need {longest}. Raise it, or lower data.max_length and data.max_text."
            )

    def assigned(self, changes: Sequence[str]) -> "PretrainConfig":
        """Return this config with changes written as `section.name=value`, checked once, after the last of them.

        Raises:
            ConfigError: see `settings.parse_assignment`.
        """
        facts: dict[str, Any] = {}
        for change in changes:
            for section, names in parse_assignment(PretrainConfig, change).items():
                facts.setdefault(section, {}).update(names)
        return build(PretrainConfig, facts, self)

    def as_json(self) -> dict[str, Any]:
        """Return this config as JSON types."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def identity(self) -> dict[str, Any]:
        """Return `section.name` to value of all settings that decide the weights; where data lies is not among them."""
        flat = {f"{part}.{name}": value for part, names in self.as_json().items() for name, value in names.items()}
        return {name: value for name, value in flat.items() if name not in HOW}


# Settings that may change when a run is resumed: how far, how fast and where, not what is learned at a given step.
# The data themselves are known by the hashes in their manifests, not by their paths.
HOW = frozenset(
    {f"run.{name}" for name in RunConfig.__dataclass_fields__ if name != "seed"}
    | {f"data.{name}" for name in ("shards", "corpus", "tokenizer", "val_shards", "loader_threads", "prefetch_steps")}
    | {f"optim.{name}" for name in OptimConfig.__dataclass_fields__}
    | {"model.attention", "model.init_from"}
)


def from_json(facts: Mapping[str, Any], base: PretrainConfig | None = None) -> PretrainConfig:
    """Return the config that JSON or TOML types describe; what they leave out is as in `base`, or the default.

    Raises:
        ConfigError: a setting that is unknown, of another type, or out of range.
    """
    return build(PretrainConfig, facts, base)


def load_toml(path: Path, base: PretrainConfig | None = None) -> PretrainConfig:
    """Return the config in a TOML file; what it leaves out is as in `base`, or the default.

    Raises:
        ConfigError: missing, not TOML, or as `from_json`; the message names the file.
    """
    try:
        with path.open("rb") as stream:
            facts = tomllib.load(stream)
    except OSError as error:
        raise ConfigError(unreadable(path, error)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}.") from error
    try:
        return from_json(facts, base)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def preset_names() -> list[str]:
    """Return the names of the presets."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def preset(name: str) -> PretrainConfig:
    """Return a preset: `recipes/NAME.toml`, where its source and what it gives are written.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in preset_names():
        near = get_close_matches(name, preset_names(), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"there is no preset {name!r}; there are {', '.join(preset_names())}.{hint}")
    return load_toml(RECIPES / f"{name}.toml")


def to_toml(config: PretrainConfig) -> str:
    """Return the config as TOML; settings that are none are left out, since TOML has no such value."""
    lines = []
    for section, names in config.as_json().items():
        lines.append(f"[{section}]")
        # JSON's texts, numbers, truth values and lists of texts are TOML's too.
        lines += [f"{name} = {json.dumps(value)}" for name, value in names.items() if value is not None]
        lines.append("")
    return "\n".join(lines)


def with_data(config: PretrainConfig, **changes: Any) -> PretrainConfig:
    """Return the config with fields of its data section replaced."""
    return replace(config, data=replace(config.data, **changes))
