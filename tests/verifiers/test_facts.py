"""Claims judged by facts: what contradicts, what does not, and what nobody knows."""

import pytest

from mmrlhf.claims import extract_claims
from mmrlhf.records import Fact
from mmrlhf.verifiers import verify_against_facts


def judged(text, *facts):
    """Verdicts by claim, written short."""
    found = {}
    for verdict in verify_against_facts(extract_claims(text), [Fact(*fact) for fact in facts]):
        c = verdict.claim
        name = c.subject + (f"={c.value}" if c.kind == "attribute" else f"#{c.value}" if c.kind == "count" else "")
        name += f">{c.relation}>{c.target}" if c.kind == "relation" else ""
        found[name] = verdict
    return found


def values(text, *facts):
    return {name: verdict.value for name, verdict in judged(text, *facts).items()}


def test_what_is_not_listed_is_unknown():
    found = judged("A brown dog on a couch and two cats.", ("object", "bird"))
    assert {v.value for v in found.values()} == {"unknown"} and len(found) == 6
    assert all(v.probability == 0.5 and v.evidence == "" for v in found.values())
    assert values("A dog.") == {"dog": "unknown"}


def test_objects():
    assert values("A puppy.", ("object", "dog")) == {"puppy": "unknown"}  # a dog need not be one
    assert values("A dog.", ("object", "puppy")) == {"dog": "supported"}
    assert values("A dog.", ("object", "hot dog")) == {"dog": "unknown"}
    assert values("A table.", ("object", "coffee table")) == {"table": "supported"}
    assert values("A sofa.", ("object", "red couch")) == {"couch": "supported"}
    assert values("A puppy and a cup.", ("absent", "dog"), ("absent", "bottle")) == {"puppy": "contradicted", "cup": "unknown"}
    assert values("A man.", ("caption", "There are no people in the street.")) == {"man": "contradicted"}
    assert values("A cat.", ("caption", "There may be a cat.")) == {"cat": "unknown"}  # a fact that doubts is none
    assert values("A dog.", ("ocr", "a dog")) == {"dog": "unknown"}


def test_negated_claims_turn_the_verdict():
    assert values("There is no dog.", ("object", "dog")) == {"dog": "contradicted"}
    assert values("There is no dog.", ("absent", "dog")) == {"dog": "supported"}
    assert values("Nobody is here.", ("object", "man")) == {"person": "contradicted"}
    assert values("The dog is not brown.", ("attribute", "brown dog")) == {"dog": "supported", "dog=brown": "contradicted"}
    assert values("The dog is not brown.", ("attribute", "white dog"))["dog=brown"] == "supported"


def test_hedged_claims_are_judged_by_what_they_suppose():
    assert values("There may be a cat.", ("absent", "cat")) == {"cat": "contradicted"}
    assert values("There may be a cat.", ("object", "cat")) == {"cat": "supported"}


def test_counts():
    facts = (("count", "two dogs"), ("object", "cat"))
    assert values("Two dogs and three cats.", *facts) == {
        "dog": "supported", "dog#2": "supported", "cat": "supported", "cat#3": "unknown",
    }  # fmt: skip
    assert values("Three dogs.", *facts) == {"dog": "supported", "dog#3": "contradicted"}
    assert values("Three birds.", ("absent", "bird")) == {"bird": "contradicted", "bird#3": "contradicted"}


def test_attributes():
    assert values("A grey cat.", ("attribute", "gray cat"))["cat=grey"] == "supported"
    assert values("A black cat.", ("attribute", "white cat"))["cat=black"] == "contradicted"
    assert (
        values("A black cat.", ("attribute", "white cat"), ("count", "two cats"))["cat=black"] == "unknown"
    )  # the other one may be
    assert values("A fluffy cat.", ("attribute", "white cat"))["cat=fluffy"] == "unknown"
    assert values("The door is closed.", ("attribute", "open door"))["door=closed"] == "contradicted"
    assert values("A big dog.", ("attribute", "large dog"))["dog=big"] == "supported"
    assert values("A black cow.", ("caption", "A black and white cow."))["cow=black"] == "supported"


