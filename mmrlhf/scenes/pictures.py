"""Pictures: each shape drawn in its cell of the grid, some faded and partly covered, then blur and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mmrlhf.scenes.things import COLOURS, SIZES, Thing

PIXELS = 96

Background = Literal["plain", "striped"]


@dataclass(frozen=True)
class Difficulty:
    """How hard a scene is to see. Fixed on the selection split, never on held-out scenes."""

    noise: float = 16.0
    """Standard deviation of pixel noise, of 255."""
    blur: float = 0.6
    """Radius of the Gaussian blur, pixels."""
    hard: float = 0.28
    """Share of objects that are faded and partly covered."""
    fade: float = 0.72
    """How far a hard object's colour is drawn towards the background, at most."""
    cover: float = 0.55
    """Share of a hard object's width that an occluder covers, at most."""
    small: float = 0.4
    """Share of small objects."""


_OUTLINES = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0, -1), (0.95, 0.8), (-0.95, 0.8)],
    "diamond": [(0, -1.05), (0.7, 0), (0, 1.05), (-0.7, 0)],
    "cross": [(-.3, -1), (.3, -1), (.3, -.3), (1, -.3), (1, .3), (.3, .3), (.3, 1), (-.3, 1), (-.3, .3), (-1, .3), (-1, -.3), (-.3, -.3)],
    "arrow": [(-1, -.3), (.1, -.3), (.1, -.9), (1, 0), (.1, .9), (.1, .3), (-1, .3)],
    "star": [(r * np.sin(k * np.pi / 5), -r * np.cos(k * np.pi / 5)) for k in range(10) for r in [1.1 if k % 2 == 0 else 0.45]],
    "heart": [(0.062 * 16 * np.sin(t) ** 3, -0.062 * (13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))) for t in np.linspace(0, 2 * np.pi, 40)],
}  # fmt: skip
_SCALE = 4  # shapes are drawn larger and reduced, which smooths their edges


def _mask(shape: str, x: float, y: float, radius: float) -> tuple[np.ndarray, slice, slice]:
    """Coverage 0..1 of a small window [h, w, 1] by one shape, and where the window lies (rows, columns)."""
    left, top = max(int(x - radius * 1.2) - 1, 0), max(int(y - radius * 1.2) - 1, 0)
    right, bottom = min(int(x + radius * 1.2) + 2, PIXELS), min(int(y + radius * 1.2) + 2, PIXELS)
    mask = Image.new("L", ((right - left) * _SCALE, (bottom - top) * _SCALE))
    draw = ImageDraw.Draw(mask)
    x, y, radius = (x - left) * _SCALE, (y - top) * _SCALE, radius * _SCALE
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape in _OUTLINES:
        draw.polygon([(x + radius * px, y + radius * py) for px, py in _OUTLINES[shape]], fill=255)
    else:
        draw.ellipse(box, fill=255)
        if shape == "ring":
            inner = radius * 0.55
            draw.ellipse((x - inner, y - inner, x + inner, y + inner), fill=0)
        elif shape == "moon":
            shift = radius * 0.6
            draw.ellipse((box[0] + shift, box[1] - shift * 0.2, box[2] + shift, box[3] - shift * 0.2), fill=0)
    coverage = np.asarray(mask.reduce(_SCALE), dtype=np.float64)[..., None] / 255
    return coverage, slice(top, bottom), slice(left, right)


def render(things: Sequence[Thing], background: Background, how: Difficulty, seed: int) -> Image.Image:
    """The picture, 96 x 96 RGB."""
    rng = np.random.default_rng(seed)
    ground = 215 + rng.normal(0, 10, 3)
    pixels = np.ones((PIXELS, PIXELS, 3)) * ground
    if background == "striped":
        lines = np.arange(PIXELS)[:, None, None]
        pixels = pixels * 0.9 + 7 * np.sign(np.sin(2 * np.pi * (lines / 9.0 + rng.random())))
    for thing in things:
        x = (thing.cell % 3) * 32 + 16 + rng.uniform(-2.5, 2.5)
        y = (thing.cell // 3) * 32 + 16 + rng.uniform(-2.5, 2.5)
        radius = SIZES[thing.size] * rng.uniform(0.93, 1.07)
        colour = np.array(COLOURS[thing.colour]) + rng.normal(0, 12, 3)
        mask, rows, columns = _mask(thing.shape, x, y, radius)
        window = pixels[rows, columns]
        if rng.random() < how.hard:
            fade = how.fade * rng.uniform(0.5, 1)
            colour = colour * (1 - fade) + ground * fade
            window[:] = window * (1 - mask) + colour * mask
            width, side = 2 * radius * how.cover * rng.uniform(0.4, 1), rng.integers(4)
            left, top, right, bottom = x - radius, y - radius, x + radius, y + radius
            box = [(left, top, left + width, bottom), (right - width, top, right, bottom),
                   (left, top, right, top + width), (left, bottom - width, right, bottom)][side]  # fmt: skip
            x0, y0, x1, y1 = (int(np.clip(round(v), 0, PIXELS)) for v in box)
            pixels[y0:y1, x0:x1] = ground * 0.75
        else:
            window[:] = window * (1 - mask) + colour * mask
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if how.blur > 0:
        image = image.filter(ImageFilter.GaussianBlur(how.blur))
    noisy = np.asarray(image, dtype=np.float64) + rng.normal(0, how.noise, (PIXELS, PIXELS, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
