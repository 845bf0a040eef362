"""How the time of a round grows: with answers to a prompt, with their length, with prompts, with pictures of a prompt.

    python eval/speed/growth.py CHECKPOINT --out docs

A round is `rl_step.py`'s for grpo with one pass. The plain way (`prefix: off`: every answer with its whole prompt and its own encoding)
stands beside the engine where it ends within the minute. Writes growth.png and growth.json, and prints the latter.
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
from rl_step import measure

AXES = {
    "generations": ("answers to a prompt", (1, 2, 4, 8, 16, 32)),
    "tokens": ("tokens of an answer", (16, 32, 48, 96, 192)),
    "prompts": ("prompts in a round", (1, 2, 4, 8)),
    "pictures": ("pictures of a prompt", (1, 2, 3, 4)),
}
AS_BEFORE = {"prompts": 2, "generations": 8, "tokens": 48, "pictures": 1}
PLAIN = {"generations": (1, 2, 4, 8)}


def seconds(checkpoint: str, prefix: str, **changed: int) -> float:
    return statistics.median(measure(checkpoint, "grpo", iterations=1, rounds=3, prefix=prefix, **(AS_BEFORE | changed)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--out", type=Path, default=Path())
    given = parser.parse_args()
    found: dict[str, dict[str, dict[str, float]]] = {}
    for axis, (_, values) in AXES.items():
        found[axis] = {"engine": {str(v): round(seconds(given.checkpoint, "auto", **{axis: v}), 3) for v in values}}
        if axis in PLAIN:
            found[axis]["plain"] = {str(v): round(seconds(given.checkpoint, "off", **{axis: v}), 3) for v in PLAIN[axis]}
        print(axis, found[axis], flush=True)
    figure, panels = plt.subplots(1, 4, figsize=(14, 3.4), layout="constrained")
    for panel, (axis, (label, _)) in zip(panels, AXES.items(), strict=True):
        for way, points in found[axis].items():
            panel.plot([int(v) for v in points], list(points.values()), marker="o", label=way)
        panel.set(xlabel=label, ylabel="seconds a round", ylim=(0, None))
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(given.out / "growth.png", dpi=110)
    by_answers = found["generations"]["engine"]
    first, most = by_answers["1"], max(map(int, by_answers))
    more = (by_answers[str(most)] - first) / (most - 1)
    said = {"seconds": found, "one_more_answer_over_the_first": round(more / first, 3)}
    (given.out / "growth.json").write_text(json.dumps(said, indent=1) + "\n")
    print(json.dumps(said))


if __name__ == "__main__":
    main()
