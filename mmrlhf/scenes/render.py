"""Render scenes: draw shapes in their grid cells, fade and occlude some, add blur and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mmrlhf.scenes.vocabulary import COLOURS, SIZES, SceneObject

IMAGE_SIZE = 96

Background = Literal["plain", "striped"]


@dataclass(frozen=True)
class Difficulty:
    """How hard a scene is to see. The defaults were chosen on the selection split."""

    noise_std: float = 16.0
    """Standard deviation of the pixel noise, on the 0-255 scale."""
    blur_radius: float = 0.6
    """Radius of the Gaussian blur in pixels."""
    occluded_share: float = 0.28
    """Share of objects that are faded and partly occluded (hard objects)."""
    max_fade: float = 0.72
    """Maximum blend of a hard object's colour with the background."""
    max_occlusion: float = 0.55
    """Maximum share of a hard object's width that the occluder covers."""
    small_share: float = 0.4
    """Share of objects that are small."""


_POLYGONS = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0, -1), (0.95, 0.8), (-0.95, 0.8)],
    "diamond": [(0, -1.05), (0.7, 0), (0, 1.05), (-0.7, 0)],
    "cross": [(-.3, -1), (.3, -1), (.3, -.3), (1, -.3), (1, .3), (.3, .3), (.3, 1), (-.3, 1), (-.3, .3), (-1, .3), (-1, -.3), (-.3, -.3)],
    "arrow": [(-1, -.3), (.1, -.3), (.1, -.9), (1, 0), (.1, .9), (.1, .3), (-1, .3)],
    "star": [(r * np.sin(k * np.pi / 5), -r * np.cos(k * np.pi / 5)) for k in range(10) for r in [1.1 if k % 2 == 0 else 0.45]],
    "heart": [(0.062 * 16 * np.sin(t) ** 3, -0.062 * (13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))) for t in np.linspace(0, 2 * np.pi, 40)],
}  # fmt: skip
_SUPERSAMPLING = 4  # draw shapes at four times the size and reduce them, which antialiases their edges


def _shape_mask(shape: str, x: float, y: float, radius: float) -> tuple[np.ndarray, slice, slice]:
    """Return a shape's coverage (0 to 1) of a window [h, w, 1], and its rows and columns."""
    left, top = max(int(x - radius * 1.2) - 1, 0), max(int(y - radius * 1.2) - 1, 0)
    right, bottom = min(int(x + radius * 1.2) + 2, IMAGE_SIZE), min(int(y + radius * 1.2) + 2, IMAGE_SIZE)
    # From here on coordinates are relative to the window, in supersampled pixels.
    mask = Image.new("L", ((right - left) * _SUPERSAMPLING, (bottom - top) * _SUPERSAMPLING))
    draw = ImageDraw.Draw(mask)
    x, y, radius = (x - left) * _SUPERSAMPLING, (y - top) * _SUPERSAMPLING, radius * _SUPERSAMPLING
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape in _POLYGONS:
        draw.polygon([(x + radius * px, y + radius * py) for px, py in _POLYGONS[shape]], fill=255)
    else:
        draw.ellipse(box, fill=255)
        if shape == "ring":
            inner_radius = radius * 0.55
            draw.ellipse((x - inner_radius, y - inner_radius, x + inner_radius, y + inner_radius), fill=0)
        elif shape == "moon":
            shift = radius * 0.6
            draw.ellipse((box[0] + shift, box[1] - shift * 0.2, box[2] + shift, box[3] - shift * 0.2), fill=0)
    coverage = np.asarray(mask.reduce(_SUPERSAMPLING), dtype=np.float64)[..., None] / 255
    return coverage, slice(top, bottom), slice(left, right)


PATTERN_DARKENING = 0.45
"""Blend of stripes and dots with black; each covers half of an object."""


