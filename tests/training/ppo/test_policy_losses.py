"""Losses of policy and critic, and KL estimators, against arithmetic that fits on paper."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from mmrlhf.training.ppo import policy_losses
from mmrlhf.training.ppo.policy_losses import Aggregation

ONE_TOKEN = Aggregation("dapo", num_tokens=1, num_answers=1, max_tokens=1)


def policy_loss(ratios, advantage_list, mask=None, aggregate=None, **settings):
    """Return loss and metrics of answers with these ratios of new to old probabilities."""
    logps, mask = tensor(ratios).log(), torch.ones(len(ratios), len(ratios[0])) if mask is None else tensor(mask)
    aggregate = aggregate or Aggregation("dapo", mask.sum(), len(ratios), len(ratios[0]))
    return policy_losses.ppo_policy(
        logps, torch.zeros_like(logps), tensor(advantage_list), mask, aggregate, **{"cliprange": 0.2, **settings}
    )


# ---- KL ------------------------------------------------------------------------------------------


def test_kl_estimators_match_hand_computation():
    # The policy is surer than the reference by log 2, and less sure by log 2.
    # k2: log(2)^2 / 2 = 0.2402 twice. k3: 1/2 - 1 + log 2 = 0.1931, 2 - 1 - log 2 = 0.3069.
    policy, reference, log2 = tensor([[0.0, -1.0, -3.0]]), tensor([[-math.log(2), -1 + math.log(2), -3.0]]), math.log(2)
    assert policy_losses.kl("k1", policy, reference).tolist()[0] == pytest.approx([log2, -log2, 0])
    assert policy_losses.kl("k2", policy, reference).tolist()[0] == pytest.approx([0.2402, 0.2402, 0], abs=1e-4)
    assert policy_losses.kl("k3", policy, reference).tolist()[0] == pytest.approx([0.1931, 0.3069, 0], abs=1e-4)


def test_kl_estimators_agree_with_the_exact_kl_of_two_coins():
    """Over what a policy samples, k1 and k3 are unbiased, and so is the gradient of k2."""
    logit = tensor(0.4, requires_grad=True)
    logps = torch.log_softmax(torch.stack([logit, tensor(0.0)]), 0)
    reference = torch.log_softmax(tensor([-0.1, 0.0]), 0)
    exact = (logps.exp() * (logps - reference)).sum()
    (exact_gradient,) = torch.autograd.grad(exact, logit, retain_graph=True)
    for name, relative in (("k1", 1e-5), ("k3", 1e-5), ("k2", 0.1)):
        mean = (logps.exp() * policy_losses.kl(name, logps, reference)).sum()
        assert mean.item() == pytest.approx(exact.item(), rel=relative), name
    samples = logps.exp().detach()  # sampled answers, so that only their log-probs have a gradient
    gradients = {
        name: torch.autograd.grad((samples * policy_losses.kl(name, logps, reference)).sum(), logit, retain_graph=True)[0]
        for name in ("k1", "k2")
    }
    assert gradients["k2"].item() == pytest.approx(exact_gradient.item(), rel=1e-5)
    assert gradients["k1"].item() == pytest.approx(0, abs=1e-6)  # why k1 is refused in the loss


def test_kl_k3_of_an_impossible_token_is_finite():
    k3 = policy_losses.kl_k3(tensor([[-500.0]]), tensor([[-1.0]]))
    assert k3.isfinite().all() and k3.item() > 1e8


# ---- aggregation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss_type", "expected"), [("dapo", 13 / 4), ("grpo", (2 + 7) / 2), ("dr_grpo", 13 / 10)])
def test_aggregation_matches_hand_computation(loss_type, expected):
    # Tokens 1, 2, 3 | 7: mean 13/4, means of answers 2 and 7, two answers of at most 5 tokens.
    aggregate = Aggregation(loss_type, num_tokens=tensor(4.0), num_answers=2, max_tokens=5)
    assert aggregate(tensor([[1.0, 2.0, 3.0], [7.0, 50.0, 50.0]]), tensor([[1.0, 1, 1], [1, 0, 0]])).item() == pytest.approx(
        expected
    )


@given(st.sampled_from(["dapo", "grpo", "dr_grpo"]), st.lists(st.integers(1, 5), min_size=2, max_size=6), st.integers(0, 99))
def test_parts_of_a_minibatch_add_up_to_the_whole(loss_type, lengths, seed):
    """Micro-batches and processes divide by global counts, so no way to split changes the loss."""
    torch.manual_seed(seed)
    values = torch.randn(len(lengths), 5)
    mask = torch.stack([(torch.arange(5) < length).float() for length in lengths])
    aggregate = Aggregation(loss_type, num_tokens=mask.sum(), num_answers=len(lengths), max_tokens=5)
    parts = sum(aggregate(values[i : i + 2], mask[i : i + 2]) for i in range(0, len(lengths), 2))
    assert parts.item() == pytest.approx(aggregate(values, mask).item(), abs=1e-5)


# ---- policy --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "clipped"),
    [(1.5, 1.0, -1.2, 1), (0.5, 1.0, -0.5, 0), (1.5, -1.0, 1.5, 0), (0.5, -1.0, 0.8, 1)],
)
def test_ppo_policy_clips_only_the_gaining_side(ratio, advantage, expected, clipped):
    loss, metrics = policy_loss([[ratio, 150.0]], [[advantage, 9.0]], [[1.0, 0.0]])
    assert loss.item() == pytest.approx(expected)
    assert metrics["policy/clipfrac_avg"] == clipped and metrics["val/ratio"] == pytest.approx(ratio)
    assert metrics["clip_ratio/high_mean"] == (clipped and ratio > 1) and metrics["clip_ratio/low_mean"] == (
        clipped and ratio < 1
    )


def test_ppo_policy_gradient_raises_good_tokens():
    logps = torch.zeros(1, 2, requires_grad=True)
    aggregate = Aggregation("dapo", 2, 1, 2)
    loss, _ = policy_losses.ppo_policy(
        logps, torch.zeros(1, 2), tensor([[1.0, -1.0]]), torch.ones(1, 2), aggregate, cliprange=0.2
    )
    loss.backward()
    assert logps.grad.tolist() == [[-0.5, 0.5]]  # descent raises the first, lowers the second


def test_default_policy_loss_has_not_changed_by_a_bit():
    """Against the formula as it was before other losses could be chosen, gradients included."""
    torch.manual_seed(0)
    mask = (torch.rand(7, 13) < 0.7).float()
    old, advantages, tokens = torch.randn(7, 13) - 2, torch.randn(7, 13), mask.sum()
    new = (old + 0.3 * torch.randn(7, 13)).requires_grad_()
    loss, _ = policy_losses.ppo_policy(new, old, advantages, mask, Aggregation("dapo", tokens, 7, 13), cliprange=0.2)
    (gradient,) = torch.autograd.grad(loss, new)
    ratio = ((new - old) * mask).clamp(-20, 20).exp()
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - 0.2, 1 + 0.2)
    expected = (torch.maximum(unclipped, clipped) * mask).sum() / tokens
    (expected_gradient,) = torch.autograd.grad(expected, new)
    assert torch.equal(loss, expected) and torch.equal(gradient, expected_gradient)


@pytest.mark.parametrize(("ratio", "advantage", "expected"), [(1.25, 1.0, -1.25), (1.5, 1.0, -1.28), (0.5, -1.0, 0.8)])
def test_epsilon_high_widens_the_upper_side_only(ratio, advantage, expected):
    loss, _ = policy_loss([[ratio]], [[advantage]], epsilon_high=0.28)
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "cut"),
    [(9.0, -1.0, 3.0, 1), (2.0, -1.0, 2.0, 0), (9.0, 1.0, -1.2, 0), (0.5, -1.0, 0.8, 0), (9.0, -2.0, 6.0, 1)],
)
def test_delta_bounds_the_loss_of_bad_tokens_only(ratio, advantage, expected, cut):
    loss, metrics = policy_loss([[ratio]], [[advantage]], delta=3.0)
    assert loss.item() == pytest.approx(expected) and metrics["clip_ratio/delta_mean"] == cut


def test_a_token_beyond_delta_has_no_gradient():
    logps = tensor([[math.log(9.0), math.log(2.0)]], requires_grad=True)
    aggregate = Aggregation("dapo", 1, 1, 2)
    loss, _ = policy_losses.ppo_policy(
        logps, torch.zeros(1, 2), -torch.ones(1, 2), torch.ones(1, 2), aggregate, cliprange=0.2, delta=3.0
    )
    loss.backward()
    assert logps.grad.tolist()[0] == pytest.approx([0, 2])


def test_sequence_ratio_is_the_geometric_mean_over_an_answer():
    # Ratios 4 and 1 have the geometric mean 2, clipped to 1.2; with A > 0, a lone 0.5 is not.
    ratios, mask = [[4.0, 1.0, 150.0], [0.5, 150.0, 150.0]], [[1.0, 1, 0], [1, 0, 0]]
    aggregate = Aggregation("grpo", num_tokens=3, num_answers=2, max_tokens=3)
    loss, metrics = policy_loss(ratios, [[1.0] * 3, [1.0] * 3], mask, aggregate, level="sequence")
    assert loss.item() == pytest.approx(-(1.2 + 0.5) / 2)
    assert metrics["val/ratio"] == pytest.approx((2 + 2 + 0.5) / 3) and metrics["policy/clipfrac_avg"] == pytest.approx(2 / 3)


def test_sequence_ratio_has_the_gradient_of_gspo():
    """That of the mean over answers of s A, s the geometric mean: s A / (tokens x answers)."""
    logps = tensor([[0.1, -0.05], [0.02, 0.0]], requires_grad=True)
    mask, advantages = tensor([[1.0, 1.0], [1.0, 0.0]]), tensor([[2.0, 2.0], [-1.0, -1.0]])
    aggregate = Aggregation("grpo", 3, 2, 2)
    loss, _ = policy_losses.ppo_policy(logps, torch.zeros(2, 2), advantages, mask, aggregate, cliprange=0.2, level="sequence")
    loss.backward()
    first, second = -2 * math.exp(0.025) / 4, math.exp(0.02) / 2
    assert logps.grad.flatten().tolist() == pytest.approx([first, first, second, 0])


# ---- critic --------------------------------------------------------------------------------------


def test_importance_weights_are_the_ratio_of_trainer_to_engine_up_to_the_cap():
    # The trainer gives the first token half the engine's probability, the second 1.5 times, the
    # third four times (capped), and the last is padding.
    engine = tensor([[0.4, 0.2, 0.1, 0.5]]).log()
    trainer = tensor([[0.2, 0.3, 0.4, 0.25]], requires_grad=True).log()
    mask = tensor([[1.0, 1.0, 1.0, 0.0]])
    weights = policy_losses.importance_weights("token", trainer, engine, mask, cap=2)
    assert weights.tolist()[0] == pytest.approx([0.5, 1.5, 2, 1]) and not weights.requires_grad
    # An answer's: the geometric mean of 0.5, 1.5 and 4 is 3^(1/3) = 1.442.
    weights = policy_losses.importance_weights("sequence", trainer, engine, mask, cap=2)
    assert weights.tolist()[0][:3] == pytest.approx([1.442] * 3, abs=1e-3)


def test_weighted_policy_loss_matches_hand_computation():
    # Ratios of 1, advantages of 1 and -1: losses of -1 and 1. Weighted, 0.5 x -1 + 2 x 1 = 1.5, and
    # half of it per token.
    loss, metrics = policy_loss([[1.0, 1.0]], [[1.0, -1.0]], weights_BT=tensor([[0.5, 2.0]]))
    assert loss.item() == pytest.approx(0.75) and metrics["val/ratio"] == pytest.approx(1)


def test_weights_make_the_gradient_that_of_the_trainers_policy():
    """Over what an engine samples, the weighted gradient is that over the trainer's own samples."""
    logit = tensor(0.4, requires_grad=True)
    logps = torch.log_softmax(torch.stack([logit, tensor(0.0)]), 0)
    engine_logps, advantages = tensor([0.3, 0.7]).log(), tensor([2.0, -1.0])
    (expected,) = torch.autograd.grad(-(logps.exp() * advantages).sum(), logit, retain_graph=True)
    aggregate, mask = Aggregation("dapo", 1, 1, 1), torch.ones(1, 1)
    losses = [
        policy_losses.ppo_policy(
            logps[i].view(1, 1), logps[i].detach().view(1, 1), advantages[i].view(1, 1), mask, aggregate, cliprange=0.2,
            weights_BT=policy_losses.importance_weights("token", logps[i].view(1, 1), engine_logps[i].view(1, 1), mask, cap=9),
        )[0]
        for i in range(2)
    ]  # fmt: skip
    (gradient,) = torch.autograd.grad(sum(p * loss for p, loss in zip((0.3, 0.7), losses, strict=True)), logit)
    assert gradient.item() == pytest.approx(expected.item(), rel=1e-5)


