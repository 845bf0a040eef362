"""Verify claims by asking the vision-language model itself, with its adapters off.

All claims about the same images share one prefill, the turn that shows the images. After it come
the model's reply and each claim's question. The score is log P(Yes) - log P(No) where the answer
would begin. Negated claims are asked without their negation.
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
from mmrlhf.records import CLAIM_KINDS, Claim, Message, Verdict
from mmrlhf.verifiers.base import AnswerClaims, PlattScaling, strip_negation, unknown_verdict
from mmrlhf.verifiers.verbalize import claim_question

IMAGE_PROMPT, IMAGE_REPLY = "Look at the picture.", "I see it."
"""The turn that all claims share, and the reply to it."""
UNCALIBRATED = PlattScaling({kind: (1.0, 0.0) for kind in CLAIM_KINDS}, 0.2, 0.8)
"""Uses the model's own probability of Yes unchanged."""
PROMPTS_PER_BATCH = 64
"""Prompts prepared at a time."""


@dataclass
class VLMVerifier:
    """A vision-language model as a verifier; `calibration` maps its log-odds to probabilities."""

    role: Role
    lexicon: Lexicon
    calibration: PlattScaling = UNCALIBRATED
    max_length: int = 2048
    _head: nn.Linear = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._head = yes_no_head(self.role.vlm)
        self._head.requires_grad_(False)

    def __call__(self, answers: Sequence[AnswerClaims]) -> list[list[Verdict]]:
        """Return a verdict for each claim of each answer."""
        return [self._verdicts(answer, log_odds) for answer, log_odds in zip(answers, self.log_odds(answers), strict=True)]

    def _verdicts(self, answer: AnswerClaims, log_odds: Sequence[float | None]) -> list[Verdict]:
        if not answer.images:
            return [unknown_verdict(claim, "there is no image") for claim in answer.claims]
        verdicts = []
        for claim, score in zip(answer.claims, log_odds, strict=True):
            if score is None:
                verdicts.append(unknown_verdict(claim, f"the question is longer than max_length {self.max_length}"))
                continue
            yes_or_no = "yes" if score > 0 else "no"
            evidence = f"{self.role.vlm.name} says {yes_or_no} to {self._question(claim).content!r} (log-odds {score:+.1f})"
            verdicts.append(self.calibration.verdict(claim, score, evidence))
        return verdicts

    @torch.no_grad()
    def log_odds(self, answers: Sequence[AnswerClaims]) -> list[list[float | None]]:
        """Return the log-odds of Yes against No for each claim's positive form.

        A claim whose question does not fit into `max_length` gets None; an answer without images
        gets an empty list. Raises InputError for images that do not fit.
        """
        indices = [index for index, answer in enumerate(answers) if answer.images and answer.claims]
        scores: list[list[float | None]] = [[] for _ in answers]
        for start in range(0, len(indices), PROMPTS_PER_BATCH):
            batch = indices[start : start + PROMPTS_PER_BATCH]
            batch_scores = self.role.vlm.budget.retry_on_oom(self._score_batch, [answers[index] for index in batch])
            for index, answer_scores in zip(batch, batch_scores, strict=True):
                scores[index] = answer_scores
        return scores

    def _score_batch(self, answers: Sequence[AnswerClaims]) -> list[list[float | None]]:
        prompts = self.role.vlm.build_prompts(
            [([Message("user", IMAGE_PROMPT)], answer.images) for answer in answers], self.max_length
        )
        question_ids = [self.question_ids(answer) for answer in answers]
        # For each answer, the claims with a question that fits; answers without any are not run.
        fitting = [
            [i for i, ids in enumerate(answer_questions) if len(prompt.token_ids) + len(ids) <= self.max_length]
            for prompt, answer_questions in zip(prompts, question_ids, strict=True)
        ]
        scores: list[list[float | None]] = [[None] * len(answer_questions) for answer_questions in question_ids]
        to_run = [index for index, claim_indices in enumerate(fitting) if claim_indices]
        fitting_ids = [[question_ids[index][i] for i in fitting[index]] for index in to_run]
        for positions, last_ND in last_hidden_states(self.role, [prompts[index] for index in to_run], fitting_ids):
            # `positions` index `to_run`; the states are in their order, claim by claim.
            log_odds = iter(self._head(last_ND.float())[:, 0].tolist())
            for index in (to_run[position] for position in positions):
                for i in fitting[index]:
                    scores[index][i] = next(log_odds)
        return scores

    def question_ids(self, answer: AnswerClaims) -> list[Tensor]:
        """Return each claim's token ids after the shared turn: the reply and the question."""
        image_turn = [Message("user", IMAGE_PROMPT)]
        return [
            self.role.vlm.answer_token_ids(image_turn, IMAGE_REPLY, len(answer.images), following_turns=[self._question(claim)])
            for claim in answer.claims
        ]

    def _question(self, claim: Claim) -> Message:
        positive_claim, _ = strip_negation(claim)
        return Message("user", claim_question(positive_claim, self.lexicon))
