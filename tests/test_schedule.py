"""Which examples steps learn from: counted out one by one, against arithmetic."""

import itertools
import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlbert_data.errors import ConfigError
from vlbert_data.types import Array
from vlbert_train.config import DataConfig
from vlbert_train.schedule import Picks, Schedule, StepPlan, Stream


def make_schedule(captions: list[int], texts: list[int], seed: int = 0, **changes: object) -> Schedule:
    data = DataConfig(corpus="books" if texts else None, **changes)  # type: ignore[arg-type]
    return Schedule(data, seed, caption_shards=np.array(captions), text_shards=np.array(texts, np.int64))


def streams(schedule: Schedule, steps: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return (epoch, example) of all captions and all texts of the first steps."""
    plans = [schedule.plan(step) for step in range(steps)]
    return tuple(
        [pair for plan in plans for pair in zip(of(plan).epochs.tolist(), of(plan).examples.tolist(), strict=True)]
        for of in (lambda plan: plan.captions, lambda plan: plan.texts)
    )  # type: ignore[return-value]


def same(a: StepPlan, b: StepPlan) -> bool:
    pairs = ((getattr(plan, kind) for plan in (a, b)) for kind in ("captions", "texts"))
    return all(np.array_equal(x.examples, y.examples) and np.array_equal(x.epochs, y.epochs) for x, y in pairs)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any),
    st.integers(1, 30),
    st.sampled_from(["global", "windows"]),
    st.integers(1, 10),
    st.integers(0, 2**63 - 1),
)
def test_every_example_comes_exactly_once_an_epoch(
    shards: list[int], batch: int, shuffle: str, window: int, seed: int
) -> None:
    schedule = make_schedule(shards, [], seed, caption_batch=batch, shuffle=shuffle, window_shards=window)
    num = sum(shards)
    steps = -(-3 * num // batch)
    stream, _ = streams(schedule, steps)
    for epoch in range(3):
        assert [place for place, pair in enumerate(stream) if pair[0] == epoch][:1] == [epoch * num]
        assert sorted(example for _, example in stream[epoch * num : (epoch + 1) * num]) == list(range(num))


def test_any_step_computed_alone_is_the_step_of_the_run() -> None:
    for shuffle in ("global", "windows"):
        settings_ = {"shuffle": shuffle, "window_shards": 2, "caption_batch": 30, "text_batch": 7}
        run = make_schedule([90, 11, 250, 64], [33, 90], **settings_)
        plans = [run.plan(step) for step in range(700)]
        for step in (699, 0, 137, 136, 300, 14):
            assert same(make_schedule([90, 11, 250, 64], [33, 90], **settings_).plan(step), plans[step])


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    for shuffle in ("global", "windows"):
        orders = []
        for seed in (0, 1):
            stream, _ = streams(make_schedule([100, 100, 100], [], seed, caption_batch=60, shuffle=shuffle), 10)
            orders += [tuple(example for _, example in stream[:300]), tuple(example for _, example in stream[300:])]
        assert len(set(orders)) == 4
        assert all(order != tuple(range(300)) for order in orders)


def test_windows_shuffle_so_many_shards_at_a_time_and_no_more() -> None:
    shards = [50, 40, 60, 30, 20, 55, 45]
    shard_of = np.repeat(np.arange(len(shards)), shards)
    schedule = make_schedule(shards, [], caption_batch=100, shuffle="windows", window_shards=3)
    stream, _ = streams(schedule, 6)
    seen = []
    for epoch in (0, 1):
        order = shard_of[[example for _, example in stream[epoch * 300 : (epoch + 1) * 300]]].tolist()
        first_seen = list(dict.fromkeys(order))
        windows, place = [], 0
        for begin in range(0, len(shards), 3):
            # A window ends when all examples of the shards that it has touched have come.
            size = 0
            while size != sum(shards[s] for s in set(order[place : place + size])) or not size:
                size += 1
            windows.append(set(order[place : place + size]))
            place += size
            assert len(windows[-1]) == min(3, len(shards) - begin)
        assert place == 300
        assert len(first_seen) == len(shards)
        # Within a window shards are mixed, not read one after another.
        assert sum(a != b for a, b in itertools.pairwise(order)) > 100
        seen.append(windows)
    assert seen[0] != seen[1]


def test_joint_brings_both_kinds_in_every_step_at_any_ratio() -> None:
    for captions, texts in ((5, 5), (3, 9), (8, 1)):
        schedule = make_schedule([40], [17], caption_batch=captions, text_batch=texts)
        for step in range(50):
            plan = schedule.plan(step)
            assert (len(plan.captions), len(plan.texts)) == (captions, texts)


@pytest.mark.parametrize(("a", "b"), [(1, 1), (3, 1), (2, 5)])
def test_alternate_is_a_caption_steps_then_b_text_steps_and_loses_nothing(a: int, b: int) -> None:
    schedule = make_schedule(
        [40], [17], interleave="alternate", caption_steps=a, text_steps=b, caption_batch=6, text_batch=4
    )
    cycles = 30
    kinds = []
    for step in range(cycles * (a + b)):
        plan = schedule.plan(step)
        assert {len(plan.captions), len(plan.texts)} in ({0, 6}, {0, 4})
        kinds.append("c" if len(plan.captions) else "t")
    assert "".join(kinds) == ("c" * a + "t" * b) * cycles
    captions, texts = streams(schedule, cycles * (a + b))
    for stream, size in ((captions, 40), (texts, 17)):
        counts = Counter(stream)
        assert set(counts.values()) == {1}
        assert stream == sorted(stream, key=lambda pair: pair[0])
        assert len({pair for pair in counts if pair[0] == 0}) == size


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 12))
def test_parts_cover_a_step_once_and_evenly(captions: int, texts: int, parts: int) -> None:
    def picks(num: int) -> Picks:
        return Picks(examples=np.arange(num), epochs=np.zeros(num, np.int64))

    plan = StepPlan(step=3, captions=picks(captions), texts=picks(texts))
    if captions + texts < parts:
        with pytest.raises(ConfigError, match=f"cannot be cut into {parts} parts"):
            plan.part(0, parts)
        return
    cut = [plan.part(number, parts) for number in range(parts)]
    for kind, num in (("captions", captions), ("texts", texts)):
        found = [getattr(part, kind).examples for part in cut]
        assert np.concatenate(found).tolist() == list(range(num))
        sizes = [len(examples) for examples in found]
        assert max(sizes) - min(sizes) <= 2
    sizes = [len(part.captions) + len(part.texts) for part in cut]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


def test_a_kind_that_is_absent_leaves_its_half_of_the_step_empty() -> None:
    plan = make_schedule([40], [], caption_batch=8, text_batch=8).plan(0)
    assert (len(plan.captions), len(plan.texts)) == (8, 0)
    plan = make_schedule([], [40], caption_batch=8, text_batch=8).plan(0)
    assert (len(plan.captions), len(plan.texts)) == (0, 8)


def test_settings_that_leave_nothing_to_learn_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"nothing to learn from: 0 caption examples .* Give data\.shards"):
        make_schedule([0], [])
    with pytest.raises(ConfigError, match=r"no texts \(data\.corpus\) to alternate with"):
        make_schedule([40], [], interleave="alternate")


def test_step_one_million_of_3_million_examples_takes_a_moment_and_little_memory() -> None:
    shards: Array = np.full(3300, 1000)
    for shuffle in ("global", "windows"):
        data = DataConfig(caption_batch=128, text_batch=128, corpus="wiki", shuffle=shuffle)  # type: ignore[arg-type]
        tracemalloc.start()
        begin = time.perf_counter()
        schedule = Schedule(data, 0, caption_shards=shards, text_shards=np.full(700, 2**16))
        plan = schedule.plan(1_000_000)
        elapsed = time.perf_counter() - begin
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert plan.captions.epochs.tolist() == [(1_000_000 * 128 + i) // 3_300_000 for i in range(128)]
        assert elapsed < 0.5
        assert peak < 4 << 20


def test_a_stream_gives_any_positions_however_they_are_asked() -> None:
    stream = Stream(name="order-captions", seed=5, shard_sizes=np.array([30, 20, 25]), window_shards=2)
    whole = stream.at(np.arange(300))
    for positions in (np.array([17]), np.array([3, 74, 75, 149, 290]), np.arange(70, 160)):
        found = stream.at(positions)
        assert np.array_equal(found.examples, whole.examples[positions])
        assert np.array_equal(found.epochs, positions // 75)
