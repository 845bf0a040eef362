"""Facts made fewer and wrong, with a pencil and with wild ones."""

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
    (found,), changed = negate_facts((Fact(kind, text, "me", 0.5),), 1.0, rng())
    assert changed == (found.text != text) and (found.kind, found.source, found.confidence) == (kind, "me", 0.5)
    return found.text


@pytest.mark.parametrize(
    ("kind", "text", "contraries"),
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
        ("relation", "dog chases cat", {"dog chases cat"}),
    ],
)
def test_negate_facts_matches_hand_examples(kind, text, contraries):
    assert negate_one(kind, text) in contraries


def test_negate_facts_picks_another_colour():
    said = {negate_facts((Fact("object", "small red cup"),), 1.0, np.random.default_rng(i))[0][0].text for i in range(40)}
    assert "small red cup" not in said and len(said) > 5 and all(s.startswith("small ") and s.endswith(" cup") for s in said)


def test_drop_swap_and_augment_facts_respect_rates():
    facts = tuple(Fact("object", f"thing {i}") for i in range(1000))
    others = (*(Fact("object", f"other {i}") for i in range(9)), Fact("count", "one other"))
    assert drop_facts(facts, 1.0, rng()) == facts and drop_facts(facts, 0.0, rng()) == ()
    assert 180 < len(drop_facts(facts, 0.2, rng())) < 220
    changed = swap_facts(facts, others, 0.2, rng())
    assert 160 < sum(a != b for a, b in zip(facts, changed, strict=True)) < 240
    assert {f.kind for f in changed} == {"object"} and swap_facts(facts, facts, 1.0, rng()) == facts
    sizes = [len(augment_facts(facts, others, 0.5, 0.0, np.random.default_rng(i))) for i in range(200)]
    assert 70 < sum(s == 1000 for s in sizes) < 130 and min(sizes) < 50


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
    found, changed = negate_facts(facts, 1.0, np.random.default_rng(seed))
    assert len(found) == len(facts) and changed <= len(facts)
    assert len(augment_facts(facts, facts, 0.5, 0.5, np.random.default_rng(seed))) <= len(facts)
