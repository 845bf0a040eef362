"""The choice of pairs: gap, ties, reasons, the widest first, and the balance of lengths."""

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.training.feedback.pairs import BELOW_GAP, BEYOND, TIE, UNBALANCED, UNDECIDED, select_pairs
from tests.helpers.labelled_answers import UNKNOWN, labelled


def group(*utilities, row=0, words=None):
    lengths = words or [3] * len(utilities)
    return [labelled(u, n, row=row, number=i) for i, (u, n) in enumerate(zip(utilities, lengths, strict=True))]


def select(groups, min_gap=1.0, max_pairs=100, balanced=False, seed=0):
    return select_pairs(groups, min_gap, max_pairs, balanced, seed)


def numbers(comparisons):
    return [(c.better.sampled.number, c.worse.sampled.number) for c in comparisons]


def test_the_higher_utility_is_chosen_whatever_the_order():
    assert numbers(select([group(2, 5)]).kept) == [(1, 0)]
    assert numbers(select([group(5, 2)]).kept) == [(0, 1)]
    ((kept,),) = [select([group(5, 2)]).kept]
    assert kept.gap == 3


def test_ties_and_narrow_gaps_are_dropped_with_their_reasons():
    selection = select([group(3, 3, 4, 6)], min_gap=2)
    assert numbers(selection.kept) == [(3, 0), (3, 1), (3, 2)]
    assert selection.reasons == {TIE: 1, BELOW_GAP: 2}
    assert sorted(numbers(c for c, reason in selection.dropped if reason == BELOW_GAP)) == [(2, 0), (2, 1)]


def test_a_gap_of_exactly_min_gap_is_kept():
    assert len(select([group(3, 5)], min_gap=2).kept) == 1
    assert not select([group(3, 5)], min_gap=2.01).kept


def test_the_widest_gaps_come_first_and_of_equal_ones_the_more_similar_length():
    selection = select([group(0, 1, 5)], max_pairs=1)
    assert numbers(selection.kept) == [(2, 0)] and selection.reasons == {BEYOND: 2}
    assert numbers(select([group(0, 0, 5, words=[9, 4, 5])], max_pairs=1).kept) == [(2, 1)]


def test_answers_whose_claims_nothing_decides_are_no_pair():
    undecided = [labelled(0.0, number=i, value=UNKNOWN) for i in range(2)]
    assert select([undecided]).reasons == {UNDECIDED: 1}
    # An answer with an error is worse than one that says nothing that can be checked.
    assert numbers(select([[undecided[0], labelled(-4.0, number=1)]]).kept) == [(0, 1)]


def test_unusable_and_repeated_answers_are_compared_with_none():
    answers = [
        labelled(5, number=0, unusable="cut off at response_length"),
        labelled(4, number=1, text="a ring"),
        labelled(4, number=2, text="a ring"),
        labelled(1, number=3),
        labelled(0, number=4, text="a ri\u200bng"),  # as `datasets` compares answers
    ]
    selection = select([answers])
    assert selection.unusable == Counter({"cut off at response_length": 1, "repeated": 2})
    assert numbers(selection.comparisons) == [(1, 3)]


def test_an_unusable_answer_hides_no_usable_one_with_the_same_words():
    answers = [
        labelled(5, number=0, text="a ring", unusable="cut off"),
        labelled(5, number=1, text="a ring"),
        labelled(1, number=2),
    ]
    assert numbers(select([answers]).kept) == [(1, 2)]


def test_lengths_are_balanced_over_prompts():
    """Six chosen answers are longer and two shorter: two of each are left, and four dropped."""
    groups = [group(5, 1, row=row, words=[9, 3] if row < 6 else [3, 9]) for row in range(8)]
    selection = select(groups, balanced=True)
    assert sorted(c.length_gap for c in selection.kept) == [-6, -6, 6, 6]
    assert selection.reasons == {UNBALANCED: 4}
    assert select(groups, balanced=True, seed=0).kept == selection.kept
    assert len(select(groups).kept) == 8


@given(st.lists(st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 6)), min_size=2, max_size=5), min_size=1, max_size=8))
def test_every_comparison_is_kept_or_dropped_for_one_reason(answers):
    groups = [group(*(u for u, _ in rows), row=row, words=[n for _, n in rows]) for row, rows in enumerate(answers)]
    selection = select(groups, min_gap=2, max_pairs=2, balanced=True)
    expected = sum(len(list(itertools.combinations(rows, 2))) for rows in groups)
    assert len(selection.kept) + sum(selection.reasons.values()) == expected
    assert all(c.gap >= 2 for c in selection.kept)
    assert all(count <= 2 for count in Counter(c.better.sampled.row for c in selection.kept).values())
    longer, shorter = (sum(sign * c.length_gap > 0 for c in selection.kept) for sign in (1, -1))
    assert longer == shorter
