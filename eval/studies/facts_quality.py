"""How good must facts be? Reward models and policies with facts missing, wrong, or another picture's.

    python eval/studies/facts_quality.py --out runs/studies [--seeds 3]

Of what is true of a scene, a share is listed, and of that a share is wrong; `swapped` gives every row another row's facts. Facts are of the
same quality in training, on held-out pairs and in PPO. Accuracy is of held-out pairs as labelled (90% at most), the rest of greedy
answers on 300 held-out scenes. Differences are within a seed.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
from world import World, arguments, cells, markdown, over, shown

from mmrlhf import demo, scenes
from mmrlhf.artefact import load_reward_model
from mmrlhf.records import Example, Fact, Preference
from mmrlhf.reward_bench import accuracy
from mmrlhf.reward_model import group

QUALITIES = {
    "all listed": (1.0, 0.0, False),
    "50% listed": (0.5, 0.0, False),
    "none listed": (0.0, 0.0, False),
    "15% wrong": (1.0, 0.15, False),
    "30% wrong": (1.0, 0.3, False),
    "swapped": (1.0, 0.0, True),
}
"""Share listed, share of those wrong, and whether they are another row's."""
METRICS = {"accuracy": True, "u": False, "chair_s": True, "coverage": True}


def facts_of(world: World, split: scenes.Split, row_id: str, quality: str) -> tuple[Fact, ...]:
    listed, wrong, swapped = QUALITIES[quality]
    index = int(row_id.split("-")[1]) + (1 if swapped else 0)
    return scenes.facts(demo.scene_of(split, index, world.config), np.random.default_rng([67, index]), listed=listed, wrong=wrong)


def measured(world: World, quality: str) -> dict[str, Any]:
    name = "facts_" + "".join(c if c.isalnum() else "_" for c in quality)

    def told(row: Preference) -> Preference:
        return replace(row, facts=facts_of(world, "pairs", row.id, quality))

    path = world.reward(name, told, fact_dropout=0.0)
    held_out = [told(p) for p in world.pairs[1]]
    found = {"accuracy": accuracy(held_out, load_reward_model(path).score([group(p) for p in held_out]))["value"]}
    rows: list[Example] = [replace(e, facts=facts_of(world, "rl", e.id, quality)) for e in demo.rl_prompts(world.config)]
    return found | world.measured(world.policy(name, rows, reward_model_path=path))


def studied(world: World) -> list[dict[str, Any]]:
    return cells(world, "facts_quality", QUALITIES, measured)


def main() -> None:
    given = arguments(__doc__)
    by_seed = over([World(given.out, seed) for seed in range(given.seeds)], studied, given.workers)
    found = dict(zip(QUALITIES, zip(*by_seed, strict=True), strict=True))
    rows = [(quality, *(shown((c[m] for c in row), p) for m, p in METRICS.items())) for quality, row in found.items()]
    bare = found["none listed"]
    for quality in (q for q in QUALITIES if q != "none listed"):
        gaps = [[c[m] - b[m] for c, b in zip(found[quality], bare, strict=True)] for m in METRICS]
        rows.append((f"{quality} - none listed", *(shown(gap, p, "+") for gap, p in zip(gaps, METRICS.values(), strict=True))))
    print(markdown(("facts", *METRICS), rows) + "\n")
    print(json.dumps({"study": "facts_quality", "seeds": given.seeds, "cells": found}))


if __name__ == "__main__":
    main()
