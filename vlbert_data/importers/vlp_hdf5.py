"""HDF5 files of VLP: features and distributions in a thousand files each, by the last three characters of the id.

Promise: where the background of a distribution stands is shown to the user and not guessed, and so are sizes.

Files `*_feat000.h5` to `*_feat999.h5` hold [100, 2048] float16 a data set, `*_cls000.h5` beside them class
distributions likewise, and one file of boxes [100, 6]: corners in pixels, a class, a confidence. Data sets are named by
the image's id. As VLP hands them out, the file of boxes is in the folder above that of the others.

Source: LuoweiZhou/VLP vlp/seq2seq_loader.py.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vlbert_data.errors import ConfigError
from vlbert_data.importers.base import FormatOptions, RawRecord
from vlbert_data.importers.hdf5_inputs import NamedInputs, looks_like_hdf5, read_datasets
from vlbert_data.importers.numbered import hash_files
from vlbert_data.importers.record_dict import confidences, rows

NAME = "vlp-hdf5"
FEATURE_FILE = re.compile(r"(.*)_feat(.{3})\.h5")
BOX_FILES = "*_bbox.h5"


def sniff(path: Path) -> str | None:
    """Return what shows that the folder has this format; None where it has not."""
    if not path.is_dir():
        return None
    try:
        features, boxes = _feature_files(path), _box_files(path)
    except OSError:
        return None
    if features and boxes and looks_like_hdf5(features[0]) and _class_file(features[0]).is_file():
        return f"a folder of {len(features)} files {features[0].name} and on, with files of classes and {boxes[0].name}"
    return None


def _feature_files(folder: Path) -> list[Path]:
    """Return the files of features in a folder or, if there is none, in the folders in it."""
    for entries in (folder.iterdir(), folder.glob("*/*")):
        found = sorted(entry for entry in entries if FEATURE_FILE.fullmatch(entry.name))
        if found:
            return found
    return []


def _box_files(folder: Path) -> list[Path]:
    """Return the files of boxes in a folder or, if there is none, in the folder above."""
    return sorted(folder.glob(BOX_FILES)) or sorted(folder.absolute().parent.glob(BOX_FILES))


def _class_file(features: Path) -> Path:
    found = FEATURE_FILE.fullmatch(features.name)
    assert found is not None, "a file of features was found by this pattern"
    return features.with_name(f"{found[1]}_cls{found[2]}.h5")


def open_importer(paths: Sequence[Path], options: FormatOptions) -> "VlpHdf5":
    """Return the importer of this folder; see `base.Format`."""
    if len(paths) != 1 or not paths[0].is_dir():
        raise ConfigError(f"{NAME}: expected one folder with files such as coco_detection_..._feat000.h5.")
    return VlpHdf5(paths[0])


class VlpHdf5(NamedInputs):
    """The data sets of all files of features."""

    def __init__(self, folder: Path) -> None:
        """Read the names of all data sets.

        Raises:
            ConfigError: a kind of file is missing, or there is no image that can be read.
            ChildRefusedError: unreadable.
        """
        files, boxes = _feature_files(folder), _box_files(folder)
        if not files or len(boxes) != 1:
            raise ConfigError(
                f"{folder}: {len(files)} files *_featXXX.h5 and {len(boxes)} files {BOX_FILES}; expected one or "
                "more of the first and one of the second."
            )
        super().__init__(files)
        self._boxes = boxes[0]
        classes = [file for file in map(_class_file, files) if file.is_file()]
        self._file_facts = hash_files([*files, *classes, self._boxes])
        self.settle(NAME)
        # Of 1601 columns the first may be the background or the last: two detectors were in use.
        self._traits = replace(self._traits, labels=replace(self._traits.labels, background=None))

    def load(self, number: int) -> RawRecord:
        """Return the record of an image, from three files."""
        path, key = self.named(number)
        found = [read_datasets(file, [key])[0] for file in (path, _class_file(path), self._boxes)]
        features = rows(found[0], "features", len(found[0]) if found[0].ndim else 0, None)
        boxes = rows(found[2], "boxes", len(features), 6)
        return RawRecord(
            key=key,
            where=self.where(number),
            num_bytes=sum(array.nbytes for array in found),
            boxes=boxes[:, :4],
            features=features,
            class_probs=rows(found[1], "class distributions", len(features), None),
            confidence=confidences(boxes[:, 5], "the sixth column of boxes", len(features)),
        )
