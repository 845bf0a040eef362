"""Facts: typed evidence on a picture, read from files and written into a reward model's prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmrlhf.records import Fact


def render(facts: Sequence[Fact], order_seed: int | None = None) -> str:
    """One line of typed evidence, or "" without facts: `Facts: object red circle; count two objects.`

    The order is seeded, so that both answers of a pair (all answers of a prompt) read the same text; None keeps the
    given order. Runs of white space become one space: a fact stays on its line whatever its file says.
    """
    if not facts:
        return ""
    order = np.arange(len(facts)) if order_seed is None else np.random.default_rng(order_seed).permutation(len(facts))
    return "Facts: " + "; ".join(f"{facts[i].kind} {' '.join(facts[i].text.split())}" for i in order) + "."
