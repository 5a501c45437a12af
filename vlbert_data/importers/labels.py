"""Which class each number means. Promise: taken from the format where it settles it, else from the user, never guessed.

Every project counts classes in its own way: with background first, last or left out. A wrong choice moves every label
by one and nothing looks broken, so where a format leaves it open an import stops and shows what it saw.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from vlbert_data.detect.vg_frcnn.names import read_names
from vlbert_data.errors import ConfigError
from vlbert_data.importers.base import BACKGROUNDS, LabelConvention
from vlbert_data.types import LabelSpace

BACKGROUND_NAME = "__background__"


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelChoice:
    """What the user says of classes: the label space's name, where background stands, and names by id.

    absent: classes are left out, whatever the input has.
    """

    space: str | None = None
    background: str | None = None
    class_names: tuple[str, ...] | None = None
    absent: bool = False


def settle_labels(convention: LabelConvention, choice: LabelChoice, format_name: str) -> LabelSpace | None:
    """Return the label space of an input, None where it has no classes; the user's word goes before the format's.

    Raises:
        ConfigError: neither format nor user says what the numbers mean, or what the user says does not fit.
    """
    if convention.targets == "absent" or choice.absent:
        if choice.space is not None or choice.background is not None:
            raise ConfigError(
                f"{'--no-labels leaves classes out' if choice.absent else f'{format_name} stores no classes'}, so "
                "--label-space and --background say nothing. Leave them out: the folder will have features only."
            )
        return None
    name = choice.space or convention.space
    background = choice.background or convention.background
    if name is None or background is None:
        lacking = " and ".join(
            option for option, value in (("--label-space NAME", name), ("--background", background)) if value is None
        )
        raise ConfigError(
            f"{format_name} does not say what its class numbers mean. Seen: {convention.evidence}. Give {lacking}"
            f"{'' if background else ' (' + ', '.join(BACKGROUNDS) + ')'}."
        )
    return _space(name, _num_classes(convention, choice, background), background, choice.class_names)


def _num_classes(convention: LabelConvention, choice: LabelChoice, background: str) -> int:
    """Return how many ids there are: columns of distributions are known, ids of another space only from its names."""
    if convention.targets == "soft":
        return convention.num_classes
    if convention.space is not None and choice.space in (None, convention.space):
        objects = convention.num_classes - (convention.background in ("first", "last"))
        return objects + (background != "none")
    if choice.class_names is None:
        raise ConfigError(
            f"--label-space {choice.space}: hard ids do not show how many classes there are. Seen: "
            f"{convention.evidence}. Give their names with --class-names FILE."
        )
    return len(choice.class_names) + (background != "none" and BACKGROUND_NAME not in choice.class_names)


def _space(name: str, num_classes: int, background: str, names: tuple[str, ...] | None) -> LabelSpace:
    index = {"first": 0, "last": num_classes - 1, "none": None}[background]
    num_objects = num_classes - (index is not None)
    if names is None:
        # Ids without names are called by their place among the objects, which background does not move.
        names = tuple(f"#{number}" for number in range(num_objects))
    if len(names) == num_objects and index is not None:
        names = (*names[:index], BACKGROUND_NAME, *names[index:])
    if len(names) != num_classes:
        raise ConfigError(
            f"{len(names)} class names; the input has {num_classes} classes"
            + ("." if index is None else f", of which one is background ({background}).")
            + " Give the list that belongs to its detector."
        )
    return LabelSpace(name=name, class_names=names, background_index=index)


def read_class_names(path: Path) -> tuple[str, ...]:
    """Return the names in a text file, a line each by id, or in a JSON file with a map `label_to_idx`.

    Ids of such a map begin at 1 behind a background that has no name in it.

    Raises:
        ConfigError: unreadable, empty, a name twice, or a map with gaps.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the file of names cannot be read: {error}.") from error
    if not text.strip():
        raise ConfigError(f"{path}: an empty file; expected class names, a line each, or a JSON map label_to_idx.")
    if not text.lstrip().startswith("{"):
        return read_names(path, len(text.splitlines()))
    try:
        ids = json.loads(text)["label_to_idx"]
        names = tuple(sorted(ids, key=lambda name: int(ids[name])))
        found = [int(ids[name]) for name in names]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: a JSON file without a map label_to_idx from names to numbers.") from error
    if names[:1] == (BACKGROUND_NAME,) and found[:1] == [0]:
        names, found = names[1:], found[1:]
    if not names or found != list(range(1, len(names) + 1)):
        raise ConfigError(f"{path}: the numbers of label_to_idx do not run from 1 to {len(names)}.")
    return names
