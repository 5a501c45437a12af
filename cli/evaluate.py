"""`vlb evaluate`: what a run has learned, on images it may never have seen."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli import console

if TYPE_CHECKING:
    from vlbert_train.evaluate import Report, TaskResult


@click.command(name="evaluate", no_args_is_help=True)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--shards", multiple=True, required=True, help="Folder of shards to measure on; several are one set.")
@click.option("--corpus", help="Folder of text-only examples, made by vlb build-corpus.")
@click.option("--tokenizer", help="Where the run's tokenizer lies now, if it has moved.")
@click.option("--set", "changes", multiple=True, metavar="A.B=C", help="One setting, such as data.caption_batch=8.")
@click.option("--device", type=click.Choice(("auto", "cpu", "cuda")), default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def command(
    run: Path,
    shards: tuple[str, ...],
    corpus: str | None,
    tokenizer: str | None,
    changes: tuple[str, ...],
    device: str,
    as_json: bool,
) -> None:
    """Measure a trained model: masked words with and without images, masked RoIs.

    RUN: a run folder (its newest checkpoint) or one checkpoint in it. Masks are the same at every call.

    \b
    vlb evaluate runs/base --shards cc-val --corpus wiki-val --json
    """
    from vlbert_train.evaluate import EvaluationData, evaluate

    data = EvaluationData(shards=shards, corpus=corpus, tokenizer=tokenizer)
    report = evaluate(run, data, changes=[*changes, f"run.device={device}"])
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=1))
    else:
        _print(report)


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
    console.out().print(table)
    if report.visual_gain is not None:
        click.echo(f"visual gain: {100 * report.visual_gain:+.1f} points (right image minus another one)")
    if report.roi_baseline is not None:
        click.echo(f"most frequent class of masked RoIs: {report.roi_baseline_class}, {report.roi_baseline:.1%}")
    click.echo(f"on {report.caption_examples:,} captions and {report.text_examples:,} texts")


def _cells(result: "TaskResult") -> tuple[str, str, str]:
    if result.accuracy is None or result.loss is None:
        return "-", "-", "0"
    return f"{result.accuracy:.1%}", f"{result.loss:.3f}", f"{result.count:,}"
