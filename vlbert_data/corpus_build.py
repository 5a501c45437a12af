"""Text files to a corpus folder. Promise: atomic, resumable at any moment, and the same bytes for the same input.

Units (see `corpus_inputs`) are built in any order by worker processes, each into a corpus file of its own. What is done
stands in `.build/` until the manifest is there: build.json says what is being built, unit-NNNNN.json that a unit is.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlbert_data import corpus as corpus_module
from vlbert_data.build.differences import Asked, refuse_differences, several
from vlbert_data.corpus import STATE_FOLDER, CorpusManifest
from vlbert_data.corpus_inputs import DOCUMENTS, Inputs, Piece, Unit, find_inputs, needs_measuring, plan_units
from vlbert_data.corpus_unit import UnitOutcome, UnitSettings, load_outcome, rejects_path
from vlbert_data.corpus_workers import Job, Workers
from vlbert_data.errors import ConfigError, ShardError, VlbError
from vlbert_data.manifest import FileEntry
from vlbert_data.shards import files
from vlbert_data.tokenizer import TextTokenizer

MIN_UNIT_BYTES = 1 << 10
MAX_UNIT_BYTES = 1 << 30
# Their versions can change ids, and the bytes of corpus files.
PACKAGES = ("tokenizers", "pyarrow")
# How people write a setting, by its place in a build's identity.
SETTING_OPTIONS = {"document": "--document", "text_field": "--text-field", "unit_bytes": "--shard-size in bytes"}


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusSettings:
    """What `vlb build-corpus` was asked for.

    document, text_field: see `UnitSettings`. unit_bytes: about how much text goes into one corpus file. max_rejects: as
    a share of documents below 1, or a number of documents from 1 on. workers: processes that tokenise.
    """

    document: str = "blank-line"
    text_field: str = "text"
    unit_bytes: int = 8 << 20
    max_rejects: float = 0.05
    workers: int = 1

    def __post_init__(self) -> None:
        if self.document not in DOCUMENTS:
            raise ConfigError(f"documents by {self.document!r}; they are told apart by {', '.join(DOCUMENTS)}.")
        for name, low, high in (
            ("unit_bytes", MIN_UNIT_BYTES, MAX_UNIT_BYTES),
            ("max_rejects", 0.0, 1e12),
            ("workers", 1, 1024),
        ):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be from {low:g} to {high:g}.")

    def allows(self, num_rejects: int, num_documents: int) -> bool:
        """Return whether so many rejects beside so many documents taken are within `max_rejects`."""
        limit = self.max_rejects
        return num_rejects <= (limit if limit >= 1 else limit * (num_rejects + num_documents))


class TooManyRejectsError(VlbError):
    """A finished corpus with more rejects than `max_rejects`; `counts` has them by reason."""

    def __init__(self, message: str, counts: dict[str, int]) -> None:
        super().__init__(message)
        self.counts = counts


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far the build is: bytes of text done, those of earlier runs included, and in this run."""

    done_bytes: int
    total_bytes: int
    new_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusResult:
    """The finished folder's manifest, and how many corpus files this run built."""

    manifest: CorpusManifest
    built: int


