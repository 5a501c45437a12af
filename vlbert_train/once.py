"""Results that several threads need. Promise: each is made once, by the first thread that asks; others wait for it."""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class Once(Generic[Key, Result]):
    """The results of `make` by key, the last `keep` asked for; safe to use from several threads.

    What goes wrong is raised to all that wait for it, and not kept.
    """

    def __init__(self, make: Callable[[Key], Result], *, keep: int) -> None:
        self._make, self._keep = make, keep
        self._lock = threading.Lock()
        self._kept: dict[Key, Future[Result]] = {}

    def __call__(self, key: Key) -> Result:
        """Return the result for `key`, made now if it is not kept."""
        with self._lock:
            found = self._kept.pop(key, None)
            is_first = found is None
            future: Future[Result] = Future() if found is None else found
            self._kept[key] = future
            while len(self._kept) > self._keep:
                del self._kept[next(iter(self._kept))]
        if is_first:
            try:
                future.set_result(self._make(key))
            except BaseException as error:
                with self._lock:
                    if self._kept.get(key) is future:
                        del self._kept[key]
                future.set_exception(error)
                raise
        return future.result()
