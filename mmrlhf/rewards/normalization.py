"""Normalise each reward function's values before they are weighted and added.

Values are compared with those of the other answers to the prompt (GDPO, Liu et al. 2026, arXiv
2601.05242; TRL's `normalize_then_sum`), or with those of all answers of the run so far. Either way
a weight is the value of one standard deviation of its function, whatever the function's unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mmrlhf.rewards.ledger import RewardBreakdown

TermStatistics = Literal["group", "running"]
EPSILON = 1e-4
"""Added to a standard deviation, as in GRPO: much smaller differences count as noise."""
MAX_RUNNING_DEVIATIONS = 10.0
"""Limit on a normalised value, in standard deviations, for running statistics: the first answer in
10,000 with a rare penalty would otherwise be 100 of them away from the mean. In a group of G
answers, no value is further away than (G - 1) / sqrt(G)."""


@dataclass(frozen=True)
class Moments:
    """Count, mean, sum of squared deviations from the mean, minimum and maximum of some values."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, values: Sequence[float]) -> Moments:
        """Return the moments of these and further values (Chan et al. 1979).

        Sums are exact before they are rounded, so the order of `values` does not matter.
        """
        mean = math.fsum(values) / len(values)
        squares = math.fsum((value - mean) * (value - mean) for value in values)
        count, shift = self.count + len(values), mean - self.mean
        return Moments(
            count,
            self.mean + shift * len(values) / count,
            self.squares + squares + shift * shift * self.count * len(values) / count,
            min(self.low, *values),
            max(self.high, *values),
        )

    @property
    def scale(self) -> float:
        """Return 1 / (standard deviation + EPSILON), or 0 if the values are all the same."""
        return 0.0 if self.low == self.high else 1 / (math.sqrt(self.squares / (self.count - 1)) + EPSILON)


def normalize(breakdown: RewardBreakdown, moments: Mapping[str, Moments], max_deviations: float = math.inf) -> RewardBreakdown:
    """Return an answer's rewards with each value as (value - mean) x scale, at most max_deviations.

    Spans keep their places, for the ledger, and are scaled by the same factor. The mean is
    subtracted from the answer as a whole. A function without differences contributes 0, also in
    every span.
    """
    terms, spans, normalized = {}, {}, {}
    for name, value in breakdown.values.items():
        scale, weight = moments[name].scale, breakdown.weights[name]
        deviation = (value - moments[name].mean) * scale
        if abs(deviation) > max_deviations:
            scale *= max_deviations / abs(deviation)
            deviation = math.copysign(max_deviations, deviation)
        normalized[name] = deviation + 0.0  # 0, not -0
        terms[name] = weight * deviation + 0.0
        if name in breakdown.spans:
            spans[name] = [(start, end, scale * reward + 0.0) for start, end, reward in breakdown.spans[name]]
    return RewardBreakdown(terms, spans, breakdown.values, breakdown.weights, normalized)


def add_values(moments: Mapping[str, Moments], answers: Sequence[Mapping[str, float]]) -> dict[str, Moments]:
    """Return the moments of each function, updated with the values of further answers, by name.

    Answers to which a function does not apply are left out of its moments.
    """
    added = dict(moments)
    for name in dict.fromkeys(name for values in answers for name in values):
        added[name] = added.get(name, Moments()).add([values[name] for values in answers if name in values])
    return added


def normalize_in_groups(breakdowns: Sequence[RewardBreakdown], group_size: int) -> list[RewardBreakdown]:
    """Normalise among the answers to each prompt, which are adjacent, `group_size` to a prompt."""
    normalized = []
    for start in range(0, len(breakdowns), group_size):
        group = breakdowns[start : start + group_size]
        moments = add_values({}, [breakdown.values for breakdown in group])
        normalized += [normalize(breakdown, moments) for breakdown in group]
    return normalized


@dataclass
class TermNormalizer:
    """Normalises the rewards of each step, and keeps a run's running statistics, if it has any."""

    statistics: TermStatistics
    group_size: int
    running: dict[str, Moments] = field(default_factory=dict)

    def __call__(self, breakdowns: Sequence[RewardBreakdown], gather: Callable[[list[Any]], list[Any]]) -> list[RewardBreakdown]:
        """Return a step's rewards with normalised values.

        Running statistics include the step's own values, over the processes of `gather`.
        """
        if self.statistics == "group":
            return normalize_in_groups(breakdowns, self.group_size)
        self.running = add_values(self.running, gather([breakdown.values for breakdown in breakdowns]))
        return [normalize(breakdown, self.running, MAX_RUNNING_DEVIATIONS) for breakdown in breakdowns]

    def state_dict(self) -> dict[str, Any]:
        """Return the running statistics as JSON, for a checkpoint."""
        return {name: asdict(moments) for name, moments in self.running.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.running = {name: Moments(**moments) for name, moments in state_dict.items()}
