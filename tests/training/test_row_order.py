"""The order of training rows: every row once in an epoch, the same however a run is cut."""

import numpy as np
import pytest

from mmrlhf.config import SFTConfig
from mmrlhf.training.row_order import batch_indices, random_minibatches, row_at, total_steps


def test_an_epoch_has_every_row_once_in_an_order_of_its_own():
    epochs = [[row_at(position, 7, seed=3) for position in range(7 * epoch, 7 * epoch + 7)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and len(set(map(tuple, epochs))) == 3
    for number, epoch in enumerate(epochs):  # checkpoints rely on this stream
        assert epoch == np.random.default_rng([3, 11, number]).permutation(7).tolist()


def test_steps_follow_one_another_also_across_epochs_and_in_any_order_of_calls():
    order = [row_at(position, 5, seed=1) for position in range(12)]
    for step in (3, 0, 2, 1):
        assert batch_indices(step, 3, 5, seed=1) == order[3 * step : 3 * step + 3]


@pytest.mark.parametrize(("epochs", "num_processes", "steps"), [(1.0, 1, 2), (1.0, 2, 1), (0.29, 1, 1), (2.0, 1, 5), (1.0, 8, 1)])
def test_an_incomplete_last_step_is_dropped_unless_it_is_the_only_one(epochs, num_processes, steps):
    settings = {"num_train_epochs": epochs, "per_device_train_batch_size": 4, "max_steps": -1}
    config = SFTConfig(model_name_or_path="x", dataset_name="x", output_dir="x", **settings)
    assert total_steps(config, 10, num_processes) == steps


@pytest.mark.parametrize(("num_rows", "num_minibatches"), [(1, 2), (3, 2), (8, 2), (12, 5), (16, 3), (7, 7)])
def test_random_minibatches_cover_every_row_once(num_rows, num_minibatches):
    groups = random_minibatches(num_rows, num_minibatches, seed=3)
    assert sorted(i for group in groups for i in group) == list(range(num_rows))
    sizes = [len(group) for group in groups]
    assert len(groups) == min(num_minibatches, num_rows) and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("num_processes", [2, 4, 8])
def test_random_minibatches_give_each_process_its_share(num_processes):
    for seed in range(20):
        for group in random_minibatches(16, 2, seed):
            shares = [sum(i % num_processes == process for i in group) for process in range(num_processes)]
            assert shares == [8 // num_processes] * num_processes


def test_random_minibatches_differ_between_seeds():
    assert len({str(random_minibatches(16, 2, seed)) for seed in range(20)}) > 15
