"""Output folders of img2dataset, in its layouts webdataset, files and parquet. One input is one row of a shard's table.

Rows whose download failed are inputs too: they end as rejects that carry their status and error message.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.sources.base import SourceItem, SourceReject
from vlbert_data.sources.files import FileFacts, fingerprint, hash_file, relative_names
from vlbert_data.sources.img2dataset_shards import (
    ENCODINGS,
    ShardImages,
    Survey,
    has_images,
    list_shards,
    open_images,
    survey_shard,
)
from vlbert_data.sources.parquet import open_parquet
from vlbert_data.sources.records import captions_of, extras_of, item_or_reject, reject_duplicate, size_of

_USED_FIELDS = ("caption", "width", "height", "status", "error_message", "exif")
# More squares than this among the photos that were none: not chance, a resize mode.
BORDERED_SHARE = 0.95
_NAMED_IN_ERRORS = 5

# A row's place in its table, and the row.
Row = tuple[int, dict[str, Any]]


class Img2datasetSource:
    """The rows of all finished shards, by shard name and within a shard by key; then a reject an unfinished shard.

    An id is the shard's name and the key, such as `00012/000120345`, with the folder's name before it where several
    folders are given. Memory holds the table of one shard at a time, without its images.
    """

    def __init__(self, folders: Sequence[Path], *, allow_bordered: bool = False, strict: bool = False) -> None:
        """Read what the shards say of themselves.

        allow_bordered: take images that were brought to a square by borders or by cutting. strict: refuse a folder
        with an unfinished shard.

        Raises:
            ConfigError: no finished shard, no captions, no images, bordered images, or unfinished shards if `strict`.
        """
        self._allow_bordered = allow_bordered
        prefixes = [f"{name}/" for name in relative_names(folders)] if len(folders) > 1 else [""]
        self._prefixes = dict(zip(folders, prefixes, strict=True))
        listed = [(folder, *list_shards(folder)) for folder in folders]
        self._unfinished = [folder / name for folder, _, unfinished in listed for name in unfinished]
        self._shards = [survey_shard(folder, name) for folder, finished, _ in listed for name in finished]
        _check_finished(folders, self._shards, self._unfinished, strict=strict)
        _check_contents(self._shards)
        if not allow_bordered:
            _check_bordered(self._shards)
        self._ends = np.cumsum([shard.num_inputs for shard in self._shards])  # [shards]
        self._files = _hash_shards(self._shards)
        self._cached: tuple[int, list[Row], ShardImages] | None = None

    def __len__(self) -> int:
        """Return the number of rows, of shards with something amiss, and of unfinished shards."""
        return int(self._ends[-1]) + len(self._unfinished)

    def read(self, start: int, stop: int) -> Iterator[SourceItem | SourceReject]:
        """Yield inputs `start` to `stop` - 1."""
        for number in range(start, min(stop, len(self))):
            place = int(np.searchsorted(self._ends, number, side="right"))
            if place == len(self._shards):
                path = self._unfinished[number - int(self._ends[-1])]
                detail = f"{path.name}_stats.json is missing: img2dataset did not finish this shard; run it again"
                yield SourceReject(number=number, where=str(path), reason="unfinished shard", detail=detail)
                continue
            within = number - (int(self._ends[place - 1]) if place else 0)
            yield self._read_input(number, place, within)

    def facts(self) -> dict[str, Any]:
        """Return format, files, counts and options."""
        return {
            "format": "img2dataset",
            "count": len(self),
            "files": [facts.as_json() for facts in self._files],
            "allow_bordered": self._allow_bordered,
            "unfinished_shards": [path.name for path in self._unfinished],
        }

    def fingerprint(self) -> str:
        """Return a digest of the shards' names, sizes and hashes."""
        return fingerprint(self.facts())

    def _read_input(self, number: int, place: int, within: int) -> SourceItem | SourceReject:
        shard = self._shards[place]
        where = str(shard.table_path)
        if shard.damage is not None:
            return SourceReject(number=number, where=where, reason="damaged shard", detail=shard.damage)
        if within == shard.num_rows:
            assert shard.disagreement is not None, "only a shard whose counts disagree has an input after its rows"
            return SourceReject(number=number, where=where, reason="shard counts disagree", detail=shard.disagreement)
        return item_or_reject(number, where, partial(self._make_item, number, place, within))

    def _make_item(self, number: int, place: int, within: int) -> SourceItem:
        shard = self._shards[place]
        rows, images = self._open(place)
        if within >= len(rows):
            raise RecordRejectedError("damaged shard", f"its table had {shard.num_rows} rows and now has {len(rows)}")
        row_place, row = rows[within]
        key, status = str(row["key"]), row["status"]
        if within and rows[within - 1][1]["key"] == row["key"]:
            raise reject_duplicate(key)
        if status != "success":
            reason = str(status or "no status").replace("_", " ")
            raise RecordRejectedError(reason, f"{key}: {row.get('error_message') or 'no message'} ({row.get('url')})")
        captions = captions_of(row, ("caption",))
        location = images.locate(key, row_place)
        return SourceItem(
            number=number,
            image_id=f"{self._prefixes[shard.folder]}{shard.name}/{key}",
            captions=captions,
            location=location,
            file_name=key,
            expected_size_px=size_of(row),
            extra=extras_of(row, _USED_FIELDS),
        )

    def _open(self, place: int) -> tuple[list[Row], ShardImages]:
        if self._cached is None or self._cached[0] != place:
            shard = self._shards[place]
            try:
                self._cached = place, _read_table(shard), open_images(shard)
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise RecordRejectedError("damaged shard", str(error)) from error
        return self._cached[1:]


