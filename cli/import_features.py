"""`vlb import-features`: features that people already have to shards."""

from pathlib import Path
from typing import Any

import click

from cli import console
from cli.options import Choice
from vlbert_data.build.config import BuildConfig
from vlbert_data.build.differences import several
from vlbert_data.manifest import CONTAINERS

DEFAULTS = BuildConfig()


@click.command(name="import-features", no_args_is_help=True)
@click.argument("inputs", nargs=-1, required=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to make, or to go on with.")
@click.option("--format", "format_name", help="What the input is, where it is not told apart by itself.")
@click.option("--captions", type=click.Path(path_type=Path), help="COCO JSON, JSONL, or a table with tabs.")
@click.option("--image-sizes", type=click.Path(path_type=Path), help="Sizes of the original images, likewise.")
@click.option("--key-pattern", help="Regular expression that finds the image id in a key; its first group if any.")
@click.option("--label-space", help="What the classes are called together, where the format does not settle it.")
@click.option("--background", type=Choice(["first", "last", "none"]), help="Where the class 'no object' stands.")
@click.option("--no-labels", is_flag=True, help="Leave classes out: features only.")
@click.option("--class-names", type=click.Path(path_type=Path), help="Names by id, a line each, or a label map JSON.")
@click.option("--container", type=Choice(CONTAINERS), help=f"File format of shards [{DEFAULTS.container}].")
@click.option("--shard-size", type=int, help=f"Images of one shard [{DEFAULTS.shard_size}].")
@click.option("--label-topk", type=int, help=f"Classes kept of a distribution [{DEFAULTS.label_topk}].")
@click.option("--max-rejects", type=float, help=f"Share below 1, or number of inputs [{DEFAULTS.max_rejects}].")
@click.option("--workers", type=int, help="Processes that make shards; 1 makes them in this one.")
def command(inputs: tuple[str, ...], out: Path, format_name: str | None, **options: Any) -> None:
    """Take over RoI features from the files of other projects.

    INPUTS: files, folders or quoted globs, all of one format, which is told apart by content. Nothing in them is ever
    executed. Run the same command again to go on after a stop; finished shards are kept.

    \b
    vlb import-features train2014_obj36.tsv --captions captions_train2014.json --out coco-train
    """
    from vlbert_data.build.state import TooManyRejectsError
    from vlbert_data.importers.run import Import
    from vlbert_data.memory import keep_freed_memory

    keep_freed_memory()
    names = ("container", "shard_size", "label_topk", "max_rejects", "workers")
    settings = {name: options[name] for name in names if options[name] is not None}
    config = BuildConfig(**_default_how()).updated(settings)
    importer, beside = _open(inputs, format_name, options)
    asked = _asked(inputs, format_name, options)
    work = Import(folder=out, importer=importer, config=config, beside=beside, asked=asked)
    rate = console.Rate()
    try:
        with console.bar("images", len(importer)) as bar:
            work.on_progress = lambda p: bar.update(
                p.done_inputs,
                f"{rate.of(p.new.inputs):.0f} images/s · {rate.of(p.new.num_bytes) / 1e9:.2f} GB/s · "
                f"{p.new.rejects} rejected",
            )
            result = work.run()
    except TooManyRejectsError as error:
        console.print_counts(error.counts, "rejected because of")
        raise
    _print_summary(out, result)


def _default_how() -> dict[str, Any]:
    """Return what suits this machine: making a shard keeps about two cores busy."""
    import os

    return {"workers": max(1, min(8, (os.cpu_count() or 1) // 2))}


def _asked(inputs: tuple[str, ...], format_name: str | None, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what was typed for each part of an import's identity; see `vlbert_data.build.differences`."""
    source = {"the input": several(inputs), "--format": format_name}
    labels = {f"--{name.replace('_', '-')}": options[name] for name in ("label_space", "background", "class_names")}
    classes = {name: None if value is None else str(value) for name, value in labels.items()}
    classes["--no-labels"] = "given" if options["no_labels"] else None
    beside = {name: options[name] and str(options[name]) for name in ("captions", "image_sizes", "key_pattern")}
    return {
        "source": {**source, "--class-names": classes["--class-names"]},
        "label_space": classes,
        "meaning": {**source, **classes},
        **{name: {f"--{name.replace('_', '-')}": value} for name, value in beside.items()},
    }


def _open(inputs: tuple[str, ...], format_name: str | None, options: dict[str, Any]) -> tuple[Any, Any]:
    from vlbert_data.importers.base import FormatOptions
    from vlbert_data.importers.captions import open_captions
    from vlbert_data.importers.image_sizes import open_image_sizes
    from vlbert_data.importers.labels import LabelChoice, read_class_names
    from vlbert_data.importers.open import open_importer
    from vlbert_data.importers.run import Beside
    from vlbert_data.importers.side_files import require_file

    for option in ("captions", "image_sizes"):
        # Before the features: to read what is in them may take minutes.
        if options[option] is not None:
            require_file(options[option], f"--{option.replace('_', '-')}")
    names = None if options["class_names"] is None else read_class_names(options["class_names"])
    absent = options["no_labels"]
    importer = open_importer(
        inputs, format_name=format_name, options=FormatOptions(class_names=names, labels=not absent)
    )
    captions, sizes = options["captions"], options["image_sizes"]
    beside = Beside(
        labels=LabelChoice(
            space=options["label_space"], background=options["background"], class_names=names, absent=absent
        ),
        captions=None if captions is None else open_captions(captions),
        sizes=None if sizes is None else open_image_sizes(sizes),
        key_pattern=options["key_pattern"],
    )
    return importer, beside


def _print_summary(out: Path, result: Any) -> None:
    manifest = result.manifest
    stored = sum(shard.bytes for shard in manifest.shards)
    space = manifest.label_space
    classes = (
        "none: features only"
        if space is None
        else f"{space.name}, {space.num_classes} classes, "
        + ("no background" if space.background_index is None else f"background {space.background_index}")
    )
    console.print_facts(
        str(out),
        {
            "format": manifest.source["format"],
            "images": f"{manifest.num_images:,}",
            "captions": f"{manifest.num_captions:,}",
            "RoIs": f"{manifest.num_rois:,} ({manifest.num_rois / manifest.num_images:.1f} an image)",
            "features": f"{manifest.feature_dim} float16",
            "labels": f"{classes} ({manifest.detector['targets']})",
            "on disk": f"{console.size(stored)} in {len(manifest.shards)} shards ({result.made} made now)",
            "rejected": f"{sum(manifest.rejects.values()):,}",
        },
    )
    console.print_counts(manifest.rejects, "rejected because of")
    console.print_counts(manifest.left_out, "left out, or changed")
