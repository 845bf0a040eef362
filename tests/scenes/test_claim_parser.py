"""Answers outside the captions' language: nothing false escapes, nothing true is called false."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf import scenes
from mmrlhf.scenes import Difficulty, Scene, SceneObject

# Stars: large striped red at the top left, small plain red at the centre. A dotted blue moon below.
SCENE = Scene(
    "p",
    (
        SceneObject("star", "red", "large", 0, "striped"),
        SceneObject("star", "red", "small", 4, "plain"),
        SceneObject("moon", "blue", "large", 7, "dotted"),
    ),
    1,
    Difficulty(),
)


def false_claims(text):
    return {(c.kind, c.subject, c.value) for c in scenes.verify_answer(SCENE, text).false_claims}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Adjectives in any order and number; two of a kind fit no object.
        ("There is a red striped star.", set()),
        ("There is a striped dotted star.", {("attribute", "star", "dotted")}),
        ("There is a red blue star.", {("attribute", "star", "blue")}),
        ("There is a striped, plain star.", {("count", "plain striped star", "1")}),
        ("There is a small large red star.", {("count", "large small red star", "1")}),
        ("There is a red and green star.", {("attribute", "star", "green")}),
        ("There is a green object.", {("attribute", "object", "green")}),
        ("There is an object.", set()),
        # No article, another one, the plural, or words that nobody taught.
        ("I can see ring.", {("object", "ring", "")}),
        ("I can see the ring.", {("object", "ring", "")}),
        ("I can see green stars.", {("attribute", "star", "green")}),
        ("I can see a reddish ring.", {("object", "ring", "")}),
        ("I can see a moon and another moon.", {("count", "moon", "2")}),
        ("I can see a moon moon.", {("count", "moon", "2")}),
        ("I can see a moon and the moon.", set()),
        ("I can see a  moon,\na star", set()),
        # Numbers of any kind of object, and in digits.
        ("There are two red stars.", set()),
        ("There are three red stars.", {("count", "red star", "3")}),
        ("There are two striped stars.", {("count", "striped star", "2")}),
        ("There are 4 objects.", {("count", "object", "4")}),
        ("There are 3 objects.", set()),
        ("There are zero moons.", {("count", "moon", "0")}),
        ("There is no striped star.", {("count", "striped star", "0")}),
        ("There is no dotted star.", set()),
        # Predicates and places of the object named last.
        ("The red star is striped.", set()),
        ("The red star is dotted.", {("attribute", "red star", "dotted")}),
        ("The star is red and green.", {("attribute", "star", "green")}),
        ("The moon is small.", {("attribute", "moon", "small")}),
        ("There is a moon that is red.", {("attribute", "moon", "red")}),
        ("The moon is at the top.", {("relation", "moon", "at top")}),
        ("The moon is on the bottom.", set()),
        ("There is a moon at the bottom at the top.", {("relation", "moon at the bottom", "at top")}),
        # What "the" names must be one object with all that is said of it.
        ("I can see the striped star at the centre.", {("count", "striped star at the centre", "1")}),
        ("The plain star at the centre is small.", set()),
        ("The star at the top left is plain.", {("attribute", "star at the top left", "plain")}),
        ("The star at the centre is plain.", set()),
        # Relations in other words, and those that follow another.
        ("The striped star is left of the moon.", set()),
        ("The striped star is right of the moon.", {("relation", "striped star", "right of moon")}),
        ("There is a moon above a star.", {("relation", "moon", "above star")}),
        ("The moon is on the left of the star.", {("relation", "moon", "left of star")}),
        ("The red star is above the moon and below the moon.", {("relation", "red star", "below moon")}),
        ("Left of the ring.", {("object", "ring", "")}),
        # Denials.
        ("There is not a ring.", set()),
        ("There is not a moon.", {("count", "moon", "0")}),
        ("A picture without a moon.", {("count", "moon", "0")}),
        ("There are not four objects.", set()),
        ("The moon is not red.", set()),
        ("The moon is not blue.", {("count", "blue moon", "0")}),
        ("The ring is not left of the moon.", set()),
        ("There is no ring at the top.", set()),
        ("I can see a moon and no ring at the top.", set()),
    ],
)
def test_claims_near_the_captions_language_are_judged(text, expected):
    assert false_claims(text) == expected


@pytest.mark.parametrize("text", ["", "and and and", "a red", "The picture shows a", "no", "is red", "at the top", "is left of"])
def test_fragments_claim_nothing(text):
    assert scenes.parse_claims(text) == []


ARTICLES, ADJECTIVES = ["a", "an", "the", "another"], ["small", "large", "plain", "striped", "red", "blue"]
NOUNS = ["star", "stars", "moon", "crosses", "object", "objects", "nothing", "two", "12"]
OTHER_WORDS = ["is", "are", "not", "no", "and", ",", ".", "of", "at", "top", "left", "centre", "right", "above", "there"]
WORDS = st.sampled_from([*ARTICLES, *ADJECTIVES, *NOUNS, *OTHER_WORDS])


@settings(max_examples=100)
@given(st.lists(WORDS, max_size=20))
def test_any_words_are_parsed_and_judged(words):
    text = " ".join(words)
    for verdict in scenes.verify_description(SCENE, text):
        assert verdict.value in ("supported", "contradicted") and verdict.evidence
        assert 0 <= verdict.claim.span[0] < verdict.claim.span[1] <= len(text)
    # Whatever surrounds it, an absent shape is noticed unless it is denied.
    if not {"no", "not", "nothing", "12", "two"} & set(words):
        assert any("ring" in f"{subject} {value}" for _, subject, value in false_claims(f"{text} ring"))
