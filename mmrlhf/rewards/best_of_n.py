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
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        with reward_model.role.adapters.use(None):
            prompts = prompts_from_examples(vlm, batch)
            texts = sample_completions(vlm, prompts, n, SamplingParams(response_length, seed=seed)).texts
        # The n answers to each prompt are adjacent in `texts`.
        answers = [texts[i : i + n] for i in range(0, len(texts), n)]
        for example, (answer, _) in zip(batch, best_answers(reward_model, batch, answers), strict=True):
            yield example, answer


def best_answers(
    reward_model: RewardModel, examples: Sequence[Example], answers: Sequence[Sequence[str]]
) -> list[tuple[str, float]]:
    """Return, for each example, the answer that scores highest, and its score.

    Of equal scores the first counts. Control tokens in answers are split up for the reward model.
    """
    escape = reward_model.role.vlm.escape_control_tokens
    groups = [
        AnswerGroup(example.images, example.prompt, tuple(map(escape, texts)), example.facts, example.id)
        for example, texts in zip(examples, answers, strict=True)
    ]
    best = []
    for texts, scores in zip(answers, reward_model.score(groups), strict=True):
        index = max(range(len(texts)), key=scores.__getitem__)
        best.append((texts[index], scores[index]))
    return best