@dataclass(kw_only=True)
class CorpusBuild:
    """A build of the texts that `inputs` name into `folder`; `run` does it, or goes on with it."""

    folder: Path
    inputs: Sequence[str]
    tokenizer: TextTokenizer
    settings: CorpusSettings
    on_progress: Callable[[Progress], None] = lambda _: None
    found: Inputs = field(init=False)

    def __post_init__(self) -> None:
        self.found = find_inputs(self.inputs, leave_out=self.folder)

    def identity(self) -> dict[str, Any]:
        """Return everything that decides what the corpus holds, as JSON types; files by their names and sizes."""
        return {
            "format_version": corpus_module.FORMAT_VERSION,
            "tokenizer": self.tokenizer.fingerprint,
            "document": self.settings.document,
            "text_field": self.settings.text_field,
            "unit_bytes": self.settings.unit_bytes,
            "input": {
                "files": len(self.found.files),
                "bytes": sum(file.num_bytes for file in self.found.files),
                "names_and_sizes": files.blake2b_json([[file.name, file.num_bytes] for file in self.found.files]),
            },
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        }

    def run(self) -> CorpusResult:
        """Build what is missing and return the finished corpus.

        Raises:
            ConfigError: the folder holds another corpus, or something else, or the input changed since the begin.
            TooManyRejectsError: everything was read, but too much of it was rejected.
            ShardError: there was not one document.
            VlbError: another process builds this folder, the disk is full, or a worker died.
        """
        if (self.folder / corpus_module.MANIFEST_NAME).exists():
            return self._finished()
        self._refuse_foreign()
        with _locked(self.folder):
            # Another process may have finished it before this one had the lock.
            if (self.folder / corpus_module.MANIFEST_NAME).exists():
                return self._finished()
            with _explained(self.folder):
                built = self._build_units(self._planned())
                return CorpusResult(manifest=self._finish(), built=built)

    def _finished(self) -> CorpusResult:
        manifest = corpus_module.load_manifest(self.folder)
        self._refuse_differences(manifest.build, {})
        shutil.rmtree(self.folder / STATE_FOLDER, ignore_errors=True)
        return CorpusResult(manifest=manifest, built=0)

    def _asked(self) -> dict[str, dict[str, str | None]]:
        return {"tokenizer": {"--tokenizer": self.tokenizer.name}, "input": {"the input": several(self.inputs)}}

    def _refuse_differences(self, found: Mapping[str, Any], asked: Asked) -> None:
        wanted = json.loads(files.canonical_json(self.identity()))
        refuse_differences(self.folder, found, wanted, (asked, self._asked()), SETTING_OPTIONS)

    def _refuse_foreign(self) -> None:
        state = self.folder / STATE_FOLDER
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"{self.folder}: is a file. Choose a new folder for --out.")
        if self.folder.exists() and not state.exists() and any(self.folder.iterdir()):
            raise ConfigError(
                f"{self.folder}: holds files that are no corpus. Choose an empty or new folder for --out."
            )

    def _planned(self) -> list[Unit]:
        """Return the units, as planned when the build began."""
        path = self.folder / STATE_FOLDER / "build.json"
        stamps = [[file.name, file.num_bytes, file.mtime_ns] for file in self.found.files]
        if path.exists():
            facts = files.read_json(path, what="state of a build")
            self._refuse_differences(facts["identity"], facts.get("asked", {}))
            for before, now in zip(facts["files"], stamps, strict=True):
                if before != now:
                    raise ConfigError(
                        f"{self.folder}: {now[0]} was changed since this build began. Restore the file, "
                        "or choose another --out."
                    )
            return [tuple(self._piece(*piece) for piece in unit) for unit in facts["units"]]
        units = plan_units(
            self.found, document=self.settings.document, unit_bytes=self.settings.unit_bytes, sizes=self._measured()
        )
        numbers = {file.path: number for number, file in enumerate(self.found.files)}
        plan = [[[numbers[p.file.path], p.start, p.stop, p.num_bytes] for p in unit] for unit in units]
        facts = {"identity": self.identity(), "asked": self._asked(), "files": stamps, "units": plan}
        files.write_bytes(path, json.dumps(facts, ensure_ascii=False).encode())
        return units

    def _piece(self, file: int, start: int, stop: int | None, num_bytes: int) -> Piece:
        return Piece(file=self.found.files[file], start=start, stop=stop, num_bytes=num_bytes)

    def _measured(self) -> dict[str, int | None]:
        wanted = [file for file in self.found.files if needs_measuring(file, self.settings.document)]
        with self._workers(len(wanted)) as workers:
            return {wanted[number].path: size for number, size in workers.measure(wanted)}

    def _build_units(self, units: Sequence[Unit]) -> int:
        pending = [number for number in range(len(units)) if load_outcome(self.folder, number) is None]
        weights = [sum(piece.num_bytes for piece in unit) for unit in units]
        new = sum(weights[number] for number in pending)
        with self._workers(len(pending)) as workers:
            for done in workers.build({number: units[number] for number in pending}):
                self.on_progress(
                    Progress(done_bytes=sum(weights) - new + done, total_bytes=sum(weights), new_bytes=done)
                )
        return len(pending)

    def _workers(self, num_tasks: int) -> Workers:
        settings = UnitSettings(document=self.settings.document, text_field=self.settings.text_field)
        job = Job(folder=self.folder, settings=settings, tokenizer=self.tokenizer.serialised())
        return Workers(job, min(self.settings.workers, num_tasks))

    def _finish(self) -> CorpusManifest:
        outcomes = list(self._outcomes())
        rejects = sum((Counter(dict(outcome.rejects)) for outcome in outcomes), Counter[str]())
        documents = sum(outcome.entry.documents for outcome in outcomes)
        if not self.settings.allows(rejects.total(), documents):
            raise TooManyRejectsError(
                f"{self.folder}: {rejects.total():,} of {rejects.total() + documents:,} documents were rejected, more "
                f"than --max-rejects {self.settings.max_rejects:g} allows; {STATE_FOLDER}/*.rejects.jsonl lists them. "
                "Mend the input and choose another --out, or run the same command with a higher --max-rejects.",
                dict(rejects),
            )
        if documents == 0:
            raise ShardError(f"{self.folder}: not one document was taken, so there is no corpus. See the rejects.")
        self._write_lists(len(outcomes))
        manifest = self._manifest(outcomes, rejects)
        corpus_module.save_manifest(manifest, self.folder)
        shutil.rmtree(self.folder / STATE_FOLDER, ignore_errors=True)
        return corpus_module.load_manifest(self.folder)

    def _outcomes(self) -> Iterator[UnitOutcome]:
        facts = files.read_json(self.folder / STATE_FOLDER / "build.json", what="state of a build")
        for number in range(len(facts["units"])):
            outcome = load_outcome(self.folder, number)
            assert outcome is not None, "every unit was built just now or before"
            yield outcome

    def _write_lists(self, num_units: int) -> None:
        with files.atomic_path(self.folder / corpus_module.REJECTS_NAME) as temporary, temporary.open("wb") as stream:
            for number in range(num_units):
                with rejects_path(self.folder, number).open("rb") as part:
                    shutil.copyfileobj(part, stream)
        with files.atomic_path(self.folder / corpus_module.SOURCES_NAME) as temporary, temporary.open("wb") as stream:
            for file in self.found.files:
                facts = {"file": file.name, "bytes": file.num_bytes}
                stream.write(json.dumps(facts, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")

    def _manifest(self, outcomes: Sequence[UnitOutcome], rejects: Counter[str]) -> CorpusManifest:
        entries = tuple(outcome.entry for outcome in outcomes)
        return CorpusManifest(
            tokenizer=self.tokenizer.facts(),
            num_documents=sum(entry.documents for entry in entries),
            num_lines=sum(entry.lines for entry in entries),
            num_tokens=sum(entry.tokens for entry in entries),
            text_bytes=sum(entry.text_bytes for entry in entries),
            source={
                "files": len(self.found.files),
                "bytes": sum(file.num_bytes for file in self.found.files),
                "kinds": dict(sorted(Counter(_kind_of(file) for file in self.found.files).items())),
                "skipped": dict(self.found.skipped),
            },
            build=self.identity(),
            rejects=dict(sorted(rejects.items())),
            files=entries,
            sources_file=FileEntry.of(self.folder / corpus_module.SOURCES_NAME),
            rejects_file=FileEntry.of(self.folder / corpus_module.REJECTS_NAME),
        )


def _kind_of(file: Any) -> str:
    return f"{file.kind} {file.compression}" if file.compression else str(file.kind)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; the system frees it when the process ends, however it ends.

    Raises:
        VlbError: another process holds it, or it cannot be made.
    """
    path = folder / STATE_FOLDER / "build.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("w")
    except OSError as error:
        raise VlbError(f"{error.filename}: cannot be made: {error.strerror}. Choose another --out.") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise VlbError(
                f"{folder}: another vlb build-corpus is at work on it. Wait for it, or choose another --out."
            ) from error
        yield


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn trouble with the disk into one sentence; reading trouble never comes this far, it is a reject."""
    try:
        yield
    except OSError as error:
        raise VlbError(
            f"{error.filename or folder}: {error.strerror or error}. Finished corpus files are kept; make room and run "
            "the same command again."
        ) from error


def default_workers() -> int:
    """Return how many processes suit this machine: one for each core it lets this process use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
