"""What a build leaves behind while it runs, in `.build/`. Promise: a shard counts as done only when all of it is.

build.json: what is being built, and what was typed for it. shard-NNNNN.parquet and shard-NNNNN.json: a finished shard's
rows of the index and everything else of it; the JSON is written last and makes it count. rejects.jsonl: what was
rejected, where that was too much. *.lock: who is at work. All of it goes when the manifest is there.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from vlbert_data import index as index_module
from vlbert_data import manifest as manifest_module
from vlbert_data.build.config import SETTING_OPTIONS, BuildConfig
from vlbert_data.build.differences import Asked, refuse_differences
from vlbert_data.errors import ConfigError, ShardError, VlbError
from vlbert_data.manifest import Manifest, ShardEntry
from vlbert_data.shards import files
from vlbert_data.shards.job import WrittenShard

STATE_FOLDER = ".build"
ASKED = "asked"
LOCK_ATTEMPTS = 100
PARTS_ADVICE = ", or let each process of vlb build-shards build its own --part i/n"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardOutcome:
    """A finished shard's rejects (lines of rejects.jsonl without line ends) and what the detector left out of it."""

    rejects: tuple[str, ...]
    reject_counts: Mapping[str, int]
    left_out: Mapping[str, int]


class TooManyRejectsError(VlbError):
    """A finished build with more rejects than `max_rejects`; `counts` has them by reason."""

    def __init__(self, message: str, counts: dict[str, int]) -> None:
        super().__init__(message)
        self.counts = counts


