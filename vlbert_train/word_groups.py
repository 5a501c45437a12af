"""Named words: how often each kind is guessed. Promise: a word is hidden alone; all other words and RoIs are shown.

Words that only a picture can tell are guessed with the right image and with another one; what is between the two comes
from looking. Chance is what always answering the most frequent word of each group would give.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlbert_data.errors import ConfigError
from vlbert_data.tokenizer import TextTokenizer
from vlbert_data.types import Array
from vlbert_train.batch import Batch
from vlbert_train.learner import Forward


@dataclass(frozen=True, kw_only=True, slots=True)
class WordGroup:
    """Words that may stand for one another, such as colours, each one token; ids: the tokens."""

    name: str
    words: tuple[str, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupResult:
    """Of one group, or of all: accuracies 0..1, with_other_image none where there is only one image.

    chance: the share of the most frequent word; of all groups: what the most frequent word of each would give. asked:
    words of the group in the captions.
    """

    name: str
    with_image: float
    with_other_image: float | None
    chance: float
    asked: int


def read_groups(path: Path, tokenizer: TextTokenizer) -> tuple[WordGroup, ...]:
    """Return the groups in a text file: `NAME: WORD WORD ...` on each line; empty lines and # comments are skipped.

    Raises:
        ConfigError: unreadable, not of that form, a word of several tokens, or one in two groups.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--words {path}: cannot be read as UTF-8 text ({error}).") from error
    groups = [
        _read_group(f"{path}:{number}", line, tokenizer)
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not groups:
        raise ConfigError(f"{path}: names no words. Expected lines such as: colours: red green blue")
    known: dict[int, str] = {}
    for group in groups:
        for word, token in zip(group.words, group.ids, strict=True):
            if token in known:
                raise ConfigError(f"{path}: {word!r} stands in {known[token]} and in {group.name}; name it once.")
            known[token] = group.name
    return tuple(groups)


def _read_group(where: str, line: str, tokenizer: TextTokenizer) -> WordGroup:
    name, colon, rest = line.partition(":")
    words = tuple(rest.split())
    if not colon or not name.strip() or not words:
        raise ConfigError(
            f"{where}: {line.strip()!r} is not of the form NAME: WORD WORD ..., such as sizes: small large"
        )
    # As inside a caption: to many tokenizers a word after a space is another one than a word alone.
    tokens = tokenizer.encode([f" {word}" for word in words])
    lengths = np.diff(tokens.cu_lengths)
    for word, length in zip(words, lengths, strict=True):
        if length != 1:
            raise ConfigError(
                f"{where}: {word!r} is {length} tokens for this run's tokenizer; only words of one token are measured."
            )
    if tokenizer.special_ids.unk in tokens.ids:
        word = words[int(np.flatnonzero(tokens.ids == tokenizer.special_ids.unk)[0])]
        raise ConfigError(f"{where}: the run's tokenizer does not know {word!r}.")
    return WordGroup(name=name.strip(), words=words, ids=tuple(tokens.ids.tolist()))


def named_tokens(groups: Sequence[WordGroup], vocab_size: int) -> Array:
    """Return bool [vocab_size]: which tokens are words of a group."""
    named = np.zeros(vocab_size, np.bool_)
    named[[token for group in groups for token in group.ids]] = True
    return named


@dataclass(frozen=True, kw_only=True, slots=True)
class Guesses:
    """What was asked and guessed, int64 [vocab_size] each: how often each token was asked, how often guessed right."""

    asked: Array
    right: Array


def count_guesses(forward: Forward, batches: Iterable[Batch], vocab_size: int) -> Guesses:
    """Return the guesses at all asked words of `batches`."""
    asked, right = np.zeros(vocab_size, np.int64), np.zeros(vocab_size, np.int64)
    with forward.evaluating():
        for batch in batches:
            targets = batch.word_targets
            hit = (forward.predict(batch).word_logits.argmax(dim=1).cpu() == targets).numpy()
            asked += np.bincount(targets.numpy(), minlength=vocab_size)
            right += np.bincount(targets.numpy()[hit], minlength=vocab_size)
    return Guesses(asked=asked, right=right)


def group_results(groups: Sequence[WordGroup], own: Guesses, other: Guesses) -> tuple[GroupResult, ...]:
    """Return a result for each group with a word in the captions, and one for all; none where no word was found."""
    parts = [(group, np.array(group.ids)) for group in groups if own.asked[list(group.ids)].any()]
    results = [_result(group.name, ids, own, other, int(own.asked[ids].max())) for group, ids in parts]
    if not parts:
        return ()
    frequent = sum(int(own.asked[ids].max()) for _, ids in parts)
    every = np.concatenate([ids for _, ids in parts])
    return (*results, _result("all", every, own, other, frequent))


def _result(name: str, ids: Array, own: Guesses, other: Guesses, frequent: int) -> GroupResult:
    asked, others = int(own.asked[ids].sum()), int(other.asked[ids].sum())
    return GroupResult(
        name=name,
        with_image=float(own.right[ids].sum() / asked),
        with_other_image=float(other.right[ids].sum() / others) if others else None,
        chance=frequent / asked,
        asked=asked,
    )
