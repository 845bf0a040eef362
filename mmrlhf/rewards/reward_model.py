"""What a reward model says an answer is worth: its prompt, its first head, and scores. `artefact` keeps it on disk."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from mmrlhf.config import FactsPosition
from mmrlhf.engine.scoring import GROUPS_PER_BATCH, last_hidden_states
from mmrlhf.facts import render_facts
from mmrlhf.models.adapters import Role
from mmrlhf.models.heads import YES_NO_QUESTION
from mmrlhf.records import Fact, ImageSource, InputError, Message
from mmrlhf.rewards.types import RewardFunction, Sample


def reward_messages(prompt: Sequence[Message], answer: str, facts: str, position: FactsPosition) -> tuple[Message, ...]:
    """The conversation a reward model reads: prompt, answer, review; the facts before the question or in the review.

    `before` puts them at the head of the last user turn, so that all answers of a prompt share them; `after` puts them
    into the turn after the answer (LLaVA-RLHF).
    """
    question = prepend_facts(facts, YES_NO_QUESTION) if position == "after" else YES_NO_QUESTION
    prompt_messages = prompt_with_facts(prompt, facts) if position == "before" else prompt
    return (*prompt_messages, Message("assistant", answer), Message("user", question))


def prompt_with_facts(prompt: Sequence[Message], facts: str) -> tuple[Message, ...]:
    """The prompt with facts at the head of its last turn."""
    *earlier, last = prompt
    return (*earlier, Message(last.role, prepend_facts(facts, last.content)))


def prepend_facts(facts: str, text: str) -> str:
    return f"{facts}{chr(10) if chr(10) in facts else ' '}{text}" if facts else text


@dataclass(frozen=True)
class AnswerGroup:
    """Answers to one prompt on the same pictures, scored together; `facts` is what is known of the pictures, `id` the row's."""

    images: tuple[ImageSource, ...]
    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    facts: tuple[Fact, ...] = ()
    id: str = ""


@dataclass
class RewardModel:
    """A role with a scalar head that reads images, text and facts; scores are (raw - mean) / std of a reference set.

    `temperature` calibrates: the first of two answers is the better one with probability sigmoid((first - second) / temperature).
    `accuracy` is of held-out pairs; `probes`, the share of planted false claims that lower the score, by claim type, of the reference set.
    """

    role: Role
    facts: Literal["given", "none"]
    facts_position: FactsPosition
    facts_template: str = "typed"
    max_facts_tokens: int | None = None
    mean: float = 0.0
    std: float = 1.0
    temperature: float = 1.0
    accuracy: float | None = None
    probes: dict[str, float] = field(default_factory=dict)
    max_length: int = 2048

    def raw_scores(self, groups: Sequence[AnswerGroup]) -> Iterator[tuple[list[int], Tensor]]:
        """Scores before normalisation, of as many groups at a time as the budget allows: the groups' numbers, and the scores [n] of all
        of their answers in order. Inside, the caller may call `backward`.

        The score is read where the review turn has been asked and its answer would begin.
        """
        vlm = self.role.vlm
        conversations: list[tuple[list[Message], tuple[ImageSource, ...]]] = []
        answer_ids: list[list[Tensor]] = []
        for group in groups:
            facts_text = self.facts_text(group.prompt, group.facts)
            *prompt_messages, _, _ = reward_messages(group.prompt, "", facts_text, self.facts_position)
            conversations.append((prompt_messages, group.images))
            questions = [reward_messages(group.prompt, answer, facts_text, self.facts_position)[-1] for answer in group.answers]
            answers_and_questions = zip(group.answers, questions, strict=True)
            answer_ids.append(
                [
                    vlm.answer_token_ids(prompt_messages, answer, len(group.images), following_turns=[question], row_id=group.id)
                    for answer, question in answers_and_questions
                ]
            )
        group_ids = [group.id for group in groups]
        prompts = vlm.build_prompts(conversations, self.max_length, group_ids if all(group_ids) else None)
        for group_id, prompt, prompt_answers in zip(group_ids, prompts, answer_ids, strict=True):
            if prompt_answers and len(prompt.token_ids) + max(map(len, prompt_answers)) > self.max_length:
                raise InputError(
                    f"an answer of row {group_id} has {max(map(len, prompt_answers))} tokens with its review, its prompt {len(prompt.token_ids)}: "
                    f"more than max_length {self.max_length} together; raise max_length or drop the row"
                )
        head = self.role.head
        assert head is not None
        for group_indices, last_hidden_ND in last_hidden_states(self.role, prompts, answer_ids):
            yield group_indices, head(last_hidden_ND.float())[:, 0]

    def facts_text(self, prompt: Sequence[Message], facts: Sequence[Fact]) -> str:
        """The facts as this model reads them. One order for all answers of a prompt, decided by the prompt itself: scores repeat."""
        if self.facts == "none":
            return ""
        seed = zlib.crc32(repr((prompt, facts)).encode())
        return render_facts(facts, seed, self.facts_template, self.max_facts_tokens, self.role.vlm.count_tokens)

    @torch.no_grad()
    def score(self, groups: Sequence[AnswerGroup]) -> list[list[float]]:
        """Normalised scores of each group's answers."""

        def score_batch(batch: Sequence[AnswerGroup]) -> list[list[float]]:
            scores_by_group: dict[int, list[float]] = {}
            for group_indices, raw_scores_N in self.raw_scores(batch):
                scores = iter(((raw_scores_N - self.mean) / self.std).tolist())
                scores_by_group |= {i: [next(scores) for _ in batch[i].answers] for i in group_indices}
            return [scores_by_group[i] for i in range(len(batch))]

        batches = (groups[start : start + GROUPS_PER_BATCH] for start in range(0, len(groups), GROUPS_PER_BATCH))
        return [scores for batch in batches for scores in self.role.vlm.budget.retry_on_oom(score_batch, batch)]


def make_fact_rm(reward_models: Sequence[RewardModel], uncertainty_penalty: float = 0.0) -> RewardFunction:
    """The reward model as a term; of several models the mean, less `uncertainty_penalty` times their standard deviation (Coste et al. 2024).

    Answers to one prompt that stand side by side share its run.
    """

    def reward_function(samples: Sequence[Sample]) -> list[float]:
        grouped_samples = [
            list(neighbours) for _, neighbours in itertools.groupby(samples, lambda s: (s.id, s.prompt, s.images, s.facts))
        ]

        def model_scores(reward_model: RewardModel) -> list[float]:
            escape = (
                reward_model.role.vlm.escape_control_tokens
            )  # a policy may spell what stands for a picture; each base has its own words for that
            groups = [
                AnswerGroup(g[0].images, g[0].prompt, tuple(escape(s.answer) for s in g), g[0].facts, g[0].id)
                for g in grouped_samples
            ]
            return [score for group in reward_model.score(groups) for score in group]

        scores_MN = torch.tensor([model_scores(reward_model) for reward_model in reward_models])
        std_N = scores_MN.std(0, correction=0)
        return [float(v) for v in scores_MN.mean(0) - uncertainty_penalty * std_N]

    return reward_function
