"""Combine the values of a run's reward functions into one reward per answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from mmrlhf.config import RewardedConfig
from mmrlhf.rewards.ledger import RewardBreakdown
from mmrlhf.rewards.length_bounds import LengthBounds, parse_length_bounds
from mmrlhf.rewards.normalization import TermNormalizer
from mmrlhf.rewards.reward_clip import RewardClip, parse_reward_clip
from mmrlhf.rewards.types import Sample


@dataclass
class RewardAggregation:
    """Normalises values, bounds sums by the answer's length, and clips them, as configured.

    `gather` concatenates the lists of all processes, so that statistics of the answers are the same
    on all of them; they are part of a checkpoint.
    """

    normalizer: TermNormalizer | None
    length_bounds: LengthBounds | None
    reward_clip: RewardClip | None
    gather: Callable[[list[Any]], list[Any]]

    def __call__(self, breakdowns: list[RewardBreakdown], samples: Sequence[Sample]) -> list[RewardBreakdown]:
        """Return a step's rewards as used in training."""
        if self.normalizer is not None:
            breakdowns = self.normalizer(breakdowns, self.gather)
        if self.length_bounds is not None:
            breakdowns = self.length_bounds(breakdowns, samples, self.gather)
        if self.reward_clip is not None:
            breakdowns = self.reward_clip(breakdowns)
        return breakdowns

    def preview(self, breakdowns: list[RewardBreakdown], samples: Sequence[Sample]) -> list[RewardBreakdown]:
        """Return a step's rewards as used in training, without keeping what they measure.

        The step may still replace answers, and statistics count each of a step's answers once.
        """
        unchanged = replace(self, normalizer=copy(self.normalizer), length_bounds=copy(self.length_bounds))
        return unchanged(breakdowns, samples)

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics so far, as JSON."""
        return {
            "moments": self.normalizer.state_dict() if self.normalizer is not None else None,
            "length_bounds": self.length_bounds.bounds if self.length_bounds is not None else None,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned, as far as the settings still use it.

        It lacks statistics that were not measured yet, because steps were skipped or settings
        changed.
        """
        if self.normalizer is not None and state_dict.get("moments") is not None:
            self.normalizer.load_state_dict(state_dict["moments"])
        if self.length_bounds is not None and self.length_bounds.bounds is None and state_dict.get("length_bounds") is not None:
            lower, upper = state_dict["length_bounds"]
            self.length_bounds.bounds = lower, upper


def build_aggregation(config: RewardedConfig, gather: Callable[[list[Any]], list[Any]]) -> RewardAggregation:
    """Build a run's aggregation. Raises InputError for invalid bounds or ranges."""
    normalizer = None
    if config.multi_objective_aggregation == "normalize_then_sum":
        normalizer = TermNormalizer(config.term_statistics, config.num_generations)
    length_bounds = parse_length_bounds(config.length_bounds, config.response_length, config.num_generations)
    return RewardAggregation(normalizer, length_bounds, parse_reward_clip(config.reward_clip_range), gather)
