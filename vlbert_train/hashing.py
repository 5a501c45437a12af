"""Randomness as a hash. Promise: equal arguments give equal numbers on every machine, in any order, on any thread.

A word is 64 random bits. Everything starts from the key of a named stream, such as "word-mask"; a key and a counter
give a word, and any word may serve as the key of a deeper level:

    key = stream_key(seed, "word-mask")                  # one for a run
    examples = words(words([key], epochs), examples)     # uint64 [B], one for each example of an epoch
    chances = uniforms(words(examples[owner], position)) # float64 [T], one for each token

Streams in use: order-captions, order-text and their -shards (schedule), word-mask, word-replacement, roi-mask, view
(masking), validation (examples).
"""

import hashlib
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlbert_data.compiled import compiled

Words = NDArray[np.uint64]

# SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014), figures 16 and 17:
# the odd number nearest to 2^64 / golden ratio, and the finaliser that Stafford published as "variant 13".
GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
ONE = np.uint64(1)
SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))

# Feistel rounds. Four give a pseudorandom permutation when round functions are random (Luby and Rackoff, 1988) and
# their halves are large. Small sizes need more: at size 6 all 720 orders are equally frequent (chi-square over 43,200
# keys) from 16 rounds on, at 6 rounds not nearly.
ROUNDS = 6
ROUNDS_SMALL = 16
SMALL_SIZE = 1024


@compiled
def mix(state: Words) -> Words:
    """Return SplitMix64's finaliser of `state`, uint64 [n]: a bijection that looks random."""
    mixed = np.empty_like(state)
    for place in range(len(state)):
        mixed[place] = _mix(state[place])
    return mixed


@compiled
def _mix(word: np.uint64) -> np.uint64:
    word = (word ^ (word >> SHIFTS[0])) * MULTIPLIERS[0]
    word = (word ^ (word >> SHIFTS[1])) * MULTIPLIERS[1]
    return word ^ (word >> SHIFTS[2])


def words(keys: Words, counters: NDArray[Any]) -> Words:
    """Return a word for each (key, counter), uint64 [n]: number `counter` that SplitMix64 gives when seeded with key.

    keys: uint64 [n] or [1]. counters: integers [n] or [1], 0 .. 2^63 - 1. For one key, different counters give
    different words.
    """
    sizes = {len(keys), len(counters)} - {1}
    assert len(sizes) <= 1, f"{len(keys)} keys for {len(counters)} counters"
    found = np.empty(sizes.pop() if sizes else 1, np.uint64)
    _words(keys, counters.astype(np.uint64, copy=False), found)
    return found


@compiled
def _words(keys: Words, counters: Words, found: Words) -> None:
    # Of a single key or counter, place 0 serves all.
    all_keys, all_counters = min(len(keys) - 1, 1), min(len(counters) - 1, 1)
    for place in range(len(found)):
        found[place] = _word(keys[place * all_keys], counters[place * all_counters])


@compiled
def _word(key: np.uint64, counter: np.uint64) -> np.uint64:
    return _mix((counter + ONE) * GOLDEN_GAMMA + key)


def stream_key(seed: int, stream: str) -> Words:
    """Return the key of a named stream, uint64 [1]; seed: 0 .. 2^63 - 1."""
    name = hashlib.blake2b(stream.encode(), digest_size=8).digest()
    return words(np.frombuffer(name, "<u8").astype(np.uint64), np.array([seed]))


def uniforms(random: Words) -> NDArray[np.float64]:
    """Return float64, of the shape of the words, in [0, 1): the upper 53 bits of each."""
    return np.asarray((random >> np.uint64(11)) * 2.0**-53, np.float64)


def uniforms_of_runs(keys: Words, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return float64 [sum of lengths] in [0, 1): for each position of each run that of `words([key], [position])`.

    keys: uint64 [n], of runs of so many positions, int64 [n], which count from 0 in each run.
    """
    found = np.empty(int(lengths.sum()))
    _uniforms_of_runs(keys, lengths, found)
    return found


@compiled
def _uniforms_of_runs(keys: Words, lengths: NDArray[np.int64], found: NDArray[np.float64]) -> None:
    first = 0
    for number, length in enumerate(lengths):
        key, run = keys[number], found[first : first + length]
        for position in range(length):
            run[position] = (_word(key, np.uint64(position)) >> np.uint64(11)) * 2.0**-53
        first += length


def below(random: Words, limit: int) -> NDArray[np.int64]:
    """Return int64, of the shape of the words, in 0 .. limit - 1; limit: 1 .. 2^32, no number likelier by 2^-20."""
    return (uniforms(random) * limit).astype(np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Permutation:
    """A random order of 0 .. size - 1 that is computed for the asked positions only, in constant memory.

    key: uint64 [1]. Source: Black and Rogaway, "Ciphers with arbitrary finite domains" (CT-RSA 2002): a Feistel network
    over pairs (left, right) of Z_a x Z_b with a * b a little above size, walked on until the result is below size.
    """

    size: int
    key: Words

    def __call__(self, positions: NDArray[Any]) -> NDArray[np.int64]:
        """Return the items, int64 [n], that stand at `positions`, integers [n] in 0 .. size - 1."""
        a = np.uint64(isqrt(self.size - 1) + 1)
        b = np.uint64(-(-self.size // int(a)))
        round_keys = words(self.key, np.arange(ROUNDS_SMALL if self.size < SMALL_SIZE else ROUNDS))
        items = np.empty(len(positions), np.int64)
        _permute(positions.astype(np.uint64), np.uint64(self.size), (a, b), round_keys, items)
        return items


@compiled
def _permute(
    positions: Words, size: np.uint64, sides: tuple[np.uint64, np.uint64], round_keys: Words, items: NDArray[np.int64]
) -> None:
    a, b = sides
    for place in range(len(positions)):
        state = positions[place]
        while True:
            # The network, a bijection of 0 .. a * b - 1: left in 0 .. b - 1, right in 0 .. a - 1, at first.
            left, right = state % a, state // a
            for number in range(0, len(round_keys), 2):
                left = (left + _word(round_keys[number], right) % a) % a
                right = (right + _word(round_keys[number + 1], left) % b) % b
            state = right * a + left
            if state < size:
                break
        items[place] = state
