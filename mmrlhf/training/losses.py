"""The loss on target answers: pure functions on tensors.

Shape suffixes: B answers, T tokens of an answer. `mask_BT` is 1 on the tokens of an
answer and 0 on padding; every mean is over the mask, so wider padding changes nothing.
"""

from __future__ import annotations

from torch import Tensor

Metrics = dict[str, float]


def masked_mean(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the mean over the mask; 0 for an empty mask."""
    return (values_BT * mask_BT).sum() / mask_BT.sum().clamp(min=1)


def sft(logps_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Metrics]:
    """Return the negative log-likelihood per answer token."""
    loss = -masked_mean(logps_BT, mask_BT)
    return loss, {"loss": loss.item(), "num_tokens": float(mask_BT.sum())}
