"""Claims in words, and what they are held against."""

import pytest

from mmrlhf.claims import load_lexicon
from mmrlhf.records import Claim, InputError
from mmrlhf.verifiers.verbalize import DistractorPool, claim_phrase, claim_question, display, distractors

WORDS = load_lexicon()
FEW = DistractorPool(("dog", "cat", "couch"), (frozenset({"red", "blue", "green"}),))
ON = Claim("relation", "cat", relation="on", target="couch")


@pytest.mark.parametrize(
    ("claim", "said", "asked"),
    [
        (Claim("object", "dog"), "a dog", "Is there a dog in the picture?"),
        (Claim("object", "orange"), "an orange", "Is there an orange in the picture?"),
        (Claim("object", "scissors"), "scissors", "Are there scissors in the picture?"),
        (Claim("attribute", "dog", "old"), "an old dog", "Is there an old dog in the picture?"),
        (Claim("count", "knife", "2"), "two knives", "Are there exactly two knives in the picture?"),
        (Claim("count", "dog", "1"), "one dog", "Is there exactly one dog in the picture?"),
        (Claim("count", "dog", "12"), "12 dogs", "Are there exactly 12 dogs in the picture?"),
        (ON, "a cat on a couch", "Is there a cat on a couch in the picture?"),
    ],
)
def test_words(claim, said, asked):
    assert claim_phrase(claim, WORDS) == said and claim_question(claim, WORDS) == asked


def test_what_reports_show():
    assert display(Claim("object", "dog", negated=True), WORDS) == "not a dog"
    assert display(Claim("object", "dog", hedged=True), WORDS) == "a dog (hedged)"


def test_foils():
    def against(claim):
        return [claim_phrase(c, WORDS) for c in distractors(claim, FEW, WORDS)]

    assert against(Claim("object", "dog")) == ["a cat", "a couch"]
    assert against(Claim("object", "puppy")) == ["a cat", "a couch"]  # a dog may be one
    assert against(Claim("attribute", "dog", "red")) == ["a blue dog", "a green dog"]
    assert against(Claim("attribute", "dog", "happy")) == []
    assert against(Claim("count", "dog", "2")) == ["no dogs", "one dog", "three dogs", "four dogs"]
    assert against(ON) == ["a couch on a cat", "a cat under a couch"]
    assert against(Claim("relation", "cat", relation="left of", target="dog")) == ["a dog left of a cat", "a cat right of a dog"]
    assert against(Claim("relation", "cat", relation="near", target="dog")) == []  # as true the other way round


def test_foils_of_a_calibration():
    found = DistractorPool.from_lexicon(WORDS, {"nouns": ["ring"], "groups": [["red", "cyan"]]})
    assert found == DistractorPool(("ring",), (frozenset({"red", "cyan"}),))
    assert "zebra" in DistractorPool.from_lexicon(WORDS).nouns and any(
        "red" in g for g in DistractorPool.from_lexicon(WORDS).groups
    )
    for kept in ({"nouns": 3}, {"nouns": [3]}, {"groups": [3]}, {"groups": "red"}):
        with pytest.raises(InputError, match="must be words"):
            DistractorPool.from_lexicon(WORDS, kept)
