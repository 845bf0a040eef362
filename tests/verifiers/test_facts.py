"""Claims judged by facts: what contradicts, what does not, and what nobody knows."""

import pytest

from mmrlhf.claims import extract_claims
from mmrlhf.records import Fact
from mmrlhf.verifiers import verify_against_facts


def verdicts_by_claim(text, *facts):
    """Verdicts by claim, written short."""
    found = {}
    for verdict in verify_against_facts(extract_claims(text), [Fact(*fact) for fact in facts]):
        c = verdict.claim
        name = c.subject + (f"={c.value}" if c.kind == "attribute" else f"#{c.value}" if c.kind == "count" else "")
        name += f">{c.relation}>{c.target}" if c.kind == "relation" else ""
        found[name] = verdict
    return found


def verdict_values(text, *facts):
    return {name: verdict.value for name, verdict in verdicts_by_claim(text, *facts).items()}


def test_verify_against_facts_unlisted_is_unknown():
    found = verdicts_by_claim("A brown dog on a couch and two cats.", ("object", "bird"))
    assert {v.value for v in found.values()} == {"unknown"} and len(found) == 6
    assert all(v.probability == 0.5 and v.evidence == "" for v in found.values())
    assert verdict_values("A dog.") == {"dog": "unknown"}


def test_verify_against_facts_objects():
    assert verdict_values("A puppy.", ("object", "dog")) == {"puppy": "unknown"}  # a dog need not be one
    assert verdict_values("A dog.", ("object", "puppy")) == {"dog": "supported"}
    assert verdict_values("A dog.", ("object", "hot dog")) == {"dog": "unknown"}
    assert verdict_values("A table.", ("object", "coffee table")) == {"table": "supported"}
    assert verdict_values("A sofa.", ("object", "red couch")) == {"couch": "supported"}
    assert verdict_values("A puppy and a cup.", ("absent", "dog"), ("absent", "bottle")) == {
        "puppy": "contradicted",
        "cup": "unknown",
    }
    assert verdict_values("A man.", ("caption", "There are no people in the street.")) == {"man": "contradicted"}
    assert verdict_values("A cat.", ("caption", "There may be a cat.")) == {"cat": "unknown"}  # a fact that doubts is none
    assert verdict_values("A dog.", ("ocr", "a dog")) == {"dog": "unknown"}


def test_verify_against_facts_negated_claims_flip_the_verdict():
    assert verdict_values("There is no dog.", ("object", "dog")) == {"dog": "contradicted"}
    assert verdict_values("There is no dog.", ("absent", "dog")) == {"dog": "supported"}
    assert verdict_values("Nobody is here.", ("object", "man")) == {"person": "contradicted"}
    assert verdict_values("The dog is not brown.", ("attribute", "brown dog")) == {
        "dog": "supported",
        "dog=brown": "contradicted",
    }
    assert verdict_values("The dog is not brown.", ("attribute", "white dog"))["dog=brown"] == "supported"


def test_verify_against_facts_hedged_claims_are_judged_as_stated():
    assert verdict_values("There may be a cat.", ("absent", "cat")) == {"cat": "contradicted"}
    assert verdict_values("There may be a cat.", ("object", "cat")) == {"cat": "supported"}


def test_verify_against_facts_counts():
    facts = (("count", "two dogs"), ("object", "cat"))
    assert verdict_values("Two dogs and three cats.", *facts) == {
        "dog": "supported", "dog#2": "supported", "cat": "supported", "cat#3": "unknown",
    }  # fmt: skip
    assert verdict_values("Three dogs.", *facts) == {"dog": "supported", "dog#3": "contradicted"}
    assert verdict_values("Three birds.", ("absent", "bird")) == {"bird": "contradicted", "bird#3": "contradicted"}


def test_verify_against_facts_attributes():
    assert verdict_values("A grey cat.", ("attribute", "gray cat"))["cat=grey"] == "supported"
    assert verdict_values("A black cat.", ("attribute", "white cat"))["cat=black"] == "contradicted"
    assert (
        verdict_values("A black cat.", ("attribute", "white cat"), ("count", "two cats"))["cat=black"] == "unknown"
    )  # the other one may be
    assert verdict_values("A fluffy cat.", ("attribute", "white cat"))["cat=fluffy"] == "unknown"
    assert verdict_values("The door is closed.", ("attribute", "open door"))["door=closed"] == "contradicted"
    assert verdict_values("A big dog.", ("attribute", "large dog"))["dog=big"] == "supported"
    assert verdict_values("A black cow.", ("caption", "A black and white cow."))["cow=black"] == "supported"


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
def test_verify_against_facts_near_synonyms_are_no_contradiction(said, known, value):
    (verdict,) = [v for v in verdicts_by_claim(said, ("attribute", known)).values() if v.claim.kind == "attribute"]
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
def test_verify_against_facts_relations(said, known, value):
    fact = ("relation", f"dog {known} couch")
    assert verdict_values(f"A dog is {said} a couch.", fact)[f"dog>{said}>couch"] == value
    assert verdict_values(f"A dog is {said} a couch.", fact, ("count", "two dogs"))[f"dog>{said}>couch"] in (
        "supported",
        "unknown",
    )


def test_verify_against_facts_inverse_relations():
    fact = ("relation", "dog left of couch")
    assert verdict_values("A couch is to the right of a dog.", fact)["couch>right of>dog"] == "supported"
    assert verdict_values("A couch is to the left of a dog.", fact)["couch>left of>dog"] == "contradicted"
    assert verdict_values("The dog is not on the couch.", ("relation", "dog on couch"))["dog>on>couch"] == "contradicted"


def test_verify_against_facts_disagreeing_facts_are_unknown():
    verdict = verdicts_by_claim("A dog.", ("object", "dog", "a.json"), ("absent", "dog", "b.json"))["dog"]
    assert verdict.value == "unknown" and verdict.probability == 0.5
    assert verdict.evidence == "facts disagree: object: dog (a.json); absent: dog (b.json)"
    found = verdict_values("Two dogs.", ("count", "two dogs"), ("count", "three dogs"))
    assert found == {"dog": "supported", "dog#2": "unknown"}
    assert (
        verdict_values("A red car.", ("count", "one car"), ("attribute", "red car"), ("attribute", "blue car"))["car=red"]
        == "unknown"
    )


def test_verify_against_facts_paraphrased_facts():
    assert verdict_values("Two brown dogs.", ("count", "dog: 2"), ("attribute", "dog brown")) == {
        "dog": "supported", "dog#2": "supported", "dog=brown": "supported",
    }  # fmt: skip
    assert verdict_values("A red car.", ("absent", "red car")) == {"car": "unknown", "car=red": "contradicted"}
    assert verdict_values("A table.", ("object", "dining table")) == {"table": "supported"}


def test_verify_against_facts_takes_evidence_and_probability_from_facts():
    found = verdicts_by_claim("A dog and a bird.", ("object", "dog", "boxes", 0.8), ("absent", "bird", "people", 0.9))
    assert found["dog"].evidence == "object: dog (boxes)" and found["dog"].probability == 0.8
    assert found["bird"].value == "contradicted" and abs(found["bird"].probability - 0.1) < 1e-9


def test_verify_against_facts_question_answer_facts():
    facts = (("qa", "Is there a dog? No."), ("qa", "How many cats are there? 2"), ("qa", "What color is the car? Red"))
    found = verdict_values("A dog, three cats and a red car.", *facts)
    assert found == {
        "dog": "contradicted",
        "cat": "supported",
        "cat#3": "contradicted",
        "car": "supported",
        "car=red": "supported",
    }
