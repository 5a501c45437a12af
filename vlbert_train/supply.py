"""From the number of a step to its batches. Promise: a pure function; ranks, threads and micro-batches change nothing.

Text-only examples are numbered behind the caption examples: text i is example `num_caption_examples + i`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from vlbert_data.corpus import CorpusFolder
from vlbert_data.token_file import TokenRuns
from vlbert_data.tokenizer import TextTokenizer
from vlbert_data.types import Array, LabelSpace
from vlbert_data.windows import WindowIndex
from vlbert_train.assemble import Words, assemble
from vlbert_train.batch import Batch
from vlbert_train.captions import CaptionSet
from vlbert_train.config import PretrainConfig
from vlbert_train.hashing import Permutation, stream_key
from vlbert_train.masking import MaskKeys, mask_words
from vlbert_train.rois import Images, RoiRules, read_rois
from vlbert_train.schedule import NOTHING, Picks, Schedule
from vlbert_train.truncation import kept_lengths

# Text windows that are shuffled like the examples of one shard where shuffling is by windows of shards.
TEXTS_A_SHARD = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSet:
    """Text-only examples: windows 0 .. len - 1 of a corpus."""

    corpus: CorpusFolder
    windows: WindowIndex

    def __len__(self) -> int:
        return len(self.windows)

    def shard_sizes(self) -> Array:
        """Return int64 [shards]: the windows in runs of TEXTS_A_SHARD."""
        borders = np.append(np.arange(0, len(self), TEXTS_A_SHARD), len(self))
        return np.diff(borders)

    def tokens(self, windows: Array) -> TokenRuns:
        """Return the tokens of windows, int64 [n]."""
        return self.corpus.gather(*self.windows.spans(windows))


@dataclass(frozen=True, kw_only=True, slots=True)
class Meaning:
    """What the stored numbers mean, the same for all folders. labels_kept: K, 0 where RoIs have no classes."""

    tokenizer: TextTokenizer
    label_space: LabelSpace | None
    feature_dim: int
    labels_kept: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Sets:
    """Examples of both kinds, None where there are none of a kind."""

    captions: CaptionSet | None
    texts: TextSet | None = None

    @property
    def num_captions(self) -> int:
        """Return the number of caption examples."""
        return len(self.captions) if self.captions else 0

    @property
    def num_texts(self) -> int:
        """Return the number of text-only examples."""
        return len(self.texts) if self.texts else 0


class Supply:
    """All examples of a run, opened. Safe to use from several threads.

    training: None where nothing is trained on. limit: validation takes so many examples of a kind at most.
    """

    def __init__(
        self,
        config: PretrainConfig,
        meaning: Meaning,
        identity: Mapping[str, str],
        *,
        training: Sets | None,
        validation: Sets,
        limit: int | None = None,
    ) -> None:
        self._config, self._meaning, self._identity = config, meaning, dict(identity)
        self._training, self._validation = training, validation
        self._limit = limit
        self._keys = MaskKeys.training(config.run.seed)
        self._schedule = None
        if training:
            nothing = np.zeros(0, np.int64)
            self._schedule = Schedule(
                config.data,
                config.run.seed,
                caption_shards=training.captions.shard_sizes() if training.captions else nothing,
                text_shards=training.texts.shard_sizes() if training.texts else nothing,
            )
        special = meaning.tokenizer.special_ids
        self.mask_id, self.cls_id, self.sep_id, self.pad_id = special.mask, special.cls, special.sep, special.pad
        self.vocab_size = meaning.tokenizer.vocab_size
        self.label_space, self.feature_dim = meaning.label_space, meaning.feature_dim
        self.num_labels = meaning.label_space.num_classes if meaning.label_space else 0
        self.has_roi_targets = meaning.labels_kept > 0

    @property
    def num_caption_examples(self) -> int:
        """Return the number of (image, caption) pairs that are trained on, or measured where nothing is trained on."""
        return (self._training or self._validation).num_captions

    @property
    def num_text_examples(self) -> int:
        """Return the number of text-only examples that are trained on, or measured where nothing is trained on."""
        return (self._training or self._validation).num_texts

    @property
    def num_validation_examples(self) -> int:
        """Return the number of (image, caption) pairs that a validation takes."""
        num = self._validation.num_captions
        return num if self._limit is None else min(num, self._limit)

    @property
    def measured(self) -> Sets:
        """Return the examples that `validation_batches` is of."""
        return self._validation

    @property
    def tokenizer(self) -> TextTokenizer:
        """Return the tokenizer that texts are read with."""
        return self._meaning.tokenizer

    def identity(self) -> dict[str, str]:
        """Return hashes of what is learned from, by name; equal where a run may go on."""
        return dict(self._identity)

    def example_name(self, example: int) -> str:
        """Return what a person calls a training example that a batch names."""
        assert self._training is not None, "nothing is trained on"
        if self._training.captions and example < len(self._training.captions):
            return self._training.captions.name(example)
        assert self._training.texts is not None, f"no example has number {example}"
        return f"{self._training.texts.corpus.path} window {example - self._training.num_captions}"

    def batches(
        self, step: int, *, rank: int = 0, world_size: int = 1, micro_batches: int = 1, pin_memory: bool = False
    ) -> list[Batch]:
        """Return what `rank` of `world_size` computes in step `step`, in `micro_batches` batches.

        Raises:
            ConfigError: fewer examples in a step than ranks x micro-batches.
            ShardError: a shard or corpus file that is missing or damaged.
        """
        assert self._schedule is not None and self._training is not None, "nothing is trained on"
        plan, parts = self._schedule.plan(step), world_size * micro_batches
        found = []
        for number in range(rank * micro_batches, (rank + 1) * micro_batches):
            part = plan.part(number, parts)
            draft = _Draft(sets=self._training, captions=part.captions, texts=part.texts, keys=self._keys, step=step)
            found.append(self._make(draft, self._rules(pin_memory=pin_memory)))
        return found

    def validation_batches(
        self, *, rank: int = 0, world_size: int = 1, other_image: bool = False, text: bool = True
    ) -> Iterator[Batch]:
        """Yield this rank's share of what is held out, with masks that are the same at every call and in every run.

        other_image: captions only, each with the RoIs of another example's image; the same words are asked, RoIs are
        masked but not asked. Nothing comes where there is only one image. text: with text-only examples.
        """
        sets, data = self._validation, self._config.data
        size = max(1, (data.caption_batch + data.text_batch) // (world_size * self._config.optim.micro_batches))
        captions = self._held_out(sets.num_captions)
        if other_image and sets.captions and sets.captions.num_images < 2:
            return
        for first in range(rank * size, len(captions), world_size * size):
            yield self.measured_batch(captions[first : first + size], other_image=other_image)
        texts = self._held_out(sets.num_texts if text and not other_image else 0)
        for first in range(rank * size, len(texts), world_size * size):
            picks = _first_epoch(texts[first : first + size])
            yield self._make(
                _Draft(sets=sets, captions=NOTHING, texts=picks, keys=MaskKeys.validation()), self._rules()
            )

    def measured_batch(self, examples: Array, *, other_image: bool = False) -> Batch:
        """Return measured captions, int64 [n], as `validation_batches` brings them: the same words and RoIs masked."""
        draft = _Draft(
            sets=self._validation,
            captions=_first_epoch(examples),
            texts=NOTHING,
            keys=MaskKeys.validation(),
            other_image=other_image,
        )
        return self._make(draft, self._rules(asks=not other_image))

    def _held_out(self, num: int) -> Array:
        """Return which of `num` examples are measured, int64 rising: all, or as many as the limit, always the same."""
        if self._limit is None or num <= self._limit:
            return np.arange(num)
        return np.sort(Permutation(size=num, key=stream_key(0, "validation"))(np.arange(self._limit)))

    def _rules(self, *, asks: bool = True, pin_memory: bool = False) -> RoiRules:
        return RoiRules(
            masking=self._config.masking,
            feature_dim=self.feature_dim,
            num_labels=self.num_labels,
            labels_kept=self._meaning.labels_kept,
            asks=asks,
            pin_memory=pin_memory,
        )

    def _make(self, draft: "_Draft", rules: RoiRules) -> Batch:
        """Return the batch of a draft."""
        examples, epochs = draft.captions.examples, draft.captions.epochs
        tokens, images, order = self._read_captions(draft)
        if draft.sets.texts and len(draft.texts):
            tokens = _joined(tokens, draft.sets.texts.tokens(draft.texts.examples))
        examples = np.concatenate([examples[order], draft.texts.examples + draft.sets.num_captions])
        keys = draft.keys.of(examples, np.concatenate([epochs[order], draft.texts.epochs]))
        masked = mask_words(tokens, keys, self._config.masking, mask_id=self.mask_id, vocab_size=self.vocab_size)
        words = Words(tokens=tokens, masked=masked, cls_id=self.cls_id, sep_id=self.sep_id)
        rois = read_rois(images, keys.first(len(order)), rules, num_texts=len(draft.texts))
        return assemble(words, rois, examples, draft.step)

    def _read_captions(self, draft: "_Draft") -> tuple[TokenRuns, Images, Array]:
        """Return words and images of the captions, truncated, and the order in which they stand in the batch."""
        captions, examples = draft.sets.captions, draft.captions.examples
        if captions is None or not len(examples):
            nothing = np.zeros(0, np.int64)
            tokens = TokenRuns(ids=nothing, starts_word=np.zeros(0, np.bool_), cu_lengths=np.zeros(1, np.int64))
            return tokens, Images(folders=(), folder=nothing, image=nothing, stored=nothing, lengths=nothing), nothing
        located, data = captions.locate(examples), self._config.data
        folder, image = located.folder, located.image
        stored = captions.stored_rois(folder, image)
        text, rois = kept_lengths(captions.lengths(located) + 2, stored, data)
        if draft.other_image:
            folder, image = captions.other_images(examples)
            stored = captions.stored_rois(folder, image)
            # The words stay as they are with their own image; the other one's RoIs have what room is left.
            rois = kept_lengths(np.full_like(text, 2), stored, data)[1]
            if data.truncation == "joint":
                rois = np.minimum(rois, data.max_length - text)
        # RoIs are read folder by folder, so sequences are put in the order of their images' folders.
        order = np.argsort(folder, kind="stable") if len(captions.folders) > 1 else np.arange(len(folder))
        images = Images(
            folders=captions.folders,
            folder=folder[order],
            image=image[order],
            stored=stored[order],
            lengths=rois[order] - 1,
        )
        return captions.tokens(located.ordered(order), text[order] - 2), images, order


@dataclass(frozen=True, kw_only=True, slots=True)
class _Draft:
    """What a batch is to be made of."""

    sets: Sets
    captions: Picks
    texts: Picks
    keys: MaskKeys
    step: int = 0
    other_image: bool = False


def _first_epoch(examples: Array) -> Picks:
    return Picks(examples=examples, epochs=np.zeros_like(examples))


def _joined(first: TokenRuns, second: TokenRuns) -> TokenRuns:
    return TokenRuns(
        ids=np.concatenate([first.ids, second.ids]),
        starts_word=np.concatenate([first.starts_word, second.starts_word]),
        cu_lengths=np.concatenate([first.cu_lengths, second.cu_lengths[1:] + first.cu_lengths[-1]]),
    )
