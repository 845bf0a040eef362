"""The loss on target answers: a pure function on tensors.

Shape suffixes: B answers, T tokens of an answer. `mask_BT` is 1 on the tokens to learn and 0 on
others, so wider padding changes nothing.
"""

from __future__ import annotations

from torch import Tensor

Metrics = dict[str, float]


def sft(logps_BT: Tensor, mask_BT: Tensor, num_tokens: Tensor | float) -> Tensor:
    """Return this part's share of the mean negative log-likelihood.

    `num_tokens` counts the tokens to learn over all micro-batches and processes.
    """
    return -(logps_BT * mask_BT).sum() / num_tokens
