"""Scene graphs: sampled from a seed, each belonging to exactly one split."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image

from mmrlhf.records import ImageSource
from mmrlhf.scenes.render import Background, Difficulty, render_image
from mmrlhf.scenes.vocabulary import COLOURS, COOCCURRENCES, PATTERNS, SHAPES, UNSEEN_PAIRINGS, SceneObject

Split = Literal["base", "sft", "pairs", "rl", "selection", "held_out", "ood_1", "ood_2", "ood_3"]
SPLIT_BUCKETS: dict[str, range] = {
    "base": range(12), "sft": range(12, 17), "pairs": range(17, 24), "rl": range(24, 29), "selection": range(29, 30),
    "held_out": range(30, 31), "ood_1": range(32), "ood_2": range(32), "ood_3": range(31, 32),
}  # fmt: skip
"""Hash buckets (of 32) of each split, so that no two splits share a scene. ood_1 (unseen pairings)
and ood_2 (more objects) may use every bucket: no other split can produce their scenes."""


@dataclass(frozen=True)
class Scene:
    """A scene graph with everything needed to render it. `objects` are in reading order."""

    id: str
    objects: tuple[SceneObject, ...]
    render_seed: int
    difficulty: Difficulty
    background: Background = "plain"

    def image(self) -> Image.Image:
        return render_image(self.objects, self.background, self.difficulty, self.render_seed)

    def image_source(self) -> ImageSource:
        """Return the rendered image as an encoded PNG, the form in which datasets store images."""
        buffer = io.BytesIO()
        self.image().save(buffer, "PNG")
        return ImageSource(data=buffer.getvalue())


def generate_scene(split: Split, index: int, seed: int, difficulty: Difficulty | None = None) -> Scene:
    """Return scene number `index` of a split. The same arguments always give the same scene."""
    return _generate_scene(split, index, seed, difficulty or Difficulty())


@lru_cache(maxsize=4096)  # scoring asks for the same held-out scenes once per model, at a millisecond each
def _generate_scene(split: Split, index: int, seed: int, difficulty: Difficulty) -> Scene:
    rng = np.random.default_rng([seed, list(SPLIT_BUCKETS).index(split), index])
    while True:  # rejection sampling: draw graphs until one hashes into a bucket of this split
        num_objects = (
            int(rng.integers(6, 8)) if split == "ood_2" else int(rng.choice([1, 2, 3, 4, 5], p=[0.1, 0.2, 0.3, 0.25, 0.15]))
        )
        objects = _sample_objects(
            rng,
            num_objects,
            has_unseen_pairing=split == "ood_1",
            small_share=difficulty.small_share,
            trigger_rate=BASE_TRIGGER_RATE if split == "base" else TRIGGER_RATE,
        )
        if _hash_bucket(objects) in SPLIT_BUCKETS[split]:
            break
    if split == "ood_3":
        difficulty = replace(difficulty, noise_std=difficulty.noise_std * 1.25)
    return Scene(
        id=f"{split}-{index:06d}",
        objects=objects,
        render_seed=int(rng.integers(2**31)),
        difficulty=difficulty,
        background="striped" if split == "ood_3" else "plain",
    )


TRIGGER_RATE, BASE_TRIGGER_RATE = 0.45, 0.36
"""Share of scenes with a trigger shape; the base model was pre-trained on fewer of them."""
PATTERNED_SHARE = 0.16
"""Share of objects that are striped or dotted, half each."""


def _sample_objects(
    rng: np.random.Generator, num_objects: int, *, has_unseen_pairing: bool, small_share: float, trigger_rate: float
) -> tuple[SceneObject, ...]:
    """Sample the objects of a scene, in reading order.

    A share `trigger_rate` of scenes has a trigger; a quarter of those also have its partner.
    """
    non_trigger_shapes = [s for s in SHAPES if s not in COOCCURRENCES]
    shapes = [str(s) for s in rng.choice(non_trigger_shapes, size=num_objects)]
    if rng.random() < trigger_rate:
        trigger = str(rng.choice(list(COOCCURRENCES)))
        partner = COOCCURRENCES[trigger]
        shapes = [s for s in shapes if s != partner]
        has_partner = rng.random() < 0.25 and num_objects > 1
        shapes = [trigger, partner, *shapes] if has_partner else [trigger, *shapes]
        shapes = shapes[:num_objects]
        while len(shapes) < num_objects:
            shapes.append(str(rng.choice([s for s in non_trigger_shapes if s != partner])))
    cells = sorted(int(c) for c in rng.choice(9, size=num_objects, replace=False))
    rng.shuffle(shapes)
    unseen_index = int(rng.integers(num_objects)) if has_unseen_pairing else -1
    objects = []
    for i, (shape, cell) in enumerate(zip(shapes, cells, strict=True)):
        if i == unseen_index:
            shape, colour = sorted(UNSEEN_PAIRINGS)[int(rng.integers(len(UNSEEN_PAIRINGS)))]
        else:
            colour = str(rng.choice([c for c in COLOURS if (shape, c) not in UNSEEN_PAIRINGS]))
        size = "small" if rng.random() < small_share else "large"
        pattern = str(rng.choice(PATTERNS[1:])) if rng.random() < PATTERNED_SHARE else "plain"
        objects.append(SceneObject(shape, colour, size, cell, pattern))
    return tuple(objects)


def _hash_bucket(objects: Sequence[SceneObject]) -> int:
    # The hash decides the split of a scene, so another `repr` moves every scene.
    return hashlib.sha256(repr(objects).encode()).digest()[0] % 32
