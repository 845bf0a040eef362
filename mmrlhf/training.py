"""What every training stage does alike: the order of rows, the learning rate, and one optimiser step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from mmrlhf.config import TrainConfig


def total_steps(config: TrainConfig, rows: int, processes: int = 1) -> int:
    """Steps that the configuration asks for; a last step that would be short is left out, unless it is the only one."""
    if config.max_steps > 0:
        return config.max_steps
    return max(1, int(config.num_train_epochs * rows / (config.per_device_train_batch_size * processes)))


def rows_of_step(step: int, size: int, rows: int, seed: int) -> list[int]:
    """The row numbers of one step: epochs of a seeded shuffle, laid end to end. A function of the step alone, so that a
    run that resumes needs no sampler's state."""
    found = []
    for place in range(step * size, (step + 1) * size):
        epoch, at = divmod(place, rows)
        found.append(int(_order(rows, seed, epoch)[at]))
    return found


def _order(rows: int, seed: int, epoch: int) -> np.ndarray:
    key = (rows, seed, epoch)
    if key not in _orders:
        _orders.clear()
        _orders[key] = np.random.default_rng([seed, 11, epoch]).permutation(rows)
    return _orders[key]


_orders: dict[tuple[int, int, int], np.ndarray] = {}


def learning_rate_factor(config: TrainConfig, step: int, total: int) -> float:
    """Linear warm-up to 1, then constant, or falling to a tenth along a line or half a cosine."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.lr_scheduler_type == "constant":
        return 1.0
    share = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    fall = 0.5 * (1 + math.cos(math.pi * share)) if config.lr_scheduler_type == "cosine" else 1 - share
    return 0.1 + 0.9 * fall


def pieces(rows: Sequence, count: int) -> Iterable[Sequence]:
    """At most `count` contiguous pieces, as equal as can be, none empty."""
    for part in np.array_split(np.arange(len(rows)), min(count, len(rows))):
        yield rows[part[0] : part[-1] + 1]


def apply(
    accelerator: Accelerator, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], max_grad_norm: float
) -> float:
    """Add up the gradients of all processes, clip, step, clear. Returns the norm before clipping.

    Losses are already divided by global counts, so gradients are summed, not averaged. The model is called without a DDP
    wrapper (forwards enter below it), which is why they are reduced here. A step whose gradients are not finite is refused.
    """
    if accelerator.num_processes > 1:
        for p in parameters:
            p.grad = accelerator.reduce(p.grad if p.grad is not None else torch.zeros_like(p), "sum")
    norm = float(nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    if not math.isfinite(norm):
        raise RuntimeError("the gradient is not finite: lower the learning rate, or train in float32")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
