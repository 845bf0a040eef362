"""Facts dropped, swapped and negated: by hand, and for any facts that hypothesis finds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.facts.corrupt import augment_facts, drop_facts, negate_facts, split_relation, swap_facts
from mmrlhf.records import Fact
from mmrlhf.text.plurals import pluralize, singularize


def rng():
    return np.random.default_rng(0)


def negate_one(kind, text):
    """Return the negated text; the count of changes and the fact's other fields must be right."""
    (negated,), num_changed = negate_facts((Fact(kind, text, "me", 0.5),), 1.0, rng())
    assert num_changed == (negated.text != text)
    assert (negated.kind, negated.source, negated.confidence) == (kind, "me", 0.5)
    return negated.text


@pytest.mark.parametrize(
    ("kind", "text", "opposites"),
    [
        ("count", "one cup", {"two cups"}),
        ("count", "three cups", {"two cups", "four cups"}),
        ("count", "two people", {"one person", "three people"}),
        ("count", "12 berries", {"11 berries", "13 berries"}),
        ("relation", "red cup left of star", {"red cup right of star"}),
        ("relation", "cup is on table", {"cup under table"}),
        ("relation", "dog in front of door", {"dog behind door"}),
        ("object", "large cup", {"small cup"}),
        ("caption", "A red cup.", {"A red cup."}),
        ("object", "cup", {"cup"}),
        ("relation", "dog chases cat", {"dog carries cat"}),
        ("relation", "a man is riding a horse", {"a man is pushing a horse"}),
        ("relation", "dog likes cat", {"dog likes cat"}),
    ],
)
def test_negate_facts_matches_hand_examples(kind, text, opposites):
    assert negate_one(kind, text) in opposites


def test_negate_facts_picks_another_colour():
    red_cup = (Fact("object", "small red cup"),)
    texts = {negate_facts(red_cup, 1.0, np.random.default_rng(seed))[0][0].text for seed in range(40)}
    assert "small red cup" not in texts and len(texts) > 5
    assert all(text.startswith("small ") and text.endswith(" cup") for text in texts)


def test_drop_swap_and_augment_facts_respect_rates():
    facts = tuple(Fact("object", f"thing {i}") for i in range(1000))
    others = (*(Fact("object", f"other {i}") for i in range(9)), Fact("count", "one other"))
    assert drop_facts(facts, 1.0, rng()) == facts and drop_facts(facts, 0.0, rng()) == ()
    assert 180 < len(drop_facts(facts, 0.2, rng())) < 220
    swapped = swap_facts(facts, others, 0.2, rng())
    assert 160 < sum(a != b for a, b in zip(facts, swapped, strict=True)) < 240
    assert {f.kind for f in swapped} == {"object"} and swap_facts(facts, facts, 1.0, rng()) == facts
    sizes = [len(augment_facts(facts, others, 0.5, 0.0, np.random.default_rng(i))) for i in range(200)]
    assert 70 < sum(s == 1000 for s in sizes) < 130 and min(sizes) < 50


def test_a_complete_list_that_loses_a_fact_is_incomplete():
    scope, dog, cat = Fact("scope", "complete"), Fact("object", "dog"), Fact("object", "cat")
    assert drop_facts((scope, dog, cat), 1.0, rng()) == (scope, dog, cat)
    incomplete = Fact("scope", "incomplete")
    assert drop_facts((scope, dog, cat), 0.0, rng()) == (incomplete,)
    assert {augment_facts((scope, dog), (), 1.0, 0.0, np.random.default_rng(seed)) for seed in range(20)} == {
        (scope, dog),
        (incomplete,),
    }
    # A scope is neither swapped nor negated.
    others = (Fact("scope", "incomplete"), cat)
    assert swap_facts((scope, dog), others, 1.0, rng()) == (scope, cat)
    assert negate_facts((scope,), 1.0, rng()) == ((scope,), 0)


def test_split_relation_finds_its_parts():
    assert split_relation("red cup left of blue star") == ("red cup", "left of", "blue star")
    assert split_relation("The dog is in front of the car") == ("The dog", "in front of", "the car")
    assert split_relation("dog chases cat") is None


@pytest.mark.parametrize(
    "noun", ["cup", "box", "dish", "berry", "person", "sheep", "knife", "traffic light", "bus", "toy", "glasses", "man"]
)
def test_singularize_inverts_pluralize(noun):
    assert singularize(pluralize(noun)) == noun


@given(
    st.lists(st.builds(Fact, st.sampled_from(["object", "count", "relation", "attribute", "ocr"]), st.text())), st.integers(0, 9)
)
def test_corrupt_functions_accept_any_facts(facts, seed):
    negated, num_changed = negate_facts(facts, 1.0, np.random.default_rng(seed))
    assert len(negated) == len(facts) and num_changed <= len(facts)
    assert len(augment_facts(facts, facts, 0.5, 0.5, np.random.default_rng(seed))) <= len(facts)
