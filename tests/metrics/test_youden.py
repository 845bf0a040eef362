"""Youden's J and its change against values that can be computed with a pencil."""

import numpy as np
import pytest

from mmrlhf.metrics.youden import j_change, youden_j


def outcomes(false, true):
    return np.array(false, dtype=bool), np.array(true, dtype=bool)


def test_youden_j_matches_hand_computation():
    kinds = {"object": outcomes([1, 1, 1, 0], [1, 0]), "count": outcomes([0, 0], [1, 1, 0, 0]), "action": outcomes([1], [])}
    j = youden_j(kinds)
    assert j["object"] == {"j": 0.25, "tpr": 0.75, "fpr": 0.5, "n_false": 4, "n_true": 2}
    assert j["count"]["j"] == -0.5 and "action" not in j  # without true claims there is no J of the kind
    assert j["all"]["j"] == pytest.approx(4 / 7 - 3 / 6) and next(iter(j)) == "all"
    assert youden_j({}) == {} and youden_j({"object": outcomes([1], [])}) == {}


def test_j_change_is_paired():
    before = {"object": outcomes([1] * 8, [0] * 8)}
    after = {"object": outcomes([1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1])}
    change = j_change(before, after)
    # The share of false claims that lower the score falls by 4/8, that of true ones rises by 2/8;
    # sums of squares 8 x .25 and 8 x .1875, over 7, and eight claims each.
    half_width = 1.959964 * (2 / 7 / 8 + 1.5 / 7 / 8) ** 0.5
    assert change["value"] == -0.75
    assert (change["low"], change["high"]) == pytest.approx((-0.75 - half_width, -0.75 + half_width), abs=1e-4)
    assert j_change(after, before)["value"] == 0.75 and j_change(before, before) == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert j_change({}, {}) is None


def test_j_change_of_few_claims_has_no_narrow_interval():
    before, after = {"object": outcomes([1], [0] * 9)}, {"object": outcomes([0], [0] * 9)}
    assert j_change(before, after) == {"value": -1.0, "low": -2.0, "high": 2.0}  # one claim proves nothing
