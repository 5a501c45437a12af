"""The build itself. Promise: one range of inputs gives one shard, and what it holds depends on nothing else.

source ─▶ decode (worker processes) ─▶ detect ─▶ describe (this process) ─▶ write (a process)
"""

import contextlib
import importlib.metadata
import itertools
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vlbert_data import __version__
from vlbert_data.build.config import BuildConfig
from vlbert_data.build.decode import Decoded, DecodeSettings, decode_all, reject
from vlbert_data.build.differences import Asked
from vlbert_data.build.state import BuildState, TooManyRejectsError, check_shard_count
from vlbert_data.build.writer import Add, Begin, Finish, WriterProcess, disk_error
from vlbert_data.describe.base import Describer, Description, DetectorDescriber
from vlbert_data.describe.masked_views import describe_masked_views
from vlbert_data.detect.base import DecodedImage, Detector
from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.manifest import Manifest
from vlbert_data.shards.files import encode_json
from vlbert_data.shards.job import FolderFacts, finish_folder
from vlbert_data.shards.schema import FORMAT_VERSION, ShardSchema, label_space_as_json
from vlbert_data.sources.base import Source, SourceItem, SourceReject
from vlbert_data.types import ImageRois, RoiSet, to_float16

# Images looked at together for each image of a batch: the more, the more of equal size are found.
WINDOW_BATCHES = 4
PACKAGES = ("torch", "transformers", "numpy", "pillow")


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far this process is: inputs of this part done (those of earlier runs included), rejects of this run."""

    done_inputs: int
    total_inputs: int
    new_inputs: int
    rejects: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildResult:
    """manifest: the finished folder's, None while shards of other parts are missing. built: shards this run wrote."""

    manifest: Manifest | None
    built: int
    missing: int


