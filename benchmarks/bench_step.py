"""bench_step: one training step of the base model, packed, against a plain padded one of the same model.

    python -m benchmarks.bench_step [--pairs 5] [--threads 2]

8 captions and 8 texts a step, float32, no dropout, clipping and AdamW included. `Plain` is the published layout as it
is usually written: every sequence padded to the longest, the vocabulary asked at every place of text, classes at every
place of a RoI, soft targets dense. Both begin with the same weights, and must give the same losses on every batch
before anything is measured.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common import compare, parser, pin_threads, report
from vlbert_data import runs
from vlbert_data.token_file import TokenRuns
from vlbert_train import optim
from vlbert_train.assemble import Layout, Words, pack
from vlbert_train.batch import Batch
from vlbert_train.config import PretrainConfig
from vlbert_train.distributed import World
from vlbert_train.learner import Learner, own_counts
from vlbert_train.loss import loss_sums
from vlbert_train.masking import MaskKeys, mask_rois, mask_words
from vlbert_train.model import VLBertForPreTraining, config_of, embed_geometry
from vlbert_train.rois import Rois
from vlbert_train.truncation import kept_lengths

VOCABULARY, CLASSES, KEPT, FEATURES = 30_522, 1601, 32, 2048
CLS, SEP, MASK, FIRST_WORD = 101, 102, 103, 1000
CAPTIONS, TEXTS, TEXT_LENGTH, MOST_ROIS = 8, 8, 64, 100
BATCHES = 2  # taken in turn, since lengths differ from batch to batch
NOT_ASKED = -1
SETTINGS = {
    "64 positions, as published": ("data.truncation=joint", "data.max_length=64"),
    "10-100 RoIs an image": ("data.truncation=separate", "data.max_text=64", f"data.max_rois={MOST_ROIS}"),
}


def main() -> None:
    """Measure both settings and keep the result."""
    options = parser(__doc__)
    options.add_argument("--threads", type=int, default=2, help="threads of either side")
    options.add_argument("--layers", type=int, default=12, help="fewer for a try, of which no result is kept")
    asked = options.parse_args()
    pin_threads(asked.threads)
    rows = [measure(name, changes, asked) for name, changes in SETTINGS.items()]
    notes = [
        f"{CAPTIONS} captions + {TEXTS} texts a step, {asked.threads} threads, {asked.layers} layers",
        "the targets are speed ratios of at least 1.25 at 64 positions and 1.6 with 10-100 RoIs an image",
    ]
    report("bench_step", rows, notes=notes, keep=not asked.dry and asked.layers == 12)


def measure(name: str, changes: tuple[str, ...], asked: Any) -> dict[str, Any]:
    """Return the row of one setting."""
    off = [f"model.{which}_dropout_prob=0.0" for which in ("hidden", "attention_probs")]
    config = PretrainConfig().assigned([*changes, *off, f"model.num_hidden_layers={asked.layers}"])
    batches = [make_batch(number, config) for number in range(BATCHES)]
    padded = [pad(batch) for batch in batches]
    model = make_model(config)
    plain = Plain(deepcopy(model))
    for batch, same in zip(batches, padded, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(plain(same), mean_losses(model, batch), rtol=1e-5, atol=0)
    learner = Learner(model, config, World())
    adamw = optim.make_adamw(plain.parameters(), config.optim)
    # A run is a pass over all batches, so that both sides of a pair have the same to do.
    ours: Callable[[], object] = lambda: [  # noqa: E731
        learner.step(number, [batch], own_counts([batch])) for number, batch in enumerate(batches)
    ]
    theirs: Callable[[], object] = lambda: [  # noqa: E731
        plain_step(plain, same, adamw, learner.learning_rate(number)) for number, same in enumerate(padded)
    ]
    found = compare(name, ours, theirs, pairs=asked.pairs, warm_up=True)
    return found.row(work=BATCHES * (CAPTIONS + TEXTS), unit="examples") | {
        "positions": sum(batch.num_slots for batch in batches) // BATCHES,
        "padded": sum(same.num_places for same in padded) // BATCHES,
    }


def make_model(config: PretrainConfig) -> VLBertForPreTraining:
    """Return the base model with random weights that look at features from the start."""
    torch.manual_seed(0)
    shape = config_of(config.model, vocab_size=VOCABULARY, feature_dim=FEATURES, num_labels=CLASSES, pad_id=0)
    shape.visual_gain_init = 1.0
    return VLBertForPreTraining(shape)


def mean_losses(model: VLBertForPreTraining, batch: Batch) -> Tensor:
    """Return the mean loss of each task, f32 [3]."""
    return loss_sums(model(batch), batch).sums / torch.tensor(own_counts([batch]))


def plain_step(plain: "Plain", batch: "Padded", adamw: torch.optim.AdamW, lr: float) -> None:
    """Take a step as it is usually written."""
    adamw.zero_grad()
    plain(batch).sum().backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 10.0)
    for group in adamw.param_groups:
        group["lr"] = lr
    adamw.step()


# Batches. Lengths of captions are like those of Conceptual Captions; texts are full windows.


def make_batch(number: int, config: PretrainConfig) -> Batch:
    """Return a batch of random words and RoIs, truncated and masked as in training."""
    rng = np.random.default_rng(number)
    text = np.clip(rng.normal(14, 5, CAPTIONS).round().astype(np.int64), 5, 40)  # [CLS] and [SEP] counted
    text, rois = kept_lengths(text, rng.integers(10, MOST_ROIS + 1, CAPTIONS), config.data)
    lengths = np.concatenate([text - 2, np.full(TEXTS, TEXT_LENGTH)])
    keys = MaskKeys.training(0).of(np.arange(CAPTIONS + TEXTS), np.full(CAPTIONS + TEXTS, number))
    tokens = TokenRuns(
        ids=rng.integers(FIRST_WORD, VOCABULARY, lengths.sum()),
        starts_word=rng.random(lengths.sum()) < 0.85,
        cu_lengths=runs.borders(lengths),
    )
    masked = mask_words(tokens, keys, config.masking, mask_id=MASK, vocab_size=VOCABULARY)
    words = Words(tokens=tokens, masked=masked, cls_id=CLS, sep_id=SEP)
    made = make_rois(rng, rois - 1, keys, config)
    features = np.maximum(rng.standard_normal((len(made.hidden) + CAPTIONS + TEXTS, FEATURES), np.float32), 0)
    packed = pack(words, made, Layout.of([CAPTIONS], [TEXTS]), np.arange(CAPTIONS + TEXTS))
    return packed.batch(0, torch.from_numpy(features.astype(np.float16)), step=number)


def make_rois(rng: np.random.Generator, lengths: Any, keys: MaskKeys, config: PretrainConfig) -> Rois:
    """Return RoIs of images of `lengths` RoIs, whole images not counted."""
    num = int(lengths.sum())
    asked, hidden = mask_rois(lengths, keys.those(np.arange(CAPTIONS)), config.masking)
    corners = np.sort(rng.random((num, 2, 2), np.float32), axis=1).reshape(num, 4)
    return Rois(
        features=cast(Any, None),  # not in a shard: given to the batch itself
        lengths=lengths,
        geometry=corners,
        hidden=hidden,
        asked=np.flatnonzero(asked),
        target_ids=np.stack([rng.permutation(CLASSES)[:KEPT] for _ in range(asked.sum())]),
        target_probs=rng.dirichlet(np.full(KEPT, 0.3), asked.sum()).astype(np.float32),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Padded:
    """The same batch, padded. n captions come first; B all sequences, T the longest text, R the most RoIs.

    tokens, labels: int64 [B, T]. is_text: bool [B, T]. features: f32 [n, R, F], geometry: f32 [n, R, 4], hidden,
    is_roi, asked: bool [n, R], targets: f32 [n, R, C]. The whole image is RoI 0.
    """

    tokens: Tensor
    labels: Tensor
    is_text: Tensor
    features: Tensor
    geometry: Tensor
    hidden: Tensor
    is_roi: Tensor
    asked: Tensor
    targets: Tensor

    @property
    def num_places(self) -> int:
        """Return how many places the encoder computes."""
        return len(self.tokens) * int(self.lengths().max())

    def lengths(self) -> Tensor:
        """Return int64 [B]: positions of each sequence."""
        rois = torch.zeros(len(self.tokens), dtype=torch.int64)
        rois[: len(self.is_roi)] = self.is_roi.sum(dim=1)
        return self.is_text.sum(dim=1) + rois + 1


def pad(batch: Batch) -> Padded:
    """Return a packed batch padded."""
    starts, ends = batch.cu_seqlens[:-1].long(), batch.end_slots
    text_lengths = torch.bincount(batch.token_sequence, minlength=batch.num_sequences)
    roi_lengths = (ends - starts - text_lengths)[:CAPTIONS]
    word = (batch.token_sequence, batch.token_slots - starts[batch.token_sequence])
    roi_starts = (starts + text_lengths)[:CAPTIONS]
    roi = (batch.roi_sequence, batch.roi_slots - roi_starts[batch.roi_sequence])

    def grid(values: Tensor, place: tuple[Tensor, Tensor], size: tuple[int, int], fill: float = 0) -> Tensor:
        return values.new_full((*size, *values.shape[1:]), fill).index_put(place, values)

    texts, rois = (batch.num_sequences, int(text_lengths.max())), (CAPTIONS, int(roi_lengths.max()))
    labels = torch.full((batch.num_slots,), NOT_ASKED).index_put((batch.word_target_slots,), batch.word_targets)
    asked = torch.zeros(batch.num_slots, dtype=torch.bool).index_fill(0, batch.roi_target_slots, True)
    dense = torch.zeros(len(batch.roi_target_slots), CLASSES).scatter(1, batch.roi_target_ids, batch.roi_target_probs)
    targets = torch.zeros(batch.num_slots, CLASSES).index_put((batch.roi_target_slots,), dense)
    return Padded(
        tokens=grid(batch.token_ids, word, texts),
        labels=grid(labels[batch.token_slots], word, texts, NOT_ASKED),
        is_text=grid(torch.ones_like(batch.token_ids, dtype=torch.bool), word, texts),
        features=grid(batch.roi_features.float(), roi, rois),
        geometry=grid(batch.roi_geometry, roi, rois),
        hidden=grid(batch.roi_hidden, roi, rois),
        is_roi=grid(torch.ones_like(batch.roi_hidden), roi, rois),
        asked=grid(asked[batch.roi_slots], roi, rois),
        targets=grid(targets[batch.roi_slots], roi, rois),
    )


class Plain(nn.Module):
    """VL-BERT over padded batches, with the layers of a packed model."""

    def __init__(self, model: VLBertForPreTraining) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Padded) -> Tensor:
        """Return the mean loss of each task, f32 [3]."""
        lengths = batch.lengths()
        place = torch.arange(int(lengths.max()))  # [L]
        hidden = self.embed(batch, place)
        is_real = (place < lengths[:, None])[:, None, None]  # [B, 1, 1, L]
        for layer in self.model.vlbert.encoder.layer:
            hidden = self.encode(layer, hidden, is_real)
        words = self.words(hidden[:, : batch.tokens.shape[1]])  # [B, T, V]
        losses = [
            functional.cross_entropy(words[part].flatten(0, 1), batch.labels[part].flatten(), ignore_index=NOT_ASKED)
            for part in (slice(0, CAPTIONS), slice(CAPTIONS, None))
        ]
        return torch.stack([*losses, self.roi_loss(hidden, batch, place)])

    def embed(self, batch: Padded, place: Tensor) -> Tensor:
        """Return [B, L, H]."""
        own = self.model.vlbert.embeddings
        masked = batch.hidden[..., None]
        features = torch.where(masked, own.hidden_roi_feature, batch.features)
        geometry = embed_geometry(batch.geometry.flatten(0, 1)).unflatten(0, batch.geometry.shape[:2])
        seen = functional.relu(own.roi_projection(torch.cat([geometry, features], dim=2)))  # [n, R, H]
        rois = torch.where(masked, own.hidden_roi_word, own.roi_word) + own.roi_visual_norm(seen)
        visual = torch.cat([seen[:, 0], own.text_visual.expand(TEXTS, -1)])[:, None]  # [B, 1, H]
        texts = own.words(batch.tokens) + own.text_visual_norm(visual.expand(-1, batch.tokens.shape[1], -1))
        text_ends = batch.is_text.sum(dim=1, keepdim=True)  # [B, 1]
        ends = batch.lengths()[:, None] - 1
        found = rois.new_zeros(len(texts), len(place), rois.shape[2])
        found[place < text_ends] = texts[batch.is_text]
        found[(place >= text_ends) & (place < ends)] = rois[batch.is_roi]
        found[place == ends] = own.end_word
        positions = torch.where(place == ends, text_ends + 1, torch.minimum(place, text_ends))
        segments = torch.where(place < text_ends, 0, 2)
        normed: Tensor = own.norm(found + own.positions(positions) + own.segments(segments))
        return normed

    def encode(self, layer: Any, hidden: Tensor, is_real: Tensor) -> Tensor:
        """Return [B, L, H] of a layer."""
        own = layer.attention.self
        q, k, v = (
            part(hidden).unflatten(2, (own.num_attention_heads, -1)).transpose(1, 2)
            for part in (own.query, own.key, own.value)
        )
        context = functional.scaled_dot_product_attention(q, k, v, attn_mask=is_real)
        attended = layer.attention.output(context.transpose(1, 2).flatten(2), hidden)
        found: Tensor = layer.output(layer.intermediate(attended), attended)
        return found

    def words(self, hidden: Tensor) -> Tensor:
        """Return logits [B, T, V] at every place of text."""
        logits: Tensor = self.model.word_head(hidden, self.model.vlbert.embeddings.words.weight)
        return logits

    def roi_loss(self, hidden: Tensor, batch: Padded, place: Tensor) -> Tensor:
        """Return the mean soft cross-entropy of asked RoIs, from logits at every place of one."""
        assert self.model.roi_head is not None
        text_ends = batch.is_text.sum(dim=1, keepdim=True)[:CAPTIONS]  # [n, 1]
        wanted = (text_ends + torch.arange(batch.is_roi.shape[1])).clamp(max=len(place) - 1)  # [n, R]
        rois = hidden[:CAPTIONS].gather(1, wanted[..., None].expand(-1, -1, hidden.shape[2]))
        log_probs = self.model.roi_head(rois).log_softmax(dim=2)  # [n, R, C]
        losses = -(batch.targets * log_probs).sum(dim=2)
        return losses[batch.asked].mean()


if __name__ == "__main__":
    main()
