"""The groups of a PPO step's rows: whole, random, and spread evenly over processes."""

import pytest

from mmrlhf.training.optim import random_minibatches


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
