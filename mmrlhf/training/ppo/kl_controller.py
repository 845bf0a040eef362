"""The weight of the KL: fixed, or moved after every step so that the KL becomes a target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from mmrlhf.config import PPOConfig

WINDOW = 10
"""Steps whose mean KL is compared with the target."""
DEFAULT_GAIN = 0.1
"""Part of the logarithmic distance from the target by which the weight changes in a step."""
POWER = 6
"""Power of the last step's KL over the target that the weight is multiplied by."""
LEAST_RATIO, GREATEST_RATIO = 0.5, 1.5
"""Limits on that ratio: larger weights would drown the rewards that the critic learns from."""
BASE_RANGE = 100.0
"""Factor by which the weight without that power may become larger or smaller than at the start."""


@dataclass
class KLController:
    """The weight `coef` of the KL; without a `target` it never changes.

    It is the product of two factors. `base` follows the mean KL of the last ten steps: after a
    step, its logarithm grows by `gain` x log(mean / target), where the logarithm is limited to
    -0.1 and 0.5, as in the controller of Ziegler et al. 2019, section 2.2; it stays within 100
    times `start`. By itself, such a factor falls while the KL rises to the target, and then lets it
    rise far beyond. So it falls slowly, and a second factor reacts at once: (KL of the last step /
    target)^6, the ratio limited to 1/2 and 1.5.
    """

    start: float
    target: float | None = None
    gain: float = DEFAULT_GAIN
    base: float = field(init=False)
    recent_kl: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.base = self.start

    @classmethod
    def of(cls, config: PPOConfig, answers_per_step: int) -> KLController:
        """Return the controller that a run's settings describe."""
        if config.kl_controller == "fixed":
            return cls(config.kl_coef)
        gain = answers_per_step / config.kl_horizon if config.kl_horizon else DEFAULT_GAIN
        return cls(config.kl_coef, config.target_kl, gain)

    @property
    def coef(self) -> float:
        """The weight of the KL in the coming step."""
        if self.target is None or not self.recent_kl:
            return self.base
        ratio = self.recent_kl[-1] / self.target
        return float(self.base * min(GREATEST_RATIO, max(LEAST_RATIO, ratio)) ** POWER)

    def update(self, kl: float) -> None:
        """Change the weight for the next step, given this step's KL in nats per answer."""
        if self.target is None:
            return
        self.recent_kl = [*self.recent_kl, kl][-WINDOW:]
        ratio = max(fmean(self.recent_kl) / self.target, 1e-6)  # an estimate of the KL may be negative
        base = self.base * math.exp(self.gain * min(0.5, max(-0.1, math.log(ratio))))
        self.base = min(self.start * BASE_RANGE, max(self.start / BASE_RANGE, base))

    def state(self) -> dict[str, Any]:
        """Return what decides the coming weights, for a checkpoint."""
        return {"base": self.base, "recent_kl": self.recent_kl}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned; an empty mapping changes nothing."""
        if state:
            self.base, self.recent_kl = float(state["base"]), [float(kl) for kl in state["recent_kl"]]
