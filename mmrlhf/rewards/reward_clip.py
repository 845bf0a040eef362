"""Clip the reward of an answer to a range, so that no answer outweighs all others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmrlhf.records import InputError
from mmrlhf.rewards.ledger import RewardBreakdown

REWARD_CLIP = "reward_clip"
"""The name of the amount that clipping adds, among the reward terms in the ledger."""


@dataclass(frozen=True)
class RewardClip:
    """The lowest and the highest reward of an answer."""

    low: float
    high: float

    def __call__(self, breakdowns: Sequence[RewardBreakdown]) -> list[RewardBreakdown]:
        """Return rewards with the term `reward_clip`, which brings their sum into the range."""
        totals = [self.clip(breakdown.total) for breakdown in breakdowns]
        return [
            replace(breakdown, terms={**breakdown.terms, REWARD_CLIP: total - breakdown.total}, clipped_total=total)
            for breakdown, total in zip(breakdowns, totals, strict=True)
        ]

    def clip(self, reward: float) -> float:
        """Return the nearest reward in the range."""
        return min(max(reward, self.low), self.high)

    def metrics(self, added: Sequence[float]) -> dict[str, float]:
        """Return the share of answers whose reward was clipped, and the mean amount added.

        `added` holds each answer's term `reward_clip`.
        """
        return {
            f"rewards/{REWARD_CLIP}/mean": math.fsum(added) / len(added),
            "reward_clip/clipped": sum(value != 0 for value in added) / len(added),
        }


def parse_reward_clip(setting: str | None) -> RewardClip | None:
    """Return the range of a setting; None if there is none.

    Raises InputError for anything but two finite numbers, the smaller first.
    """
    if setting is None:
        return None
    try:
        low, high = (float(part) for part in setting.split(","))
    except ValueError:
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"reward_clip_range is {setting!r}: write the lowest and the highest reward, such as -5,5")
    return RewardClip(low, high)
