"""Best-of-n: choose the sample that a reward model scores highest (Nakano et al. 2021).

It is the baseline that RL has to beat.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmrlhf.records import Example
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel


def best_answers(
    reward_model: RewardModel, examples: Sequence[Example], answers: Sequence[Sequence[str]]
) -> list[tuple[str, float]]:
    """Return, for each example, the answer that scores highest, and its score.

    Of equal scores the first counts. Control tokens in answers are split up for the reward model.
    The rows were checked, so no answer is too long: sampled tokens may be more when read as text.
    """
    escape = reward_model.role.vlm.escape_control_tokens
    groups = [
        AnswerGroup(example.images, example.prompt, tuple(map(escape, texts)), example.facts, example.id)
        for example, texts in zip(examples, answers, strict=True)
    ]
    best = []
    for texts, scores in zip(answers, reward_model.without_limit().score(groups), strict=True):
        index = max(range(len(texts)), key=scores.__getitem__)
        best.append((texts[index], scores[index]))
    return best
