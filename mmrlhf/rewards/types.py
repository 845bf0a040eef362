"""What a reward function is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmrlhf.records import Fact, ImageSource, Message


@dataclass(frozen=True)
class Sample:
    """One sampled answer as terms see it. `truth` is the row's own answer, if it has one; `meta` the row's other fields; `tokens` how
    many the answer has of the `most` it may have; `ended` whether it came to its end."""

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
"""Characters from, up to, and what they are worth."""


RewardValue = float | Sequence[RewardSpan]


RewardFunction = Callable[[Sequence[Sample]], Sequence[RewardValue]]