def test_ppo_value_takes_worse_of_clipped_and_unclipped():
    # The value moved from 0 to 3, and the target is 4: squared error 1, or 9 when clipped to 1.
    def value_loss(value):
        return policy_losses.ppo_value(tensor([[value]]), tensor([[0.0]]), tensor([[4.0]]), tensor([[1.0]]), 1.0, 1)

    loss, metrics = value_loss(3.0)
    assert loss.item() == 4.5 and metrics["val/clipfrac_avg"] == 1
    loss, metrics = value_loss(0.5)
    assert loss.item() == pytest.approx(0.5 * 3.5**2) and metrics["val/clipfrac_avg"] == 0


def test_ppo_value_counts_no_rounding_as_clipping():
    # In float32, 3.3 + (0.1 - 3.3) is not 0.1, so one of two opposite targets would be further off.
    new, old, targets = tensor([[0.1, 0.1]]), tensor([[3.3, 3.3]]), tensor([[4.0, -4.0]])
    assert (old + (new - old) != new).all()
    loss, metrics = policy_losses.ppo_value(new, old, targets, torch.ones(1, 2), 5.0, 2)
    assert metrics["val/clipfrac_avg"] == 0 and loss.item() == pytest.approx((3.9**2 + 4.1**2) / 4)


@given(
    st.integers(1, 5), st.integers(0, 4), st.sampled_from(["dapo", "grpo", "dr_grpo"]), st.sampled_from(["token", "sequence"]),
    st.integers(0, 1000),
)  # fmt: skip
def test_losses_ignore_wider_padding(length, extra, loss_type, level, seed):
    torch.manual_seed(seed)
    new, old, advantages = (torch.randn(2, length) for _ in range(3))
    mask = torch.ones(2, length)
    mask[1, max(1, length - 1) :] = 0
    aggregate = Aggregation(loss_type, mask.sum(), 2, 10)

    def losses(*tensors):
        *values, mask_BT = tensors
        policy, _ = policy_losses.ppo_policy(*values, mask_BT, aggregate, cliprange=0.2, epsilon_high=0.3, delta=3.0, level=level)
        value, _ = policy_losses.ppo_value(*values, mask_BT, 0.2, mask.sum())
        return torch.stack([policy, value])

    padded = (torch.nn.functional.pad(x, (0, extra), value=0.0 if x is mask else 7.0) for x in (new, old, advantages, mask))
    assert torch.allclose(losses(new, old, advantages, mask), losses(*padded), atol=1e-6)
