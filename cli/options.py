"""Kinds of option values that several commands take. Promise: a wrong value is answered with the nearest right one."""

import difflib
from collections.abc import Sequence

import click
from click.shell_completion import CompletionItem


class Choice(click.Choice[str]):
    """One of a few words."""

    def get_invalid_choice_message(self, value: str, ctx: click.Context | None) -> str:
        """Return what is wrong, with the nearest words."""
        return super().get_invalid_choice_message(value, ctx) + did_you_mean(value, list(self.choices))


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return a sentence with the nearest of `known`, after a space; nothing where none is near."""
    near = difflib.get_close_matches(word, known, n=2)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def complete_presets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the presets that begin like this, for a shell."""
    from vlbert_train.config import preset_names

    return [CompletionItem(name) for name in preset_names() if name.startswith(incomplete)]


def complete_settings(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the settings that begin like this, `section.name=`, with what they mean, for a shell."""
    from dataclasses import fields

    from vlbert_train.config import PretrainConfig

    config = PretrainConfig()
    found = [
        (f"{section.name}.{setting.name}=", setting.metadata["about"])
        for section in fields(config)
        for setting in fields(getattr(config, section.name))
    ]
    return [CompletionItem(name, help=text) for name, text in found if name.startswith(incomplete)]
