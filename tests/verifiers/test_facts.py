"""Claims compared with facts: what contradicts, what does not, and what stays unknown."""

import pytest

from mmrlhf.claims import extract_claims
from mmrlhf.records import Fact
from mmrlhf.verifiers import verify_against_facts


def claim_key(claim):
    """Return a claim in short: `dog`, `dog=brown`, `dog#2`, `dog>on>couch`, `dog@chase@cat`."""
    if claim.kind == "attribute":
        return f"{claim.subject}={claim.value}"
    if claim.kind == "count":
        return f"{claim.subject}#{claim.value}"
    if claim.kind == "relation":
        return f"{claim.subject}>{claim.relation}>{claim.target}"
    if claim.kind == "action":
        return f"{claim.subject}@{claim.relation}@{claim.target}"
    return claim.subject


def verdicts_by_claim(text, *facts):
    verdicts = verify_against_facts(extract_claims(text), [Fact(*fact) for fact in facts])
    return {claim_key(verdict.claim): verdict for verdict in verdicts}


def verdict_values(text, *facts):
    return {name: verdict.value for name, verdict in verdicts_by_claim(text, *facts).items()}


def test_verify_against_facts_unlisted_is_unknown():
    verdicts = verdicts_by_claim("A brown dog on a couch and two cats.", ("object", "bird"))
    assert {v.value for v in verdicts.values()} == {"unknown"} and len(verdicts) == 6
    assert all(v.probability == 0.5 and v.evidence == "" for v in verdicts.values())
    assert verdict_values("A dog.") == {"dog": "unknown"}


def test_verify_against_facts_objects():
    assert verdict_values("A puppy.", ("object", "dog")) == {"puppy": "unknown"}  # a dog need not be a puppy
    assert verdict_values("A dog.", ("object", "puppy")) == {"dog": "supported"}
    assert verdict_values("A dog.", ("object", "hot dog")) == {"dog": "unknown"}
    assert verdict_values("A table.", ("object", "coffee table")) == {"table": "supported"}
    assert verdict_values("A sofa.", ("object", "red couch")) == {"couch": "supported"}
    assert verdict_values("A puppy and a cup.", ("absent", "dog"), ("absent", "bottle")) == {
        "puppy": "contradicted",
        "cup": "unknown",
    }
    assert verdict_values("A man.", ("caption", "There are no people in the street.")) == {"man": "contradicted"}
    assert verdict_values("A cat.", ("caption", "There may be a cat.")) == {"cat": "unknown"}  # a hedged fact counts for nothing
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


def test_verify_against_facts_partial_denials_do_not_deny_the_object():
    assert verdict_values("There are no people inside the cafe.", ("object", "man"))["person"] == "unknown"
    assert verdict_values("The boy is not wearing shoes.", ("object", "shoes"))["shoe"] == "unknown"
    # What is not in the room is not in the image; nor is what nothing restricts.
    assert verdict_values("There is no sofa in the room.", ("object", "sofa"))["couch"] == "contradicted"
    assert verdict_values("There is no sofa.", ("object", "sofa"))["couch"] == "contradicted"
    # The answer itself names somebody.
    verdicts = verify_against_facts(extract_claims("A man stands here. Nobody is smiling."), [Fact("object", "man")])
    assert [v.value for v in verdicts if v.claim.negated] == ["unknown"]


def test_verify_against_facts_hedged_claims_are_judged_as_stated():
    assert verdict_values("There may be a cat.", ("absent", "cat")) == {"cat": "contradicted"}
    assert verdict_values("There may be a cat.", ("object", "cat")) == {"cat": "supported"}


def test_verify_against_facts_counts():
    facts = (("count", "two dogs"), ("object", "cat"))
    assert verdict_values("Two dogs and three cats.", *facts) == {
        "dog": "supported",
        "dog#2": "supported",
        "cat": "supported",
        "cat#3": "unknown",
    }
    assert verdict_values("Three dogs.", *facts) == {"dog": "supported", "dog#3": "contradicted"}
    assert verdict_values("At least three dogs.", ("count", "5 dogs"))["dog#3"] == "unknown"
    assert verdict_values("At least three dogs.", ("absent", "dog"))["dog#3"] == "contradicted"
    assert verdict_values("Three birds.", ("absent", "bird")) == {"bird": "contradicted", "bird#3": "contradicted"}


