"""From what a person names to a `Source`. Promise: told apart by content; where that fails, what was seen is said."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from vlbert_data.errors import ConfigError
from vlbert_data.nearby import did_you_mean
from vlbert_data.sources.base import FileImage, Source, SourceItem
from vlbert_data.sources.files import LONGEST_LINE_BYTES, UTF8_BOM, compression_of, expand_inputs, read_start

FORMATS = {
    "coco": "a COCO captions JSON (lists `images` and `annotations`)",
    "conceptual-captions": "lines of caption TAB url",
    "img2dataset": "an output folder of img2dataset (NNNNN_stats.json)",
    "webdataset": "tar archives",
    "jsonl": "a JSON record with image and caption on each line",
    "parquet": "Parquet files with image bytes",
}
# Enough to see a tar's signature and the first lines of a text.
SNIFFED_BYTES = 1 << 16
# Files of a folder that are inputs, by ending, first come first taken.
_FOLDER_ENDINGS = {".tar": "webdataset", ".parquet": "parquet", ".jsonl": "jsonl", ".tsv": "conceptual-captions"}
_STATS_NAME = re.compile(r"\d+_stats\.json")
_COMPRESSED_TAR = re.compile(r"\.(tar(\.\w+)?|tgz|tbz2?|txz|tzst)$")
# Inputs whose images are looked for before a build begins, evenly spread and at the start: a wrong folder of images
# should not cost a run, and whoever has one image in a thousand should not be refused.
TRIED_SPREAD, TRIED_FIRST = 1000, 100


def open_source(
    inputs: Sequence[str | os.PathLike[str]],
    *,
    images: str | os.PathLike[str] | None = None,
    format: str | None = None,  # noqa: A002  (what the command line calls it)
    allow_bordered: bool = False,
    strict: bool = False,
) -> Source:
    """Return the source of the files, folders and globs in `inputs`.

    images: the folder of images that the input names. format: one of FORMATS, instead of telling by content.
    allow_bordered, strict: see `Img2datasetSource`.

    Raises:
        ConfigError: a path is not there, the format is unknown or mixed, the input is unusable, an option does not
            fit the format, or none of the first images tried exists.
    """
    if format is not None and format not in FORMATS:
        hint = did_you_mean(format, FORMATS)
        raise ConfigError(f"there is no input format {format!r}; the formats are {', '.join(FORMATS)}.{hint}")
    given = expand_inputs(inputs)
    paths = [file for path in given for file in _files_of(path, format)]
    kind = format or _common_format(paths)
    folder = None if images is None else Path(images)
    if folder is not None and kind in ("webdataset", "img2dataset"):
        raise ConfigError(f"--images {folder} given, but {FORMATS[kind]} bring their images along. Leave it out.")
    if (allow_bordered or strict) and kind != "img2dataset":
        raise ConfigError(
            f"{'--allow-bordered' if allow_bordered else 'strict'} is for img2dataset, the input is {kind}."
        )
    source = _make(kind, paths, folder, allow_bordered=allow_bordered, strict=strict)
    if kind in ("coco", "conceptual-captions", "jsonl"):
        _check_images_exist(source)
    return source


def _make(kind: str, paths: Sequence[Path], images: Path | None, *, allow_bordered: bool, strict: bool) -> Source:
    # Each format's module loads when it is needed: two of them load pyarrow.
    if kind == "coco":
        from vlbert_data.sources.coco import CocoSource

        return CocoSource(paths, images=images)
    if kind == "conceptual-captions":
        from vlbert_data.sources.conceptual_captions import ConceptualCaptionsSource

        if len(paths) > 1:
            raise ConfigError(
                f"{len(paths)} Conceptual Captions files: rows number the images of one file, so build each alone."
            )
        return ConceptualCaptionsSource(paths[0], images=images)
    if kind == "jsonl":
        from vlbert_data.sources.jsonl import JsonlSource

        return JsonlSource(paths, images=images)
    if kind == "webdataset":
        from vlbert_data.sources.webdataset import WebdatasetSource

        return WebdatasetSource(paths)
    if kind == "parquet":
        from vlbert_data.sources.parquet import ParquetSource

        return ParquetSource(paths, images=images)
    from vlbert_data.sources.img2dataset import Img2datasetSource

    return Img2datasetSource(paths, allow_bordered=allow_bordered, strict=strict)


def detect_format(path: Path) -> str:
    """Return which of FORMATS a file or folder has, by its content.

    Raises:
        ConfigError: none of them; what was seen is told.
    """
    if path.is_dir():
        if any(_STATS_NAME.fullmatch(entry.name) for entry in path.iterdir()):
            return "img2dataset"
        raise ConfigError(f"{path}: a folder without input files. {_known()}")
    start = read_start(path, SNIFFED_BYTES)
    if start[:4] == b"PAR1":
        return "parquet"
    if start[257:262] == b"ustar":
        return "webdataset"
    compression = compression_of(start)
    if compression is not None and not _COMPRESSED_TAR.search(path.name):
        raise ConfigError(f"{path}: compressed with {compression}. Unpack it first. {_known()}")
    # An archive damaged at its start is still an archive: its reader tells the damage, or how to unpack it.
    if compression is not None or path.suffix == ".tar":
        return "webdataset"
    if path.suffix == ".parquet":
        return "parquet"
    if not start:
        raise ConfigError(f"{path}: an empty file. {_known()}")
    return _detect_text_format(path, start.removeprefix(UTF8_BOM))


def _detect_text_format(path: Path, start: bytes) -> str:
    first_line, found, rest = start.lstrip().partition(b"\n")
    if first_line[:1] == b"{":
        if not found:
            # A record with many boxes may be longer than what was looked at so far.
            start = read_start(path, LONGEST_LINE_BYTES + SNIFFED_BYTES).removeprefix(UTF8_BOM)
            first_line, _, rest = start.lstrip().partition(b"\n")
        try:
            record = json.loads(first_line)
        except (ValueError, RecursionError):
            # A broken record before another one; else one document over many lines, or longer than what was read.
            return "jsonl" if rest.lstrip()[:1] == b"{" else "coco"
        is_coco = isinstance(record.get("images"), list) or isinstance(record.get("annotations"), list)
        return "coco" if is_coco else "jsonl"
    if first_line[:1] == b"[":
        raise ConfigError(
            f"{path}: one JSON list. Expected JSONL: a record a line, without brackets and commas around."
        )
    if b"\t" in first_line and b"\0" not in start:
        return "conceptual-captions"
    raise ConfigError(f"{path}: begins with {start[:40]!r}. {_known()}")


def _files_of(path: Path, format_name: str | None) -> list[Path]:
    """Return the input files that a path stands for: itself, or for a folder of inputs those files."""
    if not path.is_dir() or format_name == "img2dataset":
        return [path]
    names = sorted(entry.name for entry in path.iterdir())
    if format_name is None and any(map(_STATS_NAME.fullmatch, names)):
        return [path]
    for ending, kind in _FOLDER_ENDINGS.items():
        if format_name in (None, kind):
            files = [path / name for name in names if name.endswith(ending)]
            if files:
                return files
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    wanted = "" if format_name is None else f" for the format {format_name}"
    raise ConfigError(f"{path}: no input file{wanted} in this folder; it holds {listed or 'nothing'}. {_known()}")


def _common_format(paths: Sequence[Path]) -> str:
    found: dict[str, Path] = {}
    for path in paths:
        found.setdefault(detect_format(path), path)
    if len(found) > 1:
        listed = ", ".join(f"{path} is {kind}" for kind, path in found.items())
        raise ConfigError(f"inputs of different formats: {listed}. Build each into a folder of its own.")
    return next(iter(found))


def _check_images_exist(source: Source) -> None:
    """Refuse a source of image files when none of those tried is there."""
    count = len(source)
    spread = {i * count // TRIED_SPREAD for i in range(TRIED_SPREAD)}
    tried = [
        entry.location.path
        for number in sorted(spread | set(range(min(TRIED_FIRST, count))))
        for entry in source.read(number, number + 1)
        if isinstance(entry, SourceItem) and isinstance(entry.location, FileImage)
    ]
    if tried and not any(map(os.path.exists, tried)):
        raise ConfigError(
            f"none of the {len(tried)} images tried exists, such as {tried[0]}. Give their folder with --images."
        )


def _known() -> str:
    return "Known formats: " + "; ".join(f"{name}: {what}" for name, what in FORMATS.items()) + "."
