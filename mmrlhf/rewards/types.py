"""The input and output types of reward functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmrlhf.records import Fact, ImageSource, Message


@dataclass(frozen=True)
class Sample:
    """One sampled answer, the input of reward functions.

    `reference` is the row's own answer, if it has one, and `meta` holds the row's other fields. The
    answer has `num_tokens` of the `max_tokens` allowed; `finished` is False if it was cut off.
    """

    id: str
    images: tuple[ImageSource, ...]
    prompt: tuple[Message, ...]
    answer: str
    facts: tuple[Fact, ...] = ()
    reference: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    num_tokens: int = 0
    max_tokens: int = 1
    finished: bool = True


RewardSpan = tuple[int, int, float]
"""Start and end (exclusive) of a span of characters, and its value."""
RewardValue = float | Sequence[RewardSpan]
"""One number for the whole answer, or values for spans of it."""
RewardFunction = Callable[[Sequence[Sample]], Sequence[RewardValue | None]]
"""Maps samples to one value each, in order; None for those to which it does not apply."""
