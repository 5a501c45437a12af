"""`vlb completion`: what a shell needs to complete vlb's commands, options and values."""

import click
from click.shell_completion import get_completion_class

from cli.options import Choice

SHELLS = ("bash", "zsh", "fish")
# The variable by which the shell's script asks; click derives it from the program's name.
VARIABLE = "_VLB_COMPLETE"


@click.command(name="completion", no_args_is_help=True)
@click.argument("shell", type=Choice(SHELLS))
def command(shell: str) -> None:
    """Print the script by which SHELL (bash, zsh or fish) completes vlb's commands, options, values and settings.

    \b
    bash: echo 'eval "$(vlb completion bash)"' >> ~/.bashrc
    zsh:  echo 'eval "$(vlb completion zsh)"' >> ~/.zshrc
    fish: vlb completion fish > ~/.config/fish/completions/vlb.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click knows these shells"
    root = click.get_current_context().find_root().command
    complete = kind(root, {}, "vlb", VARIABLE)
    # Not source(): it would start bash to see whether it is recent enough.
    click.echo(complete.source_template % complete.source_vars())
