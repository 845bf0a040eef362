"""Two bounds on the length of an answer that may earn a positive reward.

A policy that drifts to very short or very long answers is usually paid for it by mistake. Outside
the bounds, a positive sum of rewards is cut to 0; a negative one stays.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmrlhf.records import InputError
from mmrlhf.rewards.ledger import RewardBreakdown
from mmrlhf.rewards.types import Sample

LENGTH_BOUNDS = "length_bounds"
"""The name of what is cut off, among the reward terms in the ledger."""
AUTO_QUANTILES = (0.02, 0.98)
"""Shares of the reference's answers that are shorter than the lower bound, and not longer than the
upper one, if the bounds are measured."""


@dataclass
class LengthBounds:
    """Fewest and most tokens of an answer with a positive reward; None until they are measured.

    They are measured on the first answers, which the reference gives: before the first step, it and
    the policy are the same.
    """

    bounds: tuple[int, int] | None

    def __call__(
        self, breakdowns: Sequence[RewardBreakdown], samples: Sequence[Sample], gather: Callable[[list[Any]], list[Any]]
    ) -> list[RewardBreakdown]:
        """Return rewards with the term `length_bounds`: what is cut from an answer's sum, or 0."""
        if self.bounds is None:
            self.bounds = measure_bounds(gather([sample.num_tokens for sample in samples]))
        return [
            replace(breakdown, terms={**breakdown.terms, LENGTH_BOUNDS: 0.0 - self._excess(breakdown, sample)})
            for breakdown, sample in zip(breakdowns, samples, strict=True)
        ]

    def contain(self, num_tokens: int) -> bool:
        """Return whether an answer's length is within the bounds; both belong to them."""
        assert self.bounds is not None
        return self.bounds[0] <= num_tokens <= self.bounds[1]

    def _excess(self, breakdown: RewardBreakdown, sample: Sample) -> float:
        return 0.0 if self.contain(sample.num_tokens) else max(breakdown.total, 0.0)

    def metrics(self, lengths: Sequence[int], cuts: Sequence[float]) -> dict[str, float]:
        """Return the bounds, the share of answers outside, and the mean of what was cut off.

        `cuts` holds each answer's term `length_bounds`.
        """
        assert self.bounds is not None
        return {
            f"rewards/{LENGTH_BOUNDS}/mean": math.fsum(cuts) / len(cuts),
            "length_bounds/outside": sum(not self.contain(length) for length in lengths) / len(lengths),
            "length_bounds/lower": float(self.bounds[0]),
            "length_bounds/upper": float(self.bounds[1]),
        }


def measure_bounds(lengths: Sequence[int]) -> tuple[int, int]:
    """Return the AUTO_QUANTILES of lengths, each a length that occurs: the outer one of two."""
    lower, upper = AUTO_QUANTILES
    return int(np.quantile(lengths, lower, method="lower")), int(np.quantile(lengths, upper, method="higher"))


def parse_length_bounds(setting: str | None, max_tokens: int) -> LengthBounds | None:
    """Return the bounds of a setting, to be measured if it is `auto`; None if there are none.

    Raises InputError for anything but two numbers, the smaller first, or if every answer of at most
    `max_tokens` is too short.
    """
    if setting is None:
        return None
    if setting == "auto":
        return LengthBounds(None)
    match = re.fullmatch(r"\s*(\d{1,9})\s*,\s*(\d{1,9})\s*", setting, re.ASCII)
    lower, upper = map(int, match.groups()) if match else (1, 0)
    if lower > upper:
        raise InputError(f"length_bounds is {setting!r}: write the fewest and the most tokens, such as 8,40, or auto")
    if lower > max_tokens:
        raise InputError(
            f"length_bounds {setting}: no answer can be that long, because response_length is {max_tokens}; "
            "lower the first bound or raise response_length"
        )
    return LengthBounds((lower, upper))
