"""A corpus folder, open for reading. Promise: opening reads the manifest; tokens stay in their mapped files.

manifest.json (written last), corpus-NNNNN.arrow (see `token_file`), sources.jsonl (what was read), rejects.jsonl (what
was not taken). All tokens of a corpus count as one long row, through all files: position 0 .. num_tokens - 1.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlbert_data import nearby, runs, token_runs
from vlbert_data.addresses import Origins, address
from vlbert_data.errors import ConfigError, ShardError
from vlbert_data.manifest import FileEntry, render
from vlbert_data.shards import files
from vlbert_data.token_file import TokenFile, TokenRuns
from vlbert_data.types import Array

FORMAT_VERSION = 1
KIND = "corpus"
MANIFEST_NAME = "manifest.json"
SOURCES_NAME = "sources.jsonl"
REJECTS_NAME = "rejects.jsonl"
STATE_FOLDER = ".build"
EXPECTED = "a folder that vlb build-corpus has finished"


def corpus_name(number: int) -> str:
    """Return the name of corpus file `number`, such as `corpus-00003.arrow`."""
    return f"corpus-{number:05d}.arrow"


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusEntry:
    """A token file: its name, size and BLAKE3, and what is in it. text_bytes: UTF-8 of the texts taken."""

    file: str
    bytes: int
    blake3: str
    documents: int
    lines: int
    tokens: int
    text_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusManifest:
    """What a corpus folder is. tokenizer: see `TextTokenizer.facts`; source, build: JSON types; rejects: by reason."""

    tokenizer: Mapping[str, Any]
    num_documents: int
    num_lines: int
    num_tokens: int
    text_bytes: int
    source: Mapping[str, Any]
    build: Mapping[str, Any]
    rejects: Mapping[str, int]
    files: tuple[CorpusEntry, ...]
    sources_file: FileEntry
    rejects_file: FileEntry
    format_version: int = FORMAT_VERSION
    content_hash: str = ""

    @property
    def tokenizer_fingerprint(self) -> str:
        """Return the fingerprint of the tokenizer that made the ids."""
        return str(self.tokenizer["fingerprint"])

    def as_json(self) -> dict[str, Any]:
        """Return this manifest as JSON types, its hash included."""
        facts = {key: value for key, value in asdict(self).items() if key != "content_hash"} | {"kind": KIND}
        return {**facts, "content_hash": files.blake2b_json(facts)}


def save_manifest(manifest: CorpusManifest, folder: Path) -> None:
    """Write `manifest.json`, all or nothing; from then on the folder is whole."""
    files.write_bytes(folder / MANIFEST_NAME, render(manifest.as_json()))


def load_manifest(folder: Path) -> CorpusManifest:
    """Return the manifest of a corpus folder.

    Raises:
        ShardError: no such folder, an unfinished build, a folder of something else, another version, or changed.
    """
    path = folder / MANIFEST_NAME
    if not path.exists():
        raise ShardError(_why_not(folder))
    facts = files.read_json(path, what="manifest")
    if isinstance(facts, dict) and "shards" in facts:
        raise ShardError(f"{folder}: shards of images; expected {EXPECTED}. Shards go with --shards.")
    if not isinstance(facts, dict) or facts.get("kind") != KIND:
        raise ShardError(f"{folder}: not a corpus folder: its {MANIFEST_NAME} describes something else.")
    if facts.get("format_version") != FORMAT_VERSION:
        raise ShardError(
            f"{path}: format version {facts.get('format_version')}; this vlb reads {FORMAT_VERSION}. "
            "Update vlb, or build the corpus again with vlb build-corpus."
        )
    try:
        manifest = _from_json(facts)
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError(f"{path}: not a manifest of a corpus, or a damaged one ({error!r}). Restore it.") from error
    if path.read_bytes() != render(manifest.as_json()):
        raise ShardError(f"{path}: changed since it was written (its hash does not fit). Restore the original.")
    return manifest


def _why_not(folder: Path) -> str:
    """Return why a folder without a manifest is no corpus, and what to do."""
    if not folder.is_dir():
        return nearby.no_folder(folder, expected=EXPECTED, fits=_looks_right)
    if (folder / STATE_FOLDER).exists():
        return f"{folder}: an unfinished corpus, no {MANIFEST_NAME}. Run the same vlb build-corpus command again."
    return (
        f"{folder}: no corpus, no {MANIFEST_NAME}. {nearby.folders_inside(folder, _looks_right) or f'Give {EXPECTED}.'}"
    )


def _looks_right(folder: Path) -> bool:
    return (folder / MANIFEST_NAME).is_file() and (folder / SOURCES_NAME).is_file()


def _from_json(facts: dict[str, Any]) -> CorpusManifest:
    values = {key: value for key, value in facts.items() if key != "kind"}
    values["files"] = tuple(CorpusEntry(**entry) for entry in facts["files"])
    for name in ("sources_file", "rejects_file"):
        values[name] = FileEntry(**facts[name])
    return CorpusManifest(**values)


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusFolder:
    """The tokens of a finished corpus. Safe to use after fork and from several threads.

    file_starts: int64 [files + 1], the position of each file's first token; its last entry is `num_tokens`.
    """

    path: Path
    manifest: CorpusManifest
    file_starts: Array = field(repr=False)
    _files: dict[int, TokenFile] = field(default_factory=dict, repr=False)
    _origins: dict[str, Origins] = field(default_factory=dict, repr=False)

    @staticmethod
    def open(path: Path | str) -> "CorpusFolder":
        """Return the corpus at `path`.

        Raises:
            ShardError: unfinished, damaged, or not a corpus.
        """
        folder = Path(path)
        manifest = load_manifest(folder)
        starts = np.zeros(len(manifest.files) + 1, np.int64)
        np.cumsum([entry.tokens for entry in manifest.files], out=starts[1:])
        return CorpusFolder(path=folder, manifest=manifest, file_starts=starts)

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens of all files."""
        return int(self.file_starts[-1])

    @property
    def num_files(self) -> int:
        """Return the number of token files."""
        return len(self.manifest.files)

    def require_tokenizer(self, fingerprint: str, name: str) -> None:
        """Raise a ConfigError unless the corpus was made with the tokenizer of this fingerprint, called `name`."""
        if self.manifest.tokenizer_fingerprint != fingerprint:
            raise ConfigError(
                f"{self.path}: made with another tokenizer (fingerprint {self.manifest.tokenizer_fingerprint[:12]}) "
                f"than {name} ({fingerprint[:12]}). Give the same tokenizer, or build the corpus again with this one."
            )

    def file(self, number: int) -> TokenFile:
        """Return file `number`, mapped at the first call.

        Raises:
            ShardError: missing, cut short, or not the file that the manifest describes.
        """
        if number not in self._files:
            # Two threads may map the same file at once; both results are good and one is kept.
            self._files.setdefault(number, self._map(number))
        return self._files[number]

    def tokens(self, file: int, start: int, stop: int) -> Array:
        """Return the ids of tokens [start, stop) of a file, a read-only view of the mapped file, uint16 or uint32."""
        return self.file(file).ids[start:stop]

    def origins(self, numbers: Array) -> Array:
        """Return int64 [n, 4]: where ids, word bits, offsets and line starts of files begin in memory.

        numbers: int [n]; a file is mapped at the first call.
        """
        if not self._origins:
            self._origins.setdefault("files", Origins(self.num_files, 4, self._origin))
        return self._origins["files"].of(numbers)

    def _origin(self, number: int) -> list[int]:
        file = self.file(number)
        return [address(array) for array in (file.ids, file.word_bits, file.offsets, file.line_starts)]

    def gather(self, starts: Array, stops: Array) -> TokenRuns:
        """Return the tokens at positions [starts[i], stops[i]), one run after another, as copies with int64 ids.

        starts, stops: int64 [n], 0 <= starts <= stops. After the last token of the corpus comes the first one again.
        """
        starts, stops = np.asarray(starts, np.int64), np.asarray(stops, np.int64)
        if (starts < 0).any() or (stops < starts).any():
            raise ValueError("runs of tokens must begin at 0 or later and not end before they begin")
        borders = runs.borders(stops - starts)
        ids, words = np.empty(borders[-1], np.int64), np.empty(borders[-1], np.bool_)
        numbers, places = self.locate(starts % max(self.num_tokens, 1))
        into, left = borders[:-1].copy(), stops - starts
        which = np.flatnonzero(left)
        # A run that passes the end of its file goes on at the begin of the next one.
        while len(which):
            files = numbers[which]
            sizes = np.minimum(left[which], self.file_starts[files + 1] - self.file_starts[files] - places[which])
            read = token_runs.read_runs(self.file(0).ids.dtype, self.origins(files), places[which], sizes)
            targets = runs.places(into[which], sizes)
            ids[targets], words[targets] = read.ids, read.starts_word
            into[which] += sizes
            left[which] -= sizes
            numbers[which], places[which] = (files + 1) % self.num_files, 0
            which = which[left[which] > 0]
        return TokenRuns(ids=ids, starts_word=words, cu_lengths=borders)

    def locate(self, positions: Array) -> tuple[Array, Array]:
        """Return for positions int64 [n] below num_tokens the file int64 [n] and the place in that file int64 [n]."""
        found = np.searchsorted(self.file_starts, positions, side="right") - 1
        return found, np.asarray(positions) - self.file_starts[found]

    def verify(self) -> None:
        """Compare every file with the manifest's sizes and hashes, reading all of it.

        Raises:
            ShardError: the first file that differs.
        """
        entries: list[CorpusEntry | FileEntry] = [*self.manifest.files]
        for entry in (*entries, self.manifest.sources_file, self.manifest.rejects_file):
            path = self.path / entry.file
            if not path.exists() or files.blake3_file(path) != entry.blake3:
                raise ShardError(
                    f"{path}: not what was written (hash or size differ). Copy it again or build it again."
                )

    def _map(self, number: int) -> TokenFile:
        entry = self.manifest.files[number]
        path = self.path / entry.file
        found = path.stat().st_size if path.exists() else None
        if found != entry.bytes:
            size = "missing" if found is None else f"{found} bytes"
            raise ShardError(f"{path}: {size}; the manifest says {entry.bytes} bytes. Copy it again or build it again.")
        mapped = TokenFile.open(path)
        if (len(mapped), mapped.num_tokens, len(mapped.line_starts)) != (entry.documents, entry.tokens, entry.lines):
            raise ShardError(f"{path}: not the file that the manifest describes. Copy it again or build it again.")
        return mapped