@dataclass(kw_only=True)
class Build:
    """A build of `source` into `folder`; `run` does all of it or one part. asked: what was typed; see `differences`."""

    folder: Path
    source: Source
    detector: Detector
    describer: Describer
    config: BuildConfig
    on_progress: Callable[[Progress], None] = lambda _: None
    retry_rejected: bool = False
    asked: Asked = field(default_factory=dict)
    state: BuildState = field(init=False)
    schema: ShardSchema = field(init=False)

    def __post_init__(self) -> None:
        count = check_shard_count(len(self.source), self.config.shard_size)
        self.schema = ShardSchema(
            feature_dim=self.describer.feature_dim,
            label_topk=self.detector.label_topk,
            num_views=self.config.masked_views,
            has_attributes=self.detector.has_attributes,
            label_space=self.detector.label_space,
        )
        self.state = BuildState(self.folder, self.identity(), count, self.config.container, self.asked)

    def identity(self) -> dict[str, Any]:
        """Return everything that decides what the records hold, as JSON types."""
        return {
            "format_version": FORMAT_VERSION,
            "settings": self.config.identity(),
            "source": self.source.fingerprint(),
            "detector": self.detector.facts(),
            "describer": self.describer.facts(),
            "label_space": label_space_as_json(self.detector.label_space)["fingerprint"],
            "versions": versions(),
        }

    def run(self, part: tuple[int, int] = (0, 1)) -> BuildResult:
        """Build the shards of part (i, n) that are missing; write the manifest once the shards of all parts are there.

        Raises:
            ConfigError: the folder holds another build.
            VlbError: this part is being built by another process, the disk is full, or the like.
            TooManyRejectsError: all shards are there, but too many inputs were rejected.
        """
        try:
            return self._run(part)
        except OSError as error:
            raise disk_error(error, self.folder) from error

    def _run(self, part: tuple[int, int]) -> BuildResult:
        manifest = self.state.begin()
        if manifest is not None:
            return self._finished(manifest)
        with self.state.lock(f"part-{part[0] + 1}-of-{part[1]}"):
            if self.retry_rejected:
                self.state.forget_rejected(part)
            pending = self.state.pending(part)
            # Asked again after `pending`: had another part finished the folder before, nothing would count as done.
            manifest = self.state.finished()
            if manifest is not None:
                return self._finished(manifest)
            with self.state.lock_shards(pending):
                if pending:
                    self._build_shards(pending, part)
        return self._finish(len(pending))

    def _finish(self, built: int) -> BuildResult:
        missing = len(self.state.pending())
        manifest = self.state.finished()
        if manifest is None and missing:
            return BuildResult(manifest=None, built=built, missing=missing)
        if manifest is None:
            with self.state.lock("manifest", wait=True):
                manifest = self.state.finished() or self._write_manifest()
        self.state.clear()
        return BuildResult(manifest=manifest, built=built, missing=0)

    def _finished(self, manifest: Manifest) -> BuildResult:
        """Return the result for a folder that was finished before."""
        self.state.clear()
        if self.retry_rejected and manifest.rejects:
            raise ConfigError(
                f"{self.folder}: finished, with {sum(manifest.rejects.values())} rejects accepted; a finished folder "
                "never changes. Leave out --retry-rejected, or build the mended input into another --out."
            )
        return BuildResult(manifest=manifest, built=0, missing=0)

    def _build_shards(self, shards: Sequence[int], part: tuple[int, int]) -> None:
        tally = _Tally(self, shards, part)
        writer = WriterProcess(self.state, self.schema, self.config.container)
        try:
            for shard, outcomes in itertools.groupby(self._decoded(shards), key=lambda pair: pair[0]):
                writer.send(Begin(shard))
                before = Counter(self.detector.counts())
                for order in self._describe(outcome for _, outcome in outcomes):
                    writer.send(order)
                    tally.count(order)
                writer.send(Finish(dict(Counter(self.detector.counts()) - before)))
                writer.reports()
            writer.close()
        except BaseException:
            writer.abort()
            raise

    def _decoded(self, shards: Sequence[int]) -> Iterator[tuple[int, Decoded | SourceReject]]:
        """Yield (shard, outcome) for all inputs of `shards`; decoding runs ahead across their borders."""
        size = self.config.shard_size
        settings = DecodeSettings(max_pixels=self.config.max_pixels, thumbnail_px=self.config.thumbnail_px)
        items = itertools.chain.from_iterable(
            self.source.read(shard * size, min((shard + 1) * size, len(self.source))) for shard in shards
        )
        with contextlib.closing(decode_all(items, settings, workers=self.config.workers)) as outcomes:
            for outcome in outcomes:
                number = outcome.item.number if isinstance(outcome, Decoded) else outcome.number
                yield number // size, outcome

    def _describe(self, outcomes: Iterable[Decoded | SourceReject]) -> Iterator[Add | SourceReject]:
        """Yield the orders that store one shard's inputs; its batches never hold images of another shard."""
        window = 1 if self.config.batch_size == 1 else WINDOW_BATCHES * self.config.batch_size
        waiting: list[Decoded] = []
        for outcome in outcomes:
            if isinstance(outcome, SourceReject):
                yield outcome
                continue
            waiting.append(outcome)
            if len(waiting) == window:
                yield from self._describe_window(waiting)
                waiting = []
        yield from self._describe_window(waiting)

    def _describe_window(self, window: Sequence[Decoded]) -> list[Add | SourceReject]:
        """Return an order for each image."""
        seen = self._look_at([decoded.image for decoded in window])
        return [
            reject(decoded.item, found) if isinstance(found, RecordRejectedError) else self._order(decoded, *found)
            for decoded, found in zip(window, seen, strict=True)
        ]

    def _look_at(self, images: Sequence[DecodedImage]) -> list[tuple[RoiSet, Description] | RecordRejectedError]:
        """Return RoIs and description of each image, or why it is refused; a network that does both looks once."""
        if isinstance(self.detector, DetectorDescriber) and self.detector.describer is self.describer:
            return _each(self.detector.detect_and_describe, images)
        roi_sets = _each(self.detector.detect, images)
        pairs = [(image, rois) for image, rois in zip(images, roi_sets, strict=True) if isinstance(rois, RoiSet)]
        described = iter(_each(self._describe_pairs, pairs))
        return [found if isinstance(found, RecordRejectedError) else next(described) for found in roi_sets]

    def _describe_pairs(self, pairs: Sequence[tuple[DecodedImage, RoiSet]]) -> list[tuple[RoiSet, Description]]:
        found = self.describer.describe([image.pixels for image, _ in pairs], [rois.boxes for _, rois in pairs])
        return [(rois, description) for (_, rois), description in zip(pairs, found, strict=True)]

    def _order(self, decoded: Decoded, rois: RoiSet, found: Description) -> Add | SourceReject:
        item: SourceItem = decoded.item
        height, width = decoded.image.pixels.shape[:2]
        try:
            views = None
            if self.config.masked_views:
                views = describe_masked_views(
                    self.describer,
                    decoded.image.pixels,
                    rois.boxes,
                    described_boxes=found.described_boxes,
                    image_id=item.image_id,
                    num_views=self.config.masked_views,
                    seed=self.config.seed,
                )
            record = ImageRois(
                image_id=item.image_id,
                width_px=width,
                height_px=height,
                captions=item.captions,
                rois=rois,
                features=to_float16(found.features, what="RoI features"),
                image_feature=to_float16(found.image_feature, what="the whole-image feature"),
                masked_views=views,
                thumbnail=decoded.thumbnail,
            )
        except RecordRejectedError as error:
            return reject(item, error)
        return Add(item.number, str(item.location), record)

    def _write_manifest(self) -> Manifest:
        outcomes = self.state.load_outcomes()
        left_out = sum((Counter(dict(outcome.left_out)) for outcome in outcomes), Counter[str]())
        advice = "mend the input and run the same command with --retry-rejected"
        rejects = self.state.check_rejects(self.config, outcomes, len(self.source), advice=advice)
        facts = FolderFacts(
            container=self.config.container,
            schema=self.schema,
            detector=self.detector.facts(),
            describer=self.describer.facts(),
            source={**self.source.facts(), "num_inputs": len(self.source), "made_by": f"vlb {__version__}"},
            build=self.identity(),
        )
        lines = (encode_json(f"{line}\n") for outcome in outcomes for line in outcome.rejects)
        return finish_folder(self.folder, facts, self.state.written_shards(), lines, (dict(left_out), rejects))


