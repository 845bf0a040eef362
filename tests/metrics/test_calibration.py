"""Calibration against computation by hand."""

import math

import numpy as np
import pytest

from mmrlhf.metrics.calibration import (
    auroc,
    expected_calibration_error,
    fit_temperature,
    preference_bins,
    proportion,
    reliability_bins,
)


def test_proportion_matches_hand_computation():
    # 8 of 10, z = 1.96: centre (0.8 + 0.19207) / 1.38415, half width 1.96 sqrt(0.016 + 0.0096037) /
    # 1.38415
    share = proportion(np.arange(10) < 8)
    assert (share["value"], share["n"]) == (0.8, 10)
    assert (share["low"], share["high"]) == pytest.approx((0.490162, 0.943318), abs=1e-5)
    assert proportion(np.array([], dtype=bool)) == {"value": None, "low": 0.0, "high": 1.0, "n": 0}


def test_fit_temperature_matches_hand_computation():
    """Three of four comparisons of margin 2 are right: sigmoid(2 / T) is 3/4 where T = 2 / log
    3."""
    margins = np.array([2.0, 2.0, 2.0, -2.0] * 50)
    temperature = fit_temperature(margins)
    assert temperature == pytest.approx(2 / math.log(3), rel=1e-3)
    (single_bin,) = preference_bins(margins, temperature)
    assert (single_bin.n, single_bin.accuracy) == (200, 0.75)
    assert single_bin.confidence == pytest.approx(0.75, abs=1e-3)
    assert expected_calibration_error([single_bin]) == pytest.approx(0, abs=1e-3)
    assert fit_temperature(np.array([])) == 1.0


def test_expected_calibration_error_matches_hand_computation():
    # twice a confidence of 0.9 (margin log 9), right half of the time; twice 0.6 (log 1.5), always
    # right
    margins = np.array([math.log(9), -math.log(9), math.log(1.5), math.log(1.5)])
    bins = preference_bins(margins, 1.0)
    assert [(b.n, b.accuracy) for b in bins] == [(2, 1.0), (2, 0.5)]
    assert expected_calibration_error(bins) == pytest.approx((0.4 * 2 + 0.4 * 2) / 4)


def test_reliability_bins_match_hand_computation():
    # 0.9 twice, once true; 0.1 twice, never true; 1 once, true. 0.9 and 1 share the last bin.
    bins = reliability_bins(np.array([0.9, 0.9, 0.1, 0.1, 1.0]), np.array([True, False, False, False, True]))
    assert [(b.confidence, b.accuracy, b.n) for b in bins] == [(0.1, 0.0, 2), (pytest.approx(2.8 / 3), pytest.approx(2 / 3), 3)]
    assert expected_calibration_error(bins) == pytest.approx((0.1 * 2 + (2.8 / 3 - 2 / 3) * 3) / 5)


def test_auroc_matches_hand_computation():
    labels = np.array([True, True, False, False])
    assert auroc(np.array([3.0, 1.0, 2.0, 1.0]), labels)[0] == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    # One of each, separated: a - 1 = -1.96 sqrt(a (1 - a)), so that 1 / a = 1 + 1.96 ** 2
    low = 1 / (1 + 1.959964**2)
    assert auroc(np.array([1.0, 0.0]), labels[1:3]) == pytest.approx((1, low, 1), abs=1e-6)
    assert auroc(np.array([0.0, 1.0]), labels[1:3]) == pytest.approx((0, 0, 1 - low), abs=1e-6)
    # A hundred of each, all tied: the standard deviation is sqrt(201 / (12 * 100 * 100)) = 0.0409
    # (Mann and Whitney)
    assert auroc(np.zeros(200), np.arange(200) < 100) == pytest.approx((0.5, 0.42, 0.58), abs=0.002)
    assert all(math.isnan(v) for v in auroc(np.ones(2), np.ones(2, dtype=bool)))


def test_proportion_of_outcomes_about_one_image_has_a_wide_interval():
    outcomes = np.repeat([True, False], 50)
    alone = proportion(outcomes)
    assert (alone["value"], alone["n"]) == (0.5, 100) and alone["low"] == pytest.approx(0.404, abs=1e-3)
    assert proportion(outcomes, range(100)) == alone  # each about an image of its own
    # Two images, one with right and one with wrong outcomes alone: a resample may miss either.
    assert proportion(outcomes, [index // 50 for index in range(100)]) == {"value": 0.5, "low": 0.0, "high": 1.0, "n": 100}
