"""What is compared between vLLM and the trainer: log-probs, greedy answers, rewards of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch

from mmrlhf.engine.rollout import LocalEngine, RolloutEngine, prompts_from_examples
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.engine.scoring import in_micro_batches, logps
from mmrlhf.files.bundled import folder as bundled
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.loading import load
from mmrlhf.ppo import ppo
from mmrlhf.records import Example
from mmrlhf.rewards.types import Sample
from tests.helpers.family_setup import family_examples
from tests.helpers.scene_rows import scene_examples
from tests.helpers.stages import ppo_config
from tests.helpers.vllm_models import build_vllm_checkpoint

SAMPLED, GREEDY = SamplingParams(12, 0.7, seed=1, min_tokens=2), SamplingParams(12, 0.0)
LAST_STEPS = 10
BASE = str(bundled("data") / "tiny_vlm")


def prepare(family: str, folder: Path) -> tuple[Role, list[Example]]:
    """Build a family's checkpoint in a folder, and return a policy on it, and rows."""
    model = folder / family
    build_vllm_checkpoint(family, model)
    adapters = Adapters(load(str(model)))
    adapters.add("policy", 8, 16, 0)
    return Role(adapters, "policy"), family_examples(family)


def compare(engine: RolloutEngine, policy: Role, examples: Sequence[Example], folder: Path) -> dict[str, float]:
    """Return the largest difference of the log-probs of sampled tokens, in nats, by version.

    The versions are the base, two adapters, and the base again. `NAME greedy` is the share of
    greedy answers that are the trainer's.
    """
    prompts, rows = prompts_from_examples(policy.vlm, examples), {}
    base = Role(policy.adapters, None)
    for version, name in enumerate(("base", "v1", "v2", "base again")):
        role, adapter = base, None
        if name.startswith("v"):
            with torch.no_grad():
                for parameter in policy.parameters():
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(version)))
            role, adapter = policy, folder / f"adapter-{name}"
            policy.adapters.save("policy", adapter)
        engine.wake()
        engine.set_policy(version, adapter)
        with policy.adapters.use(role.adapter):
            sampled, greedy = engine.sample(prompts, 4, SAMPLED), engine.sample(prompts, 1, GREEDY)
            own_logps = in_micro_batches(logps, role, sampled)
            own_greedy = LocalEngine(role).sample(prompts, 1, GREEDY)
        rows[name] = float(((own_logps - sampled.logps_NT).abs() * sampled.mask_NT).max())
        rows[f"{name} greedy"] = fmean(a == b for a, b in zip(greedy.texts, own_greedy.texts, strict=True))
    return rows


def shorter_words(samples: Sequence[Sample]) -> list[float]:
    """Reward answers with few letters a word: it rises within 30 steps, and not to its limit."""
    return [-len(sample.answer) / max(1, len(sample.answer.split())) for sample in samples]


def train(engine: str, estimator: str, seeds: int, steps: int, folder: Path) -> list[dict[str, float]]:
    """Train with each seed; return the mean reward of the last steps, and the largest differences.

    `difference` is the largest between the log-probs of engine and trainer, in nats.
    """
    results = []
    for seed in range(seeds):
        config = ppo_config(
            BASE, None, folder / f"{estimator}-{seed}", advantage_estimator=estimator, seed=seed,
            rollout_engine=engine, max_steps=steps, reward_terms="shorter_words=1", max_length=512, response_length=16,
            num_generations=4, num_ppo_epochs=1, num_mini_batches=1, learning_rate=2e-3, lr_scheduler_type="constant",
            num_sample_generations=0, save_steps=1000, logging_steps=1000,
        )  # fmt: skip
        ppo(config, scene_examples(), extra_reward_functions={"shorter_words": shorter_words})
        rows = [row for row in read_jsonl(Path(config.output_dir) / "metrics.jsonl") if row["step"]]
        results.append(
            {
                "first": fmean(row["objective/scores"] for row in rows[:LAST_STEPS]),
                "last": fmean(row["objective/scores"] for row in rows[-LAST_STEPS:]),
                "difference": max(row.get("sampling/logp_difference/max", 0.0) for row in rows),
            }
        )
    return results
