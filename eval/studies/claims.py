"""What do claims add to the reward, and does it matter where they are paid?

    python eval/studies/claims.py --out runs/studies [--seeds 3] [--clip DIR]

Policies in the demo's world, all with missing_eos: the reward model with facts paid at the end; with a penalty on the words of each claim that facts
contradict (dense), or the same penalty at the end; with coverage besides; with open_clip's alignment besides; and claims alone, without any
reward model. Facts are the annotator's, among them for half of the absent shapes that they are absent, wrong as often as his others. DIR holds
clip_world.py's checkpoints; without it the seeds' are trained here. Greedy answers on 300 held-out scenes, judged by the whole graph: truth is the
share of claims that are true. Differences are within a seed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from clip_world import checkpoint
from world import World, arguments, cell, markdown, over, shown

from mmrlhf import demo, scenes
from mmrlhf.benchmark import load_benchmark
from mmrlhf.evaluate import scored
from mmrlhf.generate import policy
from mmrlhf.records import Example, Fact
from mmrlhf.rollout import answer_all
from mmrlhf.scenes.things import SHAPES

LEXICON = str(Path(scenes.__file__).parent / "lexicon.txt")
RM, DENSE, COVERAGE = "fact_rm=1", "hallucination=-1", "coverage=0.2"
END = "missing_eos=-2"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "terminal": (f"{RM}, {END}", {}),
    "dense": (f"{RM}, {DENSE}, {END}", {}),
    "at end": (f"{RM}, {DENSE}, {END}", {"spans_paid": "at_end"}),
    "dense + coverage": (f"{RM}, {DENSE}, {COVERAGE}, {END}", {}),
    "dense + coverage + clip": (f"{RM}, {DENSE}, {COVERAGE}, clip=1, {END}", {}),
    "claims alone": (f"{DENSE}, {COVERAGE}, {END}", {}),
}
METRICS = {"truth": True, "coverage": True, "chair_s": True, "u": False, "mean_length": False, "zero_claim_rate": True}
"""Figures, and whether they are shown in percent."""
ABSENT = 0.5


def prompts(world: World) -> list[Example]:
    """The demo's, with absences among the facts."""
    rows = []
    for index, row in enumerate(demo.rl_prompts(world.config)):
        rng, there = (
            np.random.default_rng([world.seed, 59, index]),
            {t.shape for t in demo.scene_of("rl", index, world.config).things},
        )
        absent = []
        for shape in SHAPES:
            if rng.random() < ABSENT and (shape not in there or rng.random() < world.wrong):
                absent.append(Fact("absent", shape, "annotator"))
        rows.append(replace(row, facts=(*row.facts, *absent)))
    return rows


def measured(world: World, adapter: str | None, count: int) -> dict[str, float]:
    """Greedy answers on held-out scenes, judged by the graph."""
    module = load_benchmark("scenes")
    rows = [e for e in module.prompts("held_out", count) if e.meta["kind"] == "describe"]
    with policy(world.model, adapter) as vlm:
        said = {e.id: texts for e, texts in answer_all(vlm, rows, demo.GREEDY, batch_size=100)}
    found = scored(module, rows, said, None, world.seed)["held_out"]
    silent = np.mean([not scenes.claims(text) for texts in said.values() for text in texts])
    figures = {k: v for k, v in found.items() if isinstance(v, float)}
    return figures | {"truth": 1 - figures["chair_i"], "zero_claim_rate": float(silent)}


def trained(world: World, name: str, given: argparse.Namespace) -> dict[str, Any]:
    terms, how = VARIANTS[name]
    if "clip=" in terms:
        how = how | {"clip_model": str(checkpoint(given.clip or given.out, world.seed, given.clip_steps, given.clip_scenes))}
    if RM in terms:
        how = how | {"reward_model_path": world.reward("claims", facts="given", fact_dropout=0.2, planted_claims=0.3)}
    if given.max_steps:
        how = how | {"max_steps": given.max_steps}
    adapter = world.policy(f"claims_{name.replace(' ', '_')}", prompts(world), reward_terms=terms, lexicon_file=LEXICON, **how)
    return measured(world, adapter, given.held_out)


def studied(given: argparse.Namespace, world: World) -> dict[str, dict[str, Any]]:
    found = {"SFT": cell(world.out, f"claims-{world.seed}-sft", lambda: measured(world, None, given.held_out))}
    for name in given.only or VARIANTS:
        found[name] = cell(world.out, f"claims-{world.seed}-{name.replace(' ', '_')}", partial(trained, world, name, given))
    return found


def main() -> None:
    number = {"type": int}
    given = arguments(
        __doc__, clip={"type": Path, "metavar": "DIR"}, clip_steps=number | {"default": 4000}, clip_scenes=number | {"default": 20000},
        held_out=number | {"default": 300}, max_steps=number, only={"nargs": "*", "choices": list(VARIANTS)},
    )  # fmt: skip
    by_seed = over([World(given.out, seed) for seed in range(given.seeds)], partial(studied, given), given.workers)
    names = list(by_seed[0])
    table = [(name, *(shown((found[name][m] for found in by_seed), p) for m, p in METRICS.items())) for name in names]
    print(markdown(("reward", *METRICS), table) + "\n")
    compared = [(name, "terminal") for name in names if name not in ("SFT", "terminal")] + [("dense", "at end")]
    gaps = [
        (f"{a} - {b}", *(shown((f[a][m] - f[b][m] for f in by_seed), p, "+") for m, p in METRICS.items()))
        for a, b in compared if {a, b} <= set(names)
    ]  # fmt: skip
    print(markdown(("difference", *METRICS), gaps) + "\n")
    print(json.dumps({"study": "claims", "seeds": given.seeds, "cells": by_seed}))


if __name__ == "__main__":
    main()