@pytest.mark.parametrize(
    "fact",
    [
        *(("qa", f"How many dogs are there? {answer}") for answer in ("0", "Zero", "None.", "There are no dogs.")),
        *(("count", text) for text in ("0 dogs", "zero dogs", "no dogs", "dogs: 0", "dogs 0", "dogs: none")),
    ],
)
def test_verify_against_facts_zero_is_absence(fact):
    assert verdict_values("There is a dog.", fact) == {"dog": "contradicted"}
    assert verdict_values("There are two dogs.", fact) == {"dog": "contradicted", "dog#2": "contradicted"}
    assert verdict_values("There are no dogs.", fact) == {"dog": "supported"}


def test_verify_against_facts_objects_of_one_name_may_differ():
    assert verdict_values("A blue car.", ("object", "red car"), ("object", "car"))["car=blue"] == "unknown"
    assert verdict_values("A blue car.", ("object", "red car"), ("object", "grey car"))["car=blue"] == "contradicted"
    left = ("relation", "car left of tree")
    assert verdict_values("A car is right of the tree.", ("object", "car"), left)["car>right of>tree"] == "contradicted"
    two_cars = (("object", "red car"), ("object", "grey car"))
    assert verdict_values("A car is right of the tree.", *two_cars, left)["car>right of>tree"] == "unknown"


def test_verify_against_facts_attributes():
    assert verdict_values("A grey cat.", ("attribute", "gray cat"))["cat=grey"] == "supported"
    assert verdict_values("A black cat.", ("attribute", "white cat"))["cat=black"] == "contradicted"
    two_cats = (("attribute", "white cat"), ("count", "two cats"))
    assert verdict_values("A black cat.", *two_cats)["cat=black"] == "unknown"  # the other cat may be black
    assert verdict_values("A fluffy cat.", ("attribute", "white cat"))["cat=fluffy"] == "unknown"
    assert verdict_values("The door is closed.", ("attribute", "open door"))["door=closed"] == "contradicted"
    assert verdict_values("A big dog.", ("attribute", "large dog"))["dog=big"] == "supported"
    assert verdict_values("A black cow.", ("caption", "A black and white cow."))["cow=black"] == "supported"


