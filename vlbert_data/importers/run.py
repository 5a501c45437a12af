"""The import: features in, shards out. Promise: killed at any moment and run again, it ends as if never interrupted."""

import importlib.metadata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlbert_data import __version__
from vlbert_data.build.config import BuildConfig
from vlbert_data.build.differences import Asked
from vlbert_data.build.state import BuildState, ShardOutcome, TooManyRejectsError, check_shard_count
from vlbert_data.build.writer import disk_error
from vlbert_data.errors import ConfigError
from vlbert_data.importers.base import Importer
from vlbert_data.importers.captions import CaptionFile
from vlbert_data.importers.image_sizes import ImageSizes
from vlbert_data.importers.keys import KeyPattern, Repeats, any_common, hash_keys
from vlbert_data.importers.labels import LabelChoice, settle_labels
from vlbert_data.importers.make_shards import Done, ShardMaker, make_in_processes
from vlbert_data.importers.meaning import Meaning
from vlbert_data.importers.mismatch import explain_mismatch
from vlbert_data.importers.reading import WITHOUT_CAPTION, Reading
from vlbert_data.manifest import Manifest
from vlbert_data.shards.files import encode_json, no_empty_folder
from vlbert_data.shards.job import FolderFacts, finish_folder
from vlbert_data.shards.schema import FORMAT_VERSION, label_space_as_json
from vlbert_data.types import Array

WITHOUT_IMAGE = "captions without image"
NO_CAPTION = "lines of --captions that hold no caption"
# What of a `BuildConfig` an import has.
SETTINGS = ("container", "shard_size", "label_topk")


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """What the user gives beside the features; see `vlb import-features --help`."""

    labels: LabelChoice = LabelChoice()  # noqa: RUF009  (frozen)
    captions: CaptionFile | None = None
    sizes: ImageSizes | None = None
    key_pattern: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far an import is: inputs done (those of earlier runs included), and what this run did."""

    done_inputs: int
    total_inputs: int
    new: Done


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportResult:
    """The finished folder's manifest, and how many shards this run made."""

    manifest: Manifest
    made: int


