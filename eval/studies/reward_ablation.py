"""What does each part of LLaVA-RLHF's reward do? A full factorial, which was never published.

    python eval/studies/reward_ablation.py --out runs/studies [--seeds 3]

Four parts are on or off, which gives 16 policies per seed. The weights are the published ones:
facts in the reward model, correctness (yes/no questions, weight 2), length (weight -10 times the
fraction of the maximum length that an answer uses) and missing_eos (-8). Reward models are
normalised: 1 is a standard deviation of their scores. A third of the prompts are yes/no questions.
Metrics are of greedy answers on 300 held-out scenes. Effects are mean differences between a part
on and off, over the other parts, within a seed.
"""

from __future__ import annotations

import itertools
import json
from functools import partial
from typing import Any

import numpy as np
from common import Experiment, cached_result, format_mean, markdown_table, parse_args, run_parallel

from mmrlhf import scenes
from mmrlhf.demo import data
from mmrlhf.records import Example, Message

REWARD_PARTS = {"facts": "", "correctness": "correctness=2", "length": "length=-10", "missing_eos": "missing_eos=-8"}
METRICS = {"chair_s": True, "coverage": True, "utility": False, "mean_length": False, "yes_rate": True, "yes_no_accuracy": True}
"""Metrics of the benchmark, and whether they are percentages."""


def build_prompts(experiment: Experiment) -> list[Example]:
    """Return two descriptions for each yes/no question, which has a reference for correctness."""
    rows = []
    for index in range(experiment.data_config.rl_scenes):
        scene = data.training_scene("rl", index, experiment.data_config)
        rng = np.random.default_rng([experiment.seed, 53, index])
        question = scenes.description_question(scene, rng)
        while index % 3 == 0 and question.kind != "yes_no":
            question = scenes.short_question(scene, rng)
        facts = scenes.annotator_facts(scene, rng, recall=experiment.fact_recall, error_rate=experiment.fact_error_rate)
        reference = question.answer if question.kind == "yes_no" else None
        rows.append(Example(scene.id, (scene.image_source(),), (Message("user", question.text),), reference, facts))
    return rows


def train_combination(experiment: Experiment, enabled: tuple[str, ...]) -> dict[str, Any]:
    """Train the policy with some parts of the reward and return its metrics."""
    facts = "given" if "facts" in enabled else "none"
    reward_model_path = experiment.train_reward(
        "facts" if facts == "given" else "none",
        injected_claim_rate=0.3,
        facts=facts,
        **({"fact_dropout": 0.2} if facts == "given" else {}),
    )
    reward_terms = ", ".join(["fact_rm=1", *(REWARD_PARTS[part] for part in enabled if REWARD_PARTS[part])])
    policy_path = experiment.train_policy(
        "rewards_" + ("-".join(enabled) or "rm"),
        build_prompts(experiment),
        reward_model_path=reward_model_path,
        reward_terms=reward_terms,
    )
    return experiment.evaluate(policy_path)


COMBINATIONS = [parts for k in range(len(REWARD_PARTS) + 1) for parts in itertools.combinations(REWARD_PARTS, k)]


def run_study(experiment: Experiment) -> list[dict[str, Any]]:
    """Return the results of SFT and of each combination."""
    prefix = f"rewards-{experiment.seed}"
    results = [cached_result(experiment.output_dir, f"{prefix}-sft", partial(experiment.evaluate, None))]
    for enabled in COMBINATIONS:
        name = f"{prefix}-{'-'.join(enabled) or 'rm'}"
        results.append(cached_result(experiment.output_dir, name, partial(train_combination, experiment, enabled)))
    return results


def main() -> None:
    args = parse_args(__doc__)
    by_seed = run_parallel([Experiment(args.out, seed) for seed in range(args.seeds)], run_study, args.workers)
    sft_results, *combination_results = zip(*by_seed, strict=True)
    results = dict(zip(COMBINATIONS, combination_results, strict=True))
    rows = [("SFT", *(format_mean((result[m] for result in sft_results), p) for m, p in METRICS.items()))]
    rows += [
        (
            " + ".join(enabled) or "reward model alone",
            *(format_mean((result[m] for result in seed_results), p) for m, p in METRICS.items()),
        )
        for enabled, seed_results in results.items()
    ]
    print(markdown_table(("terms", *METRICS), rows) + "\n")
    effects = []
    for part in REWARD_PARTS:
        cells = []
        for metric, as_percent in METRICS.items():
            # Twice the mean of signed results is the mean difference between on and off.
            effect_by_seed = [
                np.mean(
                    [(1 if part in enabled else -1) * seed_results[seed][metric] for enabled, seed_results in results.items()]
                )
                * 2
                for seed in range(args.seeds)
            ]
            cells.append(format_mean(effect_by_seed, as_percent, "+"))
        effects.append((part, *cells))
    print(markdown_table(("effect of", *METRICS), effects) + "\n")
    cells_by_name = {" + ".join(enabled) or "rm": seed_results for enabled, seed_results in results.items()}
    print(json.dumps({"study": "rewards", "seeds": args.seeds, "sft": sft_results, "cells": cells_by_name}))


if __name__ == "__main__":
    main()
