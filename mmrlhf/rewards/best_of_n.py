"""Best-of-n: choose the sample that a reward model scores highest (Nakano et al. 2021).

It is the baseline that RL has to beat.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmrlhf.engine.rollout import prompts_from_examples, sample_completions
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.models.vlm import VLM
from mmrlhf.records import Example
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel


def best_of_n(
    vlm: VLM, reward_model: RewardModel, examples: Sequence[Example], n: int, *, batch_size: int, response_length: int, seed: int
) -> Iterator[tuple[Example, str]]:
    """Yield each example with the best of `n` answers sampled at temperature 1.

    The base model samples with its adapters off. The reward model also reads the example's facts.
    """
    escape = reward_model.role.vlm.escape_control_tokens
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        with reward_model.role.adapters.use(None):
            prompts = prompts_from_examples(vlm, batch)
            texts = sample_completions(vlm, prompts, n, SamplingParams(response_length, seed=seed)).texts
        # The n answers to each prompt are adjacent in `texts`.
        groups = [
            AnswerGroup(example.images, example.prompt, tuple(map(escape, texts[i * n : (i + 1) * n])), example.facts, example.id)
            for i, example in enumerate(batch)
        ]
        for i, scores in enumerate(reward_model.score(groups)):
            yield batch[i], texts[i * n + max(range(n), key=scores.__getitem__)]
