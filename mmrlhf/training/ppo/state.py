"""The state of a ppo run besides its settings and inputs, all of it in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrlhf.config import PPOConfig
from mmrlhf.training.optim import load_optimizer_state_dict, optimizer_state_dict
from mmrlhf.training.ppo.kl_controller import KLController
from mmrlhf.training.ppo.prompt_order import PromptOrder
from mmrlhf.training.ppo.roles import PPORoles
from mmrlhf.training.ppo.rollout import StartedRollout
from mmrlhf.training.skipped_steps import SkippedSteps


@dataclass
class PPOState:
    """The state of a ppo run after some steps; evaluation and run files keep their own state.

    `kl` is the last step's KL to the reference, in nats per answer; `stopped` is the reason why the
    run ends early, empty if it does not. `started` are the next step's answers, if servers are
    already sampling them; `was_ahead` says whether they were at the checkpoint from which the run
    resumes.
    """

    roles: PPORoles
    optimizer: torch.optim.Optimizer
    prompt_order: PromptOrder
    kl_controller: KLController
    skipped_steps: SkippedSteps
    kl: float | None = None
    stopped: str = ""
    started: StartedRollout | None = None
    was_ahead: bool = False

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the weights that change and the optimiser's state, and the rest as JSON."""
        tensors = {name: tensor for role in self.roles.changing for name, tensor in role.state_dict().items()}
        state = {
            "kl": self.kl,
            "kl_controller": self.kl_controller.state_dict(),
            "rewards": self.roles.aggregation.state_dict(),
            "position": self.prompt_order.position if self.started is None else self.started.position,
            "is_ahead": self.started is not None,
            "stopped": self.stopped,
            "skipped_steps": self.skipped_steps.state_dict(),
        }
        return tensors | optimizer_state_dict(self.optimizer), state

    def restore(self, tensors: dict[str, Tensor], state: Mapping[str, Any], position: int) -> None:
        """Continue from what `checkpoint` returned.

        `position` is used if the checkpoint (of 0.3.0) does not record one.
        """
        self.kl = state.get("kl")
        self.roles.aggregation.load_state_dict(state.get("rewards", {}))
        self.kl_controller.load_state_dict(state.get("kl_controller", {}))
        self.prompt_order.position = state.get("position", position)
        self.stopped = state.get("stopped", "")
        self.was_ahead = state.get("is_ahead", False)
        self.skipped_steps.load_state_dict(state.get("skipped_steps", {}))
        for role in self.roles.changing:
            role.load_state_dict(tensors)
        load_optimizer_state_dict(self.optimizer, tensors)


def build_optimizer(config: PPOConfig, roles: PPORoles) -> torch.optim.Optimizer:
    """Return the optimiser of policy and critic; the critic may have its own learning rate."""
    param_groups = [{"params": roles.policy.parameters(), "peak": config.learning_rate}]
    if roles.critic is not None:
        peak = config.critic_learning_rate or config.learning_rate
        param_groups.append({"params": roles.critic.parameters(), "peak": peak})
    # PPO's usual eps (Huang et al. 2024, N+ implementation details of RLHF with PPO). With torch's
    # 1e-8, a weight moves by the learning rate however small its noisy gradient is.
    return torch.optim.AdamW(param_groups, lr=config.learning_rate, weight_decay=config.weight_decay, eps=1e-5)
