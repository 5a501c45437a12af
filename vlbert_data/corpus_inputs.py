"""Which texts a corpus is made of, and how they are shared out. Promise: the same files give the same units, in order.

A unit is what becomes one corpus file. It is a row of pieces: whole files where they are small, ranges of a file where
it is large. Ranges are cut anywhere; `corpus_read` gives a document that lies across a cut to exactly one of them.
"""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from vlbert_data.errors import ConfigError
from vlbert_data.nearby import where_it_ends

Kind = Literal["text", "jsonl", "parquet"]
KINDS: Mapping[str, Kind] = {".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
DOCUMENTS = ("blank-line", "file", "line")

# A compressed file cannot be entered in the middle: a range of it begins with decompressing what comes before. In 8
# ranges that makes 3.5 more passes of decompression over the file, each far cheaper than tokenising it.
MAX_COMPRESSED_RANGES = 8
# Smaller compressed files are not measured; text mostly shrinks to a third or a quarter.
MEASURED_FROM_BYTES = 1 << 20
USUAL_EXPANSION = 4
SKIM_BYTES = 1 << 22
MAX_UNITS = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFile:
    """A text file. name: how manifests and rejects call it, without the machine's folders. num_bytes: as stored."""

    name: str
    path: str
    kind: Kind
    compression: str | None
    num_bytes: int
    mtime_ns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """files: in the order of the corpus. skipped: suffix to number of files in folders that are of no known kind."""

    files: tuple[InputFile, ...]
    skipped: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """What lies between two cuts of a file: bytes, decompressed, of text; row groups of Parquet. stop None: the end.

    num_bytes: about how much text that is.
    """

    file: InputFile
    start: int
    stop: int | None
    num_bytes: int


Unit = tuple[Piece, ...]


def find_inputs(inputs: Sequence[str], *, leave_out: Path) -> Inputs:
    """Return the files that `inputs` name: files, folders (with all folders in them) and globs, none of them twice.

    Order: as given; within a folder and a glob, by name. In folders only files of known suffix count. leave_out: a
    folder whose files are never taken, such as the corpus itself.

    Raises:
        ConfigError: an input that does not exist, or no file at all.
    """
    found: dict[str, InputFile] = {}
    skipped: Counter[str] = Counter()
    hidden = leave_out.resolve()
    for text in inputs:
        for path, name in _expand(text):
            real = path.resolve()
            if real.is_relative_to(hidden) or str(real) in found:
                continue
            kind, compression = _kind(path)
            if kind is None and name != path.name:
                skipped[path.suffix or "(no suffix)"] += 1
            else:
                found[str(real)] = _stat(path, name, kind or "text", compression)
    if not found:
        others = f" ({sum(skipped.values())} files of other kinds)" if skipped else ""
        raise ConfigError(
            f"{', '.join(inputs)}: no text file there{others}. Known are {', '.join(KINDS)}; also with .gz or .zst."
        )
    return Inputs(files=tuple(found.values()), skipped=dict(sorted(skipped.items())))


def _expand(text: str) -> Iterator[tuple[Path, str]]:
    """Yield (path, name) of the files that one argument names; a name with a folder in it was found in a folder."""
    path = Path(text)
    if path.is_dir():
        yield from _walk(path)
    elif path.exists() or path.is_symlink():
        yield path, path.name
    elif glob.has_magic(text):
        matches = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 (a glob of any root, as a shell takes it)
        if not matches:
            raise ConfigError(f"{text}: matches no file.")
        for match in matches:
            if Path(match).is_dir():
                yield from _walk(Path(match))
            else:
                yield Path(match), Path(match).name
    else:
        raise ConfigError(f"{text}: there is no such file or folder. {where_it_ends(Path(text))}".rstrip())


def _walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield all files below a folder, by name."""
    root = folder.resolve()
    paths = [Path(at, name) for at, _, names in os.walk(root, onerror=_refuse_folder) for name in names]
    for path in sorted(paths, key=lambda path: path.parts):
        yield path, str(Path(root.name, path.relative_to(root)))


def _refuse_folder(error: OSError) -> None:
    raise ConfigError(f"{error.filename}: the folder cannot be listed: {error.strerror}. Mend or move it.") from error


def _kind(path: Path) -> tuple[Kind | None, str | None]:
    compression = COMPRESSIONS.get(path.suffix.lower())
    inner = path.with_suffix("") if compression else path
    kind = KINDS.get(inner.suffix.lower())
    if kind == "parquet" and compression:
        raise ConfigError(f"{path}: compressed Parquet; Parquet compresses by itself. Decompress the file first.")
    return kind, compression


def _stat(path: Path, name: str, kind: Kind, compression: str | None) -> InputFile:
    """Return the file; one that cannot be looked at counts 0 bytes, and is rejected when it is read."""
    num_bytes = mtime_ns = 0
    try:
        status = path.stat()
        num_bytes, mtime_ns = status.st_size, status.st_mtime_ns
    except OSError:
        pass
    return InputFile(
        name=name, path=str(path), kind=kind, compression=compression, num_bytes=num_bytes, mtime_ns=mtime_ns
    )


def plan_units(inputs: Inputs, *, document: str, unit_bytes: int, sizes: Mapping[str, int | None]) -> list[Unit]:
    """Return the units of about `unit_bytes` of text each; see `needs_measuring` for `sizes`.

    Raises:
        ConfigError: more units than file names of five digits.
    """
    pieces = (piece for file in inputs.files for piece in _pieces(file, document, unit_bytes, sizes))
    units = list(_grouped(pieces, unit_bytes))
    if len(units) > MAX_UNITS:
        raise ConfigError(f"{len(units)} corpus files; a folder has at most {MAX_UNITS:,}. Raise --shard-size.")
    return units


def needs_measuring(file: InputFile, document: str) -> bool:
    """Return whether `plan_units` wants the decompressed size of this file under its path in `sizes`."""
    is_split = file.kind == "jsonl" or document != "file"
    return file.compression is not None and is_split and file.num_bytes >= MEASURED_FROM_BYTES


def measure(file: InputFile) -> int | None:
    """Return the bytes of a compressed file when decompressed, None where it is damaged."""
    size = 0
    try:
        with open_stream(file) as stream:
            while block := stream.read(SKIM_BYTES):
                size += len(block)
    except (OSError, pa.ArrowException):
        return None
    return size


def open_stream(file: InputFile) -> pa.NativeFile:
    """Return the decompressed bytes of a text file as a stream.

    Raises:
        OSError: it cannot be opened; reading may raise it too.
    """
    plain = pa.OSFile(file.path, "rb")
    return plain if file.compression is None else pa.CompressedInputStream(plain, file.compression)


def _pieces(file: InputFile, document: str, unit_bytes: int, sizes: Mapping[str, int | None]) -> list[Piece]:
    if file.kind == "parquet":
        return _row_groups(file, unit_bytes)
    whole = file.num_bytes * (1 if file.compression is None else USUAL_EXPANSION)
    count = 1
    if file.kind == "jsonl" or document != "file":
        if file.compression is None:
            count = -(-whole // unit_bytes)
        elif measured := sizes.get(file.path):
            whole = measured
            count = min(MAX_COMPRESSED_RANGES, -(-whole // unit_bytes))
    if count <= 1:
        return [Piece(file=file, start=0, stop=None, num_bytes=whole)]
    cuts = [whole * k // count for k in range(count)]
    return [
        Piece(file=file, start=start, stop=stop, num_bytes=(stop or whole) - start)
        for start, stop in zip(cuts, [*cuts[1:], None], strict=True)
    ]


def _row_groups(file: InputFile, unit_bytes: int) -> list[Piece]:
    try:
        with pq.ParquetFile(file.path) as parquet:
            facts = parquet.metadata
            sizes = [facts.row_group(group).total_byte_size for group in range(facts.num_row_groups)]
    except (OSError, pa.ArrowException):
        sizes = []  # reading it will find the same trouble, and reject the file with the reason
    if not sizes:
        return [Piece(file=file, start=0, stop=None, num_bytes=file.num_bytes)]
    groups = [Piece(file=file, start=k, stop=k + 1, num_bytes=size) for k, size in enumerate(sizes)]
    joined = [
        Piece(file=file, start=unit[0].start, stop=unit[-1].stop, num_bytes=sum(piece.num_bytes for piece in unit))
        for unit in _grouped(groups, unit_bytes)
    ]
    if len(joined) == 1:
        joined = [Piece(file=file, start=0, stop=None, num_bytes=joined[0].num_bytes)]
    return joined


def _grouped(pieces: Iterable[Piece], unit_bytes: int) -> Iterator[Unit]:
    """Yield neighbours together as long as they have at most `unit_bytes`; a larger piece is alone."""
    unit: list[Piece] = []
    size = 0
    for piece in pieces:
        if unit and size + piece.num_bytes > unit_bytes:
            yield tuple(unit)
            unit, size = [], 0
        unit.append(piece)
        size += piece.num_bytes
    if unit:
        yield tuple(unit)
