"""What do the parts of LLaVA-RLHF's reward do, each apart? A full factorial, which was never published.

    python eval/studies/rewards.py --out runs/studies [--seeds 3]

Four parts, on or off, 16 policies a seed: facts in the reward model, correctness (yes/no questions, weight 2), length (weight -10 times the share of the
room that an answer takes) and missing_eos (-8), with the published weights. The reward models are normalised, so that 1 is a standard
deviation of their scores. A third of the prompts are questions. Greedy answers on 300 held-out scenes; effects are means of
differences between a part on and off, over the other parts, within a seed.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
from world import World, arguments, cell, markdown, over, shown

from mmrlhf import demo, scenes
from mmrlhf.records import Example, Message

PARTS = {"facts": "", "correctness": "correctness=2", "length": "length=-10", "missing_eos": "missing_eos=-8"}
METRICS = {"chair_s": True, "coverage": True, "u": False, "mean_length": False, "yes_rate": True, "yes_no_accuracy": True}
"""Names in the benchmark, and whether they are shown in percent."""


def prompts(world: World) -> list[Example]:
    """Two descriptions to one question, whose true answer correctness is judged by."""
    rows = []
    for index in range(world.config.rl_scenes):
        scene, rng = demo.scene_of("rl", index, world.config), np.random.default_rng([world.seed, 53, index])
        asked = scenes.describe(scene, rng)
        if index % 3 == 0:
            while (asked := scenes.question(scene, rng)).kind != "yes_no":
                pass
        facts = scenes.facts(scene, rng, listed=world.listed, wrong=world.wrong)
        truth = asked.answer if asked.kind == "yes_no" else None
        rows.append(Example(scene.id, (scene.source(),), (Message("user", asked.text),), truth, facts))
    return rows


def trained(world: World, on: tuple[str, ...]) -> dict[str, Any]:
    facts = "given" if "facts" in on else "none"
    model = world.reward(
        "facts" if facts == "given" else "none",
        planted_claims=0.3,
        facts=facts,
        **({"fact_dropout": 0.2} if facts == "given" else {}),
    )
    terms = ", ".join(["fact_rm=1", *(PARTS[part] for part in on if PARTS[part])])
    policy = world.policy("rewards_" + ("-".join(on) or "rm"), prompts(world), reward_model_path=model, reward_terms=terms)
    return world.measured(policy)


ON = [on for k in range(len(PARTS) + 1) for on in itertools.combinations(PARTS, k)]


def studied(world: World) -> list[dict[str, Any]]:
    """SFT, and a policy for each of `ON`."""
    before = cell(world.out, f"rewards-{world.seed}-sft", lambda: world.measured(None))
    return [
        before,
        *(cell(world.out, f"rewards-{world.seed}-{'-'.join(on) or 'rm'}", lambda o=on: trained(world, o)) for on in ON),  # type: ignore[misc]
    ]


def main() -> None:
    given = arguments(__doc__)
    by_seed = over([World(given.out, seed) for seed in range(given.seeds)], studied, given.workers)
    before, *rest = zip(*by_seed, strict=True)
    found = dict(zip(ON, rest, strict=True))
    rows = [("SFT", *(shown((c[m] for c in before), p) for m, p in METRICS.items()))]
    rows += [
        (" + ".join(on) or "reward model alone", *(shown((c[m] for c in cells), p) for m, p in METRICS.items()))
        for on, cells in found.items()
    ]
    print(markdown(("terms", *METRICS), rows) + "\n")
    effects = []
    for part in PARTS:
        per_seed = {
            m: [np.mean([(1 if part in on else -1) * cells[s][m] for on, cells in found.items()]) * 2 for s in range(given.seeds)]
            for m in METRICS
        }
        effects.append((part, *(shown(per_seed[m], p, "+") for m, p in METRICS.items())))
    print(markdown(("effect of", *METRICS), effects) + "\n")
    print(
        json.dumps(
            {
                "study": "rewards",
                "seeds": given.seeds,
                "sft": before,
                "cells": {" + ".join(on) or "rm": c for on, c in found.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
