"""Differences in words and figures: percent, direction, and no claim beyond the interval."""

from __future__ import annotations

import pytest

from mmrlhf.report.compare_page import forest_plot
from mmrlhf.report.differences import flat_differences, headline_sentence, tables_of


def comparison(a: float, b: float, half_width: float = 0.01) -> dict[str, float]:
    difference = b - a
    low, high = difference - half_width, difference + half_width
    return {"a": a, "b": b, "difference": difference, "low": low, "high": high, "p": 0.004, "detectable": 0.02}


def make_pair(**metrics):
    return {"a": "base", "b": "tuned", "metrics": metrics, "mcnemar": None, "categories": []}


def test_fractions_are_shown_in_percent_and_differences_in_points():
    metrics = {"accuracy": comparison(0.5, 0.625), "mean_length": comparison(20.0, 18.5)}
    accuracy, length = flat_differences(metrics, "accuracy", "higher")
    assert accuracy.cells == ["50.0%", "62.5%", "+12.5", "+11.5 to +13.5", "0.004", "2.0"]
    assert length.cells == ["20", "18.5", "-1.5", "-1.51 to -1.49", "0.004", "0.02"]
    # CHAIR's official figures are in percent already.
    (chair,) = flat_differences({"chair_s": comparison(50.0, 40.0)}, "chair_s", "lower")
    assert chair.cells[:3] == ["50", "40", "-10"]


@pytest.mark.parametrize(
    ("name", "a", "b", "half_width", "word"),
    [
        ("accuracy", 0.5, 0.6, 0.01, "better"),
        ("accuracy", 0.6, 0.5, 0.01, "worse"),
        ("accuracy", 0.5, 0.6, 0.2, "unclear"),
        ("accuracy", 0.5, 0.5, 0.0, "equal"),
        ("chair_s", 0.5, 0.4, 0.01, "better"),
        ("perception_errors", 0.5, 0.6, 0.01, "worse"),
        ("yes_ratio", 0.5, 0.6, 0.01, "higher"),
        ("mine", 0.5, 0.4, 0.01, "better"),  # the headline, lower is better
    ],
)
def test_word_says_what_the_interval_allows(name, a, b, half_width, word):
    (difference,) = flat_differences({name: comparison(a, b, half_width)}, "mine", "lower")
    assert difference.word == word


def test_undefined_metrics_and_intervals_without_width_have_no_figures():
    missing, equal = flat_differences({"f1": None, "accuracy": comparison(0.5, 0.5, 0.0)}, "f1", "higher")
    assert missing.cells == ["none"] * 6 and missing.word == ""
    assert equal.cells == ["50.0%", "50.0%", "+0.0", "", "", ""]


def test_differences_without_an_interval_are_unclear():
    value = comparison(0.2, 0.9) | dict.fromkeys(("low", "high", "p", "detectable"), float("nan"))
    (difference,) = flat_differences({"accuracy": value}, "accuracy", "higher")
    assert (difference.word, difference.is_clear) == ("unclear", False)
    assert difference.cells == ["20.0%", "90.0%", "+70.0", "", "", ""]
    pair = make_pair(robust={"accuracy": value})
    assert headline_sentence("pope", pair, "accuracy", "higher", 6).startswith("No difference between base and tuned is shown")


def test_tables_of_equal_modes_are_one():
    metrics = {"part": {"f1": comparison(0.5, 0.6)}}
    ((title, rows),) = tables_of(make_pair(official=metrics, robust=metrics), "f1", "higher")
    assert title == "official = robust" and [row.name for row in rows] == ["part f1"]
    more = {**metrics, "unparsed": comparison(0.25, 0.25, 0.0)}  # robust parsing has a figure more
    ((title, rows),) = tables_of(make_pair(official=metrics, robust=more), "f1", "higher")
    assert title == "official = robust" and [row.name for row in rows] == ["part f1", "unparsed"]
    assert len(tables_of(make_pair(official=metrics, robust={"f1": comparison(0.5, 0.7)}), "f1", "higher")) == 2


def test_headline_sentence():
    pair = make_pair(official={"f1": comparison(0.1, 0.2)}, robust={"f1": comparison(0.5, 0.6)})
    assert headline_sentence("pope", pair, "f1", "higher", 20) == (
        "tuned is better than base on pope: f1 from 50.0% to 60.0% (+10.0 points, 95% interval +9.0 to +11.0; higher is better; robust, "
        "20 examples)."
    )
    pair = make_pair(robust={"f1": comparison(0.5, 0.6, 0.5)})
    assert headline_sentence("pope", pair, "f1", "higher", 20).startswith("No difference between base and tuned is shown on pope")
    pair = make_pair(robust={"f1": comparison(0.5, 0.5, 0.0)})
    assert headline_sentence("pope", pair, "f1", "higher", 20).endswith(
        "f1 from 50.0% to 50.0% (+0.0 points; higher is better; robust, 20 examples)."
    )
    assert "not defined" in headline_sentence("pope", make_pair(robust={"f1": None}), "f1", "higher", 20)


def test_headline_sentence_prefers_the_mean_of_several_parts():
    metrics = {
        "random": {"f1": comparison(0.5, 0.6)},
        "popular": {"f1": comparison(0.4, 0.3)},
        "mean": {"f1": comparison(0.45, 0.5)},
    }
    sentence = headline_sentence("pope", make_pair(robust=metrics), "f1", "higher", 20)
    assert sentence.startswith("tuned is better than base on pope mean: f1 from 45.0% to 50.0%")
    whole = headline_sentence("pope", make_pair(robust={**metrics, "f1": comparison(0.1, 0.2)}), "f1", "higher", 20)
    assert whole.startswith("tuned is better than base on pope: f1 from 10.0% to 20.0%")


def test_forest_plot_describes_every_line_and_escapes_names():
    metrics = {"<b>$x$ accuracy": comparison(0.5, 0.6), "utility": comparison(4.0, 5.0), "recall": None}
    svg, description = forest_plot(flat_differences(metrics, "accuracy", "higher"), "forest")
    assert "<b>" not in svg and "currentColor" in svg and "utility" not in description  # another unit
    assert description == "Differences by metric: <b>$x$ accuracy +10.0 (+9.0 to +11.0), better."
    assert forest_plot(flat_differences({"utility": comparison(4.0, 5.0)}, "utility", "higher"), "f") is not None
    assert forest_plot([], "f") is None
