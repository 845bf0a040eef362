"""The invariants that stop a run before it trains on wrong log-probs."""

import math

import pytest
import torch

from mmrlhf.training.ppo.batch import check_first_ratio, check_policy_is_reference


@pytest.mark.parametrize("kl", [0.002, -0.002, math.nan])
def test_check_policy_is_reference_stops_at_a_difference(kl):
    check_policy_is_reference(torch.tensor([[0.0, 0.0005]]), "float32")
    with pytest.raises(RuntimeError, match="policy and reference differ"):
        check_policy_is_reference(torch.tensor([[0.0, kl]]), "float32")


@pytest.mark.parametrize("ratio", [1.002, 0.998, math.nan])
def test_check_first_ratio_stops_at_a_ratio_that_is_not_one(ratio):
    check_first_ratio(1.0005)
    with pytest.raises(RuntimeError, match="the first ratio is"):
        check_first_ratio(ratio)
