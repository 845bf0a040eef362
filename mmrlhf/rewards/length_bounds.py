"""Lower and upper bounds on the length of an answer that may earn a positive reward.

A policy that drifts to very short or very long answers usually exploits a flaw of the reward.
Outside the bounds, a sum of rewards is cut to 0, or to the mean of the prompt's answers if that is
lower: `rloo` and `grpo` compare with the mean, so a 0 among negative sums would be rewarded. Lower
sums stay.
"""

from __future__ import annotations

import itertools
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
"""The name of the amount cut off, among the reward terms in the ledger."""
AUTO_QUANTILES = (0.02, 0.98)
"""Measured bounds are these quantiles of the lengths of the reference's answers."""


@dataclass
class LengthBounds:
    """Fewest and most tokens of an answer with a positive reward; None until they are measured.

    They are measured on the answers of the first step: before it, policy and reference are the
    same. A prompt's `num_generations` answers are adjacent.
    """

    bounds: tuple[int, int] | None
    num_generations: int

    def __call__(
        self, breakdowns: Sequence[RewardBreakdown], samples: Sequence[Sample], gather: Callable[[list[Any]], list[Any]]
    ) -> list[RewardBreakdown]:
        """Return rewards with the term `length_bounds`: what is cut from an answer's sum, or 0."""
        if self.bounds is None:
            self.bounds = measure_bounds(gather([sample.num_tokens for sample in samples]))
        excesses: list[float] = []
        for start in range(0, len(samples), self.num_generations):
            prompt = slice(start, start + self.num_generations)
            are_inside = [self.contain(sample.num_tokens) for sample in samples[prompt]]
            excesses += excess_rewards([breakdown.total for breakdown in breakdowns[prompt]], are_inside)
        return [
            replace(breakdown, terms={**breakdown.terms, LENGTH_BOUNDS: 0.0 - excess})
            for breakdown, excess in zip(breakdowns, excesses, strict=True)
        ]

    def contain(self, num_tokens: int) -> bool:
        """Return whether an answer's length is within the bounds, inclusive."""
        assert self.bounds is not None
        return self.bounds[0] <= num_tokens <= self.bounds[1]

    def metrics(self, lengths: Sequence[int], cuts: Sequence[float]) -> dict[str, float]:
        """Return the bounds, the share of answers outside, and the mean amount cut off.

        `cuts` holds each answer's term `length_bounds`.
        """
        assert self.bounds is not None
        return {
            f"rewards/{LENGTH_BOUNDS}/mean": math.fsum(cuts) / len(cuts),
            "length_bounds/outside": sum(not self.contain(length) for length in lengths) / len(lengths),
            "length_bounds/lower": float(self.bounds[0]),
            "length_bounds/upper": float(self.bounds[1]),
        }


def excess_rewards(totals: Sequence[float], are_inside: Sequence[bool]) -> list[float]:
    """Return the amount cut from each reward of a prompt's answers, 0 for those inside the bounds.

    An answer outside keeps min(total, 0, m), where m is the mean of the prompt's rewards after the
    cut. Answers that get m do not change it, so it is the mean of the others: those inside, and the
    worse ones outside. Adding these from the worst one on lowers the mean until the next one is
    above it.
    """
    inside = [total for total, is_inside in zip(totals, are_inside, strict=True) if is_inside]
    outside = sorted(min(total, 0.0) for total, is_inside in zip(totals, are_inside, strict=True) if not is_inside)
    sums = itertools.accumulate(outside, initial=sum(inside))
    means = [total / number for number, total in enumerate(sums, len(inside)) if number]
    bound = min(0.0, *means)
    return [0.0 if is_inside else max(total - bound, 0.0) for total, is_inside in zip(totals, are_inside, strict=True)]


def measure_bounds(lengths: Sequence[int]) -> tuple[int, int]:
    """Return the AUTO_QUANTILES of lengths; between two lengths, the outer one."""
    lower, upper = AUTO_QUANTILES
    return int(np.quantile(lengths, lower, method="lower")), int(np.quantile(lengths, upper, method="higher"))


def parse_length_bounds(setting: str | None, max_tokens: int, num_generations: int = 1) -> LengthBounds | None:
    """Return the bounds of a setting, to be measured if it is `auto`; None if there are none.

    Raises InputError for anything but two numbers, the smaller first, or if every answer of at most
    `max_tokens` is too short.
    """
    if setting is None:
        return None
    if setting == "auto":
        return LengthBounds(None, num_generations)
    match = re.fullmatch(r"\s*(\d{1,9})\s*,\s*(\d{1,9})\s*", setting, re.ASCII)
    lower, upper = map(int, match.groups()) if match else (1, 0)
    if lower > upper:
        raise InputError(f"length_bounds is {setting!r}: write the fewest and the most tokens, such as 8,40, or auto")
    if lower > max_tokens:
        raise InputError(
            f"length_bounds {setting}: no answer can be that long, because response_length is {max_tokens}; "
            "lower the first bound or raise response_length"
        )
    return LengthBounds((lower, upper), num_generations)
