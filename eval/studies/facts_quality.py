"""How good must facts be? Reward models and policies with facts missing, wrong, or swapped.

    python eval/studies/facts_quality.py --out runs/studies [--seeds 3]

Facts list a share of what is true of a scene, and a share of the list is wrong; `swapped` gives
every row the facts of another row. Facts have the same quality in training, on held-out pairs and
in PPO. Accuracy is on held-out pairs as labelled (90% at most), the other metrics are of greedy
answers on 300 held-out scenes. Differences are taken within a seed.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
from common import Experiment, cached_results, format_mean, markdown_table, parse_args, run_parallel, slug

from mmrlhf import scenes
from mmrlhf.commands.reward_metrics import accuracy
from mmrlhf.demo import data
from mmrlhf.records import Fact, Preference
from mmrlhf.rewards.checkpoint import load_reward_model
from mmrlhf.training.reward_model.measured_rows import to_answer_group

QUALITIES = {
    "all listed": (1.0, 0.0, False),
    "50% listed": (0.5, 0.0, False),
    "none listed": (0.0, 0.0, False),
    "15% wrong": (1.0, 0.15, False),
    "30% wrong": (1.0, 0.3, False),
    "swapped": (1.0, 0.0, True),
}
"""Share of true facts listed, share of the list that is wrong, and whether rows swap facts."""
METRICS = {"accuracy": True, "utility": False, "chair_s": True, "coverage": True}


def build_facts(experiment: Experiment, split: scenes.Split, row_id: str, quality: str) -> tuple[Fact, ...]:
    """Return facts of a quality for a row, or those of the next row if they are swapped."""
    recall, error_rate, is_swapped = QUALITIES[quality]
    index = int(row_id.split("-")[1]) + (1 if is_swapped else 0)
    return scenes.annotator_facts(
        data.training_scene(split, index, experiment.data_config),
        np.random.default_rng([67, index]),
        recall=recall,
        error_rate=error_rate,
    )


def measure_quality(experiment: Experiment, quality: str) -> dict[str, Any]:
    """Train a reward model and a policy on facts of a quality, and return their metrics."""

    name = f"facts_{slug(quality)}"

    def with_facts(row: Preference) -> Preference:
        return replace(row, facts=build_facts(experiment, "pairs", row.id, quality))

    reward_model_path = experiment.train_reward(name, with_facts, fact_dropout=0.0)
    held_out = [with_facts(p) for p in experiment.pairs[1]]
    scores = load_reward_model(reward_model_path).score([to_answer_group(p) for p in held_out])
    metrics = {"accuracy": accuracy(held_out, scores)["value"]}
    prompts = [
        replace(e, facts=build_facts(experiment, "rl", e.id, quality)) for e in data.build_rl_prompts(experiment.data_config)
    ]
    return metrics | experiment.evaluate(experiment.train_policy(name, prompts, reward_model_path=reward_model_path))


def run_study(experiment: Experiment) -> list[dict[str, Any]]:
    return cached_results(experiment, "facts_quality", QUALITIES, measure_quality)


def main() -> None:
    args = parse_args(__doc__)
    by_seed = run_parallel([Experiment(args.out, seed) for seed in range(args.seeds)], run_study, args.workers)
    results = dict(zip(QUALITIES, zip(*by_seed, strict=True), strict=True))
    rows = [
        (quality, *(format_mean((result[m] for result in seed_results), p) for m, p in METRICS.items()))
        for quality, seed_results in results.items()
    ]
    baseline = results["none listed"]
    for quality in (q for q in QUALITIES if q != "none listed"):
        differences = [[result[m] - base[m] for result, base in zip(results[quality], baseline, strict=True)] for m in METRICS]
        cells = (format_mean(values, p, "+") for values, p in zip(differences, METRICS.values(), strict=True))
        rows.append((f"{quality} - none listed", *cells))
    print(markdown_table(("facts", *METRICS), rows) + "\n")
    print(json.dumps({"study": "facts_quality", "seeds": args.seeds, "cells": results}))


if __name__ == "__main__":
    main()
