"""Scene graphs: drawn from a seed, and each owned by one split."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image

from mmrlhf.records import ImageSource
from mmrlhf.scenes.render import Background, Difficulty, render_image
from mmrlhf.scenes.vocabulary import COLOURS, COOCCURRENCES, SHAPES, UNSEEN_PAIRINGS, SceneObject

Split = Literal["base", "sft", "pairs", "rl", "selection", "held_out", "ood_1", "ood_2", "ood_3"]
SPLIT_BUCKETS: dict[str, range] = {
    "base": range(12), "sft": range(12, 17), "pairs": range(17, 24), "rl": range(24, 29), "selection": range(29, 30),
    "held_out": range(30, 31), "ood_1": range(32), "ood_2": range(32), "ood_3": range(31, 32),
}  # fmt: skip
"""A graph's hash falls into one of 32 buckets, and each split owns some: no two splits share a scene. ood_1 (unseen
pairings) and ood_2 (more objects) share none by construction."""


@dataclass(frozen=True)
class Scene:
    """A scene graph and what it takes to render it. `things` stand in reading order."""

    id: str
    objects: tuple[SceneObject, ...]
    render_seed: int
    difficulty: Difficulty
    background: Background = "plain"

    def image(self) -> Image.Image:
        return render_image(self.objects, self.background, self.difficulty, self.render_seed)

    def image_source(self) -> ImageSource:
        """The picture as an encoded PNG, as any data set would hold it."""
        buffer = io.BytesIO()
        self.image().save(buffer, "PNG")
        return ImageSource(data=buffer.getvalue())


def generate_scene(split: Split, index: int, seed: int, difficulty: Difficulty | None = None) -> Scene:
    """The `index`-th scene of a split; the same arguments always give the same scene."""
    difficulty = difficulty or Difficulty()
    rng = np.random.default_rng([seed, list(SPLIT_BUCKETS).index(split), index])
    while True:
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
"""Share of scenes that have a trigger; the base was pre-trained on fewer."""


def _sample_objects(
    rng: np.random.Generator, num_objects: int, *, has_unseen_pairing: bool, small_share: float, trigger_rate: float
) -> tuple[SceneObject, ...]:
    """Random objects; `triggers` of the scenes have a trigger, a quarter of those its partner as well."""
    non_trigger_shapes = [s for s in SHAPES if s not in COOCCURRENCES]
    shapes = [str(s) for s in rng.choice(non_trigger_shapes, size=num_objects)]
    if rng.random() < trigger_rate:
        trigger = str(rng.choice(list(COOCCURRENCES)))
        shapes = [s for s in shapes if s != COOCCURRENCES[trigger]]
        if rng.random() < 0.25 and num_objects > 1:
            shapes.append(COOCCURRENCES[trigger])
        shapes = (
            [trigger, *shapes][:num_objects]
            if COOCCURRENCES[trigger] not in shapes
            else [trigger, COOCCURRENCES[trigger], *shapes][:num_objects]
        )
        while len(shapes) < num_objects:
            shapes.append(str(rng.choice([s for s in non_trigger_shapes if s != COOCCURRENCES[trigger]])))
    cells = sorted(int(c) for c in rng.choice(9, size=num_objects, replace=False))
    rng.shuffle(shapes)
    unseen_index = int(rng.integers(num_objects)) if has_unseen_pairing else -1
    objects = []
    for i, (shape, cell) in enumerate(zip(shapes, cells, strict=True)):
        if i == unseen_index:
            shape, colour = sorted(UNSEEN_PAIRINGS)[int(rng.integers(len(UNSEEN_PAIRINGS)))]
        else:
            colour = str(rng.choice([c for c in COLOURS if (shape, c) not in UNSEEN_PAIRINGS]))
        objects.append(SceneObject(shape, colour, "small" if rng.random() < small_share else "large", cell))
    return tuple(objects)


def _hash_bucket(objects: Sequence[SceneObject]) -> int:
    # The hash decides which split owns a scene, so it keeps the name that the record had when splits were first drawn.
    return hashlib.sha256(repr(objects).replace("SceneObject(", "Thing(").encode()).digest()[0] % 32
