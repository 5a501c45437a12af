"""Parquet tables with the images' bytes in a column, plain or as Hugging Face's `{bytes, path}`. One input is one row.

The only module besides img2dataset's that loads pyarrow.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.ids import id_hash, later_duplicates
from vlbert_data.sources.base import FileImage, ImageLocation, InlineImage, SourceItem, SourceReject
from vlbert_data.sources.files import fingerprint, hash_file, relative_names, require_folder
from vlbert_data.sources.records import (
    boxes_of,
    captions_of,
    extras_of,
    is_among,
    item_or_reject,
    positional_id,
    reject_duplicate,
    size_of,
    stated_id,
)
from vlbert_data.types import Array, is_unicode

IMAGE_NAMES = ("image", "jpg", "jpeg", "png", "webp", "image_bytes", "img", "picture")
CAPTION_NAMES = (("caption", "captions"), ("text", "texts"))
ID_NAMES = ("id", "image_id", "key")
# Rows read at once: their images are in memory together.
BATCH_ROWS = 16
READ_BUFFER_BYTES = 1 << 20
_OTHER_FIELDS = ("boxes", "labels", "width", "height")


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Which columns hold what; `extras` are plain values that are carried along."""

    image: str
    captions: tuple[str, ...]
    image_id: str | None
    others: tuple[str, ...]
    extras: tuple[str, ...]

    @property
    def all(self) -> list[str]:
        """Return every column that is read."""
        names = [self.image, *self.captions, *self.others, *self.extras]
        return names if self.image_id is None else [*names, self.image_id]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Table:
    """A file: `group_ends` is int64 [row groups], rising, counted in the file; `damage` where it cannot be read."""

    path: Path
    columns: Columns | None
    group_ends: Array
    damage: str | None

    @property
    def num_inputs(self) -> int:
        return 1 if self.damage is not None else int(self.group_ends[-1]) if len(self.group_ends) else 0


