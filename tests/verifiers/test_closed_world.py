"""A complete list of facts contradicts what it leaves out; an incomplete one does not."""

from pathlib import Path

import numpy as np
import pytest

from mmrlhf import scenes
from mmrlhf.claims import extract_claims, load_lexicon
from mmrlhf.verifiers import verify_against_facts
from tests.verifiers.test_facts import verdict_values, verdicts_by_claim

FACTS = (
    ("object", "brown puppy"),
    ("object", "red mug"),
    ("object", "blue mug"),
    ("count", "two mugs"),
    ("object", "plate"),
    ("object", "plate"),
    ("relation", "red mug on table"),
)


@pytest.mark.parametrize(
    ("text", "claim", "value"),
    [
        ("There is a zebra.", "zebra", "contradicted"),
        ("There is no zebra.", "zebra", "supported"),
        ("There is a car.", "car", "contradicted"),
        ("There is a square.", "square", "contradicted"),
        ("There is a kitchen.", "kitchen", "unknown"),  # which is where it all is
        ("There is a mug.", "mug", "supported"),
        ("There is a dog.", "dog", "supported"),
        ("There is a poodle.", "poodle", "unknown"),  # the puppy may be one
        ("There is a table.", "table", "supported"),  # a relation names it
        ("There is an animal.", "animal", "unknown"),  # which may be the puppy
        ("There are three plates.", "plate#3", "contradicted"),
        ("There are two plates.", "plate#2", "unknown"),  # no fact counts them, but it is not wrong
        ("There is a green mug.", "mug=green", "contradicted"),  # both mugs have another colour
        ("There is a large mug.", "mug=large", "unknown"),  # no mug has a size
        ("The mug is next to a zebra.", "mug>next to>zebra", "contradicted"),
        ("The mug is next to a dog.", "mug>next to>dog", "unknown"),  # nobody lists all relations
        ("The dog chases a zebra.", "dog@chase@zebra", "contradicted"),
    ],
)
def test_a_complete_list_contradicts_what_it_leaves_out(text, claim, value):
    values = verdict_values(text, *FACTS, ("scope", "complete"))
    assert values.get(claim) == value, values
    open_values = verdict_values(text, *FACTS)
    assert open_values[claim] == (value if value == "supported" and "no" not in text.split() else "unknown")
    assert verdict_values(text, *FACTS, ("scope", "incomplete")) == open_values
    assert verdict_values(text, *FACTS, ("scope", "incomplete"), ("scope", "complete")) == open_values


def test_a_complete_list_that_counts_leaves_the_attributes_of_what_it_counts_open():
    facts = (("object", "red mug"), ("count", "two mugs"), ("scope", "complete"))
    assert verdict_values("A green mug.", *facts)["mug=green"] == "unknown"  # one of two is listed with a colour
    assert verdict_values("Three mugs.", *facts)["mug#3"] == "contradicted"


def test_a_contradiction_by_a_complete_list_names_its_evidence():
    facts = (("object", "red mug", "me"), ("scope", "complete", "me", 0.9))
    verdict = verdicts_by_claim("A zebra.", *facts)["zebra"]
    assert (verdict.evidence, verdict.probability) == ("scope: complete (me), and no zebra is listed", pytest.approx(0.1))
    assert (
        verdicts_by_claim("Three mugs.", *facts)["mug#3"].evidence == "scope: complete (me), and 1 listed: object: red mug (me)"
    )


def test_complete_facts_about_scenes_contradict_nothing_true_and_most_that_is_false():
    lexicon = load_lexicon(str(Path(scenes.__file__).with_name("lexicon.txt")))
    found = {"true": [], "false": []}
    for index in range(30):
        scene, rng = scenes.generate_scene("selection", index, 0), np.random.default_rng(index)
        facts = scenes.annotator_facts(scene, rng, recall=1.0, error_rate=0.0)
        texts = scenes.caption_with_and_without_fault(scene, rng, location_rate=0.0)
        for name, text in zip(found, texts, strict=True):
            if name == "false" and not {c.kind for c in scenes.verify_answer(scene, text).false_claims} - {"relation"}:
                continue
            verdicts = verify_against_facts(extract_claims(text, lexicon), facts, lexicon)
            found[name].append(any(verdict.value == "contradicted" for verdict in verdicts))
    # What stays open: a striped star that is another star's colour, a colour of one of two rings.
    assert not any(found["true"]) and np.mean(found["false"]) > 0.8
