"""The best weights so far by a held-out metric: in every checkpoint, and a folder of a ppo run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmrlhf.files.atomic import atomic_folder, remove_folder, write_atomic
from mmrlhf.models.adapters import Role
from mmrlhf.models.export import save_policy
from mmrlhf.report.progress import format_number

PREFIX = "best."
"""Prefix of its tensors' names in a checkpoint."""


class BestModel:
    """The role's weights whose `metric` was best, with step and value; on a tie, the first.

    They are kept in memory. A value that is not finite is never the best.
    """

    def __init__(self, metric: str, greater_is_better: bool) -> None:
        self.metric, self.greater_is_better = metric, greater_is_better
        self.step: int | None = None
        self.value = 0.0
        self.tensors: dict[str, Tensor] = {}
        self._saved_step: int | None = None

    def update(self, step: int, value: float, role: Role) -> bool:
        """Keep the weights if their value is better than the best so far; return whether it was."""
        is_better = self.step is None or (value > self.value if self.greater_is_better else value < self.value)
        if not (is_better and math.isfinite(value)):
            return False
        self.step, self.value = step, value
        self.tensors = {name: tensor.detach().cpu().clone() for name, tensor in role.state_dict().items()}
        return True

    # ---- checkpoints ----

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the best weights, and their metric, value and step as JSON, if there are any."""
        if self.step is None:
            return {}, {}
        return {f"{PREFIX}{name}": tensor for name, tensor in self.tensors.items()}, {"best": self.result()}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Continue from what `checkpoint` returned, unless it compared by another metric."""
        names = ("metric", "greater_is_better")
        if "best" in state and all(state["best"][name] == getattr(self, name) for name in names):
            self.step, self.value = int(state["best"]["step"]), float(state["best"]["value"])
            self.tensors = {name.removeprefix(PREFIX): t for name, t in tensors.items() if name.startswith(PREFIX)}

    # ---- files ----

    def result(self) -> dict[str, Any]:
        """Return metric, value and step, as finished.json and best.json have them."""
        return {"metric": self.metric, "value": self.value, "step": self.step, "greater_is_better": self.greater_is_better}

    def save(self, policy: Role, folder: Path) -> None:
        """Write the best policy's adapter to `folder` atomically, unless it is already there."""
        if self.step is None or self.step == self._saved_step:
            return
        current = {name: tensor.detach().clone() for name, tensor in policy.state_dict().items()}
        policy.load_state_dict(self.tensors)
        try:
            with atomic_folder(folder) as temporary_dir:
                save_policy(policy.adapters, str(policy.adapter), temporary_dir, final_directory=folder)
                write_atomic(temporary_dir / "best.json", json.dumps(self.result()) + "\n")
        finally:
            policy.load_state_dict(current)
        self._saved_step = self.step

    def discard(self, folder: Path) -> None:
        """Remove what `save` wrote."""
        if (folder / "best.json").is_file():
            remove_folder(folder)

    def describe(self, last_step: int, folder: Path) -> str:
        """Return a sentence on which step was best, and the folder where its policy is."""
        when = "before the first step" if self.step == 0 else f"after step {self.step} of {last_step}"
        return f"{self.metric} was best {when}, {format_number(self.value)}: {folder} has that policy"