class ParquetSource:
    """The rows of Parquet files, one file after the other, read batch by batch.

    A file whose directory cannot be read is one input, a reject. The first row that states an id holds it; a row that
    states none is called by its number in the source. Memory: BATCH_ROWS rows, and 8 bytes a row where ids are stated.
    """

    def __init__(self, paths: Sequence[Path], *, images: Path | None = None) -> None:
        """Read the files' directories and, where there is one, the column of ids.

        images: the folder that image paths are relative to where bytes are missing; by default the file's own.

        Raises:
            ConfigError: no file can be read, a column is missing, or there is no row.
        """
        self._images = images and require_folder(images)
        names = relative_names(paths)
        self._files = [hash_file(path, name=name) for path, name in zip(paths, names, strict=True)]
        self._tables = [_open_table(path) for path in paths]
        if all(table.damage is not None for table in self._tables):
            raise ConfigError(f"{self._tables[0].path}: {self._tables[0].damage}. Expected a Parquet file.")
        self._ends = np.cumsum([table.num_inputs for table in self._tables])  # [files]
        if not len(self):
            raise ConfigError(f"{self._tables[0].path}: no row in it, nor in any other file given.")
        self._duplicates = np.zeros(0, np.int64)
        if any(table.columns is not None and table.columns.image_id is not None for table in self._tables):
            hashes = np.fromiter((id_hash(image_id) for image_id in self._ids()), np.uint64, len(self))
            self._duplicates = later_duplicates(hashes)

    def __len__(self) -> int:
        """Return the number of rows and damaged files."""
        return int(self._ends[-1])

    def read(self, start: int, stop: int) -> Iterator[SourceItem | SourceReject]:
        """Yield inputs `start` to `stop` - 1."""
        for table, end in zip(self._tables, self._ends, strict=True):
            begin = int(end) - table.num_inputs
            low, high = max(start, begin), min(stop, int(end))
            if low >= high:
                continue
            if table.damage is not None:
                yield _reject_damage(low, str(table.path), table.damage)
            else:
                yield from self._read_table(table, begin, low - begin, high - begin)

    def facts(self) -> dict[str, Any]:
        """Return format, files and counts."""
        return {
            "format": "parquet",
            "count": len(self),
            "files": [facts.as_json() for facts in self._files],
            "images": None if self._images is None else str(self._images),
        }

    def fingerprint(self) -> str:
        """Return a digest of the files' names, sizes and hashes, and the name of the images' folder."""
        return fingerprint(self.facts())

    def _ids(self) -> Iterator[str]:
        """Yield the id that each input takes, whether or not it is taken."""
        number = 0
        for table in self._tables:
            name = table.columns.image_id if table.columns is not None else None
            if table.damage is not None or name is None:
                values: Iterator[Any] = iter([None] * table.num_inputs)
            else:
                values = _read_column(table, name)
            for value in values:
                try:
                    yield stated_id(value, number)
                except RecordRejectedError:
                    yield positional_id(number)
                number += 1

    def _read_table(self, table: _Table, begin: int, low: int, high: int) -> Iterator[SourceItem | SourceReject]:
        """Yield rows `low` to `high` - 1 of a file whose first row is input `begin`."""
        assert table.columns is not None, "a table that can be read has its columns found"
        row = low
        for group, end in enumerate(table.group_ends):
            stop = min(int(end), high)
            if row >= stop:
                continue
            skipped = row - (int(table.group_ends[group - 1]) if group else 0)
            try:
                for record in _read_rows(table, group, skipped, stop - row):
                    where = f"{table.path}!row {row}"
                    yield item_or_reject(
                        begin + row, where, partial(self._make_item, begin + row, where, table, record)
                    )
                    row += 1
            except (pa.ArrowException, OSError) as error:
                for rest in range(row, stop):
                    yield _reject_damage(begin + rest, f"{table.path}!row {rest}", f"row group {group}: {error}")
            row = stop

    def _make_item(self, number: int, where: str, table: _Table, record: "Record") -> SourceItem:
        columns = table.columns
        assert columns is not None, "a row comes from a table whose columns are found"
        if isinstance(record, RecordRejectedError):
            raise record
        image_id = stated_id(record.get(columns.image_id) if columns.image_id else None, number)
        if is_among(number, self._duplicates):
            raise reject_duplicate(image_id)
        root = table.path.parent if self._images is None else self._images
        location, file_name = _locate(record[columns.image], where, root)
        boxes, class_names = boxes_of(record)
        return SourceItem(
            number=number,
            image_id=image_id,
            captions=captions_of(record, columns.captions),
            location=location,
            file_name=file_name or image_id,
            boxes=boxes,
            class_names=class_names,
            expected_size_px=size_of(record),
            extra=extras_of({name: record[name] for name in columns.extras}, ()),
        )