def _pattern_mask(pattern: str, x: float, y: float, radius: float, rows: slice, columns: slice) -> np.ndarray:
    """Return how much of each pixel of a window [h, w, 1] stripes or dots cover (0 to 1).

    The period grows with the square of the radius: about 7 pixels on a large object, and less than
    3 on a small one, which blur and noise hide.
    """
    period = radius**2 / 28
    supersampled = (np.arange(_SUPERSAMPLING) + 0.5) / _SUPERSAMPLING
    y_phase = ((np.arange(rows.start, rows.stop)[:, None] + supersampled).ravel() - y) / period
    x_phase = ((np.arange(columns.start, columns.stop)[:, None] + supersampled).ravel() - x) / period
    is_dark = np.cos(2 * np.pi * y_phase)[:, None] > 0
    if pattern == "dotted":  # a chequerboard, so that dots cover half like stripes
        is_dark = is_dark ^ (np.cos(2 * np.pi * x_phase)[None, :] > 0)
    is_dark = np.broadcast_to(is_dark, (len(y_phase), len(x_phase)))
    height, width = rows.stop - rows.start, columns.stop - columns.start
    return is_dark.reshape(height, _SUPERSAMPLING, width, _SUPERSAMPLING).mean((1, 3))[..., None]


def render_image(objects: Sequence[SceneObject], background: Background, difficulty: Difficulty, seed: int) -> Image.Image:
    """Render objects as a 96 x 96 RGB image. `seed` sets jitter, hard objects and noise."""
    rng = np.random.default_rng(seed)
    background_colour = 215 + rng.normal(0, 10, 3)
    pixels = np.ones((IMAGE_SIZE, IMAGE_SIZE, 3)) * background_colour
    if background == "striped":
        row_indices = np.arange(IMAGE_SIZE)[:, None, None]
        pixels = pixels * 0.9 + 7 * np.sign(np.sin(2 * np.pi * (row_indices / 9.0 + rng.random())))
    for obj in objects:
        x = obj.column * 32 + 16 + rng.uniform(-2.5, 2.5)
        y = obj.row * 32 + 16 + rng.uniform(-2.5, 2.5)
        radius = SIZES[obj.size] * rng.uniform(0.93, 1.07)
        colour = np.array(COLOURS[obj.colour]) + rng.normal(0, 12, 3)
        mask, rows, columns = _shape_mask(obj.shape, x, y, radius)
        window = pixels[rows, columns]  # a view: assigning to it draws into `pixels`
        surface: np.ndarray = np.ones_like(mask)
        if obj.pattern != "plain":
            surface = 1 - PATTERN_DARKENING * _pattern_mask(obj.pattern, x, y, radius, rows, columns)
        if rng.random() < difficulty.occluded_share:
            fade = difficulty.max_fade * rng.uniform(0.5, 1)
            faded = colour * surface * (1 - fade) + background_colour * fade
            window[:] = window * (1 - mask) + faded * mask
            occluder_width, side = 2 * radius * difficulty.max_occlusion * rng.uniform(0.4, 1), rng.integers(4)
            left, top, right, bottom = x - radius, y - radius, x + radius, y + radius
            occluder_boxes = (
                (left, top, left + occluder_width, bottom),
                (right - occluder_width, top, right, bottom),
                (left, top, right, top + occluder_width),
                (left, bottom - occluder_width, right, bottom),
            )
            x0, y0, x1, y1 = (int(np.clip(round(v), 0, IMAGE_SIZE)) for v in occluder_boxes[side])
            pixels[y0:y1, x0:x1] = background_colour * 0.75
        else:
            window[:] = window * (1 - mask) + colour * surface * mask
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if difficulty.blur_radius > 0:
        image = image.filter(ImageFilter.GaussianBlur(difficulty.blur_radius))
    noisy = np.asarray(image, dtype=np.float64) + rng.normal(0, difficulty.noise_std, (IMAGE_SIZE, IMAGE_SIZE, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
