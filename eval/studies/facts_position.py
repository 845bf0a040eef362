"""Where should facts go, and should the critic read them? Two ablations on synthetic scenes.

    python eval/studies/facts_position.py --out runs/studies [--seeds 3]

`before` puts facts in the prompt, shared by all answers; `after` puts them in the question that
follows the answer, as LLaVA-RLHF does; `none` is a reward model without facts. Each trains a
policy, and `before` trains a second one with a critic that reads facts, too. Accuracy is on
held-out pairs as labelled (90% at most). `explained` is the critic's explained variance over the
second half of the steps. The other metrics are of greedy answers on 300 held-out scenes.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from common import Experiment, cached_results, format_mean, markdown_table, parse_args, run_parallel

from mmrlhf.files.jsonl import read_jsonl

SETTINGS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "before": ("facts", {"injected_claim_rate": 0.3, "fact_dropout": 0.2}, False),
    "before, critic reads them": ("facts", {"injected_claim_rate": 0.3, "fact_dropout": 0.2}, True),
    "after": ("after", {"injected_claim_rate": 0.3, "fact_dropout": 0.2, "facts_position": "after"}, False),
    "none": ("none", {"injected_claim_rate": 0.3, "facts": "none"}, False),
}
"""The reward model's name and settings, and whether the critic reads facts."""
METRICS = {
    "accuracy": True,
    "explained": False,
    "utility": False,
    "chair_s": True,
    "coverage": True,
    "claim_f1": True,
    "mean_length": False,
}


def measure_setting(experiment: Experiment, setting: str) -> dict[str, Any]:
    """Train the reward model and the policy of a setting, and return their metrics."""
    name, overrides, critic_sees_facts = SETTINGS[setting]
    reward_model_path = experiment.train_reward(name, **overrides)
    accuracy = json.loads((Path(reward_model_path) / "finished.json").read_text())["accuracy"]
    policy_path = experiment.train_policy(
        f"positions_{name}{'_critic' * critic_sees_facts}",
        reward_model_path=reward_model_path,
        critic_sees_facts=critic_sees_facts,
    )
    step_metrics = read_jsonl(Path(policy_path).parent / "metrics.jsonl")
    explained_variances = [row["critic/vf_explained_var"] for row in step_metrics if "critic/vf_explained_var" in row]
    second_half = explained_variances[len(explained_variances) // 2 :]
    return {"accuracy": accuracy, "explained": fmean(second_half)} | experiment.evaluate(policy_path)


def run_study(experiment: Experiment) -> list[dict[str, Any]]:
    return cached_results(experiment, "positions", SETTINGS, measure_setting)


def main() -> None:
    args = parse_args(__doc__)
    by_seed = run_parallel([Experiment(args.out, seed) for seed in range(args.seeds)], run_study, args.workers)
    results = dict(zip(SETTINGS, zip(*by_seed, strict=True), strict=True))
    rows = [
        (setting, *(format_mean((result[m] for result in seed_results), p) for m, p in METRICS.items()))
        for setting, seed_results in results.items()
    ]
    for treatment, baseline in (("before, critic reads them", "before"), ("before", "after"), ("before", "none")):
        pairs = list(zip(results[treatment], results[baseline], strict=True))
        rows.append(
            (f"{treatment} - {baseline}", *(format_mean((a[m] - b[m] for a, b in pairs), p, "+") for m, p in METRICS.items()))
        )
    print(markdown_table(("facts", *METRICS), rows) + "\n")
    print(json.dumps({"study": "positions", "seeds": args.seeds, "cells": results}))


if __name__ == "__main__":
    main()
