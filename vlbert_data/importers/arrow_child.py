"""Reads Arrow IPC files and streams for `child`. Promise: batches are checked whole before a number of them is used.

The file is mapped; an index of where each batch begins is made once, in 8 bytes a batch. Extension types, such as the
two-dimensional arrays of Hugging Face's `datasets`, are read as what they are stored as, and no code that a file names
is looked for.
"""

from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa

from vlbert_data.importers.child_side import Answer, UnreadableError, serve, state_of
from vlbert_data.types import Array

TROUBLES = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError, IndexError)
FILE_MAGIC = b"ARROW1"
MAX_DEPTH = 4


class Table:
    """The batches of one file. `ends`: the row after the last of each batch; `damage`: what ended the reading early."""

    def __init__(self, path: str) -> None:
        self._source = pa.memory_map(path)
        self._file: Any = None
        self._places: list[int] = []
        self.damage: str | None = None
        counts: list[int] = []
        if self._source.read(len(FILE_MAGIC)) == FILE_MAGIC:
            self._file = pa.ipc.open_file(self._source)
            self.schema = self._file.schema
            counts = [self._batch(number).num_rows for number in range(self._file.num_record_batches)]
        else:
            self._source.seek(0)
            self.schema = pa.ipc.read_schema(pa.ipc.read_message(self._source))
            counts = self._find_batches()
        self.counts = counts
        self.ends = list(accumulate(counts))
        self._last: tuple[int, Any] | None = None

    def _find_batches(self) -> list[int]:
        counts = []
        try:
            while True:
                place = self._source.tell()
                message = pa.ipc.read_message(self._source)
                if message.type != "record batch":
                    raise UnreadableError(f"a {message.type} in the stream; plain columns are read.")
                counts.append(pa.ipc.read_record_batch(message, self.schema).num_rows)
                self._places.append(place)
        except EOFError:
            pass
        except (pa.ArrowException, OSError) as error:
            self.damage = f"the stream ends inside batch {len(counts)}, or is damaged there: {str(error)[:200]}"
        return counts

    def _batch(self, number: int) -> Any:
        if self._file is not None:
            return self._file.get_batch(number)
        self._source.seek(self._places[number])
        return pa.ipc.read_record_batch(pa.ipc.read_message(self._source), self.schema)

    def row(self, number: int, columns: list[str], max_bytes: int) -> Answer:
        """Return how many rows the batch of a row has and which of them it is, and the row's arrays."""
        batch_number = int(np.searchsorted(self.ends, number, side="right"))
        if batch_number >= len(self.ends) or number < 0:
            raise UnreadableError(f"there is no row {number}.")
        if self._last is None or self._last[0] != batch_number:
            batch = self._batch(batch_number)
            batch.validate(full=True)
            self._last = (batch_number, batch)
        batch = self._last[1]
        inside = number - (self.ends[batch_number] - self.counts[batch_number])
        head = {"batch_rows": batch.num_rows, "row_in_batch": inside}
        return head, [_cell(batch, name, inside, max_bytes) for name in columns]


def _cell(batch: Any, name: str, row: int, max_bytes: int) -> Array:
    """Return one cell: a number as [], a list as [n], lists of equal length in a list as [n, m]."""
    place = batch.schema.get_field_index(name)
    if place < 0:
        raise UnreadableError(f"no column {name}.")
    values, sides = batch.column(place).slice(row, 1), [1]
    for _ in range(MAX_DEPTH):
        values = values.storage if isinstance(values, pa.ExtensionArray) else values
        if values.null_count:
            raise UnreadableError(f"{name} has no value in it.")
        if not _is_list(values.type):
            break
        lengths = {len(part) for part in values} if len(values) <= 1 else set(values.value_lengths().to_pylist())
        if len(lengths) > 1:
            raise UnreadableError(f"{name} has lists of unequal length.")
        sides.append(lengths.pop() if lengths else 0)
        values = values.flatten()
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise UnreadableError(f"{name} holds {values.type}; only numbers are read.")
    if values.nbytes > max_bytes:
        raise UnreadableError(f"{name} has {values.nbytes} bytes; at most {max_bytes} are read.")
    array: Array = values.to_numpy(zero_copy_only=False)
    return array.reshape(sides[1:])


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


class Tables:
    """The file that was asked about last, open."""

    def __init__(self) -> None:
        self._state: tuple[str, int, int, int] | None = None
        self._table: Table | None = None

    def answer(self, request: dict[str, Any]) -> Answer:
        """Return the answer to a request: "describe" a file, or "read" a row of it."""
        state = state_of(request["path"])
        if state != self._state or self._table is None:
            self._state = None
            self._table = Table(request["path"])
            self._state = state
        table = self._table
        match request["op"]:
            case "describe":
                fields = {field.name: str(field.type) for field in table.schema}
                return {"columns": fields, "damage": table.damage}, [np.array(table.counts, np.int64)]
            case "read":
                return table.row(request["row"], request["columns"], request["max_bytes"])
        raise UnreadableError(f"no such request: {request['op']}.")


if __name__ == "__main__":
    serve(Tables().answer, TROUBLES)
