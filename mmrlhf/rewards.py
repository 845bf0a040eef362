"""What an answer is worth: the reward model as an artefact, and the named terms that ppo adds up."""

from __future__ import annotations

from collections.abc import Sequence

from mmrlhf.config import FactsPosition
from mmrlhf.records import Message

REVIEW = "Is all of this true of the picture?"
"""The turn after an answer at whose end the reward is read: a question that a vision-language model can already answer."""


def review_messages(
    prompt: Sequence[Message], answer: str, facts: str, position: FactsPosition
) -> tuple[Message, ...]:
    """The conversation a reward model reads: prompt, answer, review; the facts before the question or in the review.

    `before` puts them at the head of the last user turn, so that all answers of a prompt share them; `after` puts them
    into the turn after the answer (LLaVA-RLHF).
    """
    *earlier, last = prompt
    if facts and position == "before":
        last = Message(last.role, f"{facts} {last.content}")
    review = f"{facts} {REVIEW}" if facts and position == "after" else REVIEW
    return (*earlier, last, Message("assistant", answer), Message("user", review))
