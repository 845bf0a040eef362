"""Bounds on the length of an answer that may earn a positive reward."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.records import InputError
from mmrlhf.rewards.ledger import RewardBreakdown, ledger_rows
from mmrlhf.rewards.length_bounds import LengthBounds, excess_rewards, measure_bounds, parse_length_bounds
from mmrlhf.rewards.reward_terms import parse_reward_spec
from tests.rewards.test_ledger import make_sample


def rewards(*terms):
    """Return an answer's rewards, all of weight 1."""
    values = {f"t{i}": value for i, value in enumerate(terms)}
    return RewardBreakdown(values, {}, dict(values), dict.fromkeys(values, 1.0))


def bounded(length, *terms, bounds=(3, 5)):
    (breakdown,) = LengthBounds(bounds, 1)([rewards(*terms)], [make_sample("a", num_tokens=length)], list)
    return breakdown


@pytest.mark.parametrize("length", [3, 4, 5])
def test_answers_within_bounds_keep_their_reward(length):
    assert bounded(length, 2.0, -0.5).terms == {"t0": 2.0, "t1": -0.5, "length_bounds": 0.0}


@pytest.mark.parametrize("length", [0, 2, 6, 900])
def test_answers_outside_keep_only_what_is_negative(length):
    """The sum decides, not its terms: 2 - 0.5 is cut to 0, and 2 - 3 stays -1."""
    assert bounded(length, 2.0, -0.5).terms == {"t0": 2.0, "t1": -0.5, "length_bounds": -1.5}
    assert bounded(length, 2.0, -0.5).total == 0
    assert bounded(length, 2.0, -3.0).total == -1 and bounded(length, 2.0, -3.0).terms["length_bounds"] == 0
    assert bounded(length, 0.0).total == 0


@pytest.mark.parametrize(
    ("totals", "are_inside", "kept"),
    [
        ([1.5, -0.5, -0.5, -0.5], [False, True, True, True], [-0.5, -0.5, -0.5, -0.5]),
        ([1.5, 1.0, -2.0, 0.4], [False, True, True, True], [-0.2, 1.0, -2.0, 0.4]),  # (1 - 2 + 0.4) / 3
        ([2.0, 1.0, 3.0], [False, True, True], [0.0, 1.0, 3.0]),
        ([1.5, -0.5, -3.5], [False, True, False], [-2.0, -0.5, -3.5]),  # a worse one lowers the mean
        ([1.5, -3.0, -1.0], [False, False, False], [-3.0, -3.0, -3.0]),
    ],
)
def test_an_answer_outside_is_never_above_the_mean_of_its_prompt(totals, are_inside, kept):
    excesses = excess_rewards(totals, are_inside)
    assert [total - excess for total, excess in zip(totals, excesses, strict=True)] == pytest.approx(kept)


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.booleans()), min_size=1, max_size=8))
def test_advantages_in_a_group_outside_are_at_most_zero(answers):
    totals, are_inside = zip(*answers, strict=True)
    kept = [total - excess for total, excess in zip(totals, excess_rewards(totals, are_inside), strict=True)]
    mean = sum(kept) / len(kept)
    for total, is_inside, value in zip(totals, are_inside, kept, strict=True):
        assert value == total if is_inside else value <= min(total, 1e-9, mean + 1e-9)


def test_bounds_look_at_the_answers_to_one_prompt():
    samples = [make_sample("a", num_tokens=length) for length in (9, 4, 9, 4)]
    answers = [rewards(2.0), rewards(-1.0), rewards(2.0), rewards(1.0)]
    cut = LengthBounds((3, 5), 2)(answers, samples, list)
    assert [answer.total for answer in cut] == [-1, -1, 0, 1]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=4), st.integers(0, 9))
def test_ledger_adds_up_whatever_is_cut(terms, length):
    breakdown = bounded(length, *terms)
    (row,) = ledger_rows([make_sample("a")], [breakdown], [breakdown.total], None)
    before = rewards(*terms).total
    assert sum(row["terms"].values()) == row["total"] == (before if 3 <= length <= 5 else min(before, 0))
    assert breakdown.weighted_values == rewards(*terms).terms


def test_cut_is_credited_to_the_whole_answer_not_to_spans():
    spans = {"coverage": [(0, 1, 1.0), (2, 3, 1.0)]}
    answer = RewardBreakdown({"coverage": 2.0}, spans, {"coverage": 2.0}, {"coverage": 1.0})
    (cut,) = LengthBounds((3, 5), 1)([answer], [make_sample("a b", num_tokens=2)], list)
    assert cut.spans == spans and cut.answer_total == -2 and cut.total == 0


def test_bounds_are_measured_once_on_the_first_answers_of_all_processes():
    """The quantiles of 1 to 100 lie between 2 and 3 and between 98 and 99: the outer ones count."""
    assert measure_bounds(range(1, 101)) == (2, 99)
    assert measure_bounds([7]) == (7, 7) and measure_bounds([9, 2]) == (2, 9)
    bounds = LengthBounds(None, 1)
    bounds([rewards(1.0)], [make_sample("a", num_tokens=4)], lambda mine: [*mine, 8])
    assert bounds.bounds == (4, 8)
    (later,) = bounds([rewards(1.0)], [make_sample("a", num_tokens=900)], lambda mine: [*mine, 900])
    assert bounds.bounds == (4, 8) and later.total == 0


def test_settings():
    assert parse_length_bounds(None, 64) is None
    assert parse_length_bounds("auto", 64) == LengthBounds(None, 1)
    assert parse_length_bounds(" 8, 40", 64) == LengthBounds((8, 40), 1) == parse_length_bounds("8,40", 8)
    for setting in ("8", "8,", ",8", "8,4", "8-40", "-1,4", "8,40,50", "1.5,4", "auto,4", "Auto", "9" * 5000 + ",1", "８,9"):
        with pytest.raises(InputError, match="write the fewest and the most tokens, such as 8,40, or auto"):
            parse_length_bounds(setting, 64)
    with pytest.raises(InputError, match="length_bounds, which is a setting: add --length_bounds auto"):
        parse_reward_spec("fact_rm=1, length_bounds=1")
