"""Losses of direct preference optimisation, computed by hand; a flipped sign fails a test."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from mmrlhf.config import DPOConfig
from mmrlhf.records import InputError
from mmrlhf.training.dpo import losses
from mmrlhf.training.dpo.losses import LogRatios, changed_tokens, comparison_loss

THREE = tensor([math.log(3.0)])


def ratios(better, worse, better_length=1.0, worse_length=1.0):
    return LogRatios(*(tensor([value]) for value in (better, worse, better_length, worse_length)))


def test_sigmoid_matches_hand_computation():
    assert losses.sigmoid(THREE, 1.0).item() == pytest.approx(math.log(4 / 3))  # sigmoid(log 3) = 3/4
    assert losses.sigmoid(THREE, 2.0).item() == pytest.approx(math.log(10 / 9))  # sigmoid(log 9) = 9/10
    assert losses.sigmoid(-THREE, 1.0).item() == pytest.approx(math.log(4))
    # A tenth of the labels flipped: nine tenths of -log 3/4, a tenth of -log 1/4.
    expected = 0.9 * math.log(4 / 3) + 0.1 * math.log(4)
    assert losses.sigmoid(THREE, 1.0, label_smoothing=0.1).item() == pytest.approx(expected)


def test_robust_is_unbiased_under_flipped_labels():
    # (0.9 log 4/3 - 0.1 log 4) / 0.8
    expected = (0.9 * math.log(4 / 3) - 0.1 * math.log(4)) / 0.8
    assert losses.robust(THREE, 1.0, 0.1).item() == pytest.approx(expected)
    # Its mean over labels, a tenth of them flipped, is the loss on the true ones.
    mean = 0.9 * losses.robust(THREE, 1.0, 0.1) + 0.1 * losses.robust(-THREE, 1.0, 0.1)
    assert mean.item() == pytest.approx(math.log(4 / 3), rel=1e-5)


def test_ipo_is_the_squared_distance_from_the_target_gap():
    assert losses.ipo(tensor([5.0, 4.0, 7.0]), 0.1).tolist() == pytest.approx([0.0, 1.0, 4.0])  # 1 / (2 x 0.1) = 5


def test_hinge_is_zero_beyond_the_margin():
    assert losses.hinge(tensor([5.0, 10.0, 20.0, -10.0]), 0.1).tolist() == pytest.approx([0.5, 0.0, 0.0, 2.0])


def test_bco_pair_and_anchor_look_at_each_answer_by_itself():
    # -log sigmoid(log 3) - log sigmoid(log 3): the worse answer's ratio is -log 3
    assert losses.bco_pair(THREE, -THREE, 1.0).item() == pytest.approx(2 * math.log(4 / 3))
    assert losses.bco_pair(-THREE, THREE, 1.0).item() == pytest.approx(2 * math.log(4))
    assert losses.anchor(THREE, 1.0).item() == pytest.approx(math.log(4 / 3))
    assert losses.anchor(-THREE, 1.0).item() == pytest.approx(math.log(4))


def test_losses_per_token_divide_each_answer_by_its_own_length():
    # 2 log 3 over 2 tokens is log 3 per token; the worse answer's is 0.
    pair = ratios(2 * math.log(3.0), 0.0, better_length=2.0, worse_length=7.0)
    assert comparison_loss("sigmoid_norm", pair, 1.0).item() == pytest.approx(math.log(4 / 3))
    assert comparison_loss("sigmoid", pair, 1.0).item() == pytest.approx(math.log(10 / 9))
    # 10 over 2 tokens minus 3 over 3 is 4, one from the target of 5.
    assert comparison_loss("ipo", ratios(10.0, 3.0, 2.0, 3.0), 0.1).item() == pytest.approx(1.0)


@pytest.mark.parametrize("loss_type", [name for name in losses.LOSS_TYPES if name != "sft"])
def test_every_loss_raises_the_better_answer_and_lowers_the_worse(loss_type):
    better, worse = tensor([0.1], requires_grad=True), tensor([0.2], requires_grad=True)
    comparison_loss(loss_type, LogRatios(better, worse, tensor([3.0]), tensor([2.0])), 0.1).sum().backward()
    assert better.grad.item() < 0 < worse.grad.item()


# ---- settings ------------------------------------------------------------------------------------


def config(**settings):
    return DPOConfig(model_name_or_path="x", dataset_name="x", output_dir="x", **settings)


def test_loss_weights_pair_types_with_weights():
    assert losses.loss_weights(config()) == {"sigmoid": 1.0}
    mpo = config(loss_type="sigmoid, bco_pair,sft", loss_weights="0.8,0.2, 1")
    assert losses.loss_weights(mpo) == {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "sigmod"}, "loss_type 'sigmod' is not one of sigmoid, sigmoid_norm, ipo,"),
        ({"loss_type": "sigmoid,,sft"}, "loss_type 'sigmoid,,sft' is not one of"),
        ({"loss_type": "sft,sft"}, "loss_type names sft twice"),
        ({"loss_weights": "1,2"}, r"loss_weights has 2 numbers, and loss_type 1 losses \(sigmoid\)"),
        ({"loss_weights": "much"}, "loss_weights 'much' must be numbers from 0 up"),
        ({"loss_weights": "nan"}, "loss_weights 'nan' must be numbers from 0 up"),
        ({"loss_weights": "-1"}, "loss_weights '-1' must be numbers from 0 up"),
        ({"loss_weights": "0"}, "loss_weights are all 0"),
    ],
)
def test_loss_weights_refuse_what_makes_no_sense(settings, message):
    with pytest.raises(InputError, match=message):
        losses.loss_weights(config(**settings))


# ---- corrected answers ---------------------------------------------------------------------------


def test_changed_tokens_are_those_outside_the_matching_blocks():
    # 1 [2] 3 4 [5 6] against 1 [7] 3 4: a replaced token, and two that were removed
    first, second = changed_tokens([1, 2, 3, 4, 5, 6], [1, 7, 3, 4])
    assert first.tolist() == [False, True, False, False, True, True] and second.tolist() == [False, True, False, False]


@given(st.lists(st.integers(0, 4), max_size=12), st.lists(st.integers(0, 4), max_size=12))
def test_unchanged_tokens_are_the_same_subsequence_of_both(first, second):
    is_changed, other_is_changed = changed_tokens(first, second)
    kept = [token for token, changed in zip(first, is_changed.tolist(), strict=True) if not changed]
    assert kept == [token for token, changed in zip(second, other_is_changed.tolist(), strict=True) if not changed]
    if first == second:
        assert not torch.cat([is_changed, other_is_changed]).any()
