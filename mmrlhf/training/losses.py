"""The loss on target answers, a pure function on tensors, and metrics of losses.

Shape suffixes: B answers, T tokens of an answer. `mask_BT` is 1 on the tokens to learn and 0 on
others, so wider padding changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

Metrics = dict[str, Tensor]
"""Scalars without gradients. They stay on the device: reading one waits for all work before it."""


def add_metrics(sums: Metrics, metrics: Metrics) -> None:
    """Add the metrics of a micro-batch to `sums`."""
    for name, value in metrics.items():
        sums[name] = sums[name] + value if name in sums else value


def read_metrics(metrics: Metrics) -> dict[str, float]:
    """Return metrics as numbers, in one transfer."""
    return dict(zip(metrics, torch.stack(list(metrics.values())).tolist(), strict=True)) if metrics else {}


def sft(logps_BT: Tensor, mask_BT: Tensor, num_tokens: Tensor | float) -> Tensor:
    """Return this part's share of the mean negative log-likelihood.

    `num_tokens` counts the tokens to learn over all micro-batches and processes.
    """
    return -(logps_BT * mask_BT).sum() / num_tokens
