"""What the demo claims, over seeds: every model on held-out scenes, and the differences that matter, seed by seed.

    for seed in 0 1 2; do mmrlhf demo --seed $seed --output_dir runs/seed$seed; done
    python eval/studies/seeds.py runs/seed0 runs/seed1 runs/seed2

Prints Markdown. Intervals are 95% t-intervals over seeds; a difference is taken within a seed, where both models answer the same
scenes and, for the two policies, start from the same model and read the same prompts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from scipy import stats

METRICS = {
    "chair_s": "answers with a false claim", "cooccurrence_errors": "co-occurrence errors", "perception_errors": "perception errors", "coverage": "coverage", "claim_f1": "claim F1",
    "utility": "utility", "mean_length": "words", "ead": "EAD",
}  # fmt: skip
FRACTIONS = ("chair_s", "coverage", "claim_f1")
COMPARISONS = (("ppo_fact", "sft"), ("ppo_plain", "sft"), ("ppo_fact", "ppo_plain"), ("ppo_fact", "best_of_n"))


def mean_and_half_width(values: np.ndarray) -> tuple[float, float]:
    """Mean and half width of its 95% t-interval."""
    return float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def format_mean(values: np.ndarray, as_percent: bool, sign: str = "") -> str:
    mean, half_width = mean_and_half_width(values)
    scale, digits = (100, 1) if as_percent else (1, 2)
    return f"{mean * scale:{sign}.{digits}f} ± {half_width * scale:.{digits}f}"


def split_table(runs: list[dict], split: str) -> str:
    """Models, then differences, by metric, on one split."""

    def values(model: str, metric: str) -> np.ndarray:
        return np.array([run["models"][model][split][metric] for run in runs])

    lines = [f"| {split} | {' | '.join(METRICS.values())} |", "|---" * (len(METRICS) + 1) + "|"]
    for model in runs[0]["models"]:
        lines.append(f"| {model} | {' | '.join(format_mean(values(model, m), m in FRACTIONS) for m in METRICS)} |")
    for a, b in COMPARISONS:
        cells = (format_mean(values(a, m) - values(b, m), m in FRACTIONS, "+") for m in METRICS)
        lines.append(f"| {a} - {b} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(paths: list[str]) -> None:
    if len(paths) < 2:
        sys.exit("error: give the directories of at least two runs of the demo, each of another seed")
    runs = [json.loads((Path(path) / "summary.json").read_text()) for path in paths]
    if len({run["seed"] for run in runs}) < len(runs):
        sys.exit("error: two of these runs have the same seed")
    print(f"Seeds {', '.join(str(run['seed']) for run in runs)}. Fractions in percent; habit, sight and u per answer.\n")
    for split in runs[0]["models"]["sft"]:
        print(split_table(runs, split) + "\n")
    for name in ("fact", "plain"):
        accuracy = np.array([run["reward_models"][name]["accuracy"] for run in runs])
        print(f"Reward model ({name}): {format_mean(accuracy, as_percent=True)}% of held-out pairs ranked as labelled.")
    for name in ("ppo_fact", "ppo_plain"):
        print(f"{name}: KL {format_mean(np.array([run['kl'][name] for run in runs]), as_percent=False)} nats an answer.")


if __name__ == "__main__":
    main(sys.argv[1:])
