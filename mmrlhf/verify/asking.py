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
from mmrlhf.records import Message, Verdict
from mmrlhf.rewards import at_ends, review_head
from mmrlhf.roles import Role
from mmrlhf.verify.sentences import question
from mmrlhf.verify.verifier import KINDS, Certainty, Said, positive, unknown

LOOK, LOOKED = "Look at the picture.", "I see it."
"""The turn that all claims share, and its answer."""
AS_IT_SAYS = Certainty({kind: (1.0, 0.0) for kind in KINDS}, 0.2, 0.8)
"""A model that is taken at its word."""
PICTURES = 64
"""Prompts that are made ready at a time."""


@dataclass
class Asking:
    """A model as a verifier. `certainty` says what its log-odds are worth."""

    role: Role
    words: Lexicon
    certainty: Certainty = AS_IT_SAYS
    max_length: int = 2048
    _head: nn.Linear = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._head = review_head(self.role.vlm)
        self._head.requires_grad_(False)

    def __call__(self, said: Sequence[Said]) -> list[list[Verdict]]:
        return [self._verdicts(s, odds) for s, odds in zip(said, self.log_odds(said), strict=True)]

    def _verdicts(self, said: Said, odds: Sequence[float | None]) -> list[Verdict]:
        if not said.images:
            return [unknown(claim, "there is no picture") for claim in said.claims]
        found = []
        for claim, x in zip(said.claims, odds, strict=True):
            asked = question(positive(claim)[0], self.words)
            if x is None:
                found.append(unknown(claim, f"the question is longer than max_length {self.max_length}"))
            else:
                evidence = f"{self.role.vlm.name} says {'yes' if x > 0 else 'no'} to {asked!r} (log-odds {x:+.1f})"
                found.append(self.certainty.verdict(claim, x, evidence))
        return found

    @torch.no_grad()
    def log_odds(self, said: Sequence[Said]) -> list[list[float | None]]:
        """Of Yes against No for each claim's positive form, None where its question does not fit into `max_length`; nothing for answers without
        a picture. Raises InputError for pictures that do not fit."""
        at = [n for n, s in enumerate(said) if s.images and s.claims]
        found: list[list[float | None]] = [[] for _ in said]
        for start in range(0, len(at), PICTURES):
            part = at[start : start + PICTURES]
            for n, odds in zip(part, self.role.vlm.budget.within(self._part, [said[n] for n in part]), strict=True):
                found[n] = odds
        return found

    def _part(self, said: Sequence[Said]) -> list[list[float | None]]:
        prompts = self.role.vlm.prompts([([Message("user", LOOK)], s.images) for s in said], self.max_length)
        asked = [self.questions(s) for s in said]
        fit = [
            [i for i, ids in enumerate(mine) if len(prompt.ids) + len(ids) <= self.max_length]
            for prompt, mine in zip(prompts, asked, strict=True)
        ]
        found: list[list[float | None]] = [[None] * len(mine) for mine in asked]
        at = [n for n, mine in enumerate(fit) if mine]
        for numbers, last_ND in at_ends(self.role, [prompts[n] for n in at], [[asked[n][i] for i in fit[n]] for n in at]):
            odds = iter(self._head(last_ND.float())[:, 0].tolist())
            for n in (at[number] for number in numbers):
                for i in fit[n]:
                    found[n][i] = next(odds)
        return found

    def questions(self, said: Said) -> list[Tensor]:
        """What follows the shared prompt: its answer, and a claim's question up to where it would be answered."""
        look, asked = [Message("user", LOOK)], [question(positive(c)[0], self.words) for c in said.claims]
        return [self.role.vlm.answer_ids(look, LOOKED, len(said.images), then=[Message("user", text)]) for text in asked]
