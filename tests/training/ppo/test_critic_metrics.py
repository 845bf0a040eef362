"""Metrics of the critic and the reward model, against arithmetic that fits on paper."""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import tensor

from mmrlhf.rewards.ledger import RewardBreakdown
from mmrlhf.training.ppo import critic_metrics
from mmrlhf.training.ppo.batch import PPOBatch
from tests.helpers.stages import ppo_config

MASK = tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


class Completions:
    """Only the mask of sampled answers."""

    mask_NT = MASK.bool()


def batch(values, returns=((0.0,) * 3,) * 2, advantages=((0.0,) * 3,) * 2, scores=(1.0, 2.0)):
    breakdowns = [RewardBreakdown({"fact_rm": 2 * s}, {}, {"fact_rm": s}, {"fact_rm": 2.0}) for s in scores]
    zeros = torch.zeros(2, 3)
    return PPOBatch(
        samples=[], breakdowns=breakdowns, completions=Completions(), critic_prompts=[], old_logps_NT=zeros, ref_logps_NT=zeros,
        rewards_NT=zeros, advantages_NT=tensor(advantages), values_NT=tensor(values), returns_NT=tensor(returns), kl_coef=0.1,
        value_clip=0.2,
    )  # fmt: skip


def test_value_metrics_match_hand_computation():
    # Returns 1, 3 and 5: mean 3, variance 8/3. Values off by 1, 0 and 1: squared errors 2/3.
    metrics = critic_metrics.value_metrics(
        Accelerator(cpu=True), batch([[2.0, 3, 99], [4, 99, 99]], [[1.0, 3, -99], [5, 99, 99]])
    )
    assert metrics["critic/vf_explained_var"] == pytest.approx(1 - (2 / 3) / (8 / 3))
    assert metrics["critic/returns/std"] == pytest.approx((8 / 3) ** 0.5)
    assert [metrics[f"critic/values/{name}"] for name in ("mean", "min", "max")] == [3, 2, 4]


def test_advantages_that_teach_nothing_are_counted():
    metrics = critic_metrics.advantage_metrics(
        Accelerator(cpu=True), batch([[0.0] * 3] * 2, advantages=[[0.0, -3, 9], [0, 9, 9]])
    )
    assert metrics["critic/advantages/zero_share"] == 0.5
    assert [metrics[f"critic/advantages/{name}"] for name in ("mean", "min", "max")] == [-1, -3, 0]


def test_reward_model_is_told_from_the_critic():
    """The critic is read before the last token; scores are those of the model, without weight."""
    agreeing = batch([[9.0, 1, -9], [5, 9, 9]])
    metrics = critic_metrics.reward_model_metrics(agreeing, has_critic=True)
    assert metrics == {
        "reward_model/score/mean": 1.5, "reward_model/score/std": 0.5, "critic/reward_model_rank_correlation": pytest.approx(1),
    }  # fmt: skip
    assert "critic/reward_model_rank_correlation" not in critic_metrics.reward_model_metrics(agreeing, has_critic=False)
    rules_only = replace(agreeing, breakdowns=[RewardBreakdown({"length": 1.0}, {}, {"length": 1.0}, {"length": 1.0})] * 2)
    assert critic_metrics.reward_model_metrics(rules_only, has_critic=True) == {}


def test_rank_correlation_matches_hand_computation():
    # Ranks 1, 2, 3 and 1, 3, 2: 1 - 6 (0 + 1 + 1) / (3 x 8) = 0.5
    assert critic_metrics.rank_correlation(tensor([0.1, 0.2, 9.0]), tensor([-5.0, 3.0, 2.0])) == pytest.approx(0.5)
    # Ties share a rank: 1.5, 1.5, 3 and 1, 2, 3
    assert critic_metrics.rank_correlation(tensor([1.0, 1, 2]), tensor([1.0, 2, 3])) == pytest.approx(1.5 / 3**0.5)
    assert critic_metrics.rank_correlation(tensor([1.0, 1.0]), tensor([1.0, 2.0])) == 0
    # Rounding does not rank: 1.5, 1.5, 3 again
    assert critic_metrics.rank_correlation(tensor([-1.000001, -1, 2]), tensor([1.0, 2, 3])) == pytest.approx(1.5 / 3**0.5)
    assert critic_metrics.rank_correlation(tensor([0.0, 0.0]), tensor([1.0, 2.0])) == 0


def test_a_critic_that_can_hardly_move_is_noted(tmp_path):
    config, metrics = ppo_config("m", None, tmp_path), {"critic/returns/mean": 30.0, "critic/returns/std": 40.0}
    note = critic_metrics.value_clip_note(config, metrics)
    assert note.startswith("note: returns are about 50, and cliprange_value lets values move by 0.2 in a step")
    assert critic_metrics.value_clip_note(replace(config, cliprange_value_unit="returns"), metrics) == ""
    assert critic_metrics.value_clip_note(config, {"critic/returns/mean": 0.0, "critic/returns/std": 2.0}) == ""