@dataclass(kw_only=True)
class Import:
    """An import of `importer` into `folder`; `run` does it. asked: what was typed; see `build.differences`.

    Raises:
        ConfigError: at birth, when something must be given or cannot be right: labels, captions, sizes.
    """

    folder: Path
    importer: Importer
    config: BuildConfig
    beside: Beside
    asked: Asked = field(default_factory=dict)
    on_progress: Callable[[Progress], None] = lambda _: None
    maker: ShardMaker = field(init=False)
    _hashes: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        count = check_shard_count(len(self.importer), self.config.shard_size)
        traits, beside = self.importer.traits, self.beside
        pattern = KeyPattern.of(beside.key_pattern)
        space = settle_labels(traits.labels, beside.labels, traits.format)
        self._hashes = hash_keys(self.importer.keys(), pattern)
        self._check_beside(pattern)
        reading = Reading(
            importer=self.importer,
            meaning=Meaning(traits=traits, label_space=space, label_topk=self.config.label_topk),
            pattern=pattern,
            repeats=Repeats.among(self._hashes),
            captions=beside.captions,
            sizes=beside.sizes,
        )
        self.maker = ShardMaker(
            reading=reading,
            state=BuildState(self.folder, self.identity(reading.meaning), count, self.config.container, self.asked),
            container=self.config.container,
            shard_size=self.config.shard_size,
        )

    def identity(self, meaning: Meaning) -> dict[str, Any]:
        """Return everything that decides what the records hold, as JSON types."""
        beside, space = self.beside, meaning.label_space
        return {
            "format_version": FORMAT_VERSION,
            "settings": {name: getattr(self.config, name) for name in SETTINGS},
            "source": self.importer.fingerprint(),
            "meaning": meaning.facts(),
            "label_space": space and label_space_as_json(space)["fingerprint"],
            "captions": beside.captions and beside.captions.facts.as_json(),
            "image_sizes": beside.sizes and beside.sizes.facts.as_json(),
            "key_pattern": beside.key_pattern,
            "versions": {"numpy": importlib.metadata.version("numpy")},
        }

    def run(self) -> ImportResult:
        """Make the shards that are missing, then the manifest.

        If it fails before any shard is made, nothing is left; if no image is taken, no more than the rejects.

        Raises:
            ConfigError: the folder holds something else.
            VlbError: another process is at work on it, the disk is full, or the like.
            TooManyRejectsError: all shards are there, but too many inputs were rejected, or all that could be used.
        """
        try:
            with no_empty_folder(self.folder):
                return self._run()
        except OSError as error:
            raise disk_error(error, self.folder) from error

    def _run(self) -> ImportResult:
        state = self.maker.state
        manifest = state.begin()
        made = 0
        if manifest is None:
            with state.lock("import", advice=""):
                # Who held the lock may have finished, or left nothing.
                manifest = state.begin()
                if manifest is None:
                    manifest, made = self._make_all(state)
        state.clear()
        return ImportResult(manifest=manifest, made=made)

    def _make_all(self, state: BuildState) -> tuple[Manifest, int]:
        """Return the manifest of the finished folder, and how many shards were made; of a vain try nothing stays."""
        try:
            pending = state.pending()
            self._make(pending)
            return self._write_manifest(), len(pending)
        except BaseException:
            state.forget_unless_begun()
            raise

    def _make(self, pending: list[int]) -> None:
        total, size = len(self.importer), self.config.shard_size
        earlier = total - sum(min((shard + 1) * size, total) - shard * size for shard in pending)
        new = Done()

        def tell(done: Done) -> None:
            nonlocal new
            new = Done(new.inputs + done.inputs, new.num_bytes + done.num_bytes, new.rejects + done.rejects)
            self.on_progress(Progress(done_inputs=earlier + new.inputs, total_inputs=total, new=new))

        if self.config.workers > 1 and len(pending) > 1:
            make_in_processes(self.maker, pending, min(self.config.workers, len(pending)), tell)
        else:
            self.maker.make_all(pending, tell)

    def _write_manifest(self) -> Manifest:
        state, meaning = self.maker.state, self.maker.reading.meaning
        outcomes = state.load_outcomes()
        left_out = sum((Counter(dict(outcome.left_out)) for outcome in outcomes), Counter[str]())
        if not state.num_images():
            raise self._nothing_taken(outcomes, left_out[WITHOUT_CAPTION])
        if self.beside.captions is not None:
            left_out[WITHOUT_IMAGE] = self.beside.captions.without_image(self._hashes)
            left_out[NO_CAPTION] = self.beside.captions.unusable
        advice = "mend the input and import it into another folder"
        rejects = state.check_rejects(self.config, outcomes, len(self.importer), advice=advice)
        traits = self.importer.traits
        facts = FolderFacts(
            container=self.config.container,
            schema=meaning.schema(),
            detector={"name": "imported", "format": traits.format, **meaning.facts()},
            describer={"name": "imported", "format": traits.format, "feature_dim": traits.feature_dim},
            source={**self.importer.facts(), "num_inputs": len(self.importer), "made_by": f"vlb {__version__}"},
            build=self.identity(meaning),
        )
        lines = (encode_json(f"{line}\n") for outcome in outcomes for line in outcome.rejects)
        return finish_folder(self.folder, facts, state.written_shards(), lines, (dict(+left_out), rejects))

    def _nothing_taken(self, outcomes: list[ShardOutcome], without_caption: int) -> TooManyRejectsError:
        """Return the error of an import that is left with no image, of which no more than the rejects is kept."""
        counts = sum((Counter(dict(outcome.reject_counts)) for outcome in outcomes), Counter[str]())
        listed = self.maker.state.keep_rejects_only(outcomes)
        where = "" if listed is None else f"The rejects are listed in {listed}. "
        return TooManyRejectsError(
            f"{self.folder}: not one image was taken: of {len(self.importer)} inputs {counts.total()} were rejected, "
            f"{without_caption} have no caption. {where}Mend the input, or give what it lacks, and run again.",
            dict(counts),
        )

    def _check_beside(self, pattern: KeyPattern) -> None:
        """Refuse at once what would leave every image out.

        Raises:
            ConfigError: no captions or sizes, or those of other images.
        """
        traits, captions, sizes = self.importer.traits, self.beside.captions, self.beside.sizes
        if captions is None and not traits.has_captions:
            raise ConfigError(f"{traits.format} stores no captions. Give them with --captions FILE.")
        if captions is not None and not any_common(self._hashes, captions.alias_hashes):
            why = explain_mismatch(self.importer.keys, pattern, captions.some_names(), captions.has)
            raise ConfigError(f"{captions.path}: captions of none of the images. {why}")
        if sizes is None and not traits.has_image_sizes:
            raise ConfigError(f"{traits.format} stores no image sizes. Give them with --image-sizes FILE.")
        if sizes is not None and not self._has_some(sizes):
            why = explain_mismatch(self.importer.keys, pattern, sizes.some_names(), sizes.has)
            raise ConfigError(f"{sizes.path}: sizes of none of the images. {why}")

    def _has_some(self, sizes: ImageSizes) -> bool:
        """Return whether the size of an image is stated, by its id or by its key in the features."""
        if any_common(self._hashes, sizes.hashes):
            return True
        return any_common(hash_keys(self.importer.keys(), KeyPattern()), sizes.hashes)
