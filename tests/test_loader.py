"""Batches made ahead: the same ones in the same order, errors where they belong, and waiting counted."""

import threading
import time
from pathlib import Path

import pytest
import torch
from tiny_run import Data, make_data

from vlbert_data.errors import ShardError
from vlbert_data.shards.folder import ShardFolder
from vlbert_train.batch import Batch
from vlbert_train.examples import open_supply
from vlbert_train.group import Group
from vlbert_train.loader import Loader
from vlbert_train.once import Once
from vlbert_train.supply import GROUPS_KEPT, Supply

STEPS = 25


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return make_data(tmp_path_factory.mktemp("data"))


def supply_of(data: Data, *changes: str) -> Supply:
    return open_supply(data.config(*changes), cache_dir=data.shards.parent / "cache")


def equal(ours: Batch, theirs: Batch) -> bool:
    pairs = ((getattr(ours, name), getattr(theirs, name)) for name in Batch.__dataclass_fields__)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 1), (1, 5), (3, 2), (4, 9)])
def test_threads_bring_the_steps_in_order_and_change_nothing(data: Data, threads: int, prefetch: int) -> None:
    alone = supply_of(data)
    with Loader(
        supply_of(data), first_step=7, last_step=STEPS, micro_batches=2, threads=threads, prefetch_steps=prefetch
    ) as loader:
        found = list(loader)
    assert [[batch.step for batch in batches] for batches in found] == [[step] * 2 for step in range(7, STEPS)]
    for step, batches in enumerate(found, 7):
        assert all(map(equal, batches, alone.batches(step, micro_batches=2)))


def test_no_more_than_the_prefetched_steps_are_made_ahead(data: Data) -> None:
    made: list[int] = []

    class Watched(Supply):
        def batches(self, step: int, **settings: int) -> list[Batch]:  # type: ignore[override]
            made.append(step)
            return super().batches(step, **settings)

    supply = supply_of(data)
    supply.__class__ = Watched
    with Loader(supply, first_step=0, last_step=100, threads=2, prefetch_steps=3) as loader:
        for step, _ in enumerate(loader):
            time.sleep(0.005)
            assert max(made) <= step + 3
            if step == 20:
                break
    # Leaving it ends its threads, also with steps still to come.
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_groups_are_planned_ahead_and_only_once(data: Data) -> None:
    made: list[int] = []

    class Watched(Supply):
        def _make_group(self, key: tuple[int, int, int, int]) -> Group:
            made.append(key[0])
            return super()._make_group(key)

    supply = supply_of(data)
    # Before the threads are there, so that what they make is counted.
    watched = Watched.__new__(Watched)
    watched.__dict__.update(supply.__dict__)
    watched._groups = Once(watched._make_group, keep=GROUPS_KEPT)
    steps = supply.next_group(0)
    with Loader(watched, first_step=1, last_step=3 * steps, threads=2) as loader:
        for step, _ in enumerate(loader, 1):
            if step == 1:
                deadline = time.monotonic() + 10
                while len(made) < 2 and time.monotonic() < deadline:
                    time.sleep(0.001)
                assert sorted(made) == [0, 1]
    assert sorted(made) == [0, 1, 2]


def test_trouble_in_a_thread_is_raised_at_its_step(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    changes = ("data.val_fraction=0.0", "data.shuffle=windows", "data.window_shards=1")
    supply_of(data, *changes)  # tokenises the captions, for which it opens every shard
    supply = supply_of(data, *changes)
    folder = ShardFolder.open(data.shards)
    for entry in folder.manifest.shards[1:]:
        (data.shards / entry.file).unlink()
    seen = 0
    with (
        Loader(supply, first_step=0, last_step=100, threads=2, prefetch_steps=4) as loader,
        pytest.raises(ShardError, match="missing; the manifest says"),
    ):
        for _ in loader:
            seen += 1
    first_bad = next(step for step in range(100) if _fails(supply, step))
    assert seen == first_bad


@pytest.mark.parametrize("method", ["batches", "prepare"])
def test_what_nobody_foresaw_is_raised_too_and_ends_all_threads(data: Data, method: str) -> None:
    supply = supply_of(data)
    plan, first_bad = getattr(Supply, method), supply.next_group(0) + (3 if method == "batches" else 0)

    class Broken(Supply):
        pass

    def broken(self: Supply, step: int, **settings: int) -> object:
        if step >= first_bad:
            raise ZeroDivisionError(step)
        return plan(self, step, **settings)

    setattr(Broken, method, broken)
    supply.__class__ = Broken
    seen = 0
    with (
        Loader(supply, first_step=0, last_step=first_bad + 20, threads=3) as loader,
        pytest.raises(ZeroDivisionError, match=f"^{first_bad}$"),
    ):
        for _ in loader:
            seen += 1
    assert seen == first_bad
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def _fails(supply: Supply, step: int) -> bool:
    try:
        supply.batches(step)
    except ShardError:
        return True
    return False


def test_waiting_for_data_is_counted_and_a_slow_step_hides_it(data: Data) -> None:
    class Slow(Supply):
        def batches(self, step: int, **settings: int) -> list[Batch]:  # type: ignore[override]
            time.sleep(0.03)
            return super().batches(step, **settings)

    supply = supply_of(data)
    supply.__class__ = Slow
    with Loader(supply, first_step=0, last_step=6, prefetch_steps=1) as loader:
        waits = []
        for step, _ in enumerate(loader):
            waits.append(loader.take_wait())
            assert loader.take_wait() == 0.0
            if step >= 3:
                time.sleep(0.2)
    assert all(wait > 0.02 for wait in waits[:4])
    assert all(wait < 0.02 for wait in waits[4:])
