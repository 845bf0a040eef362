"""Measure how the time of an RL round grows with answers, their length, prompts, images and text.

    python eval/speed/growth.py CHECKPOINT --out docs/assets

A round is that of `rl_step.py` for grpo with one pass. The naive path (`share_prefix: off`, which
encodes image and prompt again for each answer) is also measured, where a round takes less than a
minute. Writes growth.png and growth.json, and prints the latter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).parent))
from rl_step import measure_round_seconds

# The keys appear in growth.json and are arguments of `measure_round_seconds`.
AXES = {
    "generations": ("answers per prompt", (2, 4, 8, 16, 32)),
    "tokens": ("tokens per answer", (16, 32, 48, 96, 192)),
    "prompts": ("prompts per round", (1, 2, 4, 8)),
    "pictures": ("images per prompt", (1, 2, 3, 4)),
    "words": ("words per prompt, no image", (64, 128, 256, 512)),
}
TEXT_ONLY = {"words": {"pictures": 0}}
DEFAULT_SIZES = {"prompts": 2, "generations": 8, "tokens": 48, "pictures": 1}
BASELINE_VALUES = {"generations": (2, 4, 8)}
"""Values at which the naive path is measured."""


def median_seconds(checkpoint: str, prefix: str, **overrides: int) -> float:
    """Return the median seconds of a round of the default sizes, some overridden."""
    sizes = DEFAULT_SIZES | overrides
    return statistics.median(measure_round_seconds(checkpoint, "grpo", iterations=1, rounds=3, prefix=prefix, **sizes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--out", type=Path, default=Path())
    args = parser.parse_args()
    seconds_by_axis: dict[str, dict[str, dict[str, float]]] = {}
    for axis, (_, values) in AXES.items():
        variants = {"engine": ("auto", values)}
        if axis in BASELINE_VALUES:
            variants["naive"] = ("off", BASELINE_VALUES[axis])
        seconds_by_axis[axis] = {
            name: {
                str(value): round(median_seconds(args.checkpoint, prefix, **TEXT_ONLY.get(axis, {}), **{axis: value}), 3)
                for value in axis_values
            }
            for name, (prefix, axis_values) in variants.items()
        }
        print(axis, seconds_by_axis[axis], flush=True)
    figure, panels = plt.subplots(1, len(AXES), figsize=(17, 3.4), layout="constrained")
    for panel, (axis, (label, _)) in zip(panels, AXES.items(), strict=True):
        for variant, points in seconds_by_axis[axis].items():
            panel.plot([int(value) for value in points], list(points.values()), marker="o", label=variant)
        panel.set(xlabel=label, ylabel="seconds per round", ylim=(0, None))
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(args.out / "growth.png", dpi=110)
    seconds_by_generations = seconds_by_axis["generations"]["engine"]
    fewest, most = min(map(int, seconds_by_generations)), max(map(int, seconds_by_generations))
    seconds_per_answer = (seconds_by_generations[str(most)] - seconds_by_generations[str(fewest)]) / (most - fewest)
    # A round of one answer cannot be measured, because grpo compares answers.
    first_seconds = seconds_by_generations[str(fewest)] - (fewest - 1) * seconds_per_answer
    results = {"seconds": seconds_by_axis, "one_more_answer_over_the_first": round(seconds_per_answer / first_seconds, 3)}
    (args.out / "growth.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
