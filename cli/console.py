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


# Wider than any line that is printed: what is piped is for programs, which do not wrap.
PIPED_WIDTH = 1 << 16
# C0 and C1 control characters: a caption must not move the cursor of whoever reads it.
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def out() -> Console:
    """Return the console of stdout: plain and never wrapped when piped; NO_COLOR is honoured.

    Text is printed as it is: names and captions may hold what rich would take for its markup.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    if console.is_terminal:
        return console
    return Console(highlight=False, markup=False, emoji=False, no_color=True, width=PIPED_WIDTH)


def clean(text: str) -> str:
    """Return text from a file for a terminal: control characters as escapes, tabs and line ends as they are."""
    return text.translate(CONTROLS)


def print_table(table: Table) -> None:
    """Print a table below its title; when piped, without spaces at the ends of lines."""
    console = out()
    title, table.title = table.title, None
    if title:
        console.print(clean(str(title)))
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def say(message: str) -> None:
    """Write a line to stderr."""
    click.echo(message, err=True)


class Bar(Protocol):
    """A progress display: `update(done, note)`."""

    def update(self, done: int, note: str = "", *, total: int | None = None) -> None:
        """Show that `done` units are done; `note` stands behind the numbers; total: where it is known only now."""
        ...


class _RichBar:
    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress = progress
        self._task = task

    def update(self, done: int, note: str = "", *, total: int | None = None) -> None:
        self._progress.update(self._task, completed=done, note=note, total=total)


class _LogBar:
    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._begun = self._told = time.monotonic()
        self._first: int | None = None

    def update(self, done: int, note: str = "", *, total: int | None = None) -> None:
        self._total = self._total if total is None else total
        # What was done before, as by an earlier run, says nothing about the time that the rest takes.
        self._first = max(done - 1, 0) if self._first is None else self._first
        now = time.monotonic()
        if now - self._told >= LOG_EVERY_S:
            self._told = now
            left = (now - self._begun) / max(done - self._first, 1) * (self._total - done)
            say(f"{self._what}: {done}/{self._total} {note} · {duration(left)} left")


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


def duration(seconds: float) -> str:
    """Return a time for people: `1:02:03` or `2:03`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


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
        table.add_row(name, clean(value))
    print_table(table)


def print_counts(counts: Mapping[str, int], title: str) -> None:
    """Print counts by reason, the largest first; nothing where there are none."""
    if not counts:
        return
    table = Table("", "count", title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for reason, count in sorted(counts.items(), key=lambda pair: -pair[1]):
        table.add_row(reason, f"{count:,}")
    print_table(table)
