"""Refuse numbers that are not finite: NaN and infinity spread to everything computed from them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mmrlhf.records import InputError


@torch.no_grad()
def check_finite(tensors: Iterable[tuple[str, Tensor]], what: str) -> None:
    """Raise InputError, beginning with `what`, if a tensor has a value that is not finite."""
    for name, tensor in tensors:
        # A sum is fast and needs no memory. One that overflows is no proof, so the values decide.
        if tensor.is_floating_point() and not tensor.sum().isfinite() and not tensor.isfinite().all():
            raise InputError(f"{what} has values in {name} that are not finite (NaN or infinity): give another checkpoint")
