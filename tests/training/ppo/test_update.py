"""The tokens that policy and critic learn from, counted over micro-batches and processes."""

from types import SimpleNamespace

import pytest
import torch
from torch import tensor

from mmrlhf.training.ppo import policy_losses, update
from mmrlhf.training.ppo.policy_losses import Aggregation
from tests.helpers.stages import ppo_config


def config_of(**settings):
    return ppo_config("m", None, "o", **settings)


def batch_of(finished):
    """Return two answers, of two tokens and of three."""
    completions = SimpleNamespace(finished_N=tensor(finished))
    return SimpleNamespace(mask_NT=tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]), completions=completions)


@pytest.mark.parametrize(
    ("loss_type", "all_learnt", "without_second"),
    [
        ("dapo", -(2 * 1 - 3 * 1) / 5, -2 / 2),  # over the tokens that are left
        ("grpo", -(1 - 1) / 2, -1 / 2),  # over all answers, as in TRL
        ("dr_grpo", -(2 * 1 - 3 * 1) / (2 * 4), -2 / (2 * 4)),
    ],
)
def test_answers_that_are_cut_off_are_left_out_of_the_policy_loss(loss_type, all_learnt, without_second):
    """Ratios are 1, and the advantages 1 and -1; the second answer is cut off."""
    logps = torch.zeros(2, 3, requires_grad=True)
    advantages = tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]])
    for masked, expected in ((False, all_learnt), (True, without_second)):
        mask = update.policy_mask(config_of(mask_truncated_completions=masked), batch_of([True, False]))
        aggregate = Aggregation(loss_type, mask.sum(), num_answers=2, max_tokens=4)
        loss, metrics = policy_losses.ppo_policy(logps, torch.zeros(2, 3), advantages, mask, aggregate, cliprange=0.2)
        (gradient,) = torch.autograd.grad(loss, logps)
        assert loss.item() == pytest.approx(expected) and bool(gradient[1].any()) is not masked
        assert metrics["val/ratio"] == pytest.approx(1)  # a mean over the tokens that are left


@pytest.mark.parametrize(
    ("masked", "finished", "num_policy_tokens"),
    [(False, [True, False], 10), (True, [True, False], 4), (True, [False, False], 1)],
)
def test_the_policy_loss_counts_the_tokens_that_are_left_on_all_processes(monkeypatch, masked, finished, num_policy_tokens):
    """Two processes, each with the same two answers; the value loss counts all ten tokens."""
    calls = []

    def gradients(config, accelerator, roles, minibatch, aggregate, num_tokens, ptx):
        calls.append((float(aggregate.num_tokens), aggregate.num_answers, float(num_tokens)))
        return {"loss/policy_avg": 0.0, "val/ratio": 0.0 if not any(finished) else 0.5}  # 1 on both

    monkeypatch.setattr(update, "compute_gradients", gradients)
    monkeypatch.setattr(update, "sum_over_processes", lambda sums: {name: 2 * value for name, value in sums.items()})
    monkeypatch.setattr(update, "optimizer_step", lambda *_: 0.0)
    accelerator = SimpleNamespace(reduce=lambda own, _: 2 * own)
    budget = SimpleNamespace(retry_on_oom=lambda function, *args: function(*args))
    roles, attempt = SimpleNamespace(vlm=SimpleNamespace(budget=budget), trained=[]), SimpleNamespace(numbers={})
    config = config_of(mask_truncated_completions=masked, num_generations=2)
    update.update_minibatch(config, accelerator, None, roles, batch_of(finished), 2, None, attempt, is_on_policy=True)
    assert calls == [(num_policy_tokens, 4, 10)]
    assert (attempt.numbers["num_policy_tokens"], attempt.numbers["num_tokens"]) == (num_policy_tokens, 10)
