"""Advantages and token rewards, against arithmetic that fits on paper."""

import math

import pytest
import torch
from accelerate import Accelerator
from torch import tensor

from mmrlhf.config import PPOConfig
from mmrlhf.training.ppo import advantages

ALONE = Accelerator(cpu=True)
"""A single process."""


def test_token_rewards_put_kl_on_every_token_and_score_on_last():
    kl, mask = tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0]]), tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    rewards = advantages.token_rewards(tensor([10.0, 20.0]), kl, mask, kl_coef=0.5)
    assert rewards.tolist() == [[-0.5, 9.0, 0.0], [18.0, 0.0, 0.0]]


def test_gae_matches_hand_computation():
    # gamma 0.5, lambda 0.5: delta_1 = 4 - 2 = 2; delta_0 = 1 + 0.5 * 2 - 1 = 1; A_0 = 1 + 0.25 * 2
    mask = tensor([[1.0, 1.0, 0.0]])
    estimated, returns = advantages.gae(tensor([[1.0, 4.0, 7.0]]), tensor([[1.0, 2.0, 7.0]]), mask, 0.5, 0.5)
    assert estimated.tolist() == [[1.5, 2.0, 0.0]]
    assert returns.tolist() == [[2.5, 4.0, 0.0]]


def test_gae_with_lambda_one_is_reward_to_go_minus_value():
    rewards, values = tensor([[1.0, 2.0, 3.0]]), tensor([[0.5, 0.5, 0.5]])
    estimated, _ = advantages.gae(rewards, values, torch.ones(1, 3), 1.0, 1.0)
    assert estimated.tolist() == [[5.5, 4.5, 2.5]]


def test_estimate_gae_without_critic_is_reward_to_go():
    mask = tensor([[1.0, 1.0, 0.0]])
    estimated, returns = advantages.estimate(
        "gae", tensor([[1.0, 2.0, 9.0]]), torch.zeros(1, 3), mask, group_size=1, gamma=1.0, lam=1.0
    )
    assert estimated.tolist() == [[3.0, 2.0, 0.0]]
    assert torch.equal(estimated, returns)


def test_estimate_grpo_compares_sums_within_groups():
    # Sums 1 and 3 (mean 2, standard deviation sqrt 2), and 5 and 5.
    rewards = tensor([[0.0, 1.0], [3.0, 0.0], [5.0, 0.0], [2.0, 3.0]])
    mask = tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    estimated, returns = advantages.estimate("grpo", rewards, torch.zeros(4, 2), mask, group_size=2, gamma=1.0, lam=0.95)
    scaled = 1 / (math.sqrt(2) + 1e-4)
    expected = [[-scaled, -scaled], [scaled, 0.0], [0.0, 0.0], [0.0, 0.0]]
    assert estimated.flatten().tolist() == pytest.approx([x for row in expected for x in row])
    assert returns.eq(0).all()


def test_estimate_rloo_compares_with_the_mean_of_the_others():
    # Sums 1, 3 and 8: 1 - 11/2, 3 - 9/2, 8 - 4/2. Equal sums say nothing.
    rewards = tensor([[0.0, 1.0], [3.0, 0.0], [8.0, 0.0], [2.0, 3.0], [5.0, 0.0], [5.0, 0.0]])
    mask = tensor([[1.0, 1], [1, 0], [1, 0], [1, 1], [1, 0], [1, 0]])
    estimated, returns = advantages.estimate("rloo", rewards, torch.zeros(6, 2), mask, group_size=3, gamma=1.0, lam=0.95)
    expected = [[-4.5, -4.5], [-1.5, 0], [6, 0], [0, 0], [0, 0], [0, 0]]
    assert torch.allclose(estimated, tensor(expected)) and returns.eq(0).all()


def test_estimate_reinforce_plus_plus_is_reward_to_go_over_the_step():
    # Rewards to go 3, 2 and 3: mean 8/3, squared deviations (1 + 4 + 1) / 9, variance 2/9
    rewards, mask = tensor([[1.0, 2.0], [3.0, 0.0]]), tensor([[1.0, 1.0], [1.0, 0.0]])
    values = torch.full((2, 2), 7.0)  # nothing reads them
    estimated, _ = advantages.estimate("reinforce_plus_plus", rewards, values, mask, group_size=1, gamma=1.0, lam=0.5)
    assert estimated.tolist() == [[3, 2], [3, 0]]
    scaled = advantages.scale(ALONE, "tokens", estimated, rewards, mask)
    root = math.sqrt(2)
    assert torch.allclose(scaled, tensor([[1 / root, -2 / root], [1 / root, 0]]))
    halved, _ = advantages.estimate("reinforce_plus_plus", rewards, values, mask, group_size=1, gamma=0.5, lam=0.5)
    assert halved.tolist() == [[2, 2], [3, 0]]


def test_estimate_grpo_without_std_is_the_distance_from_the_mean():
    rewards, mask = tensor([[1.0], [5.0], [100.1], [100.1]]), torch.ones(4, 1)
    estimated, _ = advantages.estimate(
        "grpo", rewards, torch.zeros(4, 1), mask, group_size=2, gamma=1.0, lam=1.0, scale_groups=False
    )
    assert estimated.flatten().tolist() == [-2, 2, 0, 0]


