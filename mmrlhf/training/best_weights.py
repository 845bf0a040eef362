"""Keep the weights that did best at a measurement along the way (`load_best_model_at_end`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

PREFIX = "best."
"""Marks the best weights among the tensors of a checkpoint."""


@dataclass
class BestWeights:
    """The weights with the best value of a metric so far. A checkpoint keeps them for a resume.

    The earlier of two equal values is the better one: it is nearer to the start.
    """

    metric: str
    lower_is_better: bool = False
    value: float | None = None
    step: int = 0
    num_since: int = 0
    """Measurements in a row without a new best."""
    weights: dict[str, Tensor] = field(default_factory=dict)

    def update(self, step: int, value: float, weights: Mapping[str, Tensor]) -> None:
        """Compare a measurement with the best one, and copy its weights if it is better.

        A value that is not a number is never better.
        """
        is_better = self.value is None or (value < self.value if self.lower_is_better else value > self.value)
        if is_better and value == value:
            self.value, self.step, self.num_since = value, step, 0
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
        else:
            self.num_since += 1

    def tensors(self) -> dict[str, Tensor]:
        """Return the best weights by their names in a checkpoint."""
        return {PREFIX + name: tensor for name, tensor in self.weights.items()}

    def state(self) -> dict[str, Any]:
        """Return the rest of a checkpoint's state, as JSON."""
        return {"value": self.value, "step": self.step, "num_since": self.num_since}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.value, self.step, self.num_since = state["value"], state["step"], state["num_since"]
        self.weights = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