def _locate(value: Any, where: str, root: Path) -> tuple[ImageLocation, str | None]:
    """Return where the image of a cell is, and the file name that the cell gives it."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if data is not None:
        return InlineImage(where, data), path
    if path:
        return FileImage(str(root / path)), path
    raise RecordRejectedError("no image", "the image's cell is empty")


def _reject_damage(number: int, where: str, damage: str) -> SourceReject:
    return SourceReject(number=number, where=where, reason="damaged file", detail=damage)


def _open_table(path: Path) -> _Table:
    try:
        with open_parquet(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        return _Table(path=path, columns=None, group_ends=np.zeros(0, np.int64), damage=str(error))
    columns = find_columns(path, schema)
    return _Table(path=path, columns=columns, group_ends=np.cumsum(counts, dtype=np.int64), damage=None)


def open_parquet(path: Path) -> Any:
    """Return an open `pyarrow.parquet.ParquetFile` that reads in small pieces and checks pages where they have CRCs."""
    if not is_unicode(str(path)):
        raise OSError("its name is no text in UTF-8, which Arrow asks for; rename it")
    return pq.ParquetFile(path, buffer_size=READ_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True)


# A row as a dict, or why it cannot be one.
Record = Mapping[str, Any] | RecordRejectedError


def _read_rows(table: _Table, group: int, skipped: int, count: int) -> Iterator[Record]:
    """Yield `count` rows of a row group, after the first `skipped`."""
    assert table.columns is not None, "a table that can be read has its columns found"
    with open_parquet(table.path) as file:
        place = 0
        for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=table.columns.all, use_threads=False):
            low, high = max(skipped - place, 0), min(skipped + count - place, len(batch))
            place += len(batch)
            if low < high:
                yield from _records(batch.slice(low, high - low))
            if place >= skipped + count:
                return


def _records(batch: Any) -> list[Record]:
    """Return the rows of a batch."""
    try:
        rows: list[Record] = batch.to_pylist()
    except UnicodeDecodeError:
        # Arrow checks text when it is asked for it; row by row, the bad ones are found.
        rows = [_one_value(batch.slice(row, 1)) for row in range(len(batch))]
    return rows


def _values(column: Any) -> list[Any]:
    """Return the values of a column, a RecordRejectedError for each that is no text."""
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        values = [_one_value(column.slice(row, 1)) for row in range(len(column))]
    return values


def _one_value(data: Any) -> Any:
    try:
        return data.to_pylist()[0]
    except UnicodeDecodeError as error:
        return RecordRejectedError("bad record", f"text that is not UTF-8: {error.reason}")


def _read_column(table: _Table, name: str) -> Iterator[Any]:
    """Yield one column's values; where a row group is damaged, None for each of its rows."""
    with open_parquet(table.path) as file:
        for group, count in enumerate(np.diff(table.group_ends, prepend=0)):
            try:
                column = file.read_row_group(group, columns=[name], use_threads=False).column(0)
                yield from (None if isinstance(value, RecordRejectedError) else value for value in _values(column))
            except (pa.ArrowException, OSError):
                yield from [None] * int(count)


def find_columns(path: Path, schema: Any) -> Columns:
    """Return what the columns of a table hold, by their names (case does not matter) and types.

    Raises:
        ConfigError: no column of image bytes or of captions; the table's columns are listed.
    """
    repeated = [name for name, count in Counter(schema.names).items() if count > 1]
    if repeated:
        raise ConfigError(f"{path}: two columns are called {repeated[0]}. Rename one.")
    kinds = {name.lower(): (name, _plain_type(schema.field(name).type)) for name in reversed(schema.names)}
    images = [name for name, (_, kind) in kinds.items() if _holds_bytes(kind)]
    image = next((name for name in IMAGE_NAMES if name in images), images[0] if len(images) == 1 else None)
    captions = next(
        (
            found
            for names in CAPTION_NAMES
            if (found := [name for name in names if name in kinds and _holds_text(kinds[name][1])])
        ),
        [],
    )
    if image is None or not captions:
        listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.values())
        raise ConfigError(
            f"{path}: no column of {'image bytes' if image is None else 'captions'} is recognized among {listed}. "
            f"Expected bytes or {{bytes, path}} in a column called {', '.join(IMAGE_NAMES)}, and text or a list of "
            f"texts in one called {', '.join(chain.from_iterable(CAPTION_NAMES))}; rename the column."
        )
    image_id = next((name for name in ID_NAMES if name in kinds and _is_plain(kinds[name][1])), None)
    taken = {image, *captions, image_id, *_OTHER_FIELDS}
    return Columns(
        image=kinds[image][0],
        captions=tuple(kinds[name][0] for name in captions),
        image_id=None if image_id is None else kinds[image_id][0],
        others=tuple(name for name in _OTHER_FIELDS if name in schema.names),
        extras=tuple(real for name, (real, kind) in kinds.items() if name not in taken and _is_plain(kind)),
    )


def _plain_type(kind: Any) -> Any:
    """Return the type of a column's values, whether or not each value is stored once in a dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_text(kind: Any) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_plain(kind: Any) -> bool:
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return True
    return _holds_text(kind) and not (pa.types.is_list(kind) or pa.types.is_large_list(kind))