class BuildState:
    """The `.build` folder of a build of `num_shards` shards into `folder`."""

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], num_shards: int, container: str, asked: Asked | None = None
    ) -> None:
        """Name a build by its `identity`; asked: what was typed, for whoever types something else the next time."""
        self.folder = folder
        self.num_shards = num_shards
        self._identity = json.loads(files.canonical_json(identity))
        self._asked = {part: dict(options) for part, options in (asked or {}).items()}
        self._container = container
        self._state = folder / STATE_FOLDER

    def finished(self) -> Manifest | None:
        """Return the folder's manifest if this very build is finished, None if there is none yet.

        Raises:
            ConfigError: the folder holds another build.
        """
        if not (self.folder / manifest_module.FILE_NAME).exists():
            return None
        manifest = manifest_module.load(self.folder)
        self._refuse_differences(manifest.build, {})
        return manifest

    def begin(self) -> Manifest | None:
        """Make or take up the folder; return its manifest if this very build is finished already.

        Raises:
            ConfigError: the folder holds another build, or something else altogether.
        """
        manifest = self.finished()
        if manifest is not None:
            return manifest
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"{self.folder}: a file; --out must be a new folder, or one that this build began.")
        if self.folder.exists() and not self._state.exists() and any(self.folder.iterdir()):
            # Another part may have finished the folder since it was asked.
            manifest = self.finished()
            if manifest is not None:
                return manifest
            raise ConfigError(
                f"{self.folder}: holds files that no vlb build made. Choose an empty or new folder for --out."
            )
        # The parts of a job array begin at the same moment: one writes what all of them must agree to.
        with self.lock("begin", wait=True):
            path = self._state / "build.json"
            manifest = self.finished()
            if manifest is not None:
                return manifest
            if path.exists():
                facts = files.read_json(path, what="state of a build")
                asked = facts.pop(ASKED, {})
                self._refuse_differences(facts, asked)
            else:
                try:
                    files.write_bytes(path, json.dumps({**self._identity, ASKED: self._asked}, indent=1).encode())
                except OSError:
                    self.clear()
                    raise
        return None

    def forget_unless_begun(self) -> None:
        """Remove the state if no shard is finished, but for a list of rejects: nothing is lost by beginning anew."""
        if next(self._state.glob("shard-*.json"), None) is None:
            self._forget()

    def keep_rejects_only(self, outcomes: Iterable[ShardOutcome]) -> Path | None:
        """Remove all shards and settings, so that the folder may be begun anew; return the list of rejects if any."""
        listed = self._list_rejects(outcomes)
        for shard in range(self.num_shards):
            (self.folder / manifest_module.shard_name(shard, self._container)).unlink(missing_ok=True)
        self._forget()
        return listed

    def _forget(self) -> None:
        for path in self._state.iterdir():
            if path != self._listed_rejects():
                path.unlink()
        with contextlib.suppress(OSError):  # rejects are listed in it
            self._state.rmdir()

    @contextlib.contextmanager
    def lock(self, name: str, *, wait: bool = False, advice: str = PARTS_ADVICE) -> Iterator[None]:
        """Hold the lock `name` of this folder; the system frees it when the process ends, however it ends.

        advice: what else but waiting there is to do for whoever finds it held.

        Raises:
            VlbError: another process holds it, and `wait` is False.
        """
        while True:
            with self._open_lock(name) as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                except BlockingIOError as error:
                    raise self._at_work(name, advice) from error
                if self._is_in_place(name, stream):
                    yield
                    return

    @contextlib.contextmanager
    def lock_shards(self, shards: Iterable[int]) -> Iterator[None]:
        """Hold the locks of `shards`, all in one file, a byte each; the system frees them as it does `lock`'s.

        One file for all: a part may have thousands of shards, and a process may not open so many files.

        Raises:
            VlbError: another process holds one of them, as parts of 1/2 and 1/3 would.
        """
        with self._open_lock("shards") as stream:
            for shard in shards:
                try:
                    fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, shard)
                except (BlockingIOError, PermissionError) as error:
                    raise self._at_work(manifest_module.shard_name(shard, self._container)) from error
            yield

    def _open_lock(self, name: str) -> IO[str]:
        # Whoever finished the folder may remove the state at any moment, though hardly time and again.
        for left in reversed(range(LOCK_ATTEMPTS)):
            try:
                self._state.mkdir(parents=True, exist_ok=True)
                return (self._state / f"{name}.lock").open("w")
            except (FileNotFoundError, FileExistsError):
                if not left:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _is_in_place(self, name: str, stream: IO[str]) -> bool:
        """Return whether a lock's file is still the one that others open: its last holder may have removed it."""
        try:
            return os.path.samestat(os.fstat(stream.fileno()), (self._state / f"{name}.lock").stat())
        except FileNotFoundError:
            return False

    def _at_work(self, name: str, advice: str = PARTS_ADVICE) -> VlbError:
        return VlbError(f"{self.folder}: another process is at work on {name} of this folder. Wait for it{advice}.")

    def is_done(self, shard: int) -> bool:
        """Return whether shard number `shard` is finished and its file in place.

        It is not where another part has finished the folder, and removes the state at this moment; see `finished`.
        """
        path = self._outcome(shard)
        if not path.exists():
            return False
        try:
            entry = self._read_outcome(shard)["entry"]
        except ShardError:
            if path.exists():
                raise
            return False
        file = self.folder / entry["file"]
        return bool(file.exists() and file.stat().st_size == entry["bytes"])

    def pending(self, part: tuple[int, int] = (0, 1)) -> list[int]:
        """Return the shards of part (i, n) that are not done, in order."""
        return [shard for shard in range(part[0], self.num_shards, part[1]) if not self.is_done(shard)]

    def forget_rejected(self, part: tuple[int, int]) -> None:
        """Make the finished shards of part (i, n) that have rejects count as not done."""
        for shard in range(part[0], self.num_shards, part[1]):
            if self.is_done(shard) and self._read_outcome(shard)["rejects"]:
                self._outcome(shard).unlink()

    def save_shard(self, shard: int, written: WrittenShard, outcome: ShardOutcome) -> None:
        """Record a finished shard; from the return on it counts as done."""
        with files.atomic_path(self._rows(shard)) as temporary:
            index_module.save([written.rows], temporary)
        facts = {"entry": asdict(written.entry), **asdict(outcome)}
        files.write_bytes(self._outcome(shard), files.canonical_json(facts))

    def load_outcomes(self) -> list[ShardOutcome]:
        """Return what `save_shard` recorded of all shards, their rows left out."""
        found = []
        for shard in range(self.num_shards):
            facts = self._read_outcome(shard)
            del facts["entry"]
            try:
                found.append(ShardOutcome(**facts))
            except TypeError as error:
                raise self._damaged(shard, error) from error
        return found

    def written_shards(self) -> Iterator[WrittenShard]:
        """Yield what `save_shard` recorded of each shard with its rows, one at a time: all rows take memory."""
        for shard in range(self.num_shards):
            try:
                entry = ShardEntry(**self._read_outcome(shard)["entry"])
                yield WrittenShard(entry=entry, rows=index_module.read_rows(self._rows(shard)))
            except (pa.ArrowException, OSError, TypeError, ValueError) as error:
                raise self._damaged(shard, error) from error

    def _read_outcome(self, shard: int) -> dict[str, Any]:
        facts = files.read_json(self._outcome(shard), what="state of a shard")
        if not isinstance(facts, dict) or not {"file", "bytes"} <= dict(facts.get("entry") or {}).keys():
            raise self._damaged(shard, "no entry of a shard in it")
        return facts

    def _damaged(self, shard: int, problem: object) -> ShardError:
        return ShardError(
            f"{self._outcome(shard)}: what the build kept of this shard is damaged ({problem}). Remove this file and "
            "run the same command: the shard is built again."
        )

    def check_rejects(
        self, config: BuildConfig, outcomes: Iterable[ShardOutcome], num_inputs: int, *, advice: str
    ) -> dict[str, int]:
        """Return the rejects of all shards by reason, where there are no more than `config` allows.

        advice: what else the user can do where there are more; they are then listed in the state.

        Raises:
            TooManyRejectsError: there are more, or nothing but rejects.
        """
        kept = list(outcomes)
        counts = sum((Counter(dict(outcome.reject_counts)) for outcome in kept), Counter[str]())
        total = counts.total()
        if total < num_inputs and config.allows(total, num_inputs):
            return dict(counts)
        listed = self._list_rejects(kept)
        allowed = f"--max-rejects allows {config.max_rejects:g}" if total < num_inputs else "nothing is left to store"
        accept = ", or run the same command with a higher --max-rejects to accept this" if total < num_inputs else ""
        raise TooManyRejectsError(
            f"{self.folder}: {total} of {num_inputs} inputs were rejected; {allowed}. They are listed in {listed}. The "
            f"shards are kept: {advice}{accept}.",
            dict(counts),
        )

    def num_images(self) -> int:
        """Return how many images the shards hold that are finished."""
        return sum(self._read_outcome(shard)["entry"]["images"] for shard in range(self.num_shards))

    def _list_rejects(self, outcomes: Iterable[ShardOutcome]) -> Path | None:
        """Write the list of rejects and return where it is; None where there is no reject."""
        lines = [files.encode_json(f"{line}\n") for outcome in outcomes for line in outcome.rejects]
        if lines:
            files.write_bytes(self._listed_rejects(), b"".join(lines))
        return self._listed_rejects() if lines else None

    def _listed_rejects(self) -> Path:
        return self._state / manifest_module.REJECTS_NAME

    def clear(self) -> None:
        """Remove the state; called when the manifest is there."""
        shutil.rmtree(self._state, ignore_errors=True)

    def _rows(self, shard: int) -> Path:
        return self._state / f"shard-{shard:05d}.parquet"

    def _outcome(self, shard: int) -> Path:
        return self._state / f"shard-{shard:05d}.json"

    def _refuse_differences(self, found: Mapping[str, Any], asked: Asked) -> None:
        refuse_differences(self.folder, found, self._identity, (asked, self._asked), SETTING_OPTIONS)


def check_shard_count(num_inputs: int, shard_size: int) -> int:
    """Return how many shards hold `num_inputs` inputs.

    Raises:
        ShardError: no input at all, or more shards than names of five digits.
    """
    if num_inputs == 0:
        raise ShardError("the input holds no image. Look at its path and format; vlb build-shards --help lists them.")
    count = -(-num_inputs // shard_size)
    if count > 100_000:
        raise ShardError(f"{count} shards; a folder has at most 100,000. Raise --shard-size above {shard_size}.")
    return count
