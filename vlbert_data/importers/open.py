"""From what a person names to an `Importer`. Promise: told apart by content; where that fails, it says what it saw."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from vlbert_data.errors import ConfigError
from vlbert_data.importers.base import Format, FormatOptions, Importer
from vlbert_data.nearby import did_you_mean
from vlbert_data.sources.files import compression_of, expand_inputs, read_start

# name -> (module, what such an input is). A module loads when its turn comes: some load h5py, lmdb or pyarrow.
FORMATS = {
    "lxmert": ("vlbert_data.importers.lxmert", "the TSV of LXMERT, 10 columns"),
    "bottom-up-attention": ("vlbert_data.importers.bottom_up_attention", "its TSV, 6 columns"),
    "volta-tsv": ("vlbert_data.importers.volta_tsv", "VOLTA's TSV of Conceptual Captions, 13 columns"),
    "vl-bert": ("vlbert_data.importers.vlbert_json", "VL-BERT's JSON files, loose, in a .zip, or its annotations"),
    "vinvl": ("vlbert_data.importers.vinvl", "the features.tsv of VinVL and Oscar"),
    "scene-graph": ("vlbert_data.importers.scene_graph", "the predictions TSV of scene_graph_benchmark"),
    "uniter-lmdb": ("vlbert_data.importers.uniter_lmdb", "UNITER's LMDB, MessagePack or .npz"),
    "uniter-npz": ("vlbert_data.importers.uniter_npz", "a folder of the .npz files of UNITER's extraction"),
    "pickle-lmdb": ("vlbert_data.importers.pickle_lmdb", "the LMDB of ViLBERT, VOLTA or MMF, a dict an image"),
    "tensorpack-lmdb": ("vlbert_data.importers.tensorpack_lmdb", "ViLBERT's or VOLTA's LMDB of Conceptual Captions"),
    "mmf-npy": ("vlbert_data.importers.mmf_npy", "a folder of MMF's or ViLBERT's .npy files"),
    "milvlg-npz": ("vlbert_data.importers.milvlg_npz", "a folder of bottom-up-attention.pytorch's .npz files"),
    "group-hdf5": ("vlbert_data.importers.group_hdf5", "the HDF5 of VL-T5 or VOLTA, a group an image"),
    "dense-hdf5": ("vlbert_data.importers.dense_hdf5", "HDF5 of all images in one array, with a map of ids"),
    "vlp-hdf5": ("vlbert_data.importers.vlp_hdf5", "a folder of VLP's HDF5 files"),
    "lxmert-arrow": ("vlbert_data.importers.lxmert_arrow", "Hugging Face's LXMERT features in Arrow"),
}
# Those whose input is a folder, or may be one: a database, or a file an image.
OF_FOLDERS = frozenset(
    {
        *("vl-bert", "uniter-lmdb", "uniter-npz", "pickle-lmdb", "tensorpack-lmdb"),
        *("mmf-npy", "milvlg-npz", "vlp-hdf5", "lxmert-arrow"),
    }
)
# What a file is that begins so, (byte, what is there), where no format is told.
KINDS = {
    (0, b"PK\3\4"): "a .zip archive",
    (0, b"\x89HDF"): "an HDF5 file",
    (0, b"ARROW1"): "an Arrow file",
    (16, b"\xde\xc0\xef\xbe"): "an LMDB database",
}
SHOWN_BYTES = 60
LISTED_FILES = 8


def open_importer(
    inputs: Sequence[str], *, format_name: str | None = None, options: FormatOptions | None = None
) -> Importer:
    """Return the importer of the files, folders and globs in `inputs`.

    format_name: one of FORMATS, instead of telling by content.

    Raises:
        ConfigError: a path is not there, the format is unknown, mixed or ambiguous, or the input is unusable.
    """
    if format_name is not None and format_name not in FORMATS:
        hint = did_you_mean(format_name, FORMATS)
        raise ConfigError(f"there is no format {format_name!r}; the formats are {', '.join(FORMATS)}.{hint}")
    names = list(FORMATS) if format_name is None else [format_name]
    paths: list[Path] = []
    found: dict[str, Path] = {}
    for given in expand_inputs(inputs):
        kind, files = _recognise(given, names)
        paths += files
        found.setdefault(kind, files[0])
    if len(found) > 1:
        listed = ", ".join(f"{path} is {kind}" for kind, path in found.items())
        raise ConfigError(f"inputs of different formats: {listed}. Import each into a folder of its own.")
    return load_format(next(iter(found))).open_importer(paths, options or FormatOptions())


def load_format(name: str) -> Format:
    """Return the module of one of FORMATS."""
    return cast(Format, importlib.import_module(FORMATS[name][0]))


def _recognise(path: Path, names: Sequence[str]) -> tuple[str, list[Path]]:
    """Return the format of a path, and the files that it stands for: itself, or files of one format in a folder."""
    if not path.is_dir() and not path.is_file():
        # A pipe, say, which would keep its reader waiting.
        raise ConfigError(f"{path}: neither a file nor a folder.")
    seen = sniff(path, names)
    if len(seen) > 1:
        listed = "; ".join(f"{name} ({evidence})" for name, evidence in seen.items())
        raise ConfigError(f"{path}: could be {listed}. Name one with --format.")
    if seen:
        return next(iter(seen)), [path]
    named = names[0] if len(names) == 1 else None
    if named is not None and not path.is_dir():
        # The user's word: opening says what does not fit.
        return named, [path]
    if not path.is_dir():
        raise ConfigError(f"{path}: {_what_it_is(path)}, no format of features that is known. {_known()}")
    inside: dict[str, list[Path]] = {}
    files = sorted(entry for entry in path.iterdir() if entry.is_file())
    for file in files:
        for name in sniff(file, names):
            inside.setdefault(name, []).append(file)
    if len(inside) == 1:
        return next(iter(inside.items()))
    if named in OF_FOLDERS:
        return named, [path]
    if inside:
        listed = "; ".join(f"{name}: {len(members)} files, such as {members[0]}" for name, members in inside.items())
        raise ConfigError(f"{path}: holds files of several formats ({listed}). Name one with --format.")
    listed = ", ".join(entry.name for entry in files[:LISTED_FILES]) or "no file"
    more = f" and {len(files) - LISTED_FILES} more" if len(files) > LISTED_FILES else ""
    no_format = "no format of features that is known" if named is None else f"nothing of the format {named}"
    raise ConfigError(f"{path}: a folder of {listed}{more}; {no_format}. {_known()}")


def sniff(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Return which of the named formats a path has by its content, with what shows it."""
    found = {name: load_format(name).sniff(path) for name in names}
    return {name: evidence for name, evidence in found.items() if evidence is not None}


def _what_it_is(path: Path) -> str:
    start = read_start(path, SHOWN_BYTES)
    compression = compression_of(start)
    if compression is not None:
        return f"compressed with {compression} (unpack it first)"
    kind = next((kind for (place, magic), kind in KINDS.items() if start[place:].startswith(magic)), None)
    if kind is not None:
        return f"{kind}, damaged or of something else (--format NAME tells what does not fit)"
    return f"begins with {start!r}" if start else "an empty file"


def _known() -> str:
    return "Known formats: " + "; ".join(f"{name}: {what}" for name, (_, what) in FORMATS.items()) + "."
