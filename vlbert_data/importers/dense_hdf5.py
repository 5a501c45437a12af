"""HDF5 files of one large data set a field, all images one after another, with a file that maps ids to rows.

Promise: an image's size is what its boxes say, in pixels and as shares of the image, where both agree; else it is asked
for.

`image_features` is [n, 36, 2048], `image_bb` [n, 36, 4] in pixels, `spatial_features` [n, 36, 6] the same as shares of
the image, with width and height. With a changing number of RoIs these are [sum of R, ...], and `pos_boxes` [n, 2] has
the first and last row of each image. The map of ids is JSON, or a pickled dict of Python 2, beside the file:
`train36_imgid2idx.json` beside `train36.hdf5`. There are no classes.

Source: hengyuan-hu/bottom-up-attention-vqa tools/detection_features_converter.py; jnhwkim/ban-vqa tools.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.importers.base import FormatOptions, RawRecord
from vlbert_data.importers.hdf5_inputs import describe, first_names, read_datasets
from vlbert_data.importers.numbered import NumberedImporter, hash_files
from vlbert_data.importers.record_dict import MAX_SIDE_PX, rows
from vlbert_data.importers.safe_pickle import load_plain
from vlbert_data.sources.files import read_start
from vlbert_data.types import Array

NAME = "dense-hdf5"
DATASETS = ("image_features", "image_bb", "spatial_features")
PLACES = "pos_boxes"
MAP_ENDINGS = ("imgid2idx.json", "imgid2idx.pkl", "ids.json")
MAX_MAP_BYTES = 1 << 30
MAX_IMAGES = 100_000_000
# How far, in pixels, a box may be from where its share of the image puts it.
AGREEMENT_PX = 0.05
# No box ends this near to the edge where it begins.
TINY_SHARE = 1e-9


def sniff(path: Path) -> str | None:
    """Return what shows that the file has this format; None where it has not."""
    names = first_names(path)
    if set(DATASETS[:2]) <= set(names):
        return f"an HDF5 file with the data sets {', '.join(sorted(names))}"
    return None


def open_importer(paths: Sequence[Path], options: FormatOptions) -> "DenseHdf5":
    """Return the importer of this file; see `base.Format`."""
    if len(paths) != 1:
        raise ConfigError(f"{len(paths)} inputs of the format {NAME}; import one file at a time, with its map of ids.")
    return DenseHdf5(paths[0])


class DenseHdf5(NumberedImporter):
    """The rows of one file."""

    def __init__(self, path: Path) -> None:
        """Read the map of ids.

        Raises:
            ConfigError: no map of ids, one that does not fit, or no image that can be read.
            ChildRefusedError: unreadable.
        """
        self._path = path
        members = set(describe(path)["first"])
        self._present = _present(path, members)
        self._places: Array | None = None
        if PLACES in members:
            places = read_datasets(path, [PLACES])[0]
            if places.dtype.kind not in "iu" or places.ndim != 2 or places.shape[1] != 2:
                raise ConfigError(
                    f"{path}: {PLACES} are {places.dtype} {list(places.shape)}; expected two whole numbers an image."
                )
            self._places = places.astype(np.int64)
        count = _num_rows(path) if self._places is None else len(self._places)
        map_path = find_map(path)
        self._ids = read_ids(map_path, count)
        self._file_facts = hash_files([path, map_path])
        self.settle(NAME)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._ids)

    def keys(self) -> Iterator[str]:
        """Yield the ids, "" for a row that has none."""
        yield from self._ids

    def where(self, number: int) -> str:
        """Return file and row of an image."""
        return f"{self._path}!row {number}"

    def load(self, number: int) -> RawRecord:
        """Return the record of a row."""
        key = self._ids[number]
        if not key:
            raise RecordRejectedError("bad key", "the map of ids has none for this row")
        found = [self._at(number, array) for array in self._rows(number)]
        features = rows(found[0], "image_features", len(found[0]), None)
        boxes = rows(found[1], "image_bb", len(features), 4)
        shares = rows(found[2], "spatial_features", len(features), 6) if len(found) > 2 else None
        size = None if shares is None else stated_size(boxes, shares)
        return RawRecord(
            key=key,
            where=self.where(number),
            num_bytes=sum(array.nbytes for array in found),
            boxes=boxes,
            features=features,
            width_px=None if size is None else size[0],
            height_px=None if size is None else size[1],
        )

    def _rows(self, number: int) -> list[Array]:
        start, stop = number, number + 1
        if self._places is not None:
            start, stop = int(self._places[number, 0]), int(self._places[number, 1])
            if not 0 <= start < stop:
                raise RecordRejectedError("bad field", f"{PLACES} say rows {start} to {stop}")
        return read_datasets(self._path, self._present, (start, stop))

    def _at(self, number: int, array: Array) -> Array:
        """Return [R, ...] of what was read for an image."""
        if self._places is not None:
            if len(array) != int(self._places[number, 1] - self._places[number, 0]):
                raise RecordRejectedError("wrong length", f"{PLACES} lead beyond the end of the data")
            return array
        if array.ndim != 3 or len(array) != 1:
            raise RecordRejectedError("wrong length", f"data of shape {list(array.shape)}; expected one image's")
        one: Array = array[0]
        return one


def _present(path: Path, members: set[str]) -> list[str]:
    """Return which data sets of an image the file has, in the order of DATASETS; only the last may be absent.

    Raises:
        ConfigError: no features or no boxes.
    """
    lacking = [name for name in DATASETS[:2] if name not in members]
    if lacking:
        raise ConfigError(f"{path}: no {' and no '.join(lacking)} in it; expected {', '.join(DATASETS)}.")
    return [name for name in DATASETS if name in members]


def _num_rows(path: Path) -> int:
    """Return how many images the features are of.

    Raises:
        ConfigError: they are no data set with a row for each image. ChildRefusedError: unreadable, or not there.
    """
    found = describe(path, DATASETS[0])
    if found["kind"] != "dataset" or not found["shape"]:
        what = f"a {found['kind']}" if found["kind"] != "dataset" else "one number"
        raise ConfigError(f"{path}: {DATASETS[0]} is {what}; expected a data set with a row for each image.")
    return int(found["shape"][0])


def stated_size(boxes: Array, shares: Array) -> tuple[int, int] | None:
    """Return (width, height) such that boxes in pixels are their shares of it, None where there is no such size.

    boxes: [R, 4] pixels. shares: [R, 6], the same divided by width and height.
    """
    if not len(boxes) or not np.isfinite(boxes).all() or not np.isfinite(shares).all():
        return None
    size = []
    for side in (0, 1):
        pixels = boxes[:, [side, side + 2]].astype(np.float64).ravel()
        share = shares[:, [side, side + 2]].astype(np.float64).ravel()
        widest = int(pixels.argmax())
        found = round(min(max(float(pixels[widest]) / max(float(share[widest]), TINY_SHARE), 0), MAX_SIDE_PX))
        if not 1 <= found < MAX_SIDE_PX or (np.abs(share * found - pixels) > AGREEMENT_PX).any():
            return None
        size.append(found)
    return size[0], size[1]


def find_map(path: Path) -> Path:
    """Return the file that maps ids to rows: of several the one named after the data, and JSON before a pickle.

    Raises:
        ConfigError: there is none.
    """
    wanted = [path.with_name(f"{path.stem}_{ending}") for ending in MAP_ENDINGS]
    wanted += [path.with_name(ending) for ending in MAP_ENDINGS]
    found = [file for file in wanted if file.is_file()]
    if not found:
        raise ConfigError(
            f"{path}: no map of ids beside it. Expected one such as {wanted[0].name}: a JSON map of ids to rows."
        )
    return found[0]


def read_ids(path: Path, count: int) -> list[str]:
    """Return the id of each of `count` rows, "" where the map has none; the map is ids to rows, or a list of ids.

    Raises:
        ConfigError: unreadable, or rows that are none of the file's. PickleRefusedError: a pickle of more than a dict.
    """
    if count > MAX_IMAGES:
        raise ConfigError(f"{path}: for {count} images; at most {MAX_IMAGES} are read.")
    if path.suffix == ".pkl":
        found = load_plain(path)
    else:
        raw = read_start(path, MAX_MAP_BYTES + 1)
        try:
            found = json.loads(raw) if len(raw) <= MAX_MAP_BYTES else None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not JSON: {error}. Expected a map of ids to rows; copy it again.") from error
    if isinstance(found, list) and len(found) == count:
        return list(map(str, found))
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected a map of ids to rows, or a list of {count} ids.")
    ids = [""] * count
    for key, row in found.items():
        if type(row) is not int or not 0 <= row < count:
            raise ConfigError(f"{path}: {str(key)[:40]} has row {str(row)[:20]}; the file has rows 0 to {count - 1}.")
        if ids[row]:
            raise ConfigError(f"{path}: row {row} belongs to {ids[row]} and to {str(key)[:40]}.")
        ids[row] = str(key)
    return ids
