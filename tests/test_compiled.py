"""Compiled loops compute what numpy computes."""

import numpy as np

from vlbert_data.addresses import address
from vlbert_data.compiled import compiled, float_to_half, half_to_float
from vlbert_data.copies import copy_runs
from vlbert_data.types import Array


@compiled
def widened(bits: Array, found: Array) -> None:
    for place in range(len(bits)):
        found[place] = half_to_float(bits[place])


@compiled
def narrowed(numbers: Array, found: Array) -> None:
    for place in range(len(numbers)):
        found[place] = float_to_half(numbers[place])


def test_every_float16_becomes_the_float32_that_numpy_makes_of_it() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    found = np.empty(len(bits), np.float32)
    widened(bits, found)
    assert np.array_equal(found, bits.view(np.float16).astype(np.float32), equal_nan=True)


def test_float32_becomes_the_float16_that_numpy_makes_of_it() -> None:
    exact = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    exact = exact[np.isfinite(exact)]
    # Between two neighbours lies a tie; beside it, what is rounded up and what is rounded down.
    ties = np.sort(exact)[:-1] + np.diff(np.sort(exact)) / 2
    numbers = np.concatenate([exact, ties, np.nextafter(ties, np.inf), np.nextafter(ties, -np.inf), [1e6, -np.inf]])
    numbers = numbers.astype(np.float32)
    found = np.empty(len(numbers), np.uint16)
    narrowed(numbers, found)
    with np.errstate(over="ignore"):
        assert np.array_equal(found, numbers.astype(np.float16).view(np.uint16))


def test_runs_are_copied_to_where_they_belong() -> None:
    source, target = np.arange(1000, dtype=np.uint8), np.zeros(1000, np.uint8)
    begins, sizes, places = np.array([5, 900, 0, 40]), np.array([10, 99, 0, 1]), np.array([500, 0, 7, 999])
    copy_runs(address(target) + places, address(source) + begins, sizes)
    wanted = np.zeros(1000, np.uint8)
    for begin, size, place in zip(begins, sizes, places, strict=True):
        wanted[place : place + size] = source[begin : begin + size]
    assert np.array_equal(target, wanted)


def test_a_loop_that_cannot_be_kept_is_compiled_all_the_same() -> None:
    space: dict[str, object] = {}
    exec("def doubled(numbers):\n    for place in range(len(numbers)):\n        numbers[place] *= 2\n", space)
    numbers = np.arange(4)
    compiled(space["doubled"])(numbers)  # type: ignore[type-var, operator]
    assert numbers.tolist() == [0, 2, 4, 6]


def test_division_by_zero_gives_what_numpy_gives() -> None:
    @compiled
    def divided(numbers: Array, by: Array) -> None:
        for place in range(len(numbers)):
            numbers[place] /= by[place]

    numbers = np.array([1.0, 0.0])
    divided(numbers, np.zeros(2))
    assert np.isposinf(numbers[0])
    assert np.isnan(numbers[1])
