"""Which sampled answers are learnt: each rule by hand, and best-of-n by a naive way."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.config import RFTConfig
from mmrlhf.training.rft.selection import Candidate, select, top_share_edge

CONFIG = RFTConfig(model_name_or_path="x", dataset_name="x", output_dir="x", num_generations=3, max_kept_per_prompt=None)
TWO_PROMPTS = [
    Candidate("a", 1.0), Candidate("b", 3.0), Candidate("c", 2.0),
    Candidate("d", 5.0), Candidate("d", 5.0), Candidate("e", -1.0),
]  # fmt: skip
"""Means 2 and 3; the second prompt has an answer twice."""


@pytest.mark.parametrize(
    ("settings", "kept", "left_out"),
    [
        ({}, [0, 1, 2, 3, 5], {"repeated": 1}),
        ({"max_kept_per_prompt": 1}, [1, 3], {"repeated": 1, "beyond max_kept_per_prompt": 3}),
        ({"max_kept_per_prompt": 2}, [1, 2, 3, 5], {"repeated": 1, "beyond max_kept_per_prompt": 1}),
        ({"min_score": 2.0}, [1, 2, 3], {"repeated": 1, "below min_score": 2}),
        ({"top_share": 0.5}, [1, 3], {"repeated": 1, "not in top_share": 3}),  # 5, 5 and 3 of six
        ({"min_margin": 1.0}, [1, 3], {"repeated": 1, "less than min_margin above the mean": 3}),
        ({"min_margin": 0.0}, [1, 2, 3], {"repeated": 1, "less than min_margin above the mean": 2}),
        ({"min_score": 9.0}, [], {"repeated": 1, "below min_score": 5}),
    ],
)
def test_each_rule_by_hand(settings, kept, left_out):
    selection = select(dataclasses.replace(CONFIG, **settings), TWO_PROMPTS)
    assert (selection.kept, dict(selection.left_out)) == (kept, left_out)


def test_an_answer_that_cannot_be_learnt_is_never_kept_and_makes_room():
    candidates = [Candidate("a", 9.0, "cut off at response_length"), Candidate("b", 1.0), Candidate("c", 0.0)]
    selection = select(dataclasses.replace(CONFIG, max_kept_per_prompt=1), candidates)
    assert selection.kept == [1]
    assert dict(selection.left_out) == {"cut off at response_length": 1, "beyond max_kept_per_prompt": 1}


def test_ties_at_the_edge_of_the_top_share_all_count():
    """With rewards of 0 and 1 there is no order to choose a part of the ones by."""
    assert top_share_edge([1.0, 0.0, 1.0, 1.0, 0.0], 0.2) == 1.0
    assert top_share_edge([4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 0.3) == 2.0
    assert top_share_edge([3.0, 2.0], 0.01) == 3.0


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.floats(-2, 2)), min_size=3, max_size=12).filter(lambda c: len(c) % 3 == 0))
def test_best_of_n_is_the_first_highest_of_each_prompt(drawn):
    candidates = [Candidate(text, score) for text, score in drawn]
    naive = [max(range(i, i + 3), key=lambda k: candidates[k].score) for i in range(0, len(candidates), 3)]
    selection = select(dataclasses.replace(CONFIG, max_kept_per_prompt=1), candidates)
    assert selection.kept == naive
    assert len(selection.kept) + sum(selection.left_out.values()) == len(candidates)
