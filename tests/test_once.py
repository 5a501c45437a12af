"""Results made once, whoever asks."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vlbert_train.once import Once


def test_threads_that_ask_at_once_wait_for_one_result() -> None:
    made: list[int] = []
    gate = threading.Barrier(4)

    def make(key: int) -> list[int]:
        made.append(key)
        time.sleep(0.05)
        return [key]

    results = Once(make, keep=2)

    def ask(_: int) -> list[int]:
        gate.wait()
        return results(7)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    assert made == [7]
    assert all(result is found[0] for result in found)


def test_the_results_asked_for_last_are_kept() -> None:
    made: list[int] = []
    results = Once(made.append, keep=2)
    for key in (1, 2, 1, 3, 1, 2):
        results(key)
    assert made == [1, 2, 3, 2]


def test_an_error_is_raised_to_all_and_made_good_at_the_next_call() -> None:
    tries: list[int] = []

    def make(key: int) -> int:
        tries.append(key)
        if len(tries) == 1:
            raise ValueError("not now")
        return key

    results = Once(make, keep=2)
    with pytest.raises(ValueError, match="not now"):
        results(5)
    assert results(5) == 5
    assert tries == [5, 5]
