"""Pictures of coloured shapes, like photos where it matters. Promise: scene number n of a seed is always the same.

Grounds have a gradient, blotches and grain; shapes have shading, texture, a shadow and a tilt; the light changes from
scene to scene. So a shape is not found by its colour alone, and its box is that of its pixels.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vlbert_data.types import Array

WIDTH_PX, HEIGHT_PX = 128, 96
COLOURS = {
    "red": (205, 38, 38),
    "yellow": (228, 205, 40),
    "green": (42, 160, 58),
    "blue": (40, 72, 205),
    "purple": (138, 48, 160),
    "white": (238, 238, 238),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES_PX = {"small": (15, 20), "large": (30, 38)}
MOST_SHAPES = 4
# A class of the detector is a colour and a shape, as the words of a caption have them.
CLASS_NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)

# Shapes are drawn this many times larger and made smaller, which smooths their edges.
SUPERSAMPLE = 4
GAP_PX = 3
MOST_TRIES = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """One shape of a scene; box: (x0, y0, x1, y1) in pixels, around what is drawn of it."""

    colour: str
    shape: str
    size: str
    box: tuple[float, float, float, float]

    @property
    def class_name(self) -> str:
        """Return its name among CLASS_NAMES."""
        return f"{self.colour} {self.shape}"

    @property
    def centre(self) -> tuple[float, float]:
        """Return (x, y) of its box's centre, in pixels."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """pixels: uint8 [96, 128, 3]. things: at most four; no two share a colour or a shape, and none hides another."""

    pixels: Array
    things: tuple[Thing, ...]


def make_scene(seed: int, number: int, *, most: int = MOST_SHAPES) -> Scene:
    """Return scene `number` of the world that `seed` stands for, with two to `most` things."""
    rng = np.random.default_rng((seed, number))
    canvas = _ground(rng)  # float32 [96, 128, 3], 0..255
    things: list[Thing] = []
    colours, shapes = rng.permutation(list(COLOURS)), rng.permutation(SHAPES)
    sizes = rng.choice(list(SIZES_PX), MOST_SHAPES)
    taken: list[tuple[int, int, int]] = []
    for place in range(int(rng.integers(2, most + 1))):
        colour, shape, size = str(colours[place]), str(shapes[place]), str(sizes[place])
        side = int(rng.integers(*SIZES_PX[size]))
        corner = _free_corner(rng, side, taken)
        if corner is None:
            continue
        taken.append((*corner, side))
        box = _draw(rng, canvas, (colour, shape), corner, side)
        things.append(Thing(colour=colour, shape=shape, size=size, box=box))
    return Scene(pixels=_expose(rng, canvas), things=tuple(things))


def _free_corner(rng: np.random.Generator, side: int, taken: list[tuple[int, int, int]]) -> tuple[int, int] | None:
    """Return where a square of `side` pixels overlaps no other, None where no place was found."""
    for _ in range(MOST_TRIES):
        x, y = (int(rng.integers(1, extent - side - 1)) for extent in (WIDTH_PX, HEIGHT_PX))
        if all(_apart(x, left, side, other) or _apart(y, top, side, other) for left, top, other in taken):
            return x, y
    return None


def _apart(begin: int, other_begin: int, side: int, other_side: int) -> bool:
    """Return whether two spans along one axis keep the gap between them."""
    return begin + side + GAP_PX <= other_begin or other_begin + other_side + GAP_PX <= begin


