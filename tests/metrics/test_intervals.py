"""Intervals that a reader can check."""

import numpy as np
import pytest

from mmrlhf.metrics.intervals import SufficientStats, mcnemar, paired_bootstrap, unflatten, wilson, with_intervals


def proportion_statistics(clusters, hits, **more):
    return SufficientStats(
        clusters, np.array([[h, 1] for h in hits], float).reshape(-1, 2), lambda s: {"share": s[..., 0] / s[..., 1]}, **more
    )


def test_wilson_matches_published_values():
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson(0, 10)[0] == 0 and wilson(0, 10)[1] == pytest.approx(0.2775328, abs=1e-6)
    assert wilson(0, 0) == (0, 1)


def test_with_intervals_resamples_by_cluster():
    hits = [1, 0] * 50
    alone = with_intervals(proportion_statistics(range(100), hits), 0)[0]["share"]
    alike = with_intervals(proportion_statistics([i // 10 for i in range(100)], sorted(hits)), 0)[0]["share"]
    assert alone["value"] == alike["value"] == 0.5
    assert alike["high"] - alike["low"] > 2 * (alone["high"] - alone["low"])  # ten draws, not a hundred


def test_with_intervals_uses_wilson_when_every_cluster_is_a_row():
    found = with_intervals(proportion_statistics(range(10), [1] * 10, proportions={"share": (0, 1)}), 0)[0]["share"]
    assert found["high"] == pytest.approx(1) and found["low"] == pytest.approx(1 - 0.2775328, abs=1e-6)
    assert (
        with_intervals(proportion_statistics([0, 0], [1, 1], proportions={"share": (0, 1)}), 0)[0]["share"]["low"] == 1
    )  # a bootstrap of one picture


def test_with_intervals_gives_reason_for_undefined_value():
    found, reasons = with_intervals(proportion_statistics([], [], undefined={"": "nothing was asked"}), 0)
    assert found == {"share": None} and reasons == {"share": "nothing was asked"}
    assert unflatten({"a/x": 1, "b": 2}) == {"a": {"x": 1}, "b": 2}


def test_paired_bootstrap_removes_shared_variance():
    rng = np.random.default_rng(0)
    hard = rng.random(400)
    a, b = hard > 0.5, hard > 0.45  # b is right wherever a is, and on a few more
    found = paired_bootstrap(proportion_statistics(range(400), a), proportion_statistics(range(400), b), 0)["share"]
    assert found["difference"] == pytest.approx(b.mean() - a.mean()) and found["difference"] > 0
    assert 0 < found["low"] <= found["difference"] <= found["high"] and found["p"] < 0.01
    apart = with_intervals(proportion_statistics(range(400), a), 0)[0]["share"]
    assert found["high"] - found["low"] < 0.5 * (apart["high"] - apart["low"])
    assert found["detectable"] == pytest.approx(2.8 * np.std(b.astype(float) - a) / 20, rel=0.1)
    back = paired_bootstrap(proportion_statistics(range(400), b), proportion_statistics(range(400), a), 0)["share"]
    assert back["difference"] == -found["difference"] and back["high"] == pytest.approx(-found["low"])


def test_paired_bootstrap_equal_rates_are_not_significant():
    rng = np.random.default_rng(1)
    found = paired_bootstrap(
        proportion_statistics(range(300), rng.random(300) < 0.5), proportion_statistics(range(300), rng.random(300) < 0.5), 0
    )["share"]
    assert found["low"] < 0 < found["high"] and found["p"] > 0.05
    assert paired_bootstrap(proportion_statistics([0], [1]), proportion_statistics([0], [1]), 0)["share"]["p"] == 1


def test_paired_bootstrap_joins_clusters_by_name():
    a, b = proportion_statistics(["x", "y"], [1, 0]), proportion_statistics(["y", "x"], [0, 1])
    found = paired_bootstrap(a, b, 0)["share"]
    assert found["difference"] == found["low"] == found["high"] == 0


def test_mcnemar_matches_hand_computation():
    assert mcnemar(0, 0) == 1 and mcnemar(5, 5) == 1
    assert mcnemar(0, 5) == pytest.approx(2 / 32) and mcnemar(1, 5) == pytest.approx(2 * 7 / 64)
