"""GRPO on answers that can be checked: counting objects, with rewards for format and correctness.

Run it with `python examples/grpo_counting.py [OUTPUT_DIR] [STEPS]`; 60 steps take some minutes on
two CPU cores. There is no reward model. The same on the command line: docs/verifiable_answers.md.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmrlhf import PPOConfig, SFTConfig
from mmrlhf.config.loader import load_config
from mmrlhf.files.jsonl import json_line, read_jsonl
from mmrlhf.ppo import ppo
from mmrlhf.scenes import Split, generate_scene, with_article
from mmrlhf.sft import sft

ROOT = Path(__file__).resolve().parents[1]
COLD_START_ROWS, PROMPT_ROWS = 400, 800


def write_rows(folder: Path, split: Split, num_rows: int, with_reasoning: bool) -> Path:
    """Write rows with `images`, `problem` and `solution`, as GRPO's data has them.

    Three of four ask for a number and one for a letter. `with_reasoning` writes an answer in the
    format to learn; otherwise the solution is the bare result.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(num_rows):
        scene, rng = generate_scene(split, index, 0), np.random.default_rng([index, 71])
        image = f"images/{scene.id}.png"
        (folder / image).write_bytes(scene.image_source().read())
        count, problem = len(scene.objects), "How many objects are there?"
        solution = str(count)
        if index % 4 == 0:
            options = [int(n) for n in rng.permutation(5)[:4] + 1]
            if count not in options:
                options[int(rng.integers(4))] = count
            problem += " " + " ".join(f"({letter}) {option}" for letter, option in zip("ABCD", options, strict=True))
            solution = "ABCD"[options.index(count)]
        if with_reasoning:
            objects = ", ".join(with_article(o.name) for o in scene.objects)
            solution = f"<think>{objects}: {count}</think><answer>{solution}</answer>"
        rows.append({"id": scene.id, "images": [image], "problem": problem, "solution": solution})
    path = folder / f"{split}.jsonl"
    path.write_text("".join(map(json_line, rows)), encoding="utf-8")
    return path


def short_reasoning(samples: Sequence) -> list[float]:
    """Give 1 to an answer of at most 60 tokens: a reward function of one's own."""
    return [float(sample.num_tokens <= 60) for sample in samples]


def main(output_dir: Path, num_steps: int = 2) -> None:
    """Teach the format on a few rows, then train, and print the rewards of first and last steps."""
    cold_start = write_rows(output_dir / "data", "sft", min(COLD_START_ROWS, 200 * num_steps), with_reasoning=True)
    prompts = write_rows(output_dir / "data", "rl", min(PROMPT_ROWS, 16 * num_steps), with_reasoning=False)
    model = sft(
        SFTConfig(
            model_name_or_path=str(ROOT / "data" / "tiny_vlm"), dataset_name=str(cold_start), output_dir=str(output_dir / "sft"),
            tuning="full", learning_rate=1.5e-3, per_device_train_batch_size=16, max_steps=min(100, 2 * num_steps),
        )
    )  # fmt: skip
    overrides = {
        "model_name_or_path": str(model), "dataset_name": str(prompts), "output_dir": str(output_dir / "grpo"), "max_steps": num_steps,
        "per_device_train_batch_size": min(6, num_steps),
        "reward_terms": f"correctness=1, answer_format=0.5, {__file__}:short_reasoning=0.1",
    }  # fmt: skip
    ppo(load_config(PPOConfig, ROOT / "configs" / "demo" / "grpo.yaml", overrides))
    steps = read_jsonl(output_dir / "grpo" / "metrics.jsonl")
    for name in ("correctness", "answer_format"):
        values = [step[f"rewards/{name}/mean"] for step in steps if step["step"] > 0]
        tenth = max(1, len(values) // 10)
        print(f"{name}: {sum(values[:tenth]) / tenth:.3f} in the first steps, {sum(values[-tenth:]) / tenth:.3f} in the last")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples/grpo_counting"), int(sys.argv[2]) if len(sys.argv) > 2 else 60)
