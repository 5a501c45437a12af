"""From the number of a step to its batches. Promise: a pure function; ranks, threads and micro-batches change nothing.

Text-only examples are numbered behind the caption examples: text i is example `num_caption_examples + i`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from vlbert_data.tokenizer import TextTokenizer
from vlbert_data.types import Array
from vlbert_train.batch import Batch
from vlbert_train.config import PretrainConfig
from vlbert_train.group import Draft, Group, Maker
from vlbert_train.hashing import Permutation, stream_key
from vlbert_train.masking import MaskKeys, NamedWords
from vlbert_train.once import Once
from vlbert_train.schedule import NOTHING, Picks, Schedule
from vlbert_train.sets import Meaning, Sets

# Steps are made in groups of about so many sequences and batches: larger ones would be no faster.
SEQUENCES_A_GROUP = 3072
BATCHES_A_GROUP = 48
# The one in use, the one planned ahead, and the one before, of which threads may still be making batches.
GROUPS_KEPT = 3


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
        self._maker = Maker(data=config.data, masking=config.masking, meaning=meaning)
        self._groups = Once(self._make_group, keep=GROUPS_KEPT)
        special = meaning.tokenizer.special_ids
        self.mask_id, self.cls_id, self.sep_id, self.pad_id = special.mask, special.cls, special.sep, special.pad
        self.vocab_size = meaning.tokenizer.vocab_size
        self.label_space, self.feature_dim = meaning.label_space, meaning.feature_dim
        self.num_labels = meaning.num_labels
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

    @property
    def num_validation_texts(self) -> int:
        """Return the number of text-only examples that a validation takes."""
        num = self._validation.num_texts
        return num if self._limit is None else min(num, self._limit)

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
        group = self.prepare(step, rank=rank, world_size=world_size, micro_batches=micro_batches)
        first = step % self._steps_a_group(world_size, micro_batches) * micro_batches
        return [group.batch(number, pin_memory=pin_memory) for number in range(first, first + micro_batches)]

    def prepare(self, step: int, *, rank: int = 0, world_size: int = 1, micro_batches: int = 1) -> Group:
        """Return the group of steps that `step` is in, planned now if it was not: what `batches` then cuts up."""
        steps = self._steps_a_group(world_size, micro_batches)
        return self._groups((step // steps, rank, world_size, micro_batches))

    def next_group(self, step: int, *, world_size: int = 1, micro_batches: int = 1) -> int:
        """Return the first step of the group after the one that `step` is in."""
        steps = self._steps_a_group(world_size, micro_batches)
        return (step // steps + 1) * steps

    def _steps_a_group(self, world_size: int, micro_batches: int) -> int:
        assert self._schedule is not None, "nothing is trained on"
        steps = SEQUENCES_A_GROUP * world_size // self._schedule.examples_a_step
        return max(1, min(steps, BATCHES_A_GROUP // micro_batches))

    def _make_group(self, key: tuple[int, int, int, int]) -> Group:
        """Return group number `key[0]` of the steps of `rank`; key: number, rank, world size, micro-batches."""
        assert self._schedule is not None and self._training is not None, "nothing is trained on"
        number, rank, world_size, micro_batches = key
        size = self._steps_a_group(world_size, micro_batches)
        parts = [
            self._schedule.plan(step).part(part, world_size * micro_batches)
            for step in range(number * size, (number + 1) * size)
            for part in range(rank * micro_batches, (rank + 1) * micro_batches)
        ]
        return self._maker.make(
            Draft(
                sets=self._training,
                keys=self._keys,
                captions=[part.captions for part in parts],
                texts=[part.texts for part in parts],
                steps=[part.step for part in parts],
            )
        )

    def validation_batches(
        self, *, rank: int = 0, world_size: int = 1, other_image: bool = False, text: bool = True, draw: int = 0
    ) -> Iterator[Batch]:
        """Yield this rank's share of what is held out, with masks that are the same at every call and in every run.

        other_image: captions only, each with the RoIs of another example's image; the same words are asked, RoIs are
        masked but not asked. Nothing comes where there is only one image. text: with text-only examples. draw: masks of
        another number are drawn independently.
        """
        sets, data = self._validation, self._config.data
        size = max(1, (data.caption_batch + data.text_batch) // (world_size * self._config.optim.micro_batches))
        captions = self._held_out(sets.num_captions)
        if other_image and sets.captions and sets.captions.num_images < 2:
            return
        for first in range(rank * size, len(captions), world_size * size):
            yield self.measured_batch(captions[first : first + size], other_image=other_image, draw=draw)
        texts = self._held_out(sets.num_texts if text and not other_image else 0)
        for first in range(rank * size, len(texts), world_size * size):
            yield self._held_out_batch(NOTHING, _epoch(texts[first : first + size], draw))

    def measured_batch(self, examples: Array, *, other_image: bool = False, draw: int = 0) -> Batch:
        """Return measured captions, int64 [n], as `validation_batches` brings them: the same words and RoIs masked."""
        return self._held_out_batch(_epoch(examples, draw), NOTHING, other_image=other_image)

    def named_word_batches(self, named: Array, *, other_image: bool = False) -> Iterator[Batch]:
        """Yield what is held out once for each named word in it: that word alone is hidden, no RoI is.

        named: bool [V], the tokens that are named words. other_image: as in `validation_batches`.
        """
        sets, data = self._validation, self._config.data
        if sets.captions is None or (other_image and sets.captions.num_images < 2):
            return
        masking = replace(self._config.masking, word_share=1.0, roi_share=0.0)
        maker = Maker(data=data, masking=masking, meaning=self._meaning)
        size, held_out = max(1, data.caption_batch + data.text_batch), self._held_out(sets.num_captions)
        for first in range(0, len(held_out), size):
            examples, number = held_out[first : first + size], 0
            while len(examples):
                draft = Draft(
                    sets=sets,
                    keys=MaskKeys.validation(),
                    captions=[_epoch(examples, 0)],
                    texts=[NOTHING],
                    steps=[0],
                    other_image=other_image,
                    named=NamedWords(tokens=named, number=number),
                )
                batch = maker.make(draft).batch(0)
                yield batch
                # Captions without a word of this number have none of the next.
                examples, number = _asking(batch), number + 1

    def _held_out_batch(self, captions: Picks, texts: Picks, *, other_image: bool = False) -> Batch:
        draft = Draft(
            sets=self._validation,
            keys=MaskKeys.validation(),
            captions=[captions],
            texts=[texts],
            steps=[0],
            other_image=other_image,
        )
        return self._maker.make(draft).batch(0)

    def _held_out(self, num: int) -> Array:
        """Return which of `num` examples are measured, int64 rising: all, or as many as the limit, always the same."""
        if self._limit is None or num <= self._limit:
            return np.arange(num)
        return np.sort(Permutation(size=num, key=stream_key(0, "validation"))(np.arange(self._limit)))


def _asking(batch: Batch) -> Array:
    """Return the examples of a batch that have an asked word, int64, in the batch's order."""
    slots = batch.word_target_slots.numpy()
    sequences = np.unique(np.searchsorted(batch.cu_seqlens.numpy(), slots, side="right") - 1)
    found: Array = batch.example_ids.numpy()[sequences]
    return found


def _epoch(examples: Array, number: int) -> Picks:
    return Picks(examples=examples, epochs=np.full_like(examples, number))
