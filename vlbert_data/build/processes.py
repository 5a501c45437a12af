"""Helper processes of a build. Promise: none outlives the build, however the build ends.

They are spawned, not forked: a fork of a process that runs torch's threads can inherit a lock that nobody will free.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from multiprocessing.context import SpawnContext


def spawn_context() -> SpawnContext:
    """Return the way in which all helper processes are started."""
    return multiprocessing.get_context("spawn")


def follow_parent() -> None:
    """Make this helper process ignore Ctrl-C (its parent decides) and end when its parent is gone, even by SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "only helper processes follow a parent"
    threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
