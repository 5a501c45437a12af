"""What is said of scenes, and texts of the same words. Promise: every word stands in the vocabulary, one token each.

Colours, shapes, sizes, numbers and places in captions are read off the scene; nothing else in a caption tells them, as
long as the others of its phrase are readable: no two things of a scene share a colour or a shape.
"""

import re
from collections.abc import Callable

import numpy as np

from vlbert_data.tour.scenes import COLOURS, SHAPES, Scene, Thing

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIGNS = (*LETTERS, *"0123456789", *".,:;'-")
NUMBERS = {2: "two", 3: "three", 4: "four"}
# One thing lies left of another if it is at least this much further left, and more so than it is higher or lower.
CLEAR_PX = 14.0
# Alternatives to one another, read off the picture. (Words of place are too, but comparing places is learned later.)
WORD_GROUPS = {
    "colours": tuple(COLOURS),
    "shapes": SHAPES,
    "sizes": ("small", "large"),
    "numbers": tuple(NUMBERS.values()),
}

# What the world's texts know of colours and shapes, beside what they tell.
LORE = (
    "grass is green, snow is white and the sea is blue.",
    "the sun looks like a yellow circle in the sky.",
    "a square has four corners and four equal sides.",
    "a triangle has three corners and three sides.",
    "a circle has no corner at all.",
    "a ring is a circle with a hole in it.",
    "a star has five points and a cross has four arms.",
    "red and blue paint make purple.",
    "yellow and blue paint make green.",
    "night falls, and a white star stands in the sky.",
)


def make_captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Return two captions of a scene, each of another kind."""
    kinds: list[Callable[[Scene, np.random.Generator], str]] = [_place, _list, _number]
    first, second = rng.choice(len(kinds), 2, replace=False)
    return [kinds[first](scene, rng), kinds[second](scene, rng)]


def relation(one: Thing, other: Thing) -> str | None:
    """Return where `one` lies as seen from `other`: "left of", "right of", "above", "below"; None if not clear."""
    dx, dy = (a - b for a, b in zip(one.centre, other.centre, strict=True))
    if max(abs(dx), abs(dy)) < CLEAR_PX or 0.8 < abs(dx) / max(abs(dy), 1e-6) < 1.25:
        return None
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def _phrase(thing: Thing) -> str:
    return f"a {thing.size} {thing.class_name}"


def _place(scene: Scene, rng: np.random.Generator) -> str:
    one, other = (scene.things[number] for number in rng.choice(len(scene.things), 2, replace=False))
    return f"{_phrase(one)} {relation(one, other) or 'and'} {_phrase(other)}."


def _list(scene: Scene, rng: np.random.Generator) -> str:
    named = [_phrase(scene.things[number]) for number in rng.permutation(len(scene.things))]
    return f"{', '.join(named[:-1])} and {named[-1]}."


def _number(scene: Scene, rng: np.random.Generator) -> str:
    one = scene.things[int(rng.integers(len(scene.things)))]
    return f"{_phrase(one)} is one of {NUMBERS[len(scene.things)]} shapes."


def make_document(rng: np.random.Generator) -> str:
    """Return a text of some lines: a little story of shapes that stay what they are, with a line of lore."""
    colours, shapes = rng.permutation(list(COLOURS)), rng.permutation(SHAPES)
    hero, friend = f"{colours[0]} {shapes[0]}", f"{colours[1]} {shapes[1]}"
    size, side = str(rng.choice(WORD_GROUPS["sizes"])), str(rng.choice(("left", "right")))
    lines = [
        f"once there was a {size} {hero} that lived {side} of a {friend}.",
        f"the {shapes[0]} was {colours[0]} and {size}, the {shapes[1]} was {colours[1]}.",
        str(rng.choice(LORE)),
        f"one day the {friend} said: look, you are {size} and i am not.",
        f"so the {hero} went {side} and the {friend} stayed.",
        f"there are {rng.choice(list(NUMBERS.values()))} shapes in this story and one of them is the {hero}.",
    ]
    kept = [lines[0], *(line for line in lines[1:] if rng.random() < 0.75)]
    return "\n".join(kept)


def vocabulary() -> list[str]:
    """Return the entries of the world's vocab.txt: special tokens, letters and signs, pieces, words."""
    kinds = ("a and , . there are shapes one of them is the left right above below", *NUMBERS.values())
    story = " ".join(make_document(np.random.default_rng(number)) for number in range(100))
    text = " ".join((*kinds, *LORE, story, *(word for group in WORD_GROUPS.values() for word in group)))
    words = sorted({word for word in re.findall(r"[a-z]+", text) if len(word) > 1})
    return [*SPECIAL, *SIGNS, *(f"##{sign}" for sign in LETTERS), *words]
