"""A complete list of facts contradicts what it leaves out; an incomplete one does not."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from mmrlhf import scenes
from mmrlhf.claims import extract_claims, load_lexicon
from mmrlhf.verifiers import verify_against_facts
from mmrlhf.verifiers.listed import read_place
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


# cross   .      ring
#   .     star   .
# ring    .      moon
PLACED = (
    ("object", "red cross at the top left"),
    ("object", "blue ring at the top right"),
    ("object", "star at the centre"),
    ("object", "green ring at the bottom left"),
    ("object", "moon at the bottom right"),
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The cross is left of the star.", "supported"),
        ("The cross is above the star.", "supported"),
        ("The star is below the cross.", "supported"),
        ("The moon is to the right of the star.", "supported"),
        ("The cross is right of the star.", "contradicted"),
        ("The cross is below the star.", "contradicted"),
        ("The star is above the cross.", "contradicted"),
        ("The star is left of the cross.", "contradicted"),
        ("The cross is not right of the star.", "supported"),
        ("The cross is not left of the star.", "contradicted"),
        ("The ring is left of the star.", "unknown"),  # only the green one is
        ("The blue ring is left of the star.", "unknown"),  # a relation does not say which ring
        ("The blue ring is not left of the star.", "unknown"),
        ("The ring is right of the star.", "unknown"),  # only the blue one is
        ("The ring is right of the moon.", "unknown"),  # the blue one is in the same column
        ("The ring is left of the cross.", "unknown"),  # the green one is in the same column
        ("The cross is right of the ring.", "unknown"),
        ("The cross is below the ring.", "unknown"),  # the blue one is in the same row
        ("The moon is above the star.", "contradicted"),
        ("The ring is left of the moon.", "unknown"),  # the blue one is in the same column
        ("The cross is above the moon.", "supported"),
        ("The ring is above the ring.", "unknown"),  # the blue one, not the green one
        ("The star is above the star.", "unknown"),  # no second star to compare
        ("The star is under the cross.", "unknown"),  # which is about depth, too
        ("The star is next to the cross.", "unknown"),
        ("The star is left of the dog.", "contradicted"),  # no dog
    ],
)
def test_places_decide_relations_in_both_directions(text, value):
    def relation_value(scope):
        (found,) = (v for v in verdicts_by_claim(text, *PLACED, ("scope", scope)).values() if v.claim.kind == "relation")
        return found.value

    by_one_pair = {"The cross is not left of the star."}  # needs no complete list: a listed pair says the opposite
    assert relation_value("complete") == value
    is_closed = (value == "contradicted" and text not in by_one_pair) or text == "The cross is not right of the star."
    assert relation_value("incomplete") == ("unknown" if is_closed else value)


def test_places_contradict_only_if_all_objects_that_are_counted_have_one():
    facts = (("object", "ring at the left"), ("object", "star at the right"), ("scope", "complete"))
    assert verdict_values("The ring is right of the star.", *facts)["ring>right of>star"] == "contradicted"
    assert verdict_values("The ring is right of the star.", ("count", "two rings"), *facts)["ring>right of>star"] == "unknown"
    assert verdict_values("The ring is right of the star.", ("object", "blue ring"), *facts)["ring>right of>star"] == "unknown"
    says_otherwise = ("relation", "ring right of star")
    assert verdict_values("The ring is right of the star.", says_otherwise, *facts)["ring>right of>star"] == "supported"
    assert verdict_values("The ring is left of the star.", says_otherwise, *facts)["ring>left of>star"] == "unknown"


def test_a_verdict_by_places_names_both_facts_and_is_as_sure_as_the_less_sure_one():
    facts = (("object", "ring at the left", "me", 0.9), ("object", "star at the right", "me", 0.7), ("scope", "complete"))
    verdict = verdicts_by_claim("The ring is left of the star.", *facts)["ring>left of>star"]
    both = "object: ring at the left (me); object: star at the right (me)"
    assert (verdict.evidence, verdict.probability) == (both, pytest.approx(0.7))
    verdict = verdicts_by_claim("The ring is right of the star.", *facts)["ring>right of>star"]
    assert (verdict.evidence, verdict.probability) == (both, pytest.approx(0.3))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        *((f"plain red ring at the {name}", divmod(cell, 3)) for cell, name in enumerate(scenes.CELL_NAMES)),
        ("Ring at the Top Left.", (0, 0)),
        ("ring at the center", (1, 1)),
        ("dog at the left of the couch", None),
        ("dog on the left", None),  # of which row?
        ("ring", None),
    ],
)
def test_the_place_of_an_object_fact(text, place):
    assert read_place(text) == place


def test_a_listed_value_is_not_taken_for_an_absent_object():
    values = verdict_values("A small orange.", ("object", "small orange cross"), ("scope", "complete"))
    assert values["orange"] == "unknown"


def test_complete_facts_about_scenes_decide_relations_of_shapes_that_occur_once():
    lexicon = load_lexicon(str(Path(scenes.__file__).with_name("lexicon.txt")))
    found = {"supported": [], "contradicted": []}
    for index in range(60):
        scene, rng = scenes.generate_scene("selection", index, 0), np.random.default_rng(index)
        facts = scenes.annotator_facts(scene, rng, recall=1.0, error_rate=0.0)
        shapes = [o.shape for o in scene.objects]
        single = [o for o in scene.objects if shapes.count(o.shape) == 1]
        for a, b in itertools.permutations(single, 2):
            for relation, holds, opposite in (
                ("left of", a.column < b.column, a.column > b.column),
                ("above", a.row < b.row, a.row > b.row),
            ):
                if holds or opposite:
                    claims = extract_claims(f"The {a.name} is {relation} the {b.name}.", lexicon)
                    (verdict,) = (v for v in verify_against_facts(claims, facts, lexicon) if v.claim.kind == "relation")
                    found["supported" if holds else "contradicted"].append(verdict.value)
    assert all(set(values) == {name} and len(values) > 100 for name, values in found.items())


def test_complete_facts_about_scenes_contradict_nothing_true_and_most_that_is_false():
    lexicon = load_lexicon(str(Path(scenes.__file__).with_name("lexicon.txt")))
    found = {"true": [], "false": []}
    for index in range(30):
        scene, rng = scenes.generate_scene("selection", index, 0), np.random.default_rng(index)
        facts = scenes.annotator_facts(scene, rng, recall=1.0, error_rate=0.0)
        texts = scenes.caption_with_and_without_fault(scene, rng, location_rate=0.0)
        for name, text in zip(found, texts, strict=True):
            if name == "false" and not scenes.verify_answer(scene, text).false_claims:
                continue
            verdicts = verify_against_facts(extract_claims(text, lexicon), facts, lexicon)
            found[name].append(any(verdict.value == "contradicted" for verdict in verdicts))
    # What stays open: a striped star that is another star's colour, a colour of one of two rings.
    assert not any(found["true"]) and np.mean(found["false"]) > 0.8
