"""Biases and agreement of labels, counted by hand."""

import pytest

from mmrlhf.training.feedback.biases import agreement, label_biases
from mmrlhf.training.feedback.pairs import Comparison
from tests.helpers.labelled_answers import comparison, labelled


def test_the_longer_answer_is_labelled_better_in_three_of_four():
    rows = [comparison(2, 3), comparison(2, 5), comparison(1, 1), comparison(1, -4), comparison(1, 0), comparison(0, 7)]
    length = label_biases(rows)["length"]
    assert length["labelled"]["value"] == 0.75 and length["labelled"]["n"] == 4  # equal lengths and ties do not count
    assert set(length) == {"labelled"}  # nothing says what is true


def test_comparisons_of_one_prompt_count_once():
    """In one of two prompts the longer answer is always better: nine pairs of each are one."""
    rows = [Comparison(labelled(1, 7 + 6 * row, row=row), labelled(0, 10, row=row)) for row in (0, 1) for _ in range(9)]
    share = label_biases(rows)["length"]["labelled"]
    assert share == {"value": 0.5, "low": 0.0, "high": 1.0, "n": 18}


def test_length_bias_against_the_truth():
    """The truly better answer is the longer one in one of four, and labels say three."""
    rows = [comparison(1, 3, true_gap=2), comparison(1, -3, true_gap=1), comparison(1, 3, -1), comparison(1, 2, -2)]
    rows += [comparison(1, 3, 0), comparison(1, 4, 0), comparison(1, -1, 0)]
    length = label_biases(rows)["length"]
    assert length["labelled_where_untied"]["value"] == 0.75
    # The label is wrong in the last two of the first four: there the shorter one is truly better.
    assert length["true_where_untied"]["value"] == 0.25
    assert (length["agreement_if_true"]["value"], length["agreement_if_true"]["n"]) == (1.0, 1)
    assert (length["agreement_if_not"]["value"], length["agreement_if_not"]["n"]) == (pytest.approx(1 / 3), 3)
    assert length["bias"] == pytest.approx(2 / 3)
    assert length["labelled_at_equal_truth"]["value"] == pytest.approx(2 / 3)


def test_position_counts_the_answer_that_was_sampled_first():
    rows = [comparison(1, first_better=True), comparison(1, first_better=False), comparison(1, first_better=False)]
    assert label_biases(rows)["position"]["labelled"]["value"] == pytest.approx(1 / 3)


def test_an_unbiased_labeller_is_measured_as_one():
    rows = [comparison(1, sign * 3, 1, first) for sign in (1, -1) for first in (True, False)]
    biases = label_biases(rows)
    for name in ("length", "position"):
        assert biases[name]["bias"] == 0 and biases[name]["labelled"]["value"] == 0.5


def test_ties_of_the_labels_agree_with_nothing():
    assert agreement([comparison(0, true_gap=3), comparison(0, true_gap=-3)])["untied"]["n"] == 0


def test_agreement_where_the_truth_is_clear():
    rows = [comparison(1, true_gap=gap) for gap in (3, 1, 0.5, 0, -0.5, -2)] + [comparison(1)]
    counted = agreement(rows)
    assert (counted["untied"]["value"], counted["untied"]["n"]) == (0.6, 5)
    assert (counted["clear"]["value"], counted["clear"]["n"]) == (pytest.approx(2 / 3), 3)
    assert (counted["tied"]["value"], counted["tied"]["n"]) == (pytest.approx(1 / 6), 6)


def test_without_comparisons_nothing_is_measured():
    assert label_biases([])["length"]["labelled"]["value"] is None
    assert agreement([])["clear"]["n"] == 0
