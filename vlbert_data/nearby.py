"""What a mistyped path or word was meant to be. Promise: what is proposed exists."""

from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path

SHOWN = 3


def where_it_ends(path: Path, *, fits: Callable[[Path], bool] = lambda found: True) -> str:
    """Return a sentence on the deepest part of `path` that exists and the nearest name to the part that does not.

    fits: which of several near names is the likelier one; asked of paths that exist. Empty where nothing is near.
    """
    for folder, missing in zip(path.parents, [path, *path.parents], strict=False):
        if folder.is_dir():
            meant = [whole for near in _near(folder, missing.name) if (whole := _with_rest(near, path, missing))]
            if meant:
                return f"Did you mean {next(filter(fits, meant), meant[0])}?"
            if folder == path.parent:
                return ""
            where = "This folder holds" if folder == Path() else f"{folder} exists, but it holds"
            return f"{where} no {missing.name!r}."
    return ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a sentence with the nearest of `known`, after a space; empty where none is near."""
    near = get_close_matches(word, list(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""


def is_no_hub_name(name: str) -> bool:
    """Return whether `name` can only be meant as a path of this machine: a hub's names are NAME or OWNER/NAME."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def unreadable(path: Path, error: OSError) -> str:
    """Return what to say of a file that the system does not let us read."""
    hint = where_it_ends(path) if isinstance(error, FileNotFoundError) else ""
    return f"{path}: cannot be read: {error.strerror}. {hint}".rstrip()


def no_folder(path: Path, *, expected: str, fits: Callable[[Path], bool]) -> str:
    """Return what to say where `path` is no folder but one was `expected`: what is there, and what is near."""
    if path.exists():
        return f"{path}: a file; expected {expected}. Give the folder."
    return f"{path}: there is no such folder; expected {expected}. {where_it_ends(path, fits=fits)}".rstrip()


def folders_inside(folder: Path, fits: Callable[[Path], bool]) -> str:
    """Return a sentence that proposes the folders in `folder` that fit; empty where none does."""
    found = [str(path) for path in sorted(folder.iterdir()) if path.is_dir() and fits(path)]
    return f"Did you mean {' or '.join(found[:SHOWN])}?" if found else ""


def _near(folder: Path, name: str) -> Iterator[Path]:
    names = sorted(entry.name for entry in folder.iterdir())
    # The same letters in another case count as the same: file names are typed from memory.
    folded = {known.casefold(): known for known in reversed(names)}
    for near in get_close_matches(name.casefold(), folded, n=SHOWN):
        found = folder / folded[near]
        if found.exists():  # a link may lead nowhere
            yield found


def _with_rest(near: Path, path: Path, missing: Path) -> Path:
    """Return `path` with its part `missing` replaced by `near`, as far as that is there."""
    whole = near / path.relative_to(missing)
    return whole if whole.exists() else near
