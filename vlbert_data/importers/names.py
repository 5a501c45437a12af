"""Many names in little memory. Promise: a name takes its own bytes and eight more."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from vlbert_data.types import Array


@dataclass(frozen=True, slots=True)
class Names:
    """Names in their order: UTF-8 one after another, and int64 [n], where each ends."""

    text: bytes
    ends: Array

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> str:
        start = int(self.ends[number - 1]) if number else 0
        return self.text[start : int(self.ends[number])].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[number] for number in range(len(self)))

    @staticmethod
    def of(names: Iterable[str]) -> "Names":
        """Return these names, in their order."""
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        return Names(b"".join(encoded), np.fromiter(accumulate(map(len, encoded)), np.int64, len(encoded)))
