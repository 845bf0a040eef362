"""Best-of-n: of n samples, the one that a reward model likes best. What any RL is to be compared with (Nakano et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmrlhf.engine.rollout import sample_completions
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.models.vlm import VLM
from mmrlhf.records import Example
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel


def best_of_n(
    vlm: VLM, reward_model: RewardModel, examples: Sequence[Example], n: int, *, batch_size: int, response_length: int, seed: int
) -> Iterator[tuple[Example, str]]:
    """Each example with the best of `n` samples at temperature 1; the reward model reads the example's facts."""
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        with reward_model.role.adapters.use(None):
            texts = sample_completions(vlm, batch, SamplingParams(response_length), num_generations=n, seed=seed).texts
        groups = [AnswerGroup(e.images, e.prompt, tuple(texts[i * n : (i + 1) * n]), e.facts, e.id) for i, e in enumerate(batch)]
        for example, group, scores in zip(batch, groups, reward_model.score(groups), strict=True):
            yield example, group.answers[max(range(n), key=scores.__getitem__)]