def _ground(rng: np.random.Generator) -> Array:
    """Return float32 [96, 128, 3]: a muted colour with a gradient and blotches."""
    base = rng.uniform(70, 150) + rng.uniform(-18, 18, 3)
    x, y = np.meshgrid(np.linspace(-1, 1, WIDTH_PX), np.linspace(-1, 1, HEIGHT_PX))
    slope = rng.uniform(-22, 22, 2)
    blotches = Image.fromarray(rng.uniform(-1, 1, (6, 8)).astype(np.float32)).resize(
        (WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC
    )
    light = slope[0] * x + slope[1] * y + rng.uniform(4, 18) * np.asarray(blotches)
    ground: Array = (base[None, None, :] + light[:, :, None]).astype(np.float32)
    return ground


def _draw(
    rng: np.random.Generator, canvas: Array, look: tuple[str, str], corner: tuple[int, int], side: int
) -> tuple[float, float, float, float]:
    """Draw a shape and its shadow into `canvas`, and return its box."""
    colour, shape = look
    cover = _cover(shape, side, float(rng.uniform(-14, 14)))  # float32 [side, side], 0..1
    window = canvas[corner[1] : corner[1] + side, corner[0] : corner[0] + side]
    _cast_shadow(canvas, cover, corner, depth=float(rng.uniform(0.1, 0.35)))
    tint = np.array(COLOURS[colour], np.float32) + rng.uniform(-14, 14, 3)
    surface = tint[None, None, :] * _texture(rng, side)[:, :, None]
    window += cover[:, :, None] * (surface - window)
    ys, xs = np.nonzero(cover > 0.5)
    return (
        float(corner[0] + xs.min()),
        float(corner[1] + ys.min()),
        float(corner[0] + xs.max() + 1),
        float(corner[1] + ys.max() + 1),
    )


def _cover(shape: str, side: int, tilt_degrees: float) -> Array:
    """Return float32 [side, side]: the share of each pixel that the shape covers."""
    size = side * SUPERSAMPLE
    mask = Image.new("L", (size, size))
    pen = ImageDraw.Draw(mask)
    middle, radius = size / 2, size / 2 - SUPERSAMPLE

    def point(angle: float, share: float) -> tuple[float, float]:
        turned = np.deg2rad(angle + tilt_degrees)
        return middle + share * radius * float(np.sin(turned)), middle - share * radius * float(np.cos(turned))

    circle = (middle - radius, middle - radius, middle + radius, middle + radius)
    if shape == "circle":
        pen.ellipse(circle, fill=255)
    elif shape == "ring":
        pen.ellipse(circle, fill=255)
        hole = 0.55 * radius
        pen.ellipse((middle - hole, middle - hole, middle + hole, middle + hole), fill=0)
    elif shape == "square":
        pen.polygon([point(angle, 1.0) for angle in (45, 135, 225, 315)], fill=255)
    elif shape == "triangle":
        pen.polygon([point(angle, 1.0) for angle in (0, 125, 235)], fill=255)
    elif shape == "star":
        pen.polygon([point(36 * k, 1.0 if k % 2 == 0 else 0.42) for k in range(10)], fill=255)
    else:
        assert shape == "cross", f"{shape} is none of {SHAPES}"
        arm, reach = 18.0, 1.0
        inner = 0.4
        corners = [(-arm, reach), (arm, reach), (45, inner)]
        pen.polygon([point(90 * k + angle, share) for k in range(4) for angle, share in corners], fill=255)
    return np.asarray(mask.resize((side, side), Image.Resampling.BOX), np.float32) / 255


def _cast_shadow(canvas: Array, cover: Array, corner: tuple[int, int], *, depth: float) -> None:
    x, y = corner[0] + 2, corner[1] + 2
    shadow = np.zeros(canvas.shape[:2], np.float32)
    part = shadow[y : y + cover.shape[0], x : x + cover.shape[1]]
    part[:] = cover[: part.shape[0], : part.shape[1]]
    blurred = Image.fromarray((shadow * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.5))
    canvas *= 1 - depth * (np.asarray(blurred, np.float32) / 255)[:, :, None]


def _texture(rng: np.random.Generator, side: int) -> Array:
    """Return float32 [side, side]: how bright each pixel of a surface is; plain, striped or dotted, lit from a side."""
    x, y = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0.03, 0.16) * (np.cos(angle) * x + np.sin(angle) * y)
    kind, strength, pitch = rng.integers(3), rng.uniform(0.06, 0.14), rng.uniform(3.5, 6.0)
    along = 2 * np.pi * side / 2 / pitch
    if kind == 1:
        light += strength * np.sin(along * (np.cos(angle) * y - np.sin(angle) * x))
    elif kind == 2:
        light += strength * np.sin(along * x) * np.sin(along * y)
    bright: Array = light.astype(np.float32)
    return bright


def _expose(rng: np.random.Generator, canvas: Array) -> Array:
    """Return uint8 pixels as a camera gives them: more or less light, a little blur, grain."""
    lit = canvas * rng.uniform(0.82, 1.12) * rng.uniform(0.97, 1.03, 3)
    photo = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
    soft = photo.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 0.7))))
    grainy = np.asarray(soft, np.float32) + rng.normal(0, rng.uniform(2, 6), canvas.shape)
    return np.clip(grainy, 0, 255).astype(np.uint8)