Given = TypeVar("Given")
Made = TypeVar("Made")


def _each(
    work: Callable[[Sequence[Given]], Sequence[Made]], inputs: Sequence[Given]
) -> list[Made | RecordRejectedError]:
    """Return what `work` makes of each input, or why it refused; where one of several is refused, it gets them singly.

    So detecting is not repeated where only describing fails: a detector counts what it leaves out each time.
    """
    if not inputs:
        return []
    try:
        return [*work(inputs)]
    except RecordRejectedError as error:
        return [error] if len(inputs) == 1 else [made for given in inputs for made in _each(work, [given])]


class _Tally:
    """Counts orders and tells the progress."""

    def __init__(self, build: Build, shards: Sequence[int], part: tuple[int, int]) -> None:
        self._tell = build.on_progress
        self._total = sum(self._inputs(build, shard) for shard in range(part[0], build.state.num_shards, part[1]))
        self._earlier = self._total - sum(self._inputs(build, shard) for shard in shards)
        self._new = self._rejects = 0

    def count(self, order: Add | SourceReject) -> None:
        """Count one input."""
        self._new += 1
        self._rejects += isinstance(order, SourceReject)
        self._tell(
            Progress(
                done_inputs=self._earlier + self._new,
                total_inputs=self._total,
                new_inputs=self._new,
                rejects=self._rejects,
            )
        )

    @staticmethod
    def _inputs(build: Build, shard: int) -> int:
        size = build.config.shard_size
        return min((shard + 1) * size, len(build.source)) - shard * size


def versions() -> dict[str, str]:
    """Return the versions of everything that can change a feature."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


__all__ = ["Build", "BuildResult", "Progress", "TooManyRejectsError", "versions"]
