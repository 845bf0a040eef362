"""What do claims add to the reward, and does it matter which tokens are credited?

    python eval/studies/claims.py --out runs/studies [--seeds 3] [--clip DIR]

Trains policies on the demo's scenes, all with missing_eos. `terminal` is the reward model with
facts, credited at the end of the answer. `dense` adds a penalty on the tokens of each claim that
facts contradict, and `at end` adds the same penalty at the end. Further policies add coverage, and
open_clip's verdicts. `claims alone` has no reward model.

Facts are the annotator's. They list half of the absent shapes as absent, with the usual error rate.
DIR has checkpoints of clip_verifier.py, which are trained if it is not given. Metrics are of greedy
answers on 300 held-out scenes, verified by the scene graph; truth is the share of claims that are
true. Differences are taken within a seed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from clip_verifier import ensure_checkpoint
from common import Experiment, cached_result, format_mean, markdown_table, parse_args, run_parallel

from mmrlhf import scenes
from mmrlhf.demo import data
from mmrlhf.evaluation.benchmark import load_benchmark
from mmrlhf.records import Example, Fact
from mmrlhf.scenes.vocabulary import SHAPES

LEXICON_FILE = str(Path(scenes.__file__).parent / "lexicon.txt")
REWARD_MODEL_TERM, HALLUCINATION_TERM, COVERAGE_TERM = "fact_rm=1", "hallucination=-1", "coverage=0.2"
MISSING_EOS_TERM = "missing_eos=-2"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "terminal": (f"{REWARD_MODEL_TERM}, {MISSING_EOS_TERM}", {}),
    "dense": (f"{REWARD_MODEL_TERM}, {HALLUCINATION_TERM}, {MISSING_EOS_TERM}", {}),
    "at end": (f"{REWARD_MODEL_TERM}, {HALLUCINATION_TERM}, {MISSING_EOS_TERM}", {"span_credit": "last_token"}),
    "dense + coverage": (f"{REWARD_MODEL_TERM}, {HALLUCINATION_TERM}, {COVERAGE_TERM}, {MISSING_EOS_TERM}", {}),
    "dense + coverage + clip": (
        f"{REWARD_MODEL_TERM}, {HALLUCINATION_TERM}, {COVERAGE_TERM}, verifier_score=1, {MISSING_EOS_TERM}",
        {},
    ),
    "claims alone": (f"{HALLUCINATION_TERM}, {COVERAGE_TERM}, {MISSING_EOS_TERM}", {}),
}
METRICS = {"truth": True, "coverage": True, "chair_s": True, "utility": False, "mean_length": False, "zero_claim_rate": True}
"""Metrics, and whether they are percentages."""
ABSENT_FACT_RATE = 0.5


def build_prompts(experiment: Experiment) -> list[Example]:
    """Return the demo's prompts, with facts about absent shapes added."""
    rows = []
    for index, row in enumerate(data.build_rl_prompts(experiment.data_config)):
        rng = np.random.default_rng([experiment.seed, 59, index])
        scene = data.training_scene("rl", index, experiment.data_config)
        present_shapes = {o.shape for o in scene.objects}
        absent_facts = []
        for shape in SHAPES:
            if rng.random() < ABSENT_FACT_RATE and (shape not in present_shapes or rng.random() < experiment.fact_error_rate):
                absent_facts.append(Fact("absent", shape, "annotator"))
        rows.append(replace(row, facts=(*row.facts, *absent_facts)))
    return rows


def evaluate_policy(experiment: Experiment, adapter_path: str | None, num_scenes: int) -> dict[str, float]:
    """Return metrics of greedy answers on held-out scenes, verified by the scene graph."""
    rows = [e for e in load_benchmark("scenes").module.prompts("held_out", num_scenes) if e.meta["kind"] == "describe"]
    metrics, answers = experiment.greedy_metrics(adapter_path, rows)
    zero_claim_rate = np.mean([not scenes.parse_claims(text) for texts in answers.values() for text in texts])
    return metrics | {"truth": 1 - metrics["chair_i"], "zero_claim_rate": float(zero_claim_rate)}


def train_variant(experiment: Experiment, variant: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train the policy of a variant and return its metrics."""
    reward_terms, overrides = VARIANTS[variant]
    overrides = dict(overrides)
    if "verifier_score=" in reward_terms:
        checkpoint = ensure_checkpoint(args.clip or args.out, experiment.seed, args.clip_steps, args.clip_scenes)
        overrides["clip_model"] = str(checkpoint)
    if REWARD_MODEL_TERM in reward_terms:
        overrides["reward_model_path"] = experiment.train_reward(
            "claims", facts="given", fact_dropout=0.2, injected_claim_rate=0.3
        )
    if args.max_steps:
        overrides["max_steps"] = args.max_steps
    adapter_path = experiment.train_policy(
        f"claims_{variant.replace(' ', '_')}",
        build_prompts(experiment),
        reward_terms=reward_terms,
        lexicon_file=LEXICON_FILE,
        **overrides,
    )
    return evaluate_policy(experiment, adapter_path, args.held_out)


def run_study(args: argparse.Namespace, experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Return the metrics of SFT and of each variant."""
    prefix = f"claims-{experiment.seed}"
    measure_sft = partial(evaluate_policy, experiment, None, args.held_out)
    results = {"SFT": cached_result(experiment.output_dir, f"{prefix}-sft", measure_sft)}
    for variant in args.only or VARIANTS:
        name = f"{prefix}-{variant.replace(' ', '_')}"
        results[variant] = cached_result(experiment.output_dir, name, partial(train_variant, experiment, variant, args))
    return results


def main() -> None:
    args = parse_args(
        __doc__,
        clip={"type": Path, "metavar": "DIR"},
        clip_steps={"type": int, "default": 4000},
        clip_scenes={"type": int, "default": 20000},
        held_out={"type": int, "default": 300},
        max_steps={"type": int},
        only={"nargs": "*", "choices": list(VARIANTS)},
    )
    by_seed = run_parallel([Experiment(args.out, seed) for seed in range(args.seeds)], partial(run_study, args), args.workers)
    names = list(by_seed[0])
    table_rows = [
        (name, *(format_mean((results[name][m] for results in by_seed), p) for m, p in METRICS.items())) for name in names
    ]
    print(markdown_table(("reward", *METRICS), table_rows) + "\n")
    comparisons = [(name, "terminal") for name in names if name not in ("SFT", "terminal")] + [("dense", "at end")]
    difference_rows = [
        (f"{a} - {b}", *(format_mean((results[a][m] - results[b][m] for results in by_seed), p, "+") for m, p in METRICS.items()))
        for a, b in comparisons
        if {a, b} <= set(names)
    ]
    print(markdown_table(("difference", *METRICS), difference_rows) + "\n")
    print(json.dumps({"study": "claims", "seeds": args.seeds, "cells": by_seed}))


if __name__ == "__main__":
    main()
