"""Time one RL round of the PPO stage: a rollout and `iterations` passes over it.

    python eval/speed/rl_step.py CHECKPOINT [--algo grpo|ppo] [--prompts 2] [--generations 8]
        [--tokens 48] [--iterations 2]

A rollout has `prompts` x `generations` answers of `tokens` tokens, without an end-of-sequence
token. Needs only the checkpoint. Trains in fp32, LoRA r=16 on q, k, v and o of the language model,
with a reference model. Each round has new images of noise and includes the time to encode them.
`grpo` has random rewards; `ppo` has a critic, and a reward adapter with random weights that reads
facts. The first round is the warm-up. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from _timing import synchronize
from PIL import Image

from mmrlhf.config import PPOConfig
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.heads import scalar_head
from mmrlhf.models.loading import load
from mmrlhf.models.vlm import VLM
from mmrlhf.ppo import ppo
from mmrlhf.records import Example, Fact, ImageSource, Message
from mmrlhf.rewards.checkpoint import save_reward_model
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel
from mmrlhf.rewards.types import Sample

LORA = {"lora_r": 16, "lora_alpha": 32.0, "lora_target_modules": "q_proj,k_proj,v_proj,o_proj"}
FACTS = (
    Fact("caption", "a red circle in the top left and a blue square"),
    Fact("object", "1 red circle"),
    Fact("absent", "star"),
)


def noise_examples(count: int, size: int, images_per_prompt: int = 1, num_words: int = 3) -> list[Example]:
    """Create prompts, with facts, about images of noise that are all different."""
    rng = np.random.default_rng(0)

    def noise_image() -> ImageSource:
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(file, "PNG")
        return ImageSource(data=file.getvalue())

    words = itertools.islice(itertools.cycle(("Describe", "the", "image.")), num_words)
    prompt = (Message("user", " ".join(words)),)
    examples = []
    for index in range(count):
        images = tuple(noise_image() for _ in range(images_per_prompt))
        examples.append(Example(f"row-{index}", images, prompt, facts=FACTS))
    return examples


def save_random_reward_model(checkpoint: str, directory: Path) -> None:
    """Save an adapter and a head with random weights in the format of the reward stage."""
    adapters = Adapters(load(checkpoint))
    adapters.add("reward", 16, 32.0, 0, LORA["lora_target_modules"])  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in adapters.parameters("reward").values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    head = scalar_head(0.1 * torch.randn(adapters.vlm.hidden_size, device=adapters.vlm.device))
    (example,) = noise_examples(1, 336)
    reference_group = AnswerGroup(example.images, example.prompt, ("A red circle.",), example.facts, example.id)
    save_reward_model(RewardModel(Role(adapters, "reward", head), "given", "before"), directory, [reference_group])


def random_scores(samples: Sequence[Sample]) -> list[float]:
    return [random.random() for _ in samples]


def measure_round_seconds(
    checkpoint: str, algo: str, prompts: int, generations: int, tokens: int, iterations: int, rounds: int, size: int = 336,
    pictures: int = 1, words: int = 3, prefix: str = "auto",
) -> list[float]:  # fmt: skip
    """Return the seconds of each round except the first."""
    ticks: list[float] = []

    # Takes the place of the evaluation, which runs before the first step and after each step.
    def tick(_: VLM) -> dict[str, float]:
        synchronize()
        ticks.append(time.perf_counter())
        return {}

    with tempfile.TemporaryDirectory() as folder:
        reward_model_dir = Path(folder) / "reward"
        reward_settings = {"reward_terms": "random=1"}
        if algo == "ppo":
            save_random_reward_model(checkpoint, reward_model_dir)
            reward_settings = {"reward_terms": "fact_rm=1", "reward_model_path": str(reward_model_dir)}
        config = PPOConfig(
            model_name_or_path=checkpoint, dataset_name="noise", output_dir=f"{folder}/run",
            per_device_train_batch_size=prompts, num_generations=generations, response_length=tokens, min_new_tokens=tokens,
            advantage_estimator="grpo" if algo == "grpo" else "gae", num_ppo_epochs=iterations, num_mini_batches=1, kl_coef=0.05,
            learning_rate=1e-5, max_steps=rounds, save_steps=10**6, logging_steps=1, num_sample_generations=0,
            max_length=8192, share_prefix=prefix, eval_steps=1, **LORA, **reward_settings,
        )  # fmt: skip
        ppo(config, noise_examples(prompts * rounds, size, pictures, words), tick, {"random": random_scores})
    return [after - before for before, after in itertools.pairwise(ticks)][1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--algo", choices=("grpo", "ppo"), default="grpo")
    for name, default in (("prompts", 2), ("generations", 8), ("tokens", 48), ("iterations", 2), ("rounds", 4), ("size", 336)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = vars(parser.parse_args())
    seconds = measure_round_seconds(**args)
    results = {
        "who": "mmrlhf",
        "algo": args["algo"],
        "round_s": [round(value, 2) for value in seconds],
        "samples_per_s": round(args["prompts"] * args["generations"] / statistics.median(seconds), 3),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
