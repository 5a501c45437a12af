"""`vlb pretrain`: train on shards and text, stop, resume."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import console
from cli.options import Choice, complete_presets, complete_settings

if TYPE_CHECKING:
    from vlbert_train.config import PretrainConfig
    from vlbert_train.trainer import Outcome, Progress

# Options that are settings: option name -> section.name.
NAMED = {
    "shards": "data.shards",
    "corpus": "data.corpus",
    "tokenizer": "data.tokenizer",
    "init_from": "model.init_from",
    "val_shards": "data.val_shards",
    "val_fraction": "data.val_fraction",
    "device": "run.device",
}
ONLY_NEW = ("preset", "config_file", "init_from", "out")


@click.command(name="pretrain", no_args_is_help=True)
@click.option("--shards", multiple=True, help="Folder of shards to learn from; may be given several times.")
@click.option("--corpus", help="Folder of text-only examples, made by vlb build-corpus.")
@click.option("--tokenizer", help="tokenizer.json, vocab.txt, a folder, or a name on the hub [bert-base-uncased].")
@click.option(
    "--preset", shell_complete=complete_presets, help="Settings to begin with: tiny, tour, vlbert-base, vlbert-large."
)
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file of settings.")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="A.B=C",
    shell_complete=complete_settings,
    help="One setting, such as run.steps=300.",
)
@click.option("--init-from", help="BERT or VL-BERT weights to start from: a folder or a name on the hub.")
@click.option("--val-shards", multiple=True, help="Folder of shards that are only validated on.")
@click.option("--val-fraction", type=float, help="Share of the images to keep aside for validation.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder to make.")
@click.option("--resume", type=click.Path(path_type=Path), help="Run folder, or checkpoint in one, to go on with.")
@click.option("--device", type=Choice(("auto", "cpu", "cuda")), help="Where the model computes.")
def command(
    preset: str | None,
    config_file: Path | None,
    changes: tuple[str, ...],
    out: Path | None,
    resume: Path | None,
    **named: Any,
) -> None:
    """Pretrain VL-BERT on shards and text, or resume a run.

    Settings come from the preset, then the TOML file, then options, then --set. Ctrl-C saves a checkpoint and ends; a
    second one ends at once. On several GPUs: torchrun --nproc-per-node N -m cli.main pretrain ...

    \b
    vlb pretrain --shards cc --corpus wiki --preset vlbert-base --out runs/base
    vlb pretrain --resume runs/base --set run.steps=600000
    """
    _check_usage(out, resume, {"preset": preset, "config_file": config_file, **named})
    from vlbert_data.memory import keep_few_kernels, keep_freed_memory
    from vlbert_train.config import PretrainConfig
    from vlbert_train.inputs import require_inputs
    from vlbert_train.stopping import StopSignals

    keep_freed_memory()
    keep_few_kernels()

    def changed(config: "PretrainConfig") -> "PretrainConfig":
        return _with_options(config, named, changes)

    with StopSignals() as stop:
        if resume is None:
            config = changed(_first_settings(preset, config_file) or PretrainConfig())
        else:
            from vlbert_train.run_folder import find_run

            config = changed(find_run(resume)[0].read_config())
        require_inputs(config)
        # Only now: a wrong setting or folder of a new run is told before torch has loaded.
        from vlbert_train import trainer
        from vlbert_train.distributed import join

        with join(config.run.device) as world, _display(config.run.steps, speaks=world.is_first) as show:
            watch = trainer.Watch(
                should_stop=lambda: stop.asked,
                on_progress=show,
                on_captions=_CaptionLines().show,
                on_notice=console.say,
            )
            if resume is None:
                assert out is not None, "checked above"
                outcome = trainer.start(out, config, world, watch)
            else:
                outcome = trainer.resume(resume, changed, world, watch)
    if world.is_first:
        _say_end(outcome)


def _check_usage(out: Path | None, resume: Path | None, options: Mapping[str, Any]) -> None:
    if (out is None) == (resume is None):
        raise click.UsageError("Give --out FOLDER for a new run, or --resume RUN to go on with one.")
    if resume is not None:
        for name in ONLY_NEW:
            if options.get(name):
                option = name.removesuffix("_file").replace("_", "-")
                raise click.UsageError(f"--{option} is for new runs; --resume brings all settings back. Use --set.")


def _first_settings(preset: str | None, file: Path | None) -> "PretrainConfig | None":
    from vlbert_train import config as config_module

    base = config_module.preset(preset) if preset else None
    return config_module.load_toml(file, base) if file else base


def _with_options(config: "PretrainConfig", named: Mapping[str, Any], changes: tuple[str, ...]) -> "PretrainConfig":
    """Return the settings with options and --set in them, local paths made absolute."""
    from vlbert_data.errors import ConfigError
    from vlbert_train.config import from_json, with_data

    facts: dict[str, dict[str, Any]] = {}
    for option, path in NAMED.items():
        if (value := named[option]) not in (None, ()):
            section, name = path.split(".")
            facts.setdefault(section, {})[name] = list(value) if isinstance(value, tuple) else value
    config = from_json(facts, config).assigned(changes)
    data = config.data
    if not data.shards and data.corpus is None:
        raise ConfigError("nothing to learn from: give --shards FOLDER, made by vlb build-shards.")
    return with_data(
        config,
        shards=tuple(map(_absolute, data.shards)),
        val_shards=tuple(map(_absolute, data.val_shards)),
        corpus=None if data.corpus is None else _absolute(data.corpus),
        tokenizer=_absolute(data.tokenizer) if Path(data.tokenizer).exists() else data.tokenizer,
    )


def _absolute(path: str) -> str:
    # A run may be resumed from another folder.
    return str(Path(path).expanduser().absolute())


def _say_end(outcome: "Outcome") -> None:
    if outcome.stopped:
        console.say(f"Stopped after step {outcome.step} of {outcome.steps}: saved {outcome.checkpoint}")
        console.say(f"Go on with: vlb pretrain --resume {outcome.run}")
    else:
        if outcome.new:
            click.echo(f"{outcome.step} steps done: {outcome.checkpoint}")
        else:
            click.echo(f"Nothing was trained: {outcome.checkpoint} has {_of_steps(outcome)}.")
        console.say(f"Go on with: vlb pretrain --resume {outcome.run} --set run.steps={2 * outcome.step}")


def _of_steps(outcome: "Outcome") -> str:
    if outcome.step == outcome.steps:
        return f"all {outcome.steps} steps that run.steps asks for"
    return f"{outcome.step} steps already, and run.steps is {outcome.steps}"


@contextmanager
def _display(steps: int, *, speaks: bool) -> Iterator[Any]:
    """Give a function that shows a `Progress`: two lines that move on a terminal, else a line now and then."""
    if not speaks:
        yield lambda _: None
    elif sys.stderr.isatty():
        yield from _live(steps)
    else:
        yield _LogLines().show


class _LogLines:
    """Validations at once, figures of training every half minute and at the end."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def show(self, progress: "Progress") -> None:
        from vlbert_train.metrics import duration, one_line

        now = time.monotonic()
        at = f"step {progress.step}/{progress.steps}"
        is_last = progress.step == progress.steps
        if progress.train and (is_last or progress.validation or now - self._told >= console.LOG_EVERY_S):
            self._told = now
            console.say(f"{at} | {one_line(progress.train)} | {duration(progress.seconds_left)} left")
        if progress.validation:
            console.say(f"{at} | validation | {one_line(progress.validation)}")


class _CaptionLines:
    """Says that captions are being tokenised, if that takes a while."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def show(self, done: int, total: int) -> None:
        if time.monotonic() - self._told >= console.LOG_EVERY_S:
            self._told = time.monotonic()
            console.say(f"tokenising captions, once for these shards and this tokenizer: {done:,}/{total:,}")


def _live(steps: int) -> Iterator[Any]:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars
    from rich.text import Text

    from vlbert_train.metrics import duration, one_line

    bar = Bars(TextColumn("step"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    task = bar.add_task("", total=steps, left="")
    lines = {"train": Text(""), "validation": Text("")}
    with Live(Group(bar, *lines.values()), console=Console(stderr=True), refresh_per_second=4) as live:

        def show(progress: "Progress") -> None:
            bar.update(task, completed=progress.step, left=f"{duration(progress.seconds_left)} left")
            for name, figures in (("train", progress.train), ("validation", progress.validation)):
                if figures:
                    lines[name] = Text(f"{name}: {one_line(figures)}")
            live.update(Group(bar, *lines.values()))

        yield show