@pytest.mark.parametrize(
    ("claimed", "known", "value"),
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
def test_verify_against_facts_near_synonyms_are_not_contradicted(claimed, known, value):
    (verdict,) = [v for v in verdicts_by_claim(claimed, ("attribute", known)).values() if v.claim.kind == "attribute"]
    assert verdict.value == value


@pytest.mark.parametrize(
    ("claimed", "known", "value"),
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
def test_verify_against_facts_relations(claimed, known, value):
    fact = ("relation", f"dog {known} couch")
    assert verdict_values(f"A dog is {claimed} a couch.", fact)[f"dog>{claimed}>couch"] == value
    of_two_dogs = verdict_values(f"A dog is {claimed} a couch.", fact, ("count", "two dogs"))
    assert of_two_dogs[f"dog>{claimed}>couch"] in ("supported", "unknown")  # never contradicted


@pytest.mark.parametrize(
    ("claimed", "facts", "value"),
    [
        ("A man rides a horse.", [("relation", "man riding horse")], "supported"),
        ("A person rides a horse.", [("relation", "man riding horse")], "supported"),
        ("A man watches a dog.", [("caption", "A man is staring at a dog.")], "supported"),
        ("A train crosses a bridge.", [("relation", "train crossing bridge")], "supported"),
        ("A man is not riding a horse.", [("relation", "man riding horse")], "contradicted"),
        # Another man may push another bicycle, unless there is only one.
        ("A man pushes a bicycle.", [("relation", "man riding bicycle")], "unknown"),
        ("A man pushes a bicycle.", [("relation", "man riding bicycle"), ("count", "1 bicycle")], "contradicted"),
        ("A man rides a bicycle.", [("relation", "man riding horse")], "unknown"),
        ("A man rides a bicycle.", [("relation", "man riding horse"), ("count", "1 man")], "contradicted"),
        ("A man holds a cup.", [("relation", "man riding horse"), ("count", "1 man")], "unknown"),
        ("A horse rides a man.", [("relation", "man riding horse")], "contradicted"),
        ("A dog chases a cat.", [("relation", "cat chasing dog")], "unknown"),
        ("A man wears a hat.", [("absent", "hat")], "contradicted"),
        ("A man wears a hat.", [("object", "man"), ("object", "hat")], "unknown"),
    ],
)
def test_verify_against_facts_actions(claimed, facts, value):
    (action,) = [v for name, v in verdicts_by_claim(claimed, *facts).items() if "@" in name]
    assert action.value == value


def test_verify_against_facts_inverse_relations():
    fact = ("relation", "dog left of couch")
    assert verdict_values("A couch is to the right of a dog.", fact)["couch>right of>dog"] == "supported"
    assert verdict_values("A couch is to the left of a dog.", fact)["couch>left of>dog"] == "contradicted"
    assert verdict_values("The dog is not on the couch.", ("relation", "dog on couch"))["dog>on>couch"] == "contradicted"


def test_verify_against_facts_disagreeing_facts_are_unknown():
    verdict = verdicts_by_claim("A dog.", ("object", "dog", "a.json"), ("absent", "dog", "b.json"))["dog"]
    assert verdict.value == "unknown" and verdict.probability == 0.5
    assert verdict.evidence == "facts disagree: object: dog (a.json); absent: dog (b.json)"
    values = verdict_values("Two dogs.", ("count", "two dogs"), ("count", "three dogs"))
    assert values == {"dog": "supported", "dog#2": "unknown"}
    one_car = (("count", "one car"), ("attribute", "red car"), ("attribute", "blue car"))
    assert verdict_values("A red car.", *one_car)["car=red"] == "unknown"


def test_verify_against_facts_paraphrased_facts():
    assert verdict_values("Two brown dogs.", ("count", "dog: 2"), ("attribute", "dog brown")) == {
        "dog": "supported",
        "dog#2": "supported",
        "dog=brown": "supported",
    }
    assert verdict_values("A red car.", ("absent", "red car")) == {"car": "unknown", "car=red": "contradicted"}
    assert verdict_values("A table.", ("object", "dining table")) == {"table": "supported"}


def test_verify_against_facts_takes_evidence_and_probability_from_facts():
    verdicts = verdicts_by_claim("A dog and a bird.", ("object", "dog", "boxes", 0.8), ("absent", "bird", "people", 0.9))
    assert verdicts["dog"].evidence == "object: dog (boxes)" and verdicts["dog"].probability == 0.8
    assert verdicts["bird"].value == "contradicted" and abs(verdicts["bird"].probability - 0.1) < 1e-9


def test_verify_against_facts_question_answer_facts():
    facts = (("qa", "Is there a dog? No."), ("qa", "How many cats are there? 2"), ("qa", "What color is the car? Red"))
    values = verdict_values("A dog, three cats and a red car.", *facts)
    assert values == {
        "dog": "contradicted",
        "cat": "supported",
        "cat#3": "contradicted",
        "car": "supported",
        "car=red": "supported",
    }


def test_verify_against_facts_chooses_the_same_evidence_in_every_process():
    """Of several facts that contradict a claim, the order of values decides, not that of a set."""
    (verdict,) = [
        v
        for v in verify_against_facts(
            extract_claims("A striped arrow."), [Fact("object", "a plain orange arrow"), Fact("object", "a dotted red arrow")]
        )
        if v.claim.kind == "attribute"
    ]
    assert (verdict.value, verdict.evidence) == ("contradicted", "object: a dotted red arrow")
