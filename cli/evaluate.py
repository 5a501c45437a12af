"""`vlb evaluate`: what a run has learned, on images it may never have seen."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli import console
from cli.options import Choice, complete_settings

if TYPE_CHECKING:
    from vlbert_train.evaluate import OpenedRun, Report, TaskResult
    from vlbert_train.word_groups import GroupResult


@click.command(name="evaluate", no_args_is_help=True)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--shards", multiple=True, required=True, help="Folder of shards to measure on; several are one set.")
@click.option("--corpus", help="Folder of text-only examples, made by vlb build-corpus.")
@click.option("--tokenizer", help="Where the run's tokenizer lies now, if it has moved.")
@click.option(
    "--words", type=click.Path(path_type=Path), help="Measure named words: a file of NAME: WORD WORD ... lines."
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="A.B=C",
    shell_complete=complete_settings,
    help="One setting, such as data.caption_batch=8.",
)
@click.option(
    "--limit", type=click.IntRange(0), default=10_000, show_default=True, help="Most captions and most texts; 0: all."
)
@click.option(
    "--draws",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Measure everything so often, with other masks each time; steadier where there are few images.",
)
@click.option("--device", type=Choice(("auto", "cpu", "cuda")), default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page of examples: one file.")
@click.option("--html-examples", type=click.IntRange(1), default=200, show_default=True, help="Captions on the page.")
@click.option("--images", type=click.Path(path_type=Path), help="Folder of pictures where no thumbnails are stored.")
def command(
    run: Path,
    shards: tuple[str, ...],
    corpus: str | None,
    tokenizer: str | None,
    words: Path | None,
    changes: tuple[str, ...],
    limit: int,
    draws: int,
    device: str,
    as_json: bool,
    html: Path | None,
    html_examples: int,
    images: Path | None,
) -> None:
    """Measure a trained model: masked words with and without images, masked RoIs.

    RUN: a run folder (its newest checkpoint) or one checkpoint in it. Masks are the same at every call. --html shows
    captions with their masked words and RoIs, and what the model guesses with the right image and with another one.
    Words that --words names are hidden one at a time, with everything else shown.

    \b
    vlb evaluate runs/base --shards cc-val --corpus wiki-val --html guesses.html
    """
    if images is not None and html is None:
        raise click.UsageError("--images DIR brings pictures for the page; give --html FILE too.")
    from vlbert_data.memory import keep_few_kernels
    from vlbert_train.inputs import require_data

    keep_few_kernels()
    require_data(shards, corpus, tokenizer=tokenizer)
    _require_beside(words, images)
    # Only now: a wrong folder is told before torch has loaded.
    from vlbert_train import evaluate

    data = evaluate.EvaluationData(
        shards=shards, corpus=corpus, tokenizer=tokenizer, words=words, limit=limit or None, draws=draws
    )
    opened = evaluate.open_run(run, data, changes=[*changes, f"run.device={device}"])
    with console.bar("examples", 0) as bar:
        report = evaluate.report(opened, advance=lambda done, total: bar.update(done, total=total))
    if html is not None:
        _write_page(opened, report, html, html_examples, images)
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=1))
    else:
        _print(report)


def _require_beside(words: Path | None, images: Path | None) -> None:
    from cli.pages.pictures import require_pictures
    from vlbert_data.sources.files import missing_path

    if words is not None and not words.is_file():
        raise missing_path(words)
    if images is not None:
        require_pictures(images)


def _write_page(opened: "OpenedRun", report: "Report", html: Path, most: int, images: Path | None) -> None:
    from cli.pages.examples import make_page
    from cli.pages.page import save
    from vlbert_data.report import spread
    from vlbert_train.guesses import guess_examples

    space = opened.supply.label_space
    examples = guess_examples(opened, spread(report.caption_examples, most))
    page = make_page(report, examples, () if space is None else space.class_names, images)
    save(html, page)
    console.say(f"{html}: {min(most, report.caption_examples):,} captions, {console.size(len(page))}")


def _print(report: "Report") -> None:
    from rich.table import Table

    title = f"{report.checkpoint}: step {report.step}"
    table = Table("", "accuracy", "loss", "asked", title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name, result in (
        ("masked words with image", report.words_with_image),
        ("masked words of text", report.words_of_text),
        ("masked RoIs", report.rois),
        ("masked words with another image", report.words_with_other_image),
    ):
        table.add_row(name, *_cells(result))
    console.print_table(table)
    if report.visual_gain is not None:
        click.echo(f"visual gain: {100 * report.visual_gain:+.1f} points (right image minus another one)")
    if report.roi_baseline is not None:
        click.echo(f"most frequent class of masked RoIs: {report.roi_baseline_class}, {report.roi_baseline:.1%}")
    draws = f", {report.draws:,} draws of masks" if report.draws > 1 else ""
    click.echo(f"on {report.caption_examples:,} captions and {report.text_examples:,} texts{draws}")
    if report.named_words:
        _print_named_words(report.named_words)


def _print_named_words(results: "Sequence[GroupResult]") -> None:
    from rich.table import Table

    title = "named words, each hidden alone (chance: the most frequent word of its group)"
    columns = ("", "right image", "another image", "chance", "asked")
    table = Table(*columns, title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for result in results:
        other = "-" if result.with_other_image is None else f"{result.with_other_image:.1%}"
        table.add_row(result.name, f"{result.with_image:.1%}", other, f"{result.chance:.1%}", f"{result.asked:,}")
    click.echo()
    console.print_table(table)


def _cells(result: "TaskResult") -> tuple[str, str, str]:
    if result.accuracy is None or result.loss is None:
        return "-", "-", "0"
    return f"{result.accuracy:.1%}", f"{result.loss:.3f}", f"{result.count:,}"
