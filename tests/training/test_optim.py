"""The groups of a PPO step's rows: whole, random, and spread evenly over processes."""

import pytest
import torch

from mmrlhf.training import optim
from mmrlhf.training.optim import optimizer_step


class TwoProcesses:
    """Two processes with the same gradients; counts what they exchange."""

    num_processes = 2

    def __init__(self):
        self.num_exchanges = 0

    def reduce(self, tensor, reduction):
        assert reduction == "sum"
        self.num_exchanges += 1
        return tensor + tensor


def test_optimizer_step_sums_the_gradients_of_a_dtype_in_one_exchange():
    parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape, dtype in
                  (((2, 3), torch.float32), ((4,), torch.float64), ((1,), torch.float32))]  # fmt: skip
    for number, parameter in enumerate(parameters[:2], 1):
        parameter.grad = torch.full_like(parameter, number)  # and none in the third
    processes = TwoProcesses()
    norm = optimizer_step(processes, torch.optim.SGD(parameters, lr=1.0), parameters, max_grad_norm=1e9)
    assert processes.num_exchanges == 2 and norm == pytest.approx((6 * 2**2 + 4 * 4**2) ** 0.5)
    assert [parameter.unique().tolist() for parameter in parameters] == [[-2], [-4], [0]]


@pytest.mark.parametrize(("bucket_size", "num_exchanges"), [(1, 4), (4, 3), (6, 2), (100, 1)])
def test_optimizer_step_exchanges_gradients_in_buckets(monkeypatch, bucket_size, num_exchanges):
    """Of 3, 2, 1 and 4 values: copies of all gradients at once would take as much memory again."""
    monkeypatch.setattr(optim, "BUCKET_SIZE", bucket_size)
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in (3, 2, 1, 4)]
    for number, parameter in enumerate(parameters, 1):
        parameter.grad = torch.full_like(parameter, number)
    processes = TwoProcesses()
    optimizer_step(processes, torch.optim.SGD(parameters, lr=1.0), parameters, max_grad_norm=1e9)
    assert processes.num_exchanges == num_exchanges
    assert [parameter.unique().tolist() for parameter in parameters] == [[-2], [-4], [-6], [-8]]
