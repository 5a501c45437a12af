"""`vlb inspect-shard`: what a shard holds, and whether it is sound."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import console

if TYPE_CHECKING:
    from vlbert_data.verify import Verdict

CLASSES_SHOWN = 10
BAR_WIDTH = 40


@click.command(name="inspect-shard", no_args_is_help=True)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--record", "record_id", metavar="IMAGE_ID", help="Show one image: size, captions and RoIs.")
@click.option("--verify", "do_verify", is_flag=True, help="Read everything; exit 1 and name what is damaged.")
@click.option("--json", "as_json", is_flag=True, help="Print facts for programs, on stdout.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes that verify.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page to look at: one file.")
@click.option("--html-images", type=click.IntRange(1), default=1000, show_default=True, help="Most images on the page.")
@click.option("--images", type=click.Path(path_type=Path), help="Folder of pictures where no thumbnails are stored.")
def command(
    path: Path,
    record_id: str | None,
    do_verify: bool,
    as_json: bool,
    workers: int,
    html: Path | None,
    html_images: int,
    images: Path | None,
) -> None:
    """Show what PATH, a folder of shards or a single shard file, holds and whether it is sound.

    --html writes one file with a gallery, histograms and the manifest's facts; it needs no network, and says what
    --verify found where both are given.

    \b
    vlb inspect-shard cc-train --verify --html report.html
    """
    if images is not None and html is None:
        raise click.UsageError("--images DIR brings pictures for the page; give --html FILE too.")
    if html is not None and record_id is not None:
        raise click.UsageError("--html shows many images, --record one; give one of the two.")
    verdict = _verify(path, workers) if do_verify else None
    if html is not None:
        _write_page(path, html, html_images, images, verdict)
    if verdict is not None:
        _tell_verdict(path, verdict, as_json)
    elif html is None:
        _show(path, record_id, as_json)


def _show(path: Path, record_id: str | None, as_json: bool) -> None:
    from vlbert_data.report import Images, attribute_names, facts, record_facts

    images = Images.open(path)
    if record_id is not None:
        record = images.read_sound(images.find(record_id))
        found = record_facts(record, images.schema, attribute_names=attribute_names(images))
        _print_json(found) if as_json else _print_record(found)
        return
    found = facts(images)
    _print_json(found) if as_json else _print_facts(found)


def _print_json(found: Any) -> None:
    click.echo(json.dumps(found, indent=1, ensure_ascii=False))


def _write_page(path: Path, html: Path, most_images: int, pictures: Path | None, verdict: "Verdict | None") -> None:
    from cli.pages.page import save
    from cli.pages.shards import Wanted, make_page

    wanted = Wanted(most_images=most_images, pictures_from=pictures, verdict=verdict)
    with console.bar("pictures", most_images) as bar:
        page = make_page(path, wanted, bar.update)
    save(html, page.html)
    shown = f"{page.shown:,} of {page.of:,} images" if page.shown < page.of else f"{page.of:,} images"
    console.say(f"{html}: {shown}, {page.pictures:,} with pictures, {console.size(len(page.html))}")


def _verify(path: Path, workers: int) -> "Verdict":
    from vlbert_data.errors import ShardError
    from vlbert_data.nearby import where_it_ends
    from vlbert_data.verify import verify

    if not path.exists():
        raise ShardError(f"{path}: there is no such file or folder. {where_it_ends(path)}".rstrip())
    with console.bar("shards", 1) as bar:
        return verify(path, workers=workers, on_progress=lambda done, total: bar.update(done, total=total))


def _tell_verdict(path: Path, verdict: "Verdict", as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        _print_json({"sound": verdict.sound, **asdict(verdict)})
    else:
        _print_verdict(path, verdict)
    if not verdict.sound:
        sys.exit(1)


def _print_verdict(path: Path, verdict: "Verdict") -> None:
    for finding in verdict.findings:
        click.echo(f"damaged: {finding}")
    read = f"{verdict.files} files, {console.size(verdict.bytes)}, {verdict.images:,} images"
    if verdict.sound:
        click.echo(f"{path}: sound ({read} read)")
    else:
        click.echo(f"{path}: {len(verdict.findings)} problems ({read}). Copy what is damaged again, or rebuild it.")


def _print_facts(found: dict[str, Any]) -> None:
    sample = found["sample"]
    console.print_facts(found["path"], dict(_rows(found)))
    _print_histogram("RoIs an image", found["rois_an_image"])
    _print_histogram(f"words a caption (sample of {sample['images']} images)", sample["caption_words"])
    _print_classes(found)
    for title in ("detector", "describer", "source", "rejects", "left_out"):
        _print_mapping(title.replace("_", " "), found.get(title, {}))


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of the first table."""
    space, features, images = found["label_space"], found["sample"]["features"], max(found["num_images"], 1)
    captions = found["num_captions"]
    rows = [
        ("container", f"{found['container']}, {found['num_shards']} shards"),
        ("images", f"{found['num_images']:,}"),
        ("captions", "not counted in a single file" if captions is None else f"{captions:,}"),
        ("RoIs", f"{found['num_rois']:,} ({found['num_rois'] / images:.1f} an image)"),
        ("disk", f"{console.size(found['bytes'])}, {console.size(found['bytes_an_image'])} an image"),
        ("3.3 M such images", console.size(found["bytes_of_3_3_million_images"])),
        ("features", f"{found['feature_dim']} {found['feature_dtype']}"),
    ]
    if features.get("rois"):
        rows.append(("feature values", _feature_line(features)))
    if space is not None:
        background = "no background" if space["background_index"] is None else f"background {space['background_index']}"
        rows.append(("label space", f"{space['name']}: {space['num_classes']} classes, {background}"))
        rows.append(("labels a RoI", f"{found['label_topk']} classes with probabilities"))
    else:
        rows.append(("label space", "none: masked RoIs cannot be trained on these shards"))
    if found["masked_views"]:
        rows.append(("masked views", f"{found['masked_views']} an image"))
    if found.get("content_hash"):
        rows.append(("content hash", found["content_hash"]))
    return rows


