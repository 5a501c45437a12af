"""Which examples a step learns from. Promise: step k is computed alone, and every example comes once an epoch.

The examples of a kind, captions or texts, form one endless stream: epoch after epoch, each in an order of its own.
Steps cut it into batches, so a batch may end one epoch and begin the next, and nothing is left out or repeated.
"""

import functools
import itertools
from dataclasses import dataclass, field, replace

import numpy as np

from vlbert_data.errors import ConfigError
from vlbert_data.types import Array
from vlbert_train.config import DataConfig
from vlbert_train.hashing import Permutation, Words, stream_key, words

# Steps are planned in blocks of up to so many examples, of one epoch if that is less: a block of this size costs little
# more than one step alone.
BLOCK_EXAMPLES = 4096
BLOCKS_KEPT = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Picks:
    """Examples of one kind, in order: their numbers, int64 [n], and the epoch that each belongs to, int64 [n]."""

    examples: Array
    epochs: Array

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, part: slice) -> "Picks":
        return Picks(examples=self.examples[part], epochs=self.epochs[part])


NOTHING = Picks(examples=np.zeros(0, np.int64), epochs=np.zeros(0, np.int64))


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """The global batch of a step: caption examples and text examples."""

    step: int
    captions: Picks
    texts: Picks

    def part(self, number: int, parts: int) -> "StepPlan":
        """Return part `number` of `parts`, both kinds dealt evenly; the sizes of parts differ by at most one.

        Raises:
            ConfigError: the step has fewer examples than there are parts.
        """
        total = len(self.captions) + len(self.texts)
        if total < parts:
            raise ConfigError(
                f"a step of {len(self.captions)} captions and {len(self.texts)} texts cannot be cut into {parts} parts "
                "(ranks x micro-batches). Raise data.caption_batch or data.text_batch, or lower optim.micro_batches."
            )
        if parts == 1:
            return self
        first, last = number * total // parts, (number + 1) * total // parts
        # Dealt evenly, the first m examples of a step hold `_captions_before(m)` captions.
        begin, end = (self._captions_before(m, total) for m in (first, last))
        return replace(self, captions=self.captions[begin:end], texts=self.texts[first - begin : last - end])

    def _captions_before(self, m: int, total: int) -> int:
        return (2 * m * len(self.captions) + total) // (2 * total)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Stream:
    """All examples of a kind, epoch after epoch.

    shard_sizes: int64 [shards], how many examples each shard holds; examples 0 .. n - 1 are numbered through them.
    window_shards: none shuffles all examples together; w shuffles shards, then the examples of w shards at a time.
    """

    name: str
    seed: int
    shard_sizes: Array = field(repr=False)
    window_shards: int | None = None

    def __len__(self) -> int:
        return int(self.shard_sizes.sum())

    def at(self, positions: Array) -> Picks:
        """Return the examples that stand at `positions`, rising int64 [n], of the endless stream."""
        epochs, places = np.divmod(positions, len(self))
        examples = np.empty_like(places)
        # Positions rise, so the places of an epoch lie together.
        borders = [0, *(np.flatnonzero(np.diff(epochs)) + 1).tolist(), len(epochs)]
        for begin, end in itertools.pairwise(borders):
            examples[begin:end] = self._order(int(epochs[begin]), places[begin:end])
        return Picks(examples=examples, epochs=epochs)

    def _order(self, epoch: int, places: Array) -> Array:
        """Return the examples at `places`, rising int64 [n], of one epoch."""
        key = words(stream_key(self.seed, self.name), np.array([epoch]))
        if self.window_shards is None:
            return Permutation(size=len(self), key=key)(places)
        return self._order_in_windows(epoch, key, places, self.window_shards)

    def _order_in_windows(self, epoch: int, key: Words, places: Array, window_shards: int) -> Array:
        shard_key = words(stream_key(self.seed, f"{self.name}-shards"), np.array([epoch]))
        order = np.argsort(words(shard_key, np.arange(len(self.shard_sizes))), kind="stable")  # [shards]
        ends = np.cumsum(self.shard_sizes[order])  # [shards], in the places of this epoch
        windows = np.append(0, ends)[::window_shards]  # the place at which each window begins
        numbers = np.searchsorted(windows, places, side="right") - 1
        shuffled = np.empty_like(places)
        for number in range(int(numbers[0]), int(numbers[-1]) + 1):
            inside = slice(*np.searchsorted(numbers, [number, number + 1]).tolist())
            begin = windows[number]
            size = int(ends[min((number + 1) * window_shards, len(ends)) - 1] - begin)
            if size:
                permutation = Permutation(size=size, key=words(key, np.array([number])))
                shuffled[inside] = permutation(places[inside] - begin) + begin
        shard = np.searchsorted(ends, shuffled, side="right")
        first = np.cumsum(self.shard_sizes) - self.shard_sizes  # the number of each shard's first example
        examples: Array = first[order[shard]] + shuffled - (ends - self.shard_sizes[order])[shard]
        return examples


