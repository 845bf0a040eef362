"""Where should facts stand, and should the critic read them? Two ablations on the world.

    python eval/studies/positions.py --out runs/studies [--seeds 3]

`before` puts facts in front of the question, shared by all answers; `after` into the review turn, as LLaVA-RLHF does; `none` is a reward model
that reads none. Accuracy is of held-out pairs as labelled (90% at most). Each trains a policy, and `before` a second one whose critic reads facts,
too. `explained` is the critic's share of explained variance over the second half of the steps, the rest is of greedy answers on 300
held-out scenes.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from world import World, arguments, cells, markdown, over, shown

from mmrlhf.run import read_jsonl

SETTINGS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "before": ("facts", {"planted_claims": 0.3, "fact_dropout": 0.2}, False),
    "before, critic reads them": ("facts", {"planted_claims": 0.3, "fact_dropout": 0.2}, True),
    "after": ("after", {"planted_claims": 0.3, "fact_dropout": 0.2, "facts_position": "after"}, False),
    "none": ("none", {"planted_claims": 0.3, "facts": "none"}, False),
}
"""The reward model's name and settings, and whether the critic reads facts."""
METRICS = {
    "accuracy": True,
    "explained": False,
    "u": False,
    "chair_s": True,
    "coverage": True,
    "claim_f1": True,
    "mean_length": False,
}


def measured(world: World, setting: str) -> dict[str, Any]:
    name, how, critic = SETTINGS[setting]
    model = world.reward(name, **how)
    accuracy = json.loads((Path(model) / "done.json").read_text())["accuracy"]
    policy = world.policy(f"positions_{name}{'_critic' * critic}", reward_model_path=model, critic_sees_facts=critic)
    steps = read_jsonl(Path(policy).parent / "metrics.jsonl")
    told = [row["critic/vf_explained_var"] for row in steps if "critic/vf_explained_var" in row]
    return {"accuracy": accuracy, "explained": fmean(told[len(told) // 2 :])} | world.measured(policy)


def studied(world: World) -> list[dict[str, Any]]:
    return cells(world, "positions", SETTINGS, measured)


def main() -> None:
    given = arguments(__doc__)
    by_seed = over([World(given.out, seed) for seed in range(given.seeds)], studied, given.workers)
    found = dict(zip(SETTINGS, zip(*by_seed, strict=True), strict=True))
    rows = [(setting, *(shown((c[m] for c in row), p) for m, p in METRICS.items())) for setting, row in found.items()]
    for first, second in (("before, critic reads them", "before"), ("before", "after"), ("before", "none")):
        pairs = list(zip(found[first], found[second], strict=True))
        rows.append((f"{first} - {second}", *(shown((a[m] - b[m] for a, b in pairs), p, "+") for m, p in METRICS.items())))
    print(markdown(("facts", *METRICS), rows) + "\n")
    print(json.dumps({"study": "positions", "seeds": given.seeds, "cells": found}))


if __name__ == "__main__":
    main()