def _feature_line(features: dict[str, Any]) -> str:
    spread = f"mean {features['mean']:.3f}, std {features['std']:.3f}, {features['min']:.3f} to {features['max']:.3f}"
    norm = f"{features['share_of_zeros']:.0%} zeros, mean norm {features['mean_norm']:.2f}"
    return f"{spread}, {norm} (of {features['rois']:,} RoIs)"


def _print_histogram(title: str, histogram: dict[str, Any]) -> None:
    out = console.out()
    if not histogram["count"]:
        return
    mean, low, high = histogram["mean"], histogram["min"], histogram["max"]
    out.print(f"\n{title}: mean {mean:.1f}, median {histogram['median']:.0f}, {low:.0f} to {high:.0f}")
    top = max(histogram["bin_counts"])
    edges = histogram["bin_edges"]
    for i, count in enumerate(histogram["bin_counts"]):
        label = f"{edges[i]:.0f}-{edges[i + 1] - 1:.0f}" if edges[i + 1] - edges[i] > 1 else f"{edges[i]:.0f}"
        out.print(f"  {label:>9} {'#' * round(BAR_WIDTH * count / top):<{BAR_WIDTH}} {count:,}")


def _print_classes(found: dict[str, Any]) -> None:
    from rich.table import Table

    classes = found["sample"]["classes"]
    if not classes:
        return
    total = sum(entry["rois"] for entry in classes)
    title = f"most frequent of {len(classes)} classes seen (sample of {found['sample']['images']} images)"
    table = Table("id", "class", "RoIs", "share", title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for entry in classes[:CLASSES_SHOWN]:
        name = console.clean(entry["name"])
        table.add_row(str(entry["id"]), name, f"{entry['rois']:,}", f"{entry['rois'] / total:.1%}")
    console.out().print()
    console.print_table(table)


def _print_mapping(title: str, mapping: dict[str, Any]) -> None:
    if not mapping:
        return
    out = console.out()
    out.print(f"\n{title}")
    for name, value in mapping.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        out.print(f"  {name}: {console.clean(text if len(text) <= 400 else text[:397] + '...')}")


def _print_record(found: dict[str, Any]) -> None:
    from rich.table import Table

    out = console.out()
    out.print(f"image {console.clean(found['image_id'])}: {found['width_px']} x {found['height_px']} pixels")
    for caption in found["captions"]:
        out.print(f"  “{console.clean(caption)}”")
    title = f"{found['num_rois']} RoIs"
    attributes = any(roi["attribute"] for roi in found["rois"])
    columns = ["", "x0", "y0", "x1", "y1", "score", "classes", *(["attribute"] if attributes else []), "norm"]
    table = Table(*columns, title=title, title_justify="left", box=None)
    for i, roi in enumerate(found["rois"]):
        classes = ", ".join(f"{entry['name']} {entry['probability']:.2f}" for entry in roi["classes"][:3])
        box = (f"{edge:.1f}" for edge in roi["box"])
        attribute = [console.clean(_attribute_words(roi["attribute"]))] if attributes else []
        norm = f"{roi['feature_norm']:.2f}"
        table.add_row(str(i), *box, f"{roi['score']:.3f}", console.clean(classes), *attribute, norm)
    console.print_table(table)
    extras = f"{found['masked_views']} masked views, thumbnail of {found['thumbnail_bytes']} bytes"
    out.print(f"whole image: norm {found['image_feature_norm']:.2f}; {extras}")


def _attribute_words(attribute: dict[str, Any]) -> str:
    name = attribute["name"] or f"attribute {attribute['id']}"
    return f"{name} {attribute['probability']:.2f}"
