"""Claims put to the vision-language model itself as questions, its adapters off: what it says Yes to, and how sure it is.

All claims on the same pictures stand on one run of the prompt: a turn that shows the pictures and has been answered, and then, for each
claim, its question. What is measured is log P(Yes) - log P(No) where the answer would begin. A negated claim is asked without its
negation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmrlhf.claims import Lexicon
from mmrlhf.engine.scoring import last_hidden_states
from mmrlhf.models.adapters import Role
from mmrlhf.models.heads import yes_no_head
from mmrlhf.records import Message, Verdict
from mmrlhf.verifiers.base import CLAIM_KINDS, AnswerClaims, PlattScaling, strip_negation, unknown_verdict
from mmrlhf.verifiers.verbalize import claim_question

IMAGE_PROMPT, IMAGE_REPLY = "Look at the picture.", "I see it."
"""The turn that all claims share, and its answer."""
UNCALIBRATED = PlattScaling({kind: (1.0, 0.0) for kind in CLAIM_KINDS}, 0.2, 0.8)
"""A model that is taken at its word."""
PROMPTS_PER_BATCH = 64
"""Prompts that are made ready at a time."""


@dataclass
class VLMVerifier:
    """A model as a verifier. `certainty` says what its log-odds are worth."""

    role: Role
    lexicon: Lexicon
    calibration: PlattScaling = UNCALIBRATED
    max_length: int = 2048
    _head: nn.Linear = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._head = yes_no_head(self.role.vlm)
        self._head.requires_grad_(False)

    def __call__(self, answers: Sequence[AnswerClaims]) -> list[list[Verdict]]:
        return [self._verdicts(answer, log_odds) for answer, log_odds in zip(answers, self.log_odds(answers), strict=True)]

    def _verdicts(self, answer: AnswerClaims, log_odds: Sequence[float | None]) -> list[Verdict]:
        if not answer.images:
            return [unknown_verdict(claim, "there is no picture") for claim in answer.claims]
        verdicts = []
        for claim, score in zip(answer.claims, log_odds, strict=True):
            question_text = claim_question(strip_negation(claim)[0], self.lexicon)
            if score is None:
                verdicts.append(unknown_verdict(claim, f"the question is longer than max_length {self.max_length}"))
            else:
                evidence = (
                    f"{self.role.vlm.name} says {'yes' if score > 0 else 'no'} to {question_text!r} (log-odds {score:+.1f})"
                )
                verdicts.append(self.calibration.verdict(claim, score, evidence))
        return verdicts

    @torch.no_grad()
    def log_odds(self, answers: Sequence[AnswerClaims]) -> list[list[float | None]]:
        """Of Yes against No for each claim's positive form, None where its question does not fit into `max_length`; nothing for answers without
        a picture. Raises InputError for pictures that do not fit."""
        indices = [index for index, answer in enumerate(answers) if answer.images and answer.claims]
        scores: list[list[float | None]] = [[] for _ in answers]
        for start in range(0, len(indices), PROMPTS_PER_BATCH):
            batch = indices[start : start + PROMPTS_PER_BATCH]
            for index, answer_scores in zip(
                batch, self.role.vlm.budget.retry_on_oom(self._score_batch, [answers[index] for index in batch]), strict=True
            ):
                scores[index] = answer_scores
        return scores

    def _score_batch(self, answers: Sequence[AnswerClaims]) -> list[list[float | None]]:
        prompts = self.role.vlm.build_prompts(
            [([Message("user", IMAGE_PROMPT)], answer.images) for answer in answers], self.max_length
        )
        question_ids = [self.question_ids(answer) for answer in answers]
        fitting = [
            [i for i, ids in enumerate(answer_questions) if len(prompt.token_ids) + len(ids) <= self.max_length]
            for prompt, answer_questions in zip(prompts, question_ids, strict=True)
        ]
        scores: list[list[float | None]] = [[None] * len(answer_questions) for answer_questions in question_ids]
        indices = [index for index, answer_questions in enumerate(fitting) if answer_questions]
        for batch, last_ND in last_hidden_states(
            self.role,
            [prompts[index] for index in indices],
            [[question_ids[index][i] for i in fitting[index]] for index in indices],
        ):
            batch_odds = iter(self._head(last_ND.float())[:, 0].tolist())
            for index in (indices[position] for position in batch):
                for i in fitting[index]:
                    scores[index][i] = next(batch_odds)
        return scores

    def question_ids(self, answer: AnswerClaims) -> list[Tensor]:
        """What follows the shared prompt: its answer, and a claim's question up to where it would be answered."""
        image_turn, texts = (
            [Message("user", IMAGE_PROMPT)],
            [claim_question(strip_negation(claim)[0], self.lexicon) for claim in answer.claims],
        )
        return [
            self.role.vlm.answer_token_ids(image_turn, IMAGE_REPLY, len(answer.images), following_turns=[Message("user", text)])
            for text in texts
        ]
