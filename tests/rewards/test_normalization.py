"""Rewards that are normalised before they are added, against arithmetic that fits on paper."""

import json
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.rewards.ledger import RewardBreakdown, ledger_rows
from mmrlhf.rewards.normalization import Moments, TermNormalizer, normalize, normalize_in_groups
from tests.rewards.test_ledger import make_sample

ROOT_HALF = math.sqrt(0.5)
"""Distance of each of two answers from their mean, in standard deviations (unbiased)."""


def breakdown(weights, spans=(), **values):
    """Return an answer's rewards as `score_samples` does; `spans` names those in two halves."""
    return RewardBreakdown(
        {name: weights[name] * value for name, value in values.items()},
        {name: [(0, 1, weights[name] * values[name] / 2), (1, 2, weights[name] * values[name] / 2)] for name in spans},
        values,
        weights,
    )


def test_each_term_counts_by_its_weight_whatever_its_unit():
    """Signs stay: the answer that two functions like gains, and a penalty stays a penalty."""
    weights = {"score": 1.0, "pixels": 0.5, "false": -2.0}
    answers = [breakdown(weights, score=3.0, pixels=9000.0, false=1.0), breakdown(weights, score=1.0, pixels=1000.0, false=0.0)]
    first, second = normalize_in_groups(answers, 2)
    assert first.normalized == pytest.approx({"score": ROOT_HALF, "pixels": ROOT_HALF, "false": ROOT_HALF}, rel=2e-4)
    assert first.terms == pytest.approx({"score": ROOT_HALF, "pixels": ROOT_HALF / 2, "false": -2 * ROOT_HALF}, rel=2e-4)
    assert (first.total, second.total) == pytest.approx((-ROOT_HALF / 2, ROOT_HALF / 2), abs=3e-4)
    assert first.weighted_values == answers[0].terms == {"score": 3.0, "pixels": 4500.0, "false": -2.0}


def test_groups_are_normalised_apart():
    """Values 1, 2, 3: mean 2, standard deviation 1. A hundred more in another group: the same."""
    answers = [breakdown({"x": 1.0}, x=value) for value in (1.0, 2.0, 3.0, 101.0, 102.0, 103.0)]
    assert [b.total for b in normalize_in_groups(answers, 3)] == pytest.approx([-1, 0, 1, -1, 0, 1], abs=2e-4)


def test_answers_that_a_function_does_not_apply_to_do_not_count():
    weights = {"a": 1.0, "b": 2.0}
    group = [breakdown(weights, a=0.0, b=1.0), breakdown(weights, a=2.0), breakdown(weights, a=4.0, b=3.0)]
    first, second, third = normalize_in_groups(group, 3)
    assert second.terms == {"a": 0.0} and second.normalized == {"a": 0.0}  # 2 is the mean of a
    scale = 2 / (math.sqrt(2) + 1e-4)  # b has 1 and 3: a mean of 2, a deviation of sqrt(2), a weight of 2
    assert (first.terms["b"], third.terms["b"]) == (pytest.approx(-scale), pytest.approx(scale))
    running = TermNormalizer("running", 3)
    running(group, lambda items: items)
    assert (running.running["a"].count, running.running["b"].count) == (3, 2)


def test_spans_keep_their_places_and_the_mean_goes_to_the_answer():
    """Two false claims and none: mean 1, deviation sqrt 2, so a claim costs 1 / sqrt 2."""
    answers = [breakdown({"false": -1.0}, ["false"], false=2.0), breakdown({"false": -1.0}, false=0.0)]
    answers[1].spans["false"] = []
    guilty, clean = normalize_in_groups(answers, 2)
    assert guilty.spans["false"] == [(0, 1, pytest.approx(-ROOT_HALF, rel=2e-4)), (1, 2, pytest.approx(-ROOT_HALF, rel=2e-4))]
    assert guilty.answer_total == pytest.approx(ROOT_HALF, rel=2e-4)  # what the mean takes away
    assert guilty.total == pytest.approx(-ROOT_HALF, rel=2e-4)
    assert clean.spans["false"] == [] and clean.total == clean.answer_total == pytest.approx(ROOT_HALF, rel=2e-4)


@pytest.mark.parametrize("value", [0.0, 100.1, -3e7, 1e-9])
def test_term_without_differences_contributes_exactly_nothing(value):
    answers = [breakdown({"x": -3.0}, ["x"], x=value) for _ in range(7)]
    running = TermNormalizer("running", 7)
    for normalized in (*normalize_in_groups(answers, 7), *running(answers, list), *running(answers, list)):
        assert str(normalized.terms["x"]) == str(normalized.normalized["x"]) == "0.0"  # not -0.0 either
        assert [str(reward) for *_, reward in normalized.spans["x"]] == ["0.0", "0.0"]
        assert normalized.total == normalized.answer_total == 0


def test_running_statistics_count_every_answer_so_far():
    normalizer = TermNormalizer("running", 1)
    (only,) = normalizer([breakdown({"x": 2.0}, x=1.0)], list)
    assert only.total == 0  # one value has no standard deviation
    (second,) = normalizer([breakdown({"x": 2.0}, x=3.0)], list)  # of 1 and 3: mean 2, deviation sqrt 2
    assert second.total == pytest.approx(2 * ROOT_HALF, rel=2e-4)
    (third,) = normalizer([breakdown({"x": 2.0}, x=2.0)], list)  # of 1, 3 and 2: it is the mean
    assert third.total == 0 and normalizer.running["x"] == Moments(3, 2.0, 2.0, 1.0, 3.0)


