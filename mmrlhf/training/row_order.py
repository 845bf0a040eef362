"""The order of training rows, a seeded shuffle in each epoch, and the minibatches of a step."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from mmrlhf.config import TrainConfig


def total_steps(config: TrainConfig, num_rows: int, num_processes: int = 1) -> int:
    """Return the number of steps; an incomplete last step is dropped unless it is the only one."""
    if config.max_steps >= 0:
        return config.max_steps
    rows = round(config.num_train_epochs * num_rows, 6)  # 0.29 x 100 is 28.999999999999996
    return max(1, int(rows / (config.per_device_train_batch_size * num_processes)))


def row_at(position: int, num_rows: int, seed: int) -> int:
    """Return the index of the row that a run uses at a position, counted over all epochs.

    It does not depend on earlier calls, so a resumed run needs no sampler state.
    """
    epoch, offset = divmod(position, num_rows)
    return int(_shuffled_rows(num_rows, seed, epoch)[offset])


def batch_indices(step: int, batch_size: int, num_rows: int, seed: int) -> list[int]:
    """Return the indices of the rows of one step."""
    return [row_at(position, num_rows, seed) for position in range(step * batch_size, (step + 1) * batch_size)]


@lru_cache(maxsize=4)  # prompts and the rows mixed in (ptx), each perhaps at the border of two epochs
def _shuffled_rows(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, 11, epoch]).permutation(num_rows)


def random_minibatches(num_rows: int, num_minibatches: int, seed: int) -> list[list[int]]:
    """Split the rows of a step, over all processes, into at most `num_minibatches` groups.

    The rows of a step come in random order. Row i belongs to process i modulo their number, and the
    groups do not depend on that number, so several processes train as one does. The groups are cut
    from the order i -> (a * i + b) modulo `num_rows`, with a random b and a random a without a
    common divisor, not from any permutation: neighbours in it then belong to different processes,
    and each process has nearly the same share of every group.
    """
    rng = np.random.default_rng([seed, 19])
    factors = [factor for factor in range(1, num_rows + 1) if math.gcd(factor, num_rows) == 1]
    order = (int(rng.choice(factors)) * np.arange(num_rows) + int(rng.integers(num_rows))) % num_rows
    return [group.tolist() for group in np.array_split(order, min(num_minibatches, num_rows))]
