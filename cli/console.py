"""How commands talk to people. Promise: results on stdout, the rest on stderr, bars only on a terminal."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

# Without a terminal, say how far the work is this often: enough for a job's log, too little to fill it.
LOG_EVERY_S = 30.0


def out() -> Console:
    """Return the console of stdout: plain and never wrapped when piped; NO_COLOR is honoured."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, no_color=True, width=160)


def say(message: str) -> None:
    """Write a line to stderr."""
    click.echo(message, err=True)


class Bar(Protocol):
    """A progress display: `update(done, note)`."""

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` units are done; `note` stands behind the numbers."""
        ...


class _RichBar:
    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress = progress
        self._task = task

    def update(self, done: int, note: str = "") -> None:
        self._progress.update(self._task, completed=done, note=note)


class _LogBar:
    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._told = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        if time.monotonic() - self._told >= LOG_EVERY_S:
            self._told = time.monotonic()
            say(f"{self._what}: {done}/{self._total} {note}")


@contextmanager
def bar(what: str, total: int) -> Iterator[Bar]:
    """Give a progress bar on stderr; without a terminal, a line every 30 seconds."""
    if not sys.stderr.isatty():
        yield _LogBar(what, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield _RichBar(progress, progress.add_task(what, total=total, note=""))


class Rate:
    """Units a second since this run began."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def of(self, units: int) -> float:
        """Return `units` a second."""
        return units / max(time.monotonic() - self._start, 1e-9)


def size(num_bytes: float) -> str:
    """Return bytes for people: `1.5 GB` (powers of ten, as disks are sold)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(num_bytes) < 1000 or unit == "TB":
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    raise AssertionError("the loop ends at TB")


def print_facts(title: str, rows: Mapping[str, str]) -> None:
    """Print names and values in two columns."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(name, value)
    out().print(table)


def print_counts(counts: Mapping[str, int], title: str) -> None:
    """Print counts by reason, the largest first; nothing where there are none."""
    if not counts:
        return
    table = Table("", "count", title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for reason, count in sorted(counts.items(), key=lambda pair: -pair[1]):
        table.add_row(reason, f"{count:,}")
    out().print(table)
