"""The weight of the KL: fixed, or changed after every step to keep the KL at a target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmrlhf.config import PPOConfig

PROPORTIONAL_GAIN = 2.0
"""If the last step's KL was twice the target, the weight becomes 2^2 = 4 times as large."""
INTEGRAL_GAIN = 0.1
"""Share of the error that a step adds to the integral, unless `kl_horizon` sets another."""
MIN_ERROR, MAX_ERROR = -0.5, 1.0
"""Limits on log(KL / target). While the KL rises from 0, a larger negative error would reduce the
weight to almost nothing, and the KL would then overshoot the target."""
MAX_INTEGRAL = math.log(100)
"""Limit on the absolute value of the integral: it changes the weight by up to a factor of 100."""


@dataclass
class KLController:
    """The weight `coef` of the KL; without a `target` it never changes.

    A PI controller (Stooke et al. 2020, without their derivative term) of the logarithm of the
    weight. With error = log(KL of the last step / target), limited to -0.5 and 1:

        coef = start x exp(2 x error + integral), and integral grows by gain x error after each step

    The integral alone is the controller of Ziegler et al. 2019. It overshoots: the KL follows the
    weight with a delay of many steps (AdamW's momentum, and the steps back to the reference), and a
    weight that has fallen below its equilibrium takes as long to recover. The proportional term
    reacts in the next step and damps this.
    """

    start: float
    target: float | None = None
    gain: float = INTEGRAL_GAIN
    error: float = 0.0
    integral: float = 0.0

    @classmethod
    def from_config(cls, config: PPOConfig, answers_per_step: int) -> KLController:
        """Return the controller that a run's settings describe."""
        if config.kl_controller == "fixed":
            return cls(config.kl_coef)
        gain = answers_per_step / config.kl_horizon if config.kl_horizon else INTEGRAL_GAIN
        return cls(config.kl_coef, config.target_kl, gain)

    @property
    def coef(self) -> float:
        """The weight of the KL in the coming step."""
        return self.start * math.exp(PROPORTIONAL_GAIN * self.error + self.integral)

    def update(self, kl: float) -> None:
        """Change the weight for the next step, given this step's KL in nats per answer."""
        if self.target is None:
            return
        ratio = max(kl / self.target, 1e-6)  # an estimate of the KL may be negative
        self.error = min(MAX_ERROR, max(MIN_ERROR, math.log(ratio)))
        self.integral = min(MAX_INTEGRAL, max(-MAX_INTEGRAL, self.integral + self.gain * self.error))

    def state_dict(self) -> dict[str, Any]:
        """Return the state that determines the coming weights, for a checkpoint."""
        return {"error": self.error, "integral": self.integral}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned; an empty mapping changes nothing."""
        if state_dict:
            self.error, self.integral = float(state_dict["error"]), float(state_dict["integral"])
