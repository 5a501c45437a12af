"""What img2dataset left in a folder: which shards are finished, what they say of themselves, where their images are.

Facts about the format (version 1.47): `NNNNN_stats.json` is written last, so only a shard that has it is finished;
`NNNNN.parquet` lists every row, failed ones too, in order of completion; the images are in `NNNNN.tar`, in the folder
`NNNNN`, or in a column of the table itself. Keys must not be taken apart: the shard is known from the file's name.
"""

import json
import os
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.sources.base import FileImage, FileSlice, ImageLocation, InlineImage
from vlbert_data.sources.parquet import open_parquet
from vlbert_data.sources.webdataset import IMAGE_ENDINGS, index_tar
from vlbert_data.types import Array

STATS_NAME = re.compile(r"(\d+)_stats\.json")
_SHARD_FILE = re.compile(r"(\d+)(\.tar|\.parquet|\.tfrecord|)")
# Columns named by the encoding that hold the images in the Parquet layout.
ENCODINGS = ("jpg", "png", "webp")
# Row groups kept at hand in the Parquet layout; img2dataset writes 100 rows into each.
KEPT_ROW_GROUPS = 8
# Originals whose sides differ by less than this share may become squares by rounding alone.
SQUARE_TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """A finished shard as it describes itself.

    num_rows: rows of its table. disagreement: what its counts say against each other, if anything. damage: why its
    table cannot be read, if so. reshaped, squared: rows whose original was no square, and how many of them are stored
    as one. stored_size_px: of the first such row.
    """

    folder: Path
    name: str
    num_rows: int = 0
    columns: tuple[str, ...] = ()
    disagreement: str | None = None
    damage: str | None = None
    reshaped: int = 0
    squared: int = 0
    stored_size_px: tuple[int, int] | None = None

    @property
    def table_path(self) -> Path:
        """Return the path of the shard's table."""
        return self.folder / f"{self.name}.parquet"

    @property
    def num_inputs(self) -> int:
        """Return the number of rows, one more where counts disagree, one for a shard without a readable table."""
        return 1 if self.damage is not None else self.num_rows + (self.disagreement is not None)


