"""The 1600 object and 400 attribute names of Visual Genome. Promise: read from a file, never guessed; counted."""

from pathlib import Path

from vlbert_data.errors import ConfigError
from vlbert_data.types import LabelSpace

OBJECTS_FILE = "objects_vocab.txt"
ATTRIBUTES_FILE = "attributes_vocab.txt"
LABEL_SPACE_NAME = "vg1600-butd"


def read_names(path: Path, expected: int) -> tuple[str, ...]:
    """Return the names in a text file, a line each; of synonyms between commas the first.

    Raises:
        ConfigError: the file cannot be read, has another number of names, an empty one, or one twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the file of names cannot be read: {error}.") from error
    names = tuple(line.split(",")[0].strip().lower() for line in lines)
    if len(names) != expected:
        raise ConfigError(f"{path}: {len(names)} names; the weights have {expected}. Use the list that came with them.")
    for number, name in enumerate(names, start=1):
        if not name or name in names[: number - 1]:
            raise ConfigError(f"{path}, line {number}: the name {name!r} is empty or there twice.")
    return names


def read_label_space(path: Path, num_classes: int) -> LabelSpace:
    """Return the label space of the object names: ids from 0, the network's background class not among them.

    Raises:
        ConfigError: see `read_names`.
    """
    return LabelSpace(name=LABEL_SPACE_NAME, class_names=read_names(path, num_classes), background_index=None)
