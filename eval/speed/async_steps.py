"""Time training steps on a vLLM server, with sampling in step with training and a step ahead.

    python eval/speed/async_steps.py http://127.0.0.1:8000 [--steps 30] [--seeds 3] [--out DIR]

The server serves the bundled tiny model (data/tiny_vlm), started as docs/engines.md shows, on the
same machine or another. GRPO with `async_steps` 0 and 1, in turn for each seed, on descriptions of
synthetic scenes; the reward is high for few letters a word, which is learnt within 30 steps. The
last line is one JSON object: median seconds of a step, and the mean reward of each tenth of the
runs, over seeds. With --out it is also written to async_steps.json, and drawn in async_steps.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mmrlhf import scenes
from mmrlhf.config import PPOConfig
from mmrlhf.datasets import read_examples
from mmrlhf.files.bundled import folder
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.models.vlm import VLM
from mmrlhf.ppo import ppo
from mmrlhf.records import Example
from mmrlhf.rewards.types import Sample

NUM_SCENES = 240


def shorter_words(samples: Sequence[Sample]) -> list[float]:
    """Return minus the letters per word of each answer."""
    return [-len(sample.answer) / max(1, len(sample.answer.split())) for sample in samples]


def run(config: PPOConfig, examples: Sequence[Example]) -> tuple[list[float], list[float]]:
    """Train; return the seconds of each step but the first, and the rewards of all."""
    ticks: list[float] = []

    def tick(_: VLM) -> dict[str, float]:
        ticks.append(time.perf_counter())
        return {}

    ppo(config, examples, tick, {"shorter_words": shorter_words})
    rewards = [row["objective/scores"] for row in read_jsonl(Path(config.output_dir) / "metrics.jsonl") if row["step"]]
    return [after - before for before, after in itertools.pairwise(ticks)][1:], rewards


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the mean reward of each tenth of the runs against steps, and against seconds."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    labels = {"0": "async_steps 0: in step", "1": "async_steps 1: a step ahead"}
    for async_steps, rewards in results["reward"].items():
        steps = [(tenth + 0.5) * results["steps"] / len(rewards) for tenth in range(len(rewards))]
        panels[0].plot(steps, rewards, marker="o", label=labels[async_steps])
        panels[1].plot([step * results["seconds"][async_steps] for step in steps], rewards, marker="o")
    panels[0].set(xlabel="steps", ylabel="mean reward")
    panels[1].set(xlabel="seconds")
    panels[0].legend(loc="lower right")
    for panel in panels:
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("servers", help="address of a server, or several separated by commas")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of async_steps.json and async_steps.png")
    args = parser.parse_args()
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    seconds: dict[int, list[float]] = {0: [], 1: []}
    curves: dict[int, list[list[float]]] = {0: [], 1: []}
    with tempfile.TemporaryDirectory() as out:
        scenes.export_dataset(f"{out}/data", NUM_SCENES)
        examples = list(read_examples(f"{out}/data/prompts.jsonl"))
        for seed, async_steps in itertools.product(range(args.seeds), (0, 1)):
            config = PPOConfig(
                model_name_or_path=str(folder("data") / "tiny_vlm"), dataset_name="scenes", output_dir=f"{out}/{seed}-{async_steps}",
                seed=seed, rollout_engine=args.servers, async_steps=async_steps, advantage_estimator="grpo",
                reward_terms="shorter_words=1", per_device_train_batch_size=args.prompts, num_generations=args.generations,
                response_length=32, max_length=512, max_steps=args.steps, num_ppo_epochs=2, num_mini_batches=2, learning_rate=1e-3,
                lora_r=8, num_sample_generations=0, save_steps=10**6, logging_steps=10**6, eval_steps=1,
            )  # fmt: skip
            own_seconds, rewards = run(config, examples)
            seconds[async_steps] += own_seconds
            curves[async_steps].append(rewards)
            print(f"seed {seed}, async_steps {async_steps}: {statistics.median(own_seconds):.2f} s a step", flush=True)
    tenth = max(1, args.steps // 10)
    results: dict[str, Any] = {
        "steps": args.steps,
        "seconds": {str(steps): round(statistics.median(values), 3) for steps, values in seconds.items()},
        "reward": {
            str(steps): [
                round(statistics.fmean(reward for rewards in runs for reward in rewards[start : start + tenth]), 3)
                for start in range(0, args.steps, tenth)
            ]
            for steps, runs in curves.items()
        },
    }
    results["speed-up"] = round(results["seconds"]["0"] / results["seconds"]["1"], 3)
    if args.out:
        (args.out / "async_steps.json").write_text(json.dumps(results) + "\n")
        draw(results, args.out / "async_steps.png")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