@pytest.mark.parametrize(
    ("said", "known", "value"),
    [
        ("A silver car.", "grey car", "unknown"),
        ("A silver car.", "red car", "contradicted"),
        ("A navy coat.", "blue coat", "unknown"),
        ("A turquoise sea.", "teal sea", "unknown"),
        ("A cyan star.", "red star", "contradicted"),
        ("A blue star.", "cyan star", "contradicted"),
        ("A steel table.", "metal table", "unknown"),
        ("A steel table.", "wooden table", "contradicted"),
    ],
)
def test_what_some_call_otherwise_is_no_contradiction(said, known, value):
    (verdict,) = [v for v in judged(said, ("attribute", known)).values() if v.claim.kind == "attribute"]
    assert verdict.value == value


@pytest.mark.parametrize(
    ("said", "known", "value"),
    [
        ("next to", "beside", "supported"),
        ("on top of", "on", "supported"),
        ("left of", "right of", "contradicted"),
        ("above", "under", "contradicted"),
        ("on", "under", "contradicted"),
        ("behind", "in front of", "contradicted"),
        ("in", "next to", "unknown"),
    ],
)
def test_relations(said, known, value):
    fact = ("relation", f"dog {known} couch")
    assert values(f"A dog is {said} a couch.", fact)[f"dog>{said}>couch"] == value
    assert values(f"A dog is {said} a couch.", fact, ("count", "two dogs"))[f"dog>{said}>couch"] in ("supported", "unknown")


def test_relations_seen_from_the_other_side():
    fact = ("relation", "dog left of couch")
    assert values("A couch is to the right of a dog.", fact)["couch>right of>dog"] == "supported"
    assert values("A couch is to the left of a dog.", fact)["couch>left of>dog"] == "contradicted"
    assert values("The dog is not on the couch.", ("relation", "dog on couch"))["dog>on>couch"] == "contradicted"


def test_facts_that_disagree_leave_it_open_and_say_so():
    verdict = judged("A dog.", ("object", "dog", "a.json"), ("absent", "dog", "b.json"))["dog"]
    assert verdict.value == "unknown" and verdict.probability == 0.5
    assert verdict.evidence == "facts disagree: object: dog (a.json); absent: dog (b.json)"
    found = values("Two dogs.", ("count", "two dogs"), ("count", "three dogs"))
    assert found == {"dog": "supported", "dog#2": "unknown"}
    assert values("A red car.", ("count", "one car"), ("attribute", "red car"), ("attribute", "blue car"))["car=red"] == "unknown"


def test_facts_in_other_words():
    assert values("Two brown dogs.", ("count", "dog: 2"), ("attribute", "dog brown")) == {
        "dog": "supported", "dog#2": "supported", "dog=brown": "supported",
    }  # fmt: skip
    assert values("A red car.", ("absent", "red car")) == {"car": "unknown", "car=red": "contradicted"}
    assert values("A table.", ("object", "dining table")) == {"table": "supported"}


def test_evidence_and_probability_are_the_facts_own():
    found = judged("A dog and a bird.", ("object", "dog", "boxes", 0.8), ("absent", "bird", "people", 0.9))
    assert found["dog"].evidence == "object: dog (boxes)" and found["dog"].probability == 0.8
    assert found["bird"].value == "contradicted" and abs(found["bird"].probability - 0.1) < 1e-9


def test_questions_and_answers_are_facts():
    facts = (("qa", "Is there a dog? No."), ("qa", "How many cats are there? 2"), ("qa", "What color is the car? Red"))
    found = values("A dog, three cats and a red car.", *facts)
    assert found == {
        "dog": "contradicted",
        "cat": "supported",
        "cat#3": "contradicted",
        "car": "supported",
        "car=red": "supported",
    }
