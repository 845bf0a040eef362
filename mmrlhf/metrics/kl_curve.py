"""Metrics along the KL, to compare policies that moved by different amounts from the same start."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

KL_STEPS = 7
"""Number of steps from which a policy's KL is estimated."""


def kl_after_steps(
    sampled_kl: Sequence[float] | np.ndarray, sampled_at: Sequence[int] | np.ndarray, steps: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Return the KL [E] of the policy after each number of steps; it is 0 after none.

    `sampled_kl` [T] is logged by the steps `sampled_at` [T], from 1 on, before their update;
    skipped steps log none. A line through the KL_STEPS steps nearest to t + 1 gives the policy
    after t steps, and cannot be below 0.
    """
    kl, logged = np.asarray(sampled_kl, dtype=float), np.asarray(sampled_at)
    values = []
    for step in steps:
        near = np.argsort(np.abs(logged - (step + 1)), kind="stable")[:KL_STEPS]
        if step == 0:
            values.append(0.0)
        elif len(near) < 2:
            values.append(float(kl[near][0]))
        else:
            level = np.polyfit(logged[near] - (step + 1), kl[near], 1)[1]
            values.append(max(0.0, float(level)))
    return np.array(values)


def by_root_of_kl(kl: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the square roots of KLs [E], ascending, and the (mean) values at each.

    Rewards grow about linearly with the root (Bai et al. 2022). The order is by KL, which is not
    always that of training steps.
    """
    roots, inverse = np.unique(np.sqrt(kl), return_inverse=True)
    return roots, np.bincount(inverse, values) / np.bincount(inverse)


def value_at_kl(kl: np.ndarray, values: np.ndarray, at: float) -> float:
    """Return the value at a KL, linear between evaluations in the root of KL; NaN beyond them."""
    return float(np.interp(np.sqrt(at), *by_root_of_kl(kl, values), left=np.nan, right=np.nan))