def _read_table(shard: Survey) -> list[Row]:
    """Return the rows of a shard without images, by key, each with its place in the table."""
    columns = [column for column in shard.columns if column not in (*ENCODINGS, "exif")]
    with open_parquet(shard.table_path) as file:
        rows = file.read(columns=columns, use_threads=False).to_pylist()
    return sorted(enumerate(rows), key=lambda row: (str(row[1]["key"]), row[0]))


def _hash_shards(shards: Sequence[Survey]) -> list[FileFacts]:
    tables = [shard.table_path for shard in shards if shard.damage is None]
    archives = [path for table in tables if (path := table.with_suffix(".tar")).exists()]
    files = sorted(tables + archives)
    return [hash_file(path, name=name) for path, name in zip(files, relative_names(files), strict=True)]


def _check_finished(
    folders: Sequence[Path], shards: Sequence[Survey], unfinished: Sequence[Path], *, strict: bool
) -> None:
    listed = ", ".join(path.name for path in unfinished[:_NAMED_IN_ERRORS])
    if len(unfinished) > _NAMED_IN_ERRORS:
        listed += f" and {len(unfinished) - _NAMED_IN_ERRORS} more"
    if not shards:
        found = f"only unfinished shards: {listed}" if unfinished else "no NNNNN_stats.json"
        raise ConfigError(f"{folders[0]}: no finished shard of img2dataset in it, {found}.")
    if strict and unfinished:
        raise ConfigError(f"{unfinished[0].parent}: unfinished shards: {listed}. Run img2dataset again to finish them.")
    if all(shard.damage is not None for shard in shards):
        hint = ""
        if any(shard.table_path.with_suffix(".tar").exists() for shard in shards):
            hint = " To read its tars alone, give them as DIR/*.tar with --format webdataset."
        raise ConfigError(f"{shards[0].folder}: no shard can be read: {shards[0].damage}.{hint}")


def _check_contents(shards: Sequence[Survey]) -> None:
    for shard in shards:
        if shard.damage is None and "caption" not in shard.columns:
            raise ConfigError(
                f"{shard.table_path}: no column caption; it has {', '.join(shard.columns)}. Download again with "
                "--caption_col."
            )
    whole = [shard for shard in shards if shard.damage is None]
    if not any(map(has_images, whole)):
        raise ConfigError(
            f"{whole[0].folder}: tables without images: there are no tars, no folders and no column "
            f"{', '.join(ENCODINGS)}. Download with --output_format webdataset, files or parquet."
        )


def _check_bordered(shards: Sequence[Survey]) -> None:
    reshaped, squared = sum(shard.reshaped for shard in shards), sum(shard.squared for shard in shards)
    if not squared or squared < BORDERED_SHARE * reshaped:
        return
    size = next(shard.stored_size_px for shard in shards if shard.stored_size_px is not None)
    raise ConfigError(
        f"{shards[0].folder}: {squared} of {reshaped} photos that were no squares are stored as squares, the first as "
        f"{size[0]} x {size[1]}: img2dataset put borders around them (its default) or cut them, and RoIs would "
        "describe that. Download again with --resize_mode keep_ratio_largest --image_size 1000 "
        "--resize_only_if_bigger True, or take them as they are with --allow-bordered."
    )
