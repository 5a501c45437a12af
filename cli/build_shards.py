"""`vlb build-shards`: images and captions to shards."""

from pathlib import Path
from typing import Any

import click

from cli import console
from cli.options import Choice
from vlbert_data.build.config import PUBLISHED_ROIS, RARER, BuildConfig, parse_part, read_toml
from vlbert_data.build.differences import several
from vlbert_data.errors import ConfigError
from vlbert_data.manifest import CONTAINERS

DEFAULTS = BuildConfig()


class PartType(click.ParamType[tuple[int, int]]):
    """`i/n`."""

    name = "i/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return (i - 1, n)."""
        try:
            return parse_part(str(value)) if isinstance(value, str) else value
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class PixelsType(click.ParamType[int]):
    """A number of pixels after an option that may stand alone, and so takes what was meant for something else."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        try:
            return int(value)
        except ValueError:
            self.fail(
                f"{value!r} is no number of pixels. Write --thumbnails behind it, or --thumbnails=320.", param, ctx
            )


@click.command(name="build-shards", no_args_is_help=True)
@click.argument("inputs", nargs=-1, required=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to make, or to go on with.")
@click.option("--images", type=click.Path(), help="Folder of the images that the input names.")
@click.option("--format", "format_name", help="What the input is, where it is not told apart by itself.")
@click.option(
    "--detector", required=True, help="annotations:FILE, annotations:source, hf:DIR_OR_NAME, vg-frcnn:WEIGHTS."
)
@click.option("--describer", help="hf:DIR_OR_NAME[:layer], vg-frcnn:WEIGHTS; left out: the detector's own.")
@click.option("--container", type=Choice(CONTAINERS), help=f"File format of shards [{DEFAULTS.container}].")
@click.option("--shard-size", type=int, help=f"Images of one shard [{DEFAULTS.shard_size}].")
@click.option("--min-rois", type=int, help=f"Fill up with less confident RoIs to this number [{DEFAULTS.min_rois}].")
@click.option("--max-rois", type=int, help=f"Most RoIs of an image [{DEFAULTS.max_rois}].")
@click.option("--score-threshold", type=float, help=f"Least confidence, 0..1 [{DEFAULTS.score_threshold}].")
@click.option(
    "--nms", type=float, help="Suppress RoIs above this IoU with a more confident one [off, or vg-frcnn's rule]."
)
@click.option("--selection", help="How vg-frcnn chooses RoIs: caffe-perclass or maxnms [caffe-perclass].")
@click.option("--label-topk", type=int, help=f"Classes kept for each RoI [{DEFAULTS.label_topk}].")
@click.option("--masked-views", type=int, help="Describe each image again so often with RoIs' pixels zeroed [0].")
@click.option(
    "--thumbnails",
    "thumbnail_px",
    is_flag=False,
    flag_value=320,
    type=PixelsType(),
    help="Store JPEGs of so many pixels; 320 where no number stands [none].",
)
@click.option("--workers", type=int, help="Processes that decode images; 0 decodes in this one.")
@click.option("--batch-size", type=int, help=f"Images of equal size for the model at once [{DEFAULTS.batch_size}].")
@click.option("--device", help="cpu, cuda, cuda:1, ... [cuda where there is one].")
@click.option("--max-rejects", type=float, help=f"Share below 1, or number of inputs [{DEFAULTS.max_rejects}].")
@click.option("--retry-rejected", is_flag=True, help="Build shards with rejects again, for input that was mended.")
@click.option("--allow-bordered", is_flag=True, help="Take img2dataset output of 256x256 images with borders.")
@click.option("--part", type=PartType(), default="1/1", help="Build the i-th of n parts of the shards, for job arrays.")
@click.option(
    "--config", type=click.Path(path_type=Path), help=f"TOML file of settings, also rarer ones: {', '.join(RARER)}."
)
def command(
    inputs: tuple[str, ...],
    out: Path,
    images: str | None,
    format_name: str | None,
    detector: str,
    describer: str | None,
    retry_rejected: bool,
    allow_bordered: bool,
    part: tuple[int, int],
    config: Path | None,
    **options: Any,
) -> None:
    """Describe images once: RoI features, labels and captions into LMDB or HDF5 shards.

    INPUTS: COCO captions JSON, Conceptual Captions TSV, img2dataset output, webdataset tars, JSONL or Parquet; files,
    folders or quoted globs. Run the same command again to go on after a stop; finished shards are kept.

    \b
    vlb build-shards captions.json --images train2017 --detector annotations:instances.json \\
        --describer hf:resnet50 --out coco-train
    vlb build-shards captions.json --images train2017 --detector vg-frcnn:vg-weights --out coco-vg
    """
    settings = _settings(options, config)
    # Only now: opening the input and loading models takes torch and transformers.
    from vlbert_data.build.run import TooManyRejectsError
    from vlbert_data.memory import keep_few_kernels, keep_freed_memory
    from vlbert_data.sources.open import open_source

    keep_freed_memory()
    keep_few_kernels()
    source = open_source(inputs, images=images, format=format_name, allow_bordered=allow_bordered)
    models = {"--detector": detector, "--describer": describer}
    given = {"the input": several(inputs), "--images": images, "--format": format_name}
    asked = {"source": given, "detector": models, "describer": models, "label_space": models}
    build = _prepare(out, source, settings, asked)
    build.retry_rejected = retry_rejected
    rate = console.Rate()
    try:
        with console.bar("images", len(source)) as bar:
            build.on_progress = lambda p: bar.update(
                p.done_inputs, f"{rate.of(p.new_inputs):.1f} images/s · {p.rejects} rejected"
            )
            result = build.run(part)
    except TooManyRejectsError as error:
        console.print_counts(error.counts, "rejected because of")
        raise
    if result.manifest is None:
        console.say(f"{out}: {result.built} shards built; {result.missing} of other parts are still missing.")
        return
    _print_summary(out, result.manifest, result.built)


def _settings(options: dict[str, Any], config: Path | None) -> BuildConfig:
    """Return the settings: defaults, then the file, then options."""
    given = {name: value for name, value in options.items() if value is not None}
    chosen = {**(read_toml(config) if config else {}), **given}
    published = PUBLISHED_ROIS.get(str(chosen.get("selection")), {})
    if published and "score_threshold" in chosen:
        raise ConfigError(f"--selection {chosen['selection']} heeds no score_threshold. Leave it out.")
    # Whoever asks for fewer RoIs than the default least does not mean to be refused for it.
    if "max_rois" in chosen and "min_rois" not in chosen and isinstance(chosen["max_rois"], int):
        chosen["min_rois"] = min(published.get("min_rois", DEFAULTS.min_rois), chosen["max_rois"])
    try:
        return BuildConfig(**default_how()).updated({**published, **chosen})
    except ConfigError as error:
        raise error if config is None else ConfigError(f"{config}, with the options beside it: {error}") from error


def default_how() -> dict[str, Any]:
    """Return what suits this machine: half of the cores decode, at most 8 of them."""
    import os

    return {"workers": max(1, min(8, (os.cpu_count() or 1) // 2))}


def _prepare(out: Path, source: Any, settings: BuildConfig, asked: dict[str, dict[str, Any]]) -> Any:
    from vlbert_data.build.run import Build
    from vlbert_data.describe.open import open_describer
    from vlbert_data.detect.open import open_detector

    detector = open_detector(asked["detector"]["--detector"], settings, source)
    describer = open_describer(asked["describer"]["--describer"], settings, detector)
    return Build(folder=out, source=source, detector=detector, describer=describer, config=settings, asked=asked)


def _print_summary(out: Path, manifest: Any, built: int) -> None:
    stored = sum(shard.bytes for shard in manifest.shards)
    console.print_facts(
        str(out),
        {
            "images": f"{manifest.num_images:,}",
            "captions": f"{manifest.num_captions:,}",
            "RoIs": f"{manifest.num_rois:,} ({manifest.num_rois / manifest.num_images:.1f} an image)",
            "features": f"{manifest.feature_dim} float16",
            "on disk": f"{console.size(stored)} in {len(manifest.shards)} shards ({built} built now)",
            "rejected": f"{sum(manifest.rejects.values()):,}",
        },
    )
    console.print_counts(manifest.rejects, "rejected because of")
    console.print_counts(manifest.left_out, "left out of images")
