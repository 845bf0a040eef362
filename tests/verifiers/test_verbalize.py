"""Claims in words, and their distractors."""

import pytest

from mmrlhf.claims import load_lexicon
from mmrlhf.records import Claim, InputError
from mmrlhf.verifiers.verbalize import DistractorPool, claim_phrase, claim_question, display, distractors

LEXICON = load_lexicon()
FEW_DISTRACTORS = DistractorPool(("dog", "cat", "couch"), (frozenset({"red", "blue", "green"}),))
CAT_ON_COUCH = Claim("relation", "cat", relation="on", target="couch")
CAT_AT_TOP_LEFT = Claim("relation", "cat", relation="at the top left of", target="image")


@pytest.mark.parametrize(
    ("claim", "phrase", "question"),
    [
        (Claim("object", "dog"), "a dog", "Is there a dog in the picture?"),
        (Claim("object", "orange"), "an orange", "Is there an orange in the picture?"),
        (Claim("object", "scissors"), "scissors", "Are there scissors in the picture?"),
        (Claim("attribute", "dog", "old"), "an old dog", "Is there an old dog in the picture?"),
        (Claim("count", "knife", "2"), "two knives", "Are there exactly two knives in the picture?"),
        (Claim("count", "dog", "1"), "one dog", "Is there exactly one dog in the picture?"),
        (Claim("count", "dog", "12"), "12 dogs", "Are there exactly 12 dogs in the picture?"),
        (
            Claim("action", "man", relation="ride", target="ox"),
            "a man riding an ox",
            "Is there a man riding an ox in the picture?",
        ),
        (
            Claim("action", "dog", relation="look at", target="cat"),
            "a dog looking at a cat",
            "Is there a dog looking at a cat in the picture?",
        ),
        (CAT_ON_COUCH, "a cat on a couch", "Is there a cat on a couch in the picture?"),
        (CAT_AT_TOP_LEFT, "a cat at the top left of the image", "Is there a cat at the top left of the image?"),
    ],
)
def test_claim_phrase_and_question_match_hand_examples(claim, phrase, question):
    assert claim_phrase(claim, LEXICON) == phrase and claim_question(claim, LEXICON) == question


def test_display_marks_negated_and_hedged_claims():
    assert display(Claim("object", "dog", negated=True), LEXICON) == "not a dog"
    assert display(Claim("object", "dog", hedged=True), LEXICON) == "a dog (hedged)"


def test_distractors_match_hand_examples():
    def distractor_phrases(claim):
        return [claim_phrase(c, LEXICON) for c in distractors(claim, FEW_DISTRACTORS, LEXICON)]

    assert distractor_phrases(Claim("object", "dog")) == ["a cat", "a couch"]
    assert distractor_phrases(Claim("object", "puppy")) == ["a cat", "a couch"]  # a dog may be a puppy
    assert distractor_phrases(Claim("attribute", "dog", "red")) == ["a blue dog", "a green dog"]
    assert distractor_phrases(Claim("attribute", "dog", "happy")) == []
    assert distractor_phrases(Claim("count", "dog", "2")) == ["no dogs", "one dog", "three dogs", "four dogs"]
    assert distractor_phrases(CAT_ON_COUCH) == ["a couch on a cat", "a cat under a couch"]
    assert distractor_phrases(Claim("relation", "cat", relation="left of", target="dog")) == [
        "a dog left of a cat",
        "a cat right of a dog",
    ]
    assert distractor_phrases(Claim("action", "man", relation="ride", target="horse")) == [
        "a horse riding a man", "a man pushing a horse", "a man carrying a horse", "a man leading a horse",
    ]  # fmt: skip
    assert distractor_phrases(Claim("action", "man", relation="greet", target="dog")) == []
    assert distractor_phrases(Claim("relation", "cat", relation="near", target="dog")) == []  # symmetric


def test_distractor_pool_reads_and_validates_calibration():
    pool = DistractorPool.from_lexicon(LEXICON, {"nouns": ["ring"], "groups": [["red", "cyan"]]})
    assert pool == DistractorPool(("ring",), (frozenset({"red", "cyan"}),))
    default_pool = DistractorPool.from_lexicon(LEXICON)
    assert "zebra" in default_pool.nouns and any("red" in group for group in default_pool.groups)
    for metadata in ({"nouns": 3}, {"nouns": [3]}, {"groups": [3]}, {"groups": "red"}):
        with pytest.raises(InputError, match="must be words"):
            DistractorPool.from_lexicon(LEXICON, metadata)


def test_distractors_of_a_place_in_the_image_are_at_the_opposite_side():
    def other_relations(place):
        claim = Claim("relation", "cat", relation=f"at the {place} of", target="image")
        return [c.relation for c in distractors(claim, FEW_DISTRACTORS, LEXICON)]

    assert other_relations("left") == ["at the right of"]
    assert other_relations("top left") == ["at the top right of", "at the bottom left of", "at the bottom right of"]
    assert other_relations("middle left") == ["at the middle right of"]
    assert other_relations("centre") == []
