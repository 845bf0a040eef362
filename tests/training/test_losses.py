"""Losses against hand-computed numbers; a flipped sign fails a test."""

import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from mmrlhf.training import losses
from mmrlhf.training.ppo import advantages


def test_sft_is_the_mean_negative_logp_and_micro_batches_add_up():
    logps, mask = tensor([[-1.0, -3.0, -50.0], [-2.0, -4.0, -6.0]]), tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    assert losses.sft(logps[:1], mask[:1], 2).item() == 2.0
    assert losses.sft(logps, mask, 4).item() == 3.5
    assert losses.sft(logps[:1], mask[:1], 4).item() + losses.sft(logps[1:], mask[1:], 4).item() == 3.5


@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 1000))
def test_losses_ignore_wider_padding(length, extra, seed):
    torch.manual_seed(seed)
    a, b, c, d = (torch.randn(2, length) for _ in range(4))
    mask = torch.ones(2, length)
    mask[1, max(1, length - 1) :] = 0

    def wide(x):
        return torch.nn.functional.pad(x, (0, extra), value=7.0) if x is not mask else torch.nn.functional.pad(x, (0, extra))

    scores, alone = tensor([1.0, -2.0]), Accelerator(cpu=True)
    for function, given_ in (
        (lambda x, y, z, w, m: losses.sft(x, m, 3.0), (a, b, c, d)),
        (lambda x, y, z, w, m: advantages.token_rewards(scores, x, m, 0.1).sum(1), (a, b, c, d)),
        (lambda x, y, z, w, m: advantages.gae(x * m, y, m, 0.9, 0.8)[0][:, :length], (a, b, c, d)),
        (lambda x, y, z, w, m: advantages.whiten(alone, x, m)[:, :length], (a, b, c, d)),
    ):
        assert torch.allclose(function(*given_, mask), function(*map(wide, given_), wide(mask)), atol=1e-6)


def test_metrics_of_micro_batches_add_up():
    sums = {}
    losses.add_metrics(sums, {"loss": tensor(1.0), "kl": tensor(0.5)})
    losses.add_metrics(sums, {"loss": tensor(2.0), "kl": tensor(-0.25)})
    assert losses.read_metrics(sums) == {"loss": 3.0, "kl": 0.25} and losses.read_metrics({}) == {}
