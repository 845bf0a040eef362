"""Losses of preferences against hand-computed numbers; a flipped sign fails a test."""

import math

import pytest
import torch
from torch import tensor

from mmrlhf.training.reward_model import losses


def test_bradley_terry_matches_hand_computation():
    three, zero = tensor([math.log(3.0)]), tensor([0.0])
    assert losses.bradley_terry(three, zero).item() == pytest.approx(math.log(4 / 3))  # sigmoid(log 3) = 3/4
    assert losses.bradley_terry(zero, three).item() == pytest.approx(math.log(4))
    assert losses.bradley_terry(tensor([1.0, 2.0]), tensor([0.0, 0.0])).shape == (2,)


def test_bradley_terry_margin_matches_hand_computation():
    # sigmoid(log 3 - log 3) = 1/2; sigmoid(log 3 + log 3) = 9/10
    three, zero = tensor([math.log(3.0)]), tensor([0.0])
    assert losses.bradley_terry_margin(three, zero, three).item() == pytest.approx(math.log(2))
    assert losses.bradley_terry_margin(three, zero, -three).item() == pytest.approx(math.log(10 / 9))


def test_bradley_terry_smoothed_matches_hand_computation():
    # sigmoid(log 3) = 3/4: nine tenths of -log 3/4, a tenth of -log 1/4
    loss = losses.bradley_terry_smoothed(tensor([math.log(3.0)]), tensor([0.0]), 0.1)
    assert loss.item() == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))
    surest = tensor([math.log(9.0)], requires_grad=True)  # where sigmoid is nine tenths, nothing is left to learn
    losses.bradley_terry_smoothed(surest, tensor([0.0]), 0.1).backward()
    assert surest.grad.item() == pytest.approx(0, abs=1e-6)


def test_rao_kupper_matches_hand_computation():
    # threshold log 2, equal rewards: each wins with 1 / (1 + 2) = 1/3, and the rest is a tie
    equal, threshold = tensor([0.0]), math.log(2.0)
    assert losses.rao_kupper(equal, equal, torch.tensor([False]), threshold).item() == pytest.approx(math.log(3))
    assert losses.rao_kupper(equal, equal, torch.tensor([True]), threshold).item() == pytest.approx(math.log(3))
    # better by log 4: wins with 1 / (1 + 2/4) = 2/3, loses with 1 / (1 + 8) = 1/9, ties with 2/9
    four = tensor([math.log(4.0)])
    assert losses.rao_kupper(four, equal, torch.tensor([False]), threshold).item() == pytest.approx(math.log(3 / 2))
    assert losses.rao_kupper(equal, four, torch.tensor([False]), threshold).item() == pytest.approx(math.log(9))
    assert losses.rao_kupper(four, equal, torch.tensor([True]), threshold).item() == pytest.approx(math.log(9 / 2))


def test_centering_is_the_squared_sum():
    assert losses.centering(tensor([2.0]), tensor([1.0])).tolist() == [9.0]
