"""The `vlb` command. Promise: help is instant (no torch, no transformers), errors are one sentence.

Exit codes: 0 done, 1 a problem that the message explains, 2 wrong usage.
"""

import importlib
import io
import os
import sys
from collections.abc import Sequence

import click
from click.shell_completion import CompletionItem

from cli.options import did_you_mean
from vlbert_data import __version__
from vlbert_data.errors import VlbError

# name -> (module that defines `command`, the line that `vlb --help` shows); modules load only when their command runs
COMMANDS = {
    "build-shards": ("cli.build_shards", "Describe images once: RoI features and labels into LMDB or HDF5 shards."),
    "import-features": ("cli.import_features", "Take over RoI features from the files of other projects."),
    "compare-features": ("cli.compare_features", "Say whether two sets of features describe the same images alike."),
    "extract-subset": ("cli.extract_subset", "Copy some images of a shard folder into a new one."),
    "inspect-shard": ("cli.inspect_shard", "Show what a shard or a folder of shards holds and whether it is sound."),
    "build-corpus": ("cli.build_corpus", "Tokenise text files into a corpus that training maps into memory."),
    "pretrain": ("cli.pretrain", "Pretrain VL-BERT on shards and text, or resume a run."),
    "evaluate": ("cli.evaluate", "Measure a trained model: masked words with and without images, masked RoIs."),
    "convert-weights": ("cli.convert_weights", "Put the Visual Genome detector's weights and names into one folder."),
    "convert-checkpoint": ("cli.convert_checkpoint", "Turn a published VL-BERT checkpoint into our layout."),
    "tour": ("cli.tour", "See everything work on a small made world, in a few minutes."),
    "completion": ("cli.completion", "Print the script by which bash, zsh or fish completes vlb's commands."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, and that suggests the nearest name for a typo."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the command names in the order in which one uses them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command, imported now; None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that `args` begin with, or fail with the nearest names."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            hint = did_you_mean(args[0], list(COMMANDS)) or " vlb --help lists the commands."
            ctx.fail(f"There is no command '{args[0]}'.{hint}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands that begin like this without importing one of them; options after a dash."""
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [CompletionItem(name, help=line) for name, (_, line) in COMMANDS.items() if name.startswith(incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing one of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="vlb")
def vlb() -> None:
    """VL-BERT pretraining from stored features: build shards once, inspect them, stream them into the trainer."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run `vlb` and exit with 0, 1 or 2; a `VlbError`, or what the system says of a file, is one line on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What stdout's encoding cannot write, such as names of files that are no text, is printed as escapes.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = vlb.main(args=argv, prog_name="vlb", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except VlbError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped.", err=True)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of our stdout (such as `head`) has left: not an error, and nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        # What the system says of a file, such as a folder that may not be looked into, needs no traceback.
        if error.filename is None:
            raise
        click.echo(f"Error: {os.fsdecode(error.filename)}: {error.strerror}.", err=True)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
