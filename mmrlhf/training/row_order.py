"""The order of training rows: in each epoch another seeded shuffle of all of them."""

from __future__ import annotations

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
