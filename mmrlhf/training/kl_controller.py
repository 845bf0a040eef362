"""The weight of the KL: fixed, or moved after every step so that the KL becomes a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from mmrlhf.config import PPOConfig

WINDOW = 10
"""Steps whose mean KL is compared with the target."""
DEFAULT_GAIN = 0.1
"""Part of the relative distance by which the weight changes in a step."""
MAX_ERROR = 0.2
"""Relative distance from the target beyond which the weight changes no faster."""


@dataclass
class KLController:
    """The weight `coef` of the KL; without a `target` it never changes.

    After each step, it grows by the factor 1 + `gain` x the relative distance of the KL from the
    target, cut off at +-0.2: the proportional controller of Ziegler et al. 2019, section 2.2, on
    the mean of the last ten steps instead of one step.
    """

    coef: float
    target: float | None = None
    gain: float = DEFAULT_GAIN
    recent_kl: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, config: PPOConfig, answers_per_step: int) -> KLController:
        """Return the controller that a run's settings describe."""
        if config.kl_controller == "fixed":
            return cls(config.kl_coef)
        gain = answers_per_step / config.kl_horizon if config.kl_horizon else DEFAULT_GAIN
        return cls(config.kl_coef, config.target_kl, gain)

    def update(self, kl: float) -> None:
        """Change the weight for the next step, given this step's KL in nats per answer."""
        if self.target is None:
            return
        self.recent_kl = [*self.recent_kl, kl][-WINDOW:]
        error = fmean(self.recent_kl) / self.target - 1
        self.coef *= 1 + self.gain * min(MAX_ERROR, max(-MAX_ERROR, error))

    def state(self) -> dict[str, Any]:
        """Return what decides the coming weights, for a checkpoint."""
        return {"coef": self.coef, "recent_kl": self.recent_kl}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned; an empty mapping changes nothing."""
        if state:
            self.coef, self.recent_kl = float(state["coef"]), [float(kl) for kl in state["recent_kl"]]
