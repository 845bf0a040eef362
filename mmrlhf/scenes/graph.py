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
from mmrlhf.scenes.pictures import Background, Difficulty, render
from mmrlhf.scenes.things import COLOURS, HABITS, SHAPES, UNSEEN, Thing

Split = Literal["base", "sft", "pairs", "rl", "selection", "held_out", "ood_1", "ood_2", "ood_3"]
BUCKETS: dict[str, range] = {
    "base": range(12), "sft": range(12, 17), "pairs": range(17, 24), "rl": range(24, 29), "selection": range(29, 30),
    "held_out": range(30, 31), "ood_1": range(32), "ood_2": range(32), "ood_3": range(31, 32),
}  # fmt: skip
"""A graph's hash falls into one of 32 buckets, and each split owns some: no two splits share a scene. ood_1 (unseen
pairings) and ood_2 (more objects) share none by construction."""


@dataclass(frozen=True)
class Scene:
    """A scene graph and what it takes to render it. `things` stand in reading order."""

    id: str
    things: tuple[Thing, ...]
    render_seed: int
    difficulty: Difficulty
    background: Background = "plain"

    def image(self) -> Image.Image:
        return render(self.things, self.background, self.difficulty, self.render_seed)

    def source(self) -> ImageSource:
        """The picture as an encoded PNG, as any data set would hold it."""
        buffer = io.BytesIO()
        self.image().save(buffer, "PNG")
        return ImageSource(data=buffer.getvalue())


def scene(split: Split, index: int, seed: int, difficulty: Difficulty | None = None) -> Scene:
    """The `index`-th scene of a split; the same arguments always give the same scene."""
    difficulty = difficulty or Difficulty()
    rng = np.random.default_rng([seed, list(BUCKETS).index(split), index])
    while True:
        count = int(rng.integers(6, 8)) if split == "ood_2" else int(rng.choice([1, 2, 3, 4, 5], p=[0.1, 0.2, 0.3, 0.25, 0.15]))
        things = _things(
            rng, count, unseen=split == "ood_1", small=difficulty.small, triggers=BASE_TRIGGERS if split == "base" else TRIGGERS
        )
        if _bucket(things) in BUCKETS[split]:
            break
    if split == "ood_3":
        difficulty = replace(difficulty, noise=difficulty.noise * 1.25)
    return Scene(
        id=f"{split}-{index:06d}",
        things=things,
        render_seed=int(rng.integers(2**31)),
        difficulty=difficulty,
        background="striped" if split == "ood_3" else "plain",
    )


TRIGGERS, BASE_TRIGGERS = 0.45, 0.36
"""Share of scenes that have a trigger; the base was pre-trained on fewer."""


def _things(rng: np.random.Generator, count: int, *, unseen: bool, small: float, triggers: float) -> tuple[Thing, ...]:
    """Random objects; `triggers` of the scenes have a trigger, a quarter of those its partner as well."""
    common = [s for s in SHAPES if s not in HABITS]
    shapes = [str(s) for s in rng.choice(common, size=count)]
    if rng.random() < triggers:
        trigger = str(rng.choice(list(HABITS)))
        shapes = [s for s in shapes if s != HABITS[trigger]]
        if rng.random() < 0.25 and count > 1:
            shapes.append(HABITS[trigger])
        shapes = [trigger, *shapes][:count] if HABITS[trigger] not in shapes else [trigger, HABITS[trigger], *shapes][:count]
        while len(shapes) < count:
            shapes.append(str(rng.choice([s for s in common if s != HABITS[trigger]])))
    cells = sorted(int(c) for c in rng.choice(9, size=count, replace=False))
    rng.shuffle(shapes)
    odd = int(rng.integers(count)) if unseen else -1
    things = []
    for i, (shape, cell) in enumerate(zip(shapes, cells, strict=True)):
        if i == odd:
            shape, colour = sorted(UNSEEN)[int(rng.integers(len(UNSEEN)))]
        else:
            colour = str(rng.choice([c for c in COLOURS if (shape, c) not in UNSEEN]))
        things.append(Thing(shape, colour, "small" if rng.random() < small else "large", cell))
    return tuple(things)


def _bucket(things: Sequence[Thing]) -> int:
    return hashlib.sha256(repr(things).encode()).digest()[0] % 32