def test_scale_by_the_batch_divides_by_the_deviation_of_all_rewards():
    # Rewards 1, 5, 3, 3: mean 3, squared deviations 8 over 3 degrees of freedom
    rewards, mask = tensor([[1.0], [5.0], [3.0], [3.0]]), torch.ones(4, 1)
    scaled = advantages.scale(ALONE, "batch", tensor([[-2.0], [2.0], [0.0], [0.0]]), rewards, mask)
    assert scaled.flatten().tolist() == pytest.approx([-2 / (math.sqrt(8 / 3) + 1e-4), 2 / (math.sqrt(8 / 3) + 1e-4), 0, 0])
    assert advantages.batch_std(ALONE, tensor([4.0])) == 0


def test_root_mean_square_is_over_the_tokens_of_answers():
    assert advantages.rms(ALONE, tensor([[3.0, 4.0, 99.0]]), tensor([[1.0, 1.0, 0.0]])) == pytest.approx(12.5**0.5)


@pytest.mark.parametrize("scaling", ["group", "batch", "answers", "none"])
@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
@pytest.mark.parametrize("score", [100.1, 12345.6, -0.3])
def test_equal_rewards_of_a_group_have_no_advantage_whatever_the_other_groups(estimator, scaling, score):
    rewards = torch.cat([torch.full((7, 1), score), tensor([[0.1], [0.7], [0.2], [0.2], [0.9], [1.3], [-4.0]])])
    estimated, _ = advantages.estimate(
        estimator,
        rewards,
        torch.zeros(14, 1),
        torch.ones(14, 1),
        group_size=7,
        gamma=1.0,
        lam=1.0,
        scale_groups=scaling == "group",
    )
    scaled = advantages.scale(ALONE, scaling, estimated, rewards, torch.ones(14, 1))
    assert scaled[:7].eq(0).all() and scaled[7:].ne(0).any()


def test_whiten_matches_hand_computation():
    whitened = advantages.whiten(ALONE, tensor([[1.0, 3.0, 100.0]]), tensor([[1.0, 1.0, 0.0]]))
    assert whitened.tolist()[0] == pytest.approx([-1, 1, 0])  # mean 2, standard deviation 1
    with_mean = advantages.whiten(ALONE, tensor([[1.0, 3.0, 100.0]]), tensor([[1.0, 1.0, 0.0]]), keep_mean=True)
    assert with_mean.tolist()[0] == pytest.approx([1, 3, 0])


@pytest.mark.parametrize("score", [100.1, 1000.1, 12345.6, -0.3, 1e30])
def test_equal_scores_have_no_advantage(score):
    scores = torch.full((2, 8), score)
    assert torch.equal(advantages.group_advantages(scores), torch.zeros(2, 8))
    assert torch.equal(advantages.whiten(ALONE, scores, torch.ones(2, 8)), torch.zeros(2, 8))
    assert torch.equal(advantages.whiten(ALONE, scores, torch.ones(2, 8), keep_mean=True), scores)


def test_group_advantages_do_not_depend_on_a_common_offset():
    scores = torch.tensor([[1.0, 2.0, 4.0]])
    assert torch.equal(advantages.group_advantages(scores + 1024), advantages.group_advantages(scores))


def test_group_advantages_match_hand_computation():
    # Mean 2, standard deviation 1 (unbiased): -1, 0, 1. Equal scores say nothing.
    estimated = advantages.group_advantages(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    assert torch.allclose(estimated[0], torch.tensor([-1.0, 0.0, 1.0]), atol=1e-3) and torch.equal(estimated[1], torch.zeros(3))
    assert torch.equal(advantages.group_advantages(torch.tensor([[4.0]])), torch.zeros(1, 1))


def test_sums_of_normalised_rewards_are_whitened_over_the_answers_of_a_batch():
    """GDPO: sums 2, -2, 1, -1 have deviation sqrt 2.5. An answer counts once, long or short."""
    rewards, mask = tensor([[0.0, 0.0, 2.0], [-2.0, 9.0, 9.0], [1.0, 9.0, 9.0], [0.0, -1.0, 9.0]]), torch.ones(4, 3)
    mask[1, 1:], mask[2, 1:], mask[3, 2:] = 0, 0, 0
    centred, _ = advantages.estimate(
        "grpo", rewards * mask, torch.zeros(4, 3), mask, group_size=2, gamma=1.0, lam=1.0, scale_groups=False
    )
    assert centred[:, 0].tolist() == [2, -2, 1, -1]  # a group's sums are not scaled to each other's size
    whitened = advantages.scale(ALONE, "answers", centred, rewards, mask)
    assert (whitened * math.sqrt(2.5)).tolist() == [pytest.approx(row) for row in centred.tolist()]


@pytest.mark.parametrize(
    ("settings", "has_critic", "kl_in_loss"),
    [
        ({}, True, False),
        ({"advantage_estimator": "grpo"}, False, True),
        ({"use_critic": False}, False, False),
        ({"advantage_estimator": "grpo", "kl_penalty": "reward"}, False, False),
        ({"kl_penalty": "loss"}, True, True),
        ({"advantage_estimator": "rloo"}, False, False),
        ({"advantage_estimator": "reinforce_plus_plus"}, False, False),
    ],
)
def test_critic_kl_and_estimator_are_separate_settings(settings, has_critic, kl_in_loss):
    config = PPOConfig(model_name_or_path="m", dataset_name="d", output_dir="o", **settings)
    assert (config.has_critic, config.kl_in_loss) == (has_critic, kl_in_loss)
