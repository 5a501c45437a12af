"""Writes docs/cli.md from the commands themselves: `make docs`."""

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from cli.main import COMMANDS, vlb

PAGE = Path(__file__).parent / "cli.md"
INTRODUCTION = """\
# Commands

Made from the commands by `make docs`; a test fails where this page and the commands differ.

- Results go to stdout, everything else to stderr, so `vlb ... --json | jq` works. Progress bars are drawn on a terminal
  only; elsewhere long work says a line every half minute. `NO_COLOR=1` switches colours off.
- Exit codes: 0 done; 1 a problem, which one sentence explains; 2 wrong usage. Ctrl-C ends any command with one line;
  builds and runs go on where they were when the same command (or `--resume`) is given again.
- A mistyped command, option, value or setting is answered with the nearest right one.
- `vlb completion bash|zsh|fish` prints the script by which a shell completes commands, options, values and settings.
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")


def render() -> str:
    """Return the page."""
    lines = [f"| [`vlb {name}`](#vlb-{name}) | {line} |" for name, (_, line) in COMMANDS.items()]
    parts = [INTRODUCTION, "\n".join(["| command | |", "| --- | --- |", *lines]) + "\n"]
    return "\n".join(parts + [_section(name, command) for name, command in commands()])


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield every command by name, in the order of `vlb --help`."""
    for name, (module, _) in COMMANDS.items():
        yield name, importlib.import_module(module).command


def _section(name: str, command: click.Command) -> str:
    context = click.Context(command, parent=click.Context(vlb, info_name="vlb"), info_name=name)
    usage = f"{context.command_path} {' '.join(command.collect_usage_pieces(context))}"
    blocks = [f"## vlb {name}", f"```\n{usage}\n```", *map(_paragraph, paragraphs(command))]
    rows = [
        f"| {_cell(record[0], code=True)} | {_cell(record[1])} |"
        for parameter in command.params
        if (record := parameter.get_help_record(context)) is not None and record[1]
    ]
    # Not asked of the command: click keeps there how help was spelt when the command first ran, maybe without `vlb`.
    rows.append(f"| {_cell(', '.join(context.help_option_names), code=True)} | Show this message and exit. |")
    blocks.append("\n".join(["| option | |", "| --- | --- |", *rows]))
    return "\n\n".join(blocks) + "\n"


def paragraphs(command: click.Command) -> list[str]:
    """Return the paragraphs of a command's help; those that begin with backspace are kept line by line."""
    return [part.strip("\n") for part in inspect.cleandoc(command.help or "").split("\n\n")]


def _paragraph(text: str) -> str:
    if text.startswith("\b"):
        return "```\n" + text.removeprefix("\b").strip("\n") + "\n```"
    return " ".join(text.split())


def _cell(text: str, *, code: bool = False) -> str:
    escaped = text.replace("|", "\\|")
    return f"`{escaped}`" if code else escaped.replace("<", "&lt;")


if __name__ == "__main__":
    main()
