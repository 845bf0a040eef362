"""Patterns are seen on large sharp objects and not on small ones."""

import numpy as np
import pytest

from mmrlhf.scenes import Difficulty, SceneObject
from mmrlhf.scenes.render import render_image

SHARP = Difficulty(noise_std=0, blur_radius=0, occluded_share=0)
BLURRED = Difficulty(noise_std=0, blur_radius=1.2, occluded_share=0)


def centre_pixels(pattern, size, difficulty, half_width):
    """Return the middle of an object in the centre [2 * half_width, 2 * half_width, 3]."""
    image = render_image((SceneObject("square", "orange", size, 4, pattern),), "plain", difficulty, seed=3)
    return np.asarray(image, dtype=float)[48 - half_width : 48 + half_width, 48 - half_width : 48 + half_width]


def mean_difference(pattern, other_pattern, size, difficulty):
    half_width = 4 if size == "small" else 8
    pixels, other_pixels = (centre_pixels(p, size, difficulty, half_width) for p in (pattern, other_pattern))
    return np.abs(pixels - other_pixels).mean()


@pytest.mark.parametrize(("pattern", "other_pattern"), [("plain", "striped"), ("plain", "dotted"), ("striped", "dotted")])
def test_patterns_of_large_sharp_objects_differ(pattern, other_pattern):
    assert mean_difference(pattern, other_pattern, "large", SHARP) > 20


def test_stripes_and_dots_of_small_blurred_objects_look_alike():
    assert mean_difference("striped", "dotted", "small", BLURRED) < 5 < mean_difference("striped", "dotted", "large", BLURRED)
    # A pattern darkens a small object, so one can see that there is one, but not which.
    assert mean_difference("plain", "striped", "small", BLURRED) > 10


def test_stripes_and_dots_darken_alike():
    plain, striped, dotted = (centre_pixels(p, "large", SHARP, 8).mean() for p in ("plain", "striped", "dotted"))
    # They cover half of a surface, and blend it with 45% of black: 1 - .45 / 2 is left.
    assert striped / plain == pytest.approx(0.775, abs=0.05) and dotted / plain == pytest.approx(0.775, abs=0.05)


def test_stripes_are_rows_and_dots_are_not():
    striped, dotted = (centre_pixels(p, "large", SHARP, 6).mean(-1) for p in ("striped", "dotted"))
    assert striped.std(axis=1).max() < 1e-6 < striped.std(axis=0).min()
    assert dotted.std(axis=1).max() > 10 and dotted.std(axis=0).max() > 10
