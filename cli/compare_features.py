"""`vlb compare-features`: do two sets of features describe the same images alike?"""

import json
from pathlib import Path
from typing import Any

import click

from cli import console
from cli.options import Choice


@click.command(name="compare-features", no_args_is_help=True)
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--match", type=Choice(["iou", "id"]), default="iou", help="Pair RoIs by boxes, or by place [iou].")
@click.option("--images", type=click.IntRange(min=1), default=1000, help="Most images looked at, evenly spread [1000].")
@click.option("--key-pattern", help="Regular expression that finds the image id in the names of both.")
@click.option("--image-sizes", type=click.Path(path_type=Path), help="Sizes of the images, for formats without them.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    a: Path, b: Path, match: str, images: int, key_pattern: str | None, image_sizes: Path | None, as_json: bool
) -> None:
    """Compare the features A and B of the same images, and say what may be behind a difference.

    A and B are shard folders, or files and folders that vlb import-features takes.
    """
    from vlbert_data.compare import compare
    from vlbert_data.importers.feature_set import open_feature_set
    from vlbert_data.importers.image_sizes import open_image_sizes
    from vlbert_data.importers.keys import KeyPattern

    pattern = KeyPattern.of(key_pattern)
    sizes = None if image_sizes is None else open_image_sizes(image_sizes)
    sets = [open_feature_set(path, pattern, sizes) for path in (a, b)]
    found = compare(*sets, match=match, num_images=images)
    if as_json:
        click.echo(json.dumps({**found.facts, "findings": list(found.findings)}, indent=1))
        return
    console.print_facts(f"{a} against {b}", {name.replace("_", " "): _text(fact) for name, fact in found.facts.items()})
    for finding in found.findings:
        console.out().print(f"- {finding}")


def _text(fact: Any) -> str:
    if isinstance(fact, dict):
        return ", ".join(f"{name} {value}" for name, value in fact.items())
    return ", ".join(map(str, fact)) if isinstance(fact, list) else str(fact)
