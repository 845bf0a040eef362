"""Youden's J and its change against values that can be computed with a pencil."""

import numpy as np
import pytest

from mmrlhf.metrics.youden import j_change, youden_j, youden_j_with_intervals


def outcomes(false, true):
    return np.array(false, dtype=bool), np.array(true, dtype=bool)


def test_youden_j_matches_hand_computation():
    kinds = {"object": outcomes([1, 1, 1, 0], [1, 0]), "count": outcomes([0, 0], [1, 1, 0, 0]), "action": outcomes([1], [])}
    j = youden_j(kinds)
    assert j["object"] == {"j": 0.25, "tpr": 0.75, "fpr": 0.5, "n_false": 4, "n_true": 2}
    assert j["count"]["j"] == -0.5 and "action" not in j  # without true claims there is no J of the kind
    assert j["all"]["j"] == pytest.approx(4 / 7 - 3 / 6) and next(iter(j)) == "all"
    assert youden_j({}) == {} and youden_j({"object": outcomes([1], [])}) == {}


def rows_of(outcomes_by_kind, claims_per_row=1):
    """The rows of claims, of which each row has so many false and as many true ones."""
    return {kind: tuple([i // claims_per_row for i in range(len(p))] for p in parts) for kind, parts in outcomes_by_kind.items()}


def test_the_interval_of_j_counts_rows_not_their_claims():
    # Newcombe (1998), table II, method 10, with each claim in its own row.
    for (hits, trials, hits_true, trials_true), interval in (
        ((56, 70, 48, 80), (0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.1705, 0.8090)),
        ((0, 10, 0, 10), (-0.2775, 0.2775)),
    ):
        kinds = {"object": outcomes(np.arange(trials) < hits, np.arange(trials_true) < hits_true)}
        for j in youden_j_with_intervals(kinds, rows_of(kinds)).values():
            assert (j["low"], j["high"]) == pytest.approx(interval, abs=1e-4)
    # Rows that are all wrong have the same interval with one claim or with five.
    single, many = ({"object": outcomes([0] * 10 * n, [0] * 10 * n)} for n in (1, 5))
    j, j_many = youden_j_with_intervals(single, rows_of(single)), youden_j_with_intervals(many, rows_of(many, 5))
    assert (j_many["all"]["low"], j_many["all"]["high"]) == pytest.approx((j["all"]["low"], j["all"]["high"]))


def test_j_change_is_paired():
    before = {"object": outcomes([1] * 8, [0] * 8)}
    after = {"object": outcomes([1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1])}
    change = j_change(before, after, rows_of(before))
    # The share of false claims that lower the score falls by 4/8, that of true ones rises by 2/8.
    # A row's part of the change is 0, -1 (four rows) or -2 (two of these): mean -3/4, sum of
    # squares around it 4 x 9/16 + 2 x 1/16 + 2 x 25/16 = 11/2, over 7, and eight rows.
    half_width = 2.364624 * (5.5 / 7 / 8) ** 0.5  # the t-quantile of 7 degrees of freedom
    assert change["value"] == -0.75
    assert (change["low"], change["high"]) == pytest.approx((-0.75 - half_width, -0.75 + half_width), abs=1e-4)
    unchanged = j_change(before, before, rows_of(before))
    assert j_change(after, before, rows_of(before))["value"] == 0.75 and unchanged == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert j_change({}, {}, {}) is None


def test_j_change_counts_rows_not_their_claims():
    """Claims that say the same in one row add nothing: the interval is that of one claim a row."""
    before, after = {"object": outcomes([1] * 8, [0] * 8)}, {"object": outcomes([0, 0, 0, 1, 1, 1, 1, 1], [0] * 8)}
    expected = j_change(before, after, rows_of(before))
    many_before, many_after = ({"object": tuple(np.repeat(part, 5) for part in o["object"])} for o in (before, after))
    many = j_change(many_before, many_after, rows_of(many_before, 5))
    assert many == pytest.approx(expected)
    assert j_change(many_before, many_after, rows_of(many_before))["high"] < 0 < many["high"]  # as if independent
    # Kinds may come in another order than their rows.
    split = [{"count": o["object"], "object": o["object"]} for o in (before, after)]
    assert j_change(*split, dict(reversed(rows_of(split[0]).items()))) == pytest.approx(expected)


def test_j_change_of_few_rows_has_no_narrow_interval():
    before, after = {"object": outcomes([1], [0] * 9)}, {"object": outcomes([0], [0] * 9)}
    assert j_change(before, after, rows_of(before)) == {"value": -1.0, "low": -2.0, "high": 2.0}  # one claim proves nothing
    before, after = {"object": outcomes([1] * 20, [0] * 20)}, {"object": outcomes([0] * 20, [0] * 20)}
    assert j_change(before, after, rows_of(before, 4))["high"] == 2.0  # nor do 20 claims of 5 rows