def test_running_statistics_resume_from_json_and_do_not_depend_on_processes():
    """The state survives a checkpoint exactly, and values of other processes count in any order."""
    steps = [[0.1 * i + 0.3 / (1 + s) for i in range(5)] for s in range(4)]
    answers = [[breakdown({"x": 1.0}, x=value) for value in values] for values in steps]
    alone = TermNormalizer("running", 1)
    totals = [[b.total for b in alone(step, list)] for step in answers]
    resumed = TermNormalizer("running", 1)
    for step in answers[:2]:
        resumed(step, list)
    state = json.loads(json.dumps(resumed.state_dict()))
    resumed = TermNormalizer("running", 1)
    resumed.load_state_dict(state)
    assert [[b.total for b in resumed(step, list)] for step in answers[2:]] == totals[2:]
    before: dict[str, Moments] = {}
    for step, expected in zip(answers, totals, strict=True):
        other_process = [answer.values for answer in step[::2]]
        second_of_two = TermNormalizer("running", 1, before)
        normalized = second_of_two(step[1::2], lambda mine, other=other_process: mine[::-1] + other)
        assert [b.total for b in normalized] == expected[1::2]
        before = second_of_two.running


def test_running_statistics_cut_off_rare_values():
    """The first of a thousand answers that was cut off is 31 deviations away and counts as ten."""
    normalizer = TermNormalizer("running", 1)
    normalizer([breakdown({"missing_eos": -1.0}, missing_eos=0.0) for _ in range(1000)], list)
    (rare,) = normalizer([breakdown({"missing_eos": -1.0}, ["missing_eos"], missing_eos=1.0)], list)
    assert rare.normalized == {"missing_eos": 10.0} and rare.total == -10
    (*_, first), (*_, second) = rare.spans["missing_eos"]
    assert first == second and -5.1 < first < -5 and rare.answer_total == pytest.approx(-10 - 2 * first)
    (below,) = normalizer([breakdown({"missing_eos": -1.0}, missing_eos=-1.0)], list)
    assert below.normalized == {"missing_eos": -10.0} and below.total == 10


VALUES = st.lists(st.integers(-1000, 1000).map(float), min_size=2, max_size=6).filter(lambda values: len(set(values)) > 1)


@given(VALUES, st.integers(0, 12), st.integers(-1000, 1000), st.floats(-3, 3))
def test_group_normalisation_ignores_units_and_offsets(values, doublings, offset, weight):
    """A function in other units gives the same rewards, up to the 1e-4 added to the deviation."""
    own = normalize_in_groups([breakdown({"x": weight}, x=value) for value in values], len(values))
    other = [breakdown({"x": weight}, x=2.0**doublings * value + offset) for value in values]
    for a, b in zip(own, normalize_in_groups(other, len(values)), strict=True):
        assert b.total == pytest.approx(a.total, rel=5e-4, abs=1e-9)
    assert statistics.fmean(b.normalized["x"] for b in own) == pytest.approx(0, abs=1e-9)
    assert statistics.stdev(b.normalized["x"] for b in own) == pytest.approx(1, rel=5e-4)
    mirrored = normalize_in_groups([breakdown({"x": weight}, x=-value) for value in values], len(values))
    assert [b.total for b in mirrored] == pytest.approx([-b.total for b in own])


@given(st.lists(VALUES, min_size=1, max_size=4))
def test_running_moments_are_those_of_all_values(steps):
    moments = Moments()
    for values in steps:
        moments = moments.add(values)
    together = [value for values in steps for value in values]
    assert moments.mean == pytest.approx(statistics.fmean(together), abs=1e-9)
    assert 1 / moments.scale == pytest.approx(statistics.stdev(together) + 1e-4)
    assert (moments.count, moments.low, moments.high) == (len(together), min(together), max(together))


@given(VALUES, VALUES)
def test_ledger_has_what_the_sum_is_made_of(first, second):
    size = min(len(first), len(second))
    weights = {"a": 0.7, "b": -1.3}
    answers = [breakdown(weights, ["b"], a=a, b=b) for a, b in zip(first[:size], second[:size], strict=True)]
    normalized = normalize_in_groups(answers, size) if size > 1 else answers
    rows = ledger_rows([make_sample("a dog")] * size, normalized, [b.total for b in normalized], None)
    for row, answer in zip(rows, answers, strict=True):
        assert row["values"] == answer.values and row["weights"] == weights
        assert row["terms"] == pytest.approx({k: weights[k] * row["normalized"][k] for k in weights})
        assert sum(row["terms"].values()) + row["kl"] == pytest.approx(row["total"])


def test_group_normalisation_is_that_of_grpo():
    """Each function alone gets GRPO's advantages."""
    import torch

    from mmrlhf.training.ppo.advantages import group_advantages

    values = [0.3, 2.0, -1.0, 0.7, 5.0, 5.0, 5.0, 5.5]
    expected = group_advantages(torch.tensor(values, dtype=torch.float64).view(2, 4)).flatten().tolist()
    assert [b.total for b in normalize_in_groups([breakdown({"x": 1.0}, x=v) for v in values], 4)] == pytest.approx(expected)


def test_normalize_does_not_change_its_input():
    answer = breakdown({"x": 1.0}, ["x"], x=2.0)
    normalize(answer, {"x": Moments().add([1.0, 2.0, 6.0])})
    assert answer == breakdown({"x": 1.0}, ["x"], x=2.0)
