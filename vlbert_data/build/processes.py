"""Helper processes of a build. Promise: none outlives the build, however the build ends.

They are spawned, not forked: a fork of a process that runs torch's threads can inherit a lock that nobody will free.
"""

import contextlib
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess

from vlbert_data.errors import VlbError


class _Helper(SpawnProcess):
    """A process that is born with Ctrl-C held back: it would end in a traceback before `follow_parent` is reached."""

    def start(self) -> None:
        # Started now, because whoever starts it lets Ctrl-C through again.
        resource_tracker.ensure_running()
        with _interrupt_later():
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                super().start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _interrupt_later() -> Iterator[None]:
    """Let Ctrl-C interrupt only at the end: a helper must be told all that it waits for.

    Holding the signal back in this thread is not enough: another may take it, and Python interrupts the main one. A
    handler that is not Python's, as of a program that Python is embedded in, stays: Python could not put it back.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is None:
        yield
        return
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        signal.raise_signal(signal.SIGINT)


class _Context(SpawnContext):
    Process = _Helper


def spawn_context() -> SpawnContext:
    """Return the way in which all helper processes are started; each must call `follow_parent` first."""
    return _Context()


def require_start(pool: ProcessPoolExecutor) -> None:
    """Return when a helper of `pool` has started, so that one that dies later died of what it was given.

    Raises:
        VlbError: helpers die before they are given anything.
    """
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise VlbError(
            "a helper process died before it was given anything. Is memory short? vlb build-shards --workers 0 decodes "
            "without helpers; a program of your own needs the usual `if __name__ == '__main__':`."
        ) from error


def follow_parent() -> None:
    """Make this helper process ignore Ctrl-C (its parent decides) and end when its parent is gone, even by SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    parent = multiprocessing.parent_process()
    assert parent is not None, "only helper processes follow a parent"
    threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