class Schedule:
    """The plan of a run: pure arithmetic from the numbers of examples and the settings.

    caption_shards, text_shards: int64 [shards], examples in each; of sum 0 where there are none of the kind.

    Raises:
        ConfigError: no examples at all, or none of a kind that the settings call for.
    """

    def __init__(self, data: DataConfig, seed: int, *, caption_shards: Array, text_shards: Array) -> None:
        window = data.window_shards if data.shuffle == "windows" else None
        self._data = data
        self._captions = Stream(
            name="order-captions", seed=seed, shard_sizes=caption_shards.astype(np.int64), window_shards=window
        )
        self._texts = Stream(
            name="order-text", seed=seed, shard_sizes=text_shards.astype(np.int64), window_shards=window
        )
        self._caption_batch = data.caption_batch if len(self._captions) else 0
        self._text_batch = data.text_batch if len(self._texts) else 0
        self._check()
        kinds = ((self._captions, self._caption_batch), (self._texts, self._text_batch))
        self._batches_a_block = {
            stream.name: max(1, min(BLOCK_EXAMPLES, len(stream)) // batch) for stream, batch in kinds if batch
        }
        # Keeping blocks changes no result; the caches may be asked by several threads.
        self._blocks = functools.lru_cache(BLOCKS_KEPT)(_block)

    def _check(self) -> None:
        kinds = {"captions (data.shards)": self._caption_batch, "texts (data.corpus)": self._text_batch}
        missing = [kind for kind, batch in kinds.items() if not batch]
        if self._data.interleave == "alternate" and missing:
            raise ConfigError(
                f"data.interleave is alternate, but there are no {missing[0]} to alternate with. "
                "Give both, or set data.interleave=joint."
            )
        if len(missing) == len(kinds):
            raise ConfigError(
                f"nothing to learn from: {len(self._captions)} caption examples in batches of "
                f"{self._data.caption_batch}, {len(self._texts)} text examples in batches of {self._data.text_batch}. "
                "Give data.shards or data.corpus with a batch size above 0."
            )

    @property
    def examples_a_step(self) -> int:
        """Return how many examples a step has, on average where kinds alternate, at least 1."""
        sizes = (self._caption_batch, self._text_batch)
        if self._data.interleave == "joint":
            return sum(sizes)
        weights = (self._data.caption_steps, self._data.text_steps)
        return max(1, sum(size * weight for size, weight in zip(sizes, weights, strict=True)) // sum(weights))

    def plan(self, step: int) -> StepPlan:
        """Return the global batch of step `step`, counted from 0."""
        assert step >= 0, f"step {step}: steps are counted from 0"
        if self._data.interleave == "joint":
            return StepPlan(step=step, captions=self._caption_picks(step), texts=self._text_picks(step))
        caption_steps, text_steps = self._data.caption_steps, self._data.text_steps
        cycle, place = divmod(step, caption_steps + text_steps)
        if place < caption_steps:
            picks = self._caption_picks(cycle * caption_steps + place)
            return StepPlan(step=step, captions=picks, texts=NOTHING)
        picks = self._text_picks(cycle * text_steps + place - caption_steps)
        return StepPlan(step=step, captions=NOTHING, texts=picks)

    def _caption_picks(self, number: int) -> Picks:
        return self._batch(self._captions, number, self._caption_batch)

    def _text_picks(self, number: int) -> Picks:
        return self._batch(self._texts, number, self._text_batch)

    def _batch(self, stream: Stream, number: int, batch: int) -> Picks:
        """Return batch `number` of a stream, cut out of its block."""
        if not batch:
            return NOTHING
        batches = self._batches_a_block[stream.name]
        block, place = divmod(number, batches)
        return self._blocks(stream, block, batches * batch)[place * batch : (place + 1) * batch]


def _block(stream: Stream, block: int, size: int) -> Picks:
    return stream.at(np.arange(block * size, (block + 1) * size))
