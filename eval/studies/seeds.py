"""Aggregate the demo's results over seeds: every model on every split, and differences by seed.

    for seed in 0 1 2; do mmrlhf demo --seed $seed --output_dir runs/seed$seed; done
    python eval/studies/seeds.py runs/seed0 runs/seed1 runs/seed2

Prints Markdown. Intervals are 95% t-intervals over seeds. A difference is taken within a seed,
where both models answer the same scenes and, for the two policies, start from the same model and
read the same prompts.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
from common import format_mean, markdown_table

METRICS = {
    "chair_s": "answers with a false claim",
    "cooccurrence_errors": "co-occurrence errors",
    "perception_errors": "perception errors",
    "coverage": "coverage",
    "claim_f1": "claim F1",
    "utility": "utility",
    "mean_length": "words",
    "ead": "EAD",
}
FRACTIONS = ("chair_s", "coverage", "claim_f1")
COMPARISONS = (
    ("ppo_fact", "sft"), ("ppo_fact", "sft_t03"), ("ppo_fact", "sft_t07"), ("ppo_plain", "sft"), ("ppo_fact", "ppo_plain"),
)  # fmt: skip
BEST_OF_N = ("best_of_n", "best_of_n_facts")
"""Baselines that are measured on the first held-out scenes only, and so compared there."""
POLICIES = ("ppo_fact", "ppo_plain")


def split_table(runs: list[dict], split: str) -> str:
    """Return a table of models, and of differences between models, by metric on one split."""
    models = [model for model, splits in runs[0]["models"].items() if split in splits and model not in BEST_OF_N]
    values = {(model, m): np.array([run["models"][model][split][m] for run in runs]) for model in models for m in METRICS}
    rows = [(model, *(format_mean(values[model, m], m in FRACTIONS) for m in METRICS)) for model in models]
    for a, b in (pair for pair in COMPARISONS if set(pair) <= set(models)):
        rows.append((f"{a} - {b}", *(format_mean(values[a, m] - values[b, m], m in FRACTIONS, "+") for m in METRICS)))
    return markdown_table((split, *METRICS.values()), rows)


def best_of_n_table(runs: list[dict]) -> str:
    """Return models on the scenes that best-of-n describes, and the policies minus best-of-n."""
    names = list(runs[0]["beside_best_of_n"])
    values = {(name, m): np.array([run["beside_best_of_n"][name][m] for run in runs]) for name in names for m in METRICS}
    rows = [(name, *(format_mean(values[name, m], m in FRACTIONS) for m in METRICS)) for name in names]
    for a, b in itertools.product(POLICIES, BEST_OF_N):
        rows.append((f"{a} - {b}", *(format_mean(values[a, m] - values[b, m], m in FRACTIONS, "+") for m in METRICS)))
    return markdown_table(("best of n", *METRICS.values()), rows)


def same_kl_table(runs: list[dict]) -> str:
    """Return the policies at the largest KL that both reached, on selection scenes."""
    metrics = [metric for metric in METRICS if metric in runs[0]["same_kl"]["policies"]["ppo_fact"]]
    values = {(name, m): np.array([run["same_kl"]["policies"][name][m] for run in runs]) for name in POLICIES for m in metrics}
    rows = [(name, *(format_mean(values[name, m], m in FRACTIONS) for m in metrics)) for name in POLICIES]
    differences = (format_mean(values["ppo_fact", m] - values["ppo_plain", m], m in FRACTIONS, "+") for m in metrics)
    kl = format_mean([run["same_kl"]["kl"] for run in runs])
    return markdown_table((f"KL {kl}", *(METRICS[m] for m in metrics)), [*rows, ("ppo_fact - ppo_plain", *differences)])


def main(paths: list[str]) -> None:
    if len(paths) < 2:
        sys.exit("error: give the directories of at least two runs of the demo with different seeds")
    runs = [json.loads((Path(path) / "summary.json").read_text()) for path in paths]
    if len({run["seed"] for run in runs}) < len(runs):
        sys.exit("error: two of these runs have the same seed")
    print(f"Seeds {', '.join(str(run['seed']) for run in runs)}. Fractions in percent; errors and utility per answer.\n")
    for split in runs[0]["models"]["sft"]:
        print(split_table(runs, split) + "\n")
    print(best_of_n_table(runs) + "\n")
    print(f"At the same KL, on selection scenes:\n\n{same_kl_table(runs)}\n")
    for name in ("fact", "plain"):
        accuracy = np.array([run["reward_models"][name]["accuracy"] for run in runs])
        print(f"Reward model ({name}): {format_mean(accuracy, as_percent=True)}% of held-out pairs ranked as labelled.")
    for name in POLICIES:
        print(
            f"{name}: KL {format_mean(np.array([run['kl'][name] for run in runs]), as_percent=False)} nats per answer at the last step."
        )


if __name__ == "__main__":
    main(sys.argv[1:])
