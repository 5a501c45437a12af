"""Memory that is used again, and only then."""

import gc
from concurrent.futures import ThreadPoolExecutor

import torch

from vlbert_train.buffers import IDLE_KEPT, Buffers


def test_memory_is_used_again_only_when_nothing_refers_to_it() -> None:
    buffers = Buffers()
    first = buffers.empty(100, 8)
    place = first.data_ptr()
    part = first[90:, 2:].view(-1, 6)
    part.fill_(3)
    del first
    second = buffers.empty(100, 8)
    second.fill_(5)
    assert second.data_ptr() != place
    assert bool((part == 3).all())
    del part
    gc.collect()
    assert buffers.empty(50, 8).data_ptr() == place


def test_tensors_are_aligned_and_of_any_size() -> None:
    buffers = Buffers()
    for rows, width in ((0, 5), (1, 1), (3000, 1024), (7, 3)):
        found = buffers.empty(rows, width)
        assert (found.shape, found.dtype) == ((rows, width), torch.float16)
        assert found.data_ptr() % 64 == 0 or not rows
        assert found.is_contiguous()
        found.fill_(1)


def test_a_buffer_that_is_too_small_gives_way_to_a_larger_one() -> None:
    buffers = Buffers()
    for rows in range(1000, 20_000, 1000):
        held = [buffers.empty(rows, 1024), buffers.empty(rows // 2, 1024)]
        del held
        assert len(buffers._idle) + len(buffers._returned) == 2


def test_few_buffers_wait_for_their_next_use() -> None:
    buffers = Buffers()
    held = [buffers.empty(10, 10) for _ in range(IDLE_KEPT + 5)]
    held.clear()
    buffers.empty(1, 1)
    assert len(buffers._idle) + len(buffers._returned) == IDLE_KEPT


def test_threads_never_get_the_same_memory_at_once() -> None:
    buffers = Buffers()

    def fill(number: int) -> bool:
        for _ in range(200):
            tensor = buffers.empty(40, 16)
            tensor.fill_(number)
            if not bool((tensor == number).all()):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(fill, range(4)))
    waiting = [buffer.ctypes.data for buffer in (*buffers._idle, *buffers._returned)]
    assert len(set(waiting)) == len(waiting) > 0


def test_a_loan_that_the_garbage_collector_ends_inside_a_call_is_no_trouble() -> None:
    buffers = Buffers()
    for _ in range(300):
        cycle: list[object] = [buffers.empty(20, 4)]
        cycle.append(cycle)
        del cycle
    gc.collect()
    assert buffers.empty(20, 4).shape == (20, 4)
