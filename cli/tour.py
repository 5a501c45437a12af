"""`vlb tour`: everything once, on a small world made on the spot, every command shown before it runs."""

import json
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import console
from vlbert_data.errors import ConfigError, VlbError

if TYPE_CHECKING:
    from vlbert_data.tour.proof import Claim

SMALL = {"train_images": 120, "validation_images": 40, "documents": 100}
SMALL_STEPS = 20


@click.command(name="tour")
@click.option(
    "--out", type=click.Path(path_type=Path), default="out/tour", show_default=True, help="Folder to work in."
)
@click.option("--fresh", is_flag=True, help="Remove what an earlier tour left in --out, and begin anew.")
@click.option("--small", is_flag=True, help="A small part of the world and a few steps: all commands, but no proof.")
def command(out: Path, fresh: bool, small: bool) -> None:
    """See everything work on a small made world, in a few minutes.

    Makes photos of coloured shapes with captions and texts, then runs the ordinary commands, each shown before it runs:
    a detector finds the shapes, a small VL-BERT learns from what was found, and words that only the picture can tell
    prove that it looks. Run it again to go on after a stop; what is finished is kept. Exit code 1: a proof failed.
    """
    if fresh:
        _remove(out)
    if not _Tour(out=out, is_small=small).run():
        sys.exit(1)


def _remove(out: Path) -> None:
    """Remove a tour's folder.

    Raises:
        ConfigError: what is there was not made by a tour.
    """
    if not out.exists():
        return
    if not (out / "world").is_dir():
        raise ConfigError(f"{out}: was not made by a tour (no folder `world` in it), so --fresh leaves it alone.")
    shutil.rmtree(out)


@dataclass(kw_only=True)
class _Tour:
    """The stations in order; all paths are as a person would type them."""

    out: Path
    is_small: bool
    _began: float = field(default_factory=time.monotonic)

    def run(self) -> bool:
        """Go through all stations, and return whether every claim held."""
        self._make_world()
        self._build()
        self._pretrain()
        found = self._evaluate()
        holds = self._prove(found)
        self._say_what_to_look_at()
        return holds

    def _path(self, *parts: str) -> str:
        return str(self.out.joinpath(*parts))

    def _make_world(self) -> None:
        from vlbert_data.tour.world import WorldSize, make_world

        size = WorldSize(**SMALL) if self.is_small else WorldSize()
        photos = size.train_images + size.validation_images
        self._title(f"A world: {photos:,} photos of shapes with two captions each, {size.documents:,} texts")
        with console.bar("photos", photos) as bar:
            is_new = make_world(self.out / "world", size, bar.update)
        captions = self.out / "world" / "validation" / "captions.jsonl"
        with captions.open(encoding="utf-8") as lines:
            click.echo(next(lines).strip())
        click.echo("" if is_new else f"{self._path('world')} was there already.\n")

    def _build(self) -> None:
        self._title("From photos to shards: find the shapes, describe them, store them once")
        settings = self._path("world", "build.toml")
        click.echo(f"{settings}:\n{Path(settings).read_text(encoding='utf-8')}")
        models = [
            *("--detector", f"hf:{self._path('world', 'models', 'detector')}"),
            *("--describer", f"hf:{self._path('world', 'models', 'describer')}"),
        ]
        for split in ("train", "validation"):
            captions = self._path("world", split, "captions.jsonl")
            self._vlb(
                "build-shards",
                captions,
                *models,
                "--config",
                settings,
                "--thumbnails",
                "128",
                "--out",
                self._shards(split),
            )
        report = self._path("shards.html")
        self._vlb("inspect-shard", self._shards("validation"), "--verify", "--html", report)
        self._title("From texts to a corpus")
        tokenizer = ("--tokenizer", self._path("world", "vocab.txt"))
        self._vlb("build-corpus", self._path("world", "texts"), *tokenizer, "--out", self._path("corpus"))

    def _shards(self, split: str) -> str:
        return self._path("shards", split)

    def _pretrain(self) -> None:
        self._title("Pretraining: masked words with and without photos, masked RoIs")
        run = self._path("run")
        if (self.out / "run" / "config.json").exists():
            self._vlb("pretrain", "--resume", run)
            return
        options = ["--shards", self._shards("train"), "--val-shards", self._shards("validation")]
        options += ["--corpus", self._path("corpus"), "--tokenizer", self._path("world", "vocab.txt")]
        steps = ["--set", f"run.steps={SMALL_STEPS}"] if self.is_small else []
        self._vlb("pretrain", *options, "--preset", "tour", *steps, "--out", run)

    def _evaluate(self) -> dict[str, Any]:
        self._title("What it has learned, on photos it has not seen")
        options = ["--shards", self._shards("validation"), "--words", self._path("world", "words.txt")]
        page, answer = self._path("guesses.html"), self.out / "evaluation.json"
        text = self._vlb("evaluate", self._path("run"), *options, "--html", page, "--json", to=answer)
        found: dict[str, Any] = json.loads(text)
        return found

    def _prove(self, found: dict[str, Any]) -> bool:
        from vlbert_data.tour.proof import claims

        self._title("Proof")
        _print_words(found)
        made = claims(found)
        for claim in made:
            click.echo(_line(claim, is_small=self.is_small))
        if self.is_small:
            click.echo(f"After {SMALL_STEPS} steps nothing is learned yet; vlb tour without --small proves it.")
        return self.is_small or all(claim.holds for claim in made)

    def _say_what_to_look_at(self) -> None:
        self._title("To look at")
        click.echo(f"{self._path('shards.html')}    the photos with what was found in them (open it in a browser)")
        click.echo(
            f"{self._path('guesses.html')}   captions with their masked words, guessed with and without the photo"
        )
        click.echo(f"{self._path('run', 'metrics.jsonl')}, or: tensorboard --logdir {self._path('run', 'tensorboard')}")
        click.echo(f"\nThe tour took {time.monotonic() - self._began:.0f} s. docs/tour.md tells what each station did.")

    def _title(self, text: str) -> None:
        click.secho(f"\n== {text} ({time.monotonic() - self._began:.0f} s)\n", bold=True)

    def _vlb(self, *arguments: str, to: Path | None = None) -> str:
        """Show a command, run it, and return its stdout if that goes to a file.

        Raises:
            VlbError: the command failed.
        """
        shown = shlex.join(["vlb", *arguments]) + (f" > {shlex.quote(str(to))}" if to else "")
        click.secho(f"$ {shown}", fg="cyan")
        sys.stdout.flush()
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments],
            stdout=subprocess.PIPE if to else None,
            text=True,
            check=False,
        )
        if done.returncode:
            raise VlbError(
                f"the command above ended with {done.returncode}. Run vlb tour again, or with --fresh to begin anew."
            )
        if to:
            to.write_text(done.stdout, encoding="utf-8")
        click.echo()
        return done.stdout or ""


def _print_words(found: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("hidden word", "right photo", "another photo", "chance", "asked", box=None, padding=(0, 2, 0, 0))
    for group in found["named_words"]:
        shares = [f"{group[name]:.1%}" for name in ("with_image", "with_other_image", "chance")]
        table.add_row(group["name"], *shares, f"{group['asked']:,}")
    console.out().print(table)
    click.echo()


def _line(claim: "Claim", *, is_small: bool) -> str:
    mark = "  " if is_small else ("ok" if claim.holds else "NO")
    return f"{mark}  {claim.text}: {claim.found:.1%} ({claim.expected})"
