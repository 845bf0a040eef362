"""What a checkpoint keeps of how rewards are added up, also if it was measured late or changed."""

import pytest

from mmrlhf.rewards.aggregation import build_aggregation
from mmrlhf.rewards.ledger import RewardBreakdown
from mmrlhf.rewards.reward_clip import RewardClip
from tests.helpers.stages import ppo_config
from tests.rewards.test_ledger import make_sample

NORMALIZED = {"multi_objective_aggregation": "normalize_then_sum", "term_statistics": "running"}


def aggregation_of(tmp_path, **settings):
    return build_aggregation(ppo_config("m", None, tmp_path, reward_terms="length=1", response_length=64, **settings), list)


def breakdown_of(value):
    return RewardBreakdown({"r": value}, {}, {"r": value}, {"r": 1.0})


def reward(aggregation, *lengths):
    samples = [make_sample("a", num_tokens=length) for length in lengths]
    return aggregation([breakdown_of(float(length)) for length in lengths], samples)


def test_state_restores_what_was_measured(tmp_path):
    first = aggregation_of(tmp_path, length_bounds="auto", **NORMALIZED)
    reward(first, 4, 8)
    again = aggregation_of(tmp_path, length_bounds="auto", **NORMALIZED)
    again.load_state_dict(first.state_dict())
    assert again.length_bounds.bounds == (4, 8) and again.state_dict() == first.state_dict()


@pytest.mark.parametrize("settings", [{"length_bounds": "auto"}, NORMALIZED])
def test_nothing_is_restored_where_nothing_was_measured(tmp_path, settings):
    """The first steps may have been skipped, or the setting was changed along the way."""
    aggregation = aggregation_of(tmp_path, **settings)
    aggregation.load_state_dict(aggregation_of(tmp_path).state_dict())
    aggregation.load_state_dict({})  # of a checkpoint from before there were any
    if aggregation.length_bounds is not None:
        aggregation.load_state_dict(aggregation_of(tmp_path, length_bounds="auto").state_dict())
    assert [breakdown.total for breakdown in reward(aggregation, 5, 5)] in ([5.0, 5.0], [0.0, 0.0])


def test_changed_bounds_are_those_of_the_settings(tmp_path):
    changed = aggregation_of(tmp_path, length_bounds="10,50")
    changed.load_state_dict(aggregation_of(tmp_path, length_bounds="8,40").state_dict())
    assert changed.length_bounds.bounds == (10, 50)


@pytest.mark.parametrize("value", [6.0, 1e9, 1e17, 1e30, 3e38])
def test_a_clipped_reward_is_the_bound_however_large_it_was(value):
    low, high = RewardClip(-5.0, 5.0)([breakdown_of(-value), breakdown_of(value)])
    assert (low.total, high.total) == (low.answer_total, high.answer_total) == (-5.0, 5.0)


def test_spans_keep_their_rewards_beside_a_clip():
    spans = RewardBreakdown({"r": -7.0}, {"r": [(0, 1, -3.0), (1, 2, -4.0)]}, {"r": -7.0}, {"r": 1.0})
    (clipped,) = RewardClip(-5.0, 5.0)([spans])
    assert clipped.total == -5.0 and clipped.answer_total == 2.0 and clipped.terms["reward_clip"] == 2.0
