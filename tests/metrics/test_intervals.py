"""Intervals and tests against published values and computation by hand."""

import tracemalloc

import numpy as np
import pytest

from mmrlhf.metrics.intervals import (
    Proportion,
    SufficientStats,
    accuracy_by_group,
    bootstrap_weights,
    fold_interval,
    mcnemar,
    mean_interval,
    paired_bootstrap,
    unflatten,
    wilson,
    with_intervals,
)


def proportion_statistics(clusters, hits, **fields):
    columns = np.array([[hit, 1] for hit in hits], float).reshape(-1, 2)
    return SufficientStats(clusters, columns, lambda sums: {"share": sums[..., 0] / sums[..., 1]}, **fields)


def test_wilson_matches_published_values():
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson(0, 10)[0] == 0 and wilson(0, 10)[1] == pytest.approx(0.2775328, abs=1e-6)
    assert wilson(0, 0) == (0, 1)


def test_with_intervals_resamples_by_cluster():
    hits = [1, 0] * 50
    independent = with_intervals(proportion_statistics(range(100), hits), 0)[0]["share"]
    tens = [i // 10 for i in range(100)]
    clustered = with_intervals(proportion_statistics(tens, sorted(hits)), 0)[0]["share"]
    assert independent["value"] == clustered["value"] == 0.5
    # ten independent draws, not a hundred
    assert clustered["high"] - clustered["low"] > 2 * (independent["high"] - independent["low"])


def test_with_intervals_uses_wilson_when_no_cluster_has_several_trials():
    stats = proportion_statistics(range(10), [1] * 10, proportions={"share": Proportion(0, 1)})
    share = with_intervals(stats, 0)[0]["share"]
    assert share["high"] == pytest.approx(1) and share["low"] == pytest.approx(1 - 0.2775328, abs=1e-6)


def test_with_intervals_resamples_rows_of_several_trials():
    """Two answers to each of ten prompts: none or both right are more uncertain than one of two."""

    def width(hits):
        columns = np.array([[count, 2] for count in hits], float)
        metrics = lambda sums: {"share": sums[..., 0] / sums[..., 1]}  # noqa: E731
        share = with_intervals(SufficientStats(range(10), columns, metrics, proportions={"share": (0, 1)}), 0)[0]["share"]
        return share["high"] - share["low"]

    wilson_low, wilson_high = wilson(5, 10)
    assert width([0, 2] * 5) > 2 * width([1] * 9 + [2]) and width([1] * 10) == pytest.approx(wilson_high - wilson_low)


def test_with_intervals_uses_wilson_over_clusters_that_are_alike():
    # ten images of two rows each, all right: as ten right answers, not as an interval without width
    stats = proportion_statistics([i // 2 for i in range(20)], [1] * 20, proportions={"share": Proportion(0, 1)})
    share = with_intervals(stats, 0)[0]["share"]
    assert share["low"] == pytest.approx(1 - 0.2775328, abs=1e-6) and share["high"] == pytest.approx(1)


def test_with_intervals_gives_wilson_in_the_unit_of_the_metric():
    columns = np.array([[0, 1]] * 50, float)
    percent = Proportion(0, 1, 100)
    stats = SufficientStats(range(50), columns, lambda s: {"x": 100 * s[..., 0] / s[..., 1]}, proportions={"x": percent})
    interval = with_intervals(stats, 0)[0]["x"]
    assert interval == {"value": 0, "low": pytest.approx(0), "high": pytest.approx(7.135, abs=1e-3)}


def test_with_intervals_gives_reason_for_undefined_value():
    metrics, reasons = with_intervals(proportion_statistics([], [], undefined={"": "nothing was asked"}), 0)
    assert metrics == {"share": None} and reasons == {"share": "nothing was asked"}
    assert unflatten({"a/x": 1, "b": 2}) == {"a": {"x": 1}, "b": 2}


def test_bootstrap_interval_covers_the_true_rate():
    outcomes = np.random.default_rng(0).random(400) < 0.3
    share = with_intervals(proportion_statistics(range(400), outcomes), 0)[0]["share"]
    assert share["value"] == outcomes.mean() and share["low"] < 0.3 < share["high"]
    assert share["high"] - share["low"] == pytest.approx(2 * 1.96 * (0.3 * 0.7 / 400) ** 0.5, rel=0.15)


def test_the_bootstrap_never_holds_all_its_weights():
    """The weights of 2,000 clusters in all samples would fill 16 MB, or twice that for a pair."""
    stats = proportion_statistics(range(2000), [1, 0] * 1000)
    for resample in (lambda: with_intervals(stats, 0), lambda: paired_bootstrap(stats, stats, 0)):
        tracemalloc.start()
        resample()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 6e6
    blocks = list(bootstrap_weights(10, np.random.default_rng(0), 100))
    assert [len(block) for block in blocks] == [64, 36]
    assert (np.concatenate(blocks) == np.random.default_rng(0).multinomial(10, [0.1] * 10, 100)).all()


def test_paired_bootstrap_removes_shared_variance():
    rng = np.random.default_rng(0)
    difficulty = rng.random(400)
    a, b = difficulty > 0.5, difficulty > 0.45  # b is right wherever a is, and on a few more
    comparison = paired_bootstrap(proportion_statistics(range(400), a), proportion_statistics(range(400), b), 0)["share"]
    assert comparison["difference"] == pytest.approx(b.mean() - a.mean()) and comparison["difference"] > 0
    assert 0 < comparison["low"] <= comparison["difference"] <= comparison["high"] and comparison["p"] < 0.01
    unpaired = with_intervals(proportion_statistics(range(400), a), 0)[0]["share"]
    assert comparison["high"] - comparison["low"] < 0.5 * (unpaired["high"] - unpaired["low"])
    assert comparison["detectable"] == pytest.approx(2.8 * np.std(b.astype(float) - a) / 20, rel=0.1)
    reverse = paired_bootstrap(proportion_statistics(range(400), b), proportion_statistics(range(400), a), 0)["share"]
    assert reverse["difference"] == -comparison["difference"] and reverse["high"] == pytest.approx(-comparison["low"])


def test_paired_bootstrap_equal_rates_are_not_significant():
    rng = np.random.default_rng(1)
    comparison = paired_bootstrap(
        proportion_statistics(range(300), rng.random(300) < 0.5), proportion_statistics(range(300), rng.random(300) < 0.5), 0
    )["share"]
    assert comparison["low"] < 0 < comparison["high"] and comparison["p"] > 0.05


def test_paired_bootstrap_joins_clusters_by_name():
    a, b = proportion_statistics("xyzuvw", [1, 0, 0, 1, 1, 1]), proportion_statistics("wvuzyx", [1, 1, 1, 0, 0, 1])
    comparison = paired_bootstrap(a, b, 0)["share"]
    assert comparison["difference"] == comparison["low"] == comparison["high"] == 0


def test_paired_bootstrap_of_few_clusters_claims_nothing():
    def compare(num_images):  # two questions about each image, which b has right
        images = [i // 2 for i in range(2 * num_images)]
        return paired_bootstrap(
            proportion_statistics(images, [0] * len(images)), proportion_statistics(images, [1] * len(images)), 0
        )

    few, enough = compare(5)["share"], compare(6)["share"]
    assert few["difference"] == enough["difference"] == enough["low"] == 1
    assert np.isnan([few[name] for name in ("low", "high", "p", "detectable")]).all()


@pytest.mark.parametrize(("num_rare", "claims"), [(2, False), (5, False), (12, True)])
def test_paired_bootstrap_of_a_metric_that_reads_few_clusters_claims_nothing(num_rare, claims):
    groups = [["rare"] if i < num_rare else ["common"] for i in range(100)]

    def statistics(is_right):
        return accuracy_by_group(range(100), [is_right] * 100, groups, ["rare", "common"], "no rows")

    comparisons = paired_bootstrap(statistics(False), statistics(True), 0)
    assert comparisons["common/accuracy"]["low"] == comparisons["rare/accuracy"]["difference"] == 1
    assert np.isfinite(comparisons["rare/accuracy"]["p"]) == claims


def test_mcnemar_matches_hand_computation():
    assert mcnemar(0, 0) == 1 and mcnemar(5, 5) == 1
    assert mcnemar(0, 5) == pytest.approx(2 / 32) and mcnemar(1, 5) == pytest.approx(2 * 7 / 64)


def test_accuracy_by_group_counts_each_row_in_its_groups():
    stats = accuracy_by_group("abc", [True, False, True], [["x"], ["x", "y"], []], ["x", "y", "z"], "no rows", scale=100)
    metrics, reasons = with_intervals(stats, 0)
    values = {name: metric and metric["value"] for name, metric in metrics.items()}
    assert values == {"accuracy": pytest.approx(200 / 3), "x/accuracy": 50, "y/accuracy": 0, "z/accuracy": None}
    assert reasons == {"z/accuracy": "no rows"}


def test_fold_interval_is_wide_for_few_folds():
    # Mean 2, standard error sqrt(2) / sqrt(2) = 1; t with one degree of freedom is 12.706.
    assert fold_interval("ead", [1.0, 3.0]) == {"ead": 2.0, "ead_ci": pytest.approx([2 - 12.706, 2 + 12.706], abs=1e-3)}
    assert fold_interval("ead", [1.0]) == {"ead": 1.0}
    assert mean_interval([1.0]) == {"value": 1.0, "low": 1.0, "high": 1.0}