def list_shards(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of finished and of unfinished shards, sorted.

    Raises:
        ConfigError: the folder holds TFRecord shards, which are not read.
    """
    names = sorted(entry.name for entry in folder.iterdir())
    finished = [match[1] for name in names if (match := STATS_NAME.fullmatch(name))]
    begun = {match[1]: match[2] for name in names if (match := _SHARD_FILE.fullmatch(name))}
    if ".tfrecord" in begun.values():
        raise ConfigError(
            f"{folder}: img2dataset output of the format tfrecord, which is not read. Download with --output_format "
            "webdataset, files or parquet."
        )
    waiting = {path.stem for path in (folder / "_tmp").glob("*.feather")}
    return finished, sorted((set(begun) | waiting) - set(finished))


def survey_shard(folder: Path, name: str) -> Survey:
    """Return what a finished shard says of itself; its statistics and a few columns of its table are read."""
    try:
        stats = json.loads((folder / f"{name}_stats.json").read_bytes())
        count, successes = int(stats["count"]), int(stats["successes"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        return Survey(folder=folder, name=name, damage=f"{name}_stats.json cannot be read: {error}")
    try:
        with open_parquet(folder / f"{name}.parquet") as file:
            columns = tuple(file.schema_arrow.names)
            wanted = [column for column in ("status", *_SIZES) if column in columns]
            table = file.read(columns=wanted, use_threads=False)
        reshaped, squared, size = _count_squares(table)
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        return Survey(folder=folder, name=name, damage=f"{name}.parquet cannot be read: {error}")
    if "status" not in columns or "key" not in columns:
        return Survey(folder=folder, name=name, damage=f"{name}.parquet has no column key or status")
    status = table.column("status").to_pylist()
    num_success = status.count("success")
    disagreement = None
    if (count, successes) != (len(status), num_success):
        disagreement = (
            f"{name}_stats.json counts {count} rows and {successes} successes, {name}.parquet has {len(status)} and "
            f"{num_success}: img2dataset lost {max(count - len(status), 0)} rows"
        )
    return Survey(
        folder=folder,
        name=name,
        num_rows=len(status),
        columns=columns,
        disagreement=disagreement,
        reshaped=reshaped,
        squared=squared,
        stored_size_px=size,
    )


_SIZES = ("width", "height", "original_width", "original_height")


def _count_squares(table: Any) -> tuple[int, int, tuple[int, int] | None]:
    """Return how many rows come from no square, how many of those are stored as squares, and the first such size."""
    if any(column not in table.column_names for column in _SIZES):
        return 0, 0, None
    width, height, original_width, original_height = (
        table.column(column).to_numpy().astype(np.float64) for column in _SIZES
    )  # float64 [rows] each, NaN for failed rows
    reshaped = np.abs(original_width - original_height) > SQUARE_TOLERANCE * np.maximum(original_width, original_height)
    squared = reshaped & (width == height)
    places = np.flatnonzero(squared)
    size = (int(width[places[0]]), int(height[places[0]])) if len(places) else None
    return int(reshaped.sum()), int(squared.sum()), size


class ShardImages(Protocol):
    """Where the images of one shard are."""

    def locate(self, key: str, row: int) -> ImageLocation:
        """Return the place of a row's image.

        Raises:
            RecordRejectedError: "image not in shard".
        """
        ...


def open_images(shard: Survey) -> ShardImages:
    """Return the images of a shard in whichever layout it has."""
    column = next((name for name in ENCODINGS if name in shard.columns), None)
    archive, folder = shard.folder / f"{shard.name}.tar", shard.folder / shard.name
    if archive.exists():
        return _TarImages(archive)
    if folder.is_dir():
        return _FolderImages(folder)
    if column is not None:
        return _TableImages(shard.table_path, column)
    return _NoImages(shard)


def has_images(shard: Survey) -> bool:
    """Return whether a shard has images in one of the three layouts."""
    return not isinstance(open_images(shard), _NoImages)


class _NoImages:
    def __init__(self, shard: Survey) -> None:
        self._shard = shard

    def locate(self, key: str, row: int) -> ImageLocation:
        name = self._shard.name
        raise RecordRejectedError("image not in shard", f"{key}: there is neither {name}.tar nor a folder {name}")


class _TarImages:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._index = index_tar(path)
        found = ((sample.key, sample.first(IMAGE_ENDINGS)) for sample in self._index.samples)
        self._members = {key: member for key, member in found if member is not None}

    def locate(self, key: str, row: int) -> ImageLocation:
        member = self._members.get(key)
        if member is None:
            damage = f"; the archive is damaged: {self._index.damage}" if self._index.damage else ""
            raise RecordRejectedError(
                "image not in shard", f"{key}: {self._path.name} has no image of this key{damage}"
            )
        return FileSlice(str(self._path), member.name, member.offset, member.num_bytes)


class _FolderImages:
    def __init__(self, path: Path) -> None:
        self._path = path
        names = sorted(os.listdir(path))  # noqa: PTH208  (names are all that is needed of ten thousand files)
        parts = (name.rpartition(".") for name in names)
        self._names = {stem: f"{stem}.{ending}" for stem, _, ending in parts if ending.lower() in IMAGE_ENDINGS}

    def locate(self, key: str, row: int) -> ImageLocation:
        name = self._names.get(key)
        if name is None:
            raise RecordRejectedError(
                "image not in shard", f"{key}: the folder {self._path.name} has no image of this key"
            )
        return FileImage(str(self._path / name))


class _TableImages:
    """Images in a column of the shard's table; the last few row groups stay at hand, as keys are nearly in order."""

    def __init__(self, path: Path, column: str) -> None:
        self._path, self._column = path, column
        with open_parquet(path) as file:
            groups = (file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups))
            self._ends: Array = np.cumsum(list(groups), dtype=np.int64)
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def locate(self, key: str, row: int) -> ImageLocation:
        group = int(np.searchsorted(self._ends, row, side="right"))
        cells = self._cells(group, key)
        data = cells[row - (int(self._ends[group - 1]) if group else 0)].as_py()
        if data is None:
            raise RecordRejectedError("image not in shard", f"{key}: its cell in {self._path.name} is empty")
        return InlineImage(f"{self._path}!{key}", data)

    def _cells(self, group: int, key: str) -> Any:
        if group not in self._kept:
            try:
                with open_parquet(self._path) as file:
                    cells = file.read_row_group(group, columns=[self._column], use_threads=False).column(0)
            except (pa.ArrowException, OSError) as error:
                raise RecordRejectedError("damaged shard", f"{key}: {self._path.name}: {error}") from error
            self._kept[group] = cells
            if len(self._kept) > KEPT_ROW_GROUPS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(group)
        return self._kept[group]
