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
from clip_world import ensure_checkpoint
from world import Experiment, cached_result, format_mean, markdown_table, parse_args, run_parallel

from mmrlhf import scenes
from mmrlhf.demo import data
from mmrlhf.demo.measure import score_scenes
from mmrlhf.engine.rollout import generate_batches
from mmrlhf.evaluation.benchmark import load_benchmark
from mmrlhf.models.policy import load_policy
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
"""Figures, and whether they are shown in percent."""
ABSENT_FACT_RATE = 0.5


def build_prompts(experiment: Experiment) -> list[Example]:
    """The demo's, with absences among the facts."""
    rows = []
    for index, row in enumerate(data.build_rl_prompts(experiment.data_config)):
        rng, present_shapes = (
            np.random.default_rng([experiment.seed, 59, index]),
            {t.shape for t in data.training_scene("rl", index, experiment.data_config).objects},
        )
        absent_facts = []
        for shape in SHAPES:
            if rng.random() < ABSENT_FACT_RATE and (shape not in present_shapes or rng.random() < experiment.fact_error_rate):
                absent_facts.append(Fact("absent", shape, "annotator"))
        rows.append(replace(row, facts=(*row.facts, *absent_facts)))
    return rows


def evaluate_policy(experiment: Experiment, adapter_path: str | None, num_scenes: int) -> dict[str, float]:
    """Greedy answers on held-out scenes, judged by the graph."""
    benchmark = load_benchmark("scenes")
    rows = [e for e in benchmark.prompts("held_out", num_scenes) if e.meta["kind"] == "describe"]
    with load_policy(experiment.sft_path, adapter_path) as vlm:
        answers = {e.id: texts for e, texts in generate_batches(vlm, rows, data.GREEDY, batch_size=100)}
    metrics = score_scenes(benchmark, rows, answers, None, experiment.seed)["held_out"]
    zero_claim_rate = np.mean([not scenes.parse_claims(text) for texts in answers.values() for text in texts])
    float_metrics = {k: v for k, v in metrics.items() if isinstance(v, float)}
    return float_metrics | {"truth": 1 - float_metrics["chair_i"], "zero_claim_rate": float(zero_claim_rate)}


def train_variant(experiment: Experiment, variant: str, args: argparse.Namespace) -> dict[str, Any]:
    reward_terms, overrides = VARIANTS[variant]
    if "verifier_score=" in reward_terms:
        overrides = overrides | {
            "clip_model": str(ensure_checkpoint(args.clip or args.out, experiment.seed, args.clip_steps, args.clip_scenes))
        }
    if REWARD_MODEL_TERM in reward_terms:
        overrides = overrides | {
            "reward_model_path": experiment.train_reward("claims", facts="given", fact_dropout=0.2, injected_claim_rate=0.3)
        }
    if args.max_steps:
        overrides = overrides | {"max_steps": args.max_steps}
    adapter_path = experiment.train_policy(
        f"claims_{variant.replace(' ', '_')}",
        build_prompts(experiment),
        reward_terms=reward_terms,
        lexicon_file=LEXICON_FILE,
        **overrides,
    )
    return evaluate_policy(experiment, adapter_path, args.held_out)


def run_study(args: argparse.Namespace, experiment: Experiment) -> dict[str, dict[str, Any]]:
    results = {
        "SFT": cached_result(
            experiment.output_dir, f"claims-{experiment.seed}-sft", lambda: evaluate_policy(experiment, None, args.held_out)
        )
    }
    for variant in args.only or VARIANTS:
        results[variant] = cached_result(
            experiment.output_dir,
            f"claims-{experiment.seed}-{variant.replace(' ', '_')}",
            partial(train_variant, experiment, variant, args),
        )
    return results


def main() -> None:
    int_option = {"type": int}
    args = parse_args(
        __doc__, clip={"type": Path, "metavar": "DIR"}, clip_steps=int_option | {"default": 4000}, clip_scenes=int_option | {"default": 20000},
        held_out=int_option | {"default": 300}, max_steps=int_option, only={"nargs": "*", "choices": list(VARIANTS)},
    )  # fmt: skip
    by_seed = run_parallel([Experiment(args.out, seed) for seed in range(args.seeds)], partial(run_study, args), args.workers)
    names = list(by_seed[0])
    table_rows = [
        (name, *(format_mean((results[name][m] for results in by_seed), p) for m, p in METRICS.items())) for name in names
    ]
    print(markdown_table(("reward", *METRICS), table_rows) + "\n")
    comparisons = [(name, "terminal") for name in names if name not in ("SFT", "terminal")] + [("dense", "at end")]
    difference_rows = [
        (f"{a} - {b}", *(format_mean((f[a][m] - f[b][m] for f in by_seed), p, "+") for m, p in METRICS.items()))
        for a, b in comparisons if {a, b} <= set(names)
    ]  # fmt: skip
    print(markdown_table(("difference", *METRICS), difference_rows) + "\n")
    print(json.dumps({"study": "claims", "seeds": args.seeds, "cells": by_seed}))


if __name__ == "__main__":
    main()
