"""Relations and places of objects with boxes, as in COCO's annotations and scene graphs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.claims import extract_claims, load_lexicon
from mmrlhf.records import Claim, Fact
from mmrlhf.verifiers import verify_against_facts

DOG, CAT = (0.1, 0.4, 0.3, 0.6), (0.5, 0.4, 0.9, 0.8)
COUNTS = (Fact("count", "1 dog"), Fact("count", "1 cat"))


@pytest.fixture(scope="module")
def lexicon(tmp_path_factory):
    path = tmp_path_factory.mktemp("lexicon") / "places.txt"
    path.write_text("[image places]\ntop left\nleft\nright\ncentre: middle\n")
    return load_lexicon(str(path))


def listed(noun, box):
    return Fact("object", noun, box=box)


def relation_value(subject, relation, target, *facts):
    (verdict,) = verify_against_facts([Claim("relation", subject, relation=relation, target=target)], facts)
    return verdict.value


@pytest.mark.parametrize(
    ("dog", "cat", "left", "above"),
    [
        # Each centre is beyond the other's edge: left, on one level.
        ((0.1, 0.4, 0.3, 0.6), (0.5, 0.4, 0.9, 0.8), "supported", "unknown"),
        ((0.5, 0.4, 0.9, 0.8), (0.1, 0.4, 0.3, 0.6), "contradicted", "unknown"),
        # They overlap from 0.4 to 0.5: the dog's centre is 0.3, the cat's 0.6.
        ((0.1, 0.0, 0.5, 0.2), (0.4, 0.5, 0.8, 0.9), "supported", "supported"),
        # From 0.4 to 0.7: the dog's centre is 0.4 still, but its edge is beyond the cat's centre.
        ((0.1, 0.5, 0.7, 0.9), (0.4, 0.0, 0.8, 0.2), "unknown", "contradicted"),
        # One inside the other, beside its centre.
        ((0.0, 0.0, 0.2, 0.2), (0.0, 0.0, 1.0, 1.0), "unknown", "unknown"),
    ],
)
def test_two_boxes_decide_a_relation_if_each_centre_is_beyond_the_others_edge(dog, cat, left, above):
    facts = (listed("dog", dog), listed("cat", cat), *COUNTS)
    opposite = {"supported": "contradicted", "contradicted": "supported", "unknown": "unknown"}
    for relation, reverse, value in (("left of", "right of", left), ("above", "below", above)):
        assert relation_value("dog", relation, "cat", *facts) == value
        assert relation_value("cat", reverse, "dog", *facts) == value
        assert relation_value("dog", reverse, "cat", *facts) == opposite[value]
    assert relation_value("dog", "on", "cat", *facts) == "unknown"  # boxes show no contact


def test_boxes_contradict_a_relation_only_if_all_objects_of_both_names_are_counted():
    facts = (listed("dog", DOG), listed("cat", CAT))
    assert relation_value("dog", "right of", "cat", *facts) == "unknown"  # another cat may not be listed
    assert relation_value("dog", "right of", "cat", *facts, *COUNTS) == "contradicted"
    assert relation_value("dog", "right of", "cat", *facts, Fact("count", "1 dog"), Fact("count", "2 cats")) == "unknown"
    crowd = (*facts, Fact("object", "cat"), Fact("count", "1 dog"), Fact("count", "2 cats"))
    assert relation_value("dog", "right of", "cat", *crowd) == "unknown"  # where the second cat is, nobody says
    second = (*facts, listed("cat", (0.4, 0.1, 0.6, 0.3)), Fact("count", "1 dog"), Fact("count", "2 cats"))
    assert relation_value("dog", "right of", "cat", *second) == "contradicted"
    assert relation_value("dog", "left of", "cat", *second) == "supported"


def test_boxes_of_people_contradict_what_is_said_of_a_man_and_support_nothing_of_him():
    """The person may be a woman; but whoever is there is not on the other side."""
    person = (listed("person", (0.6, 0.1, 0.8, 0.9)), Fact("count", "1 person"))
    facts = (listed("dog", DOG), Fact("count", "1 dog"), *person)
    assert relation_value("person", "right of", "dog", *facts) == "supported"
    assert relation_value("man", "right of", "dog", *facts) == "unknown"
    assert relation_value("man", "left of", "dog", *facts) == "contradicted"
    assert relation_value("dog", "right of", "man", *facts) == "contradicted"
    assert relation_value("man", "left of", "woman", *facts) == "unknown"  # one person cannot be both


def test_a_listed_kind_does_not_speak_for_what_may_not_be_listed():
    facts = (listed("dog", DOG), listed("coffee table", CAT), Fact("count", "1 dog"), Fact("count", "1 coffee table"))
    assert relation_value("dog", "left of", "table", *facts) == "supported"
    assert relation_value("dog", "right of", "table", *facts) == "unknown"  # of another table
    assert relation_value("dog", "right of", "coffee table", *facts) == "contradicted"


def test_a_place_in_words_counts_before_a_box():
    facts = (Fact("object", "dog at the right", box=DOG), listed("cat", (0.4, 0.4, 0.6, 0.6)), *COUNTS)
    assert relation_value("dog", "right of", "cat", *facts) == "supported"


@pytest.mark.parametrize(
    ("box", "text", "value"),
    [
        ((0.1, 0.1, 0.5, 0.3), "on the left", "supported"),  # centre 0.3, 0.2
        ((0.1, 0.1, 0.5, 0.3), "at the top left", "supported"),
        ((0.1, 0.1, 0.5, 0.3), "on the right", "contradicted"),  # ends where the right half begins
        ((0.1, 0.1, 0.6, 0.3), "on the right", "unknown"),  # reaches it
        ((0.3, 0.4, 0.9, 0.6), "in the middle", "supported"),  # centre 0.6, 0.5
        ((0.6, 0.4, 1.0, 0.6), "in the middle", "unknown"),  # centre 0.8, but it begins before 0.75
        ((0.8, 0.4, 1.0, 0.6), "in the middle", "contradicted"),
        ((0.1, 0.6, 0.3, 0.9), "at the top left", "contradicted"),  # left, and below the upper half
        ((0.0, 0.0, 1.0, 1.0), "on the left", "supported"),  # its centre is in both halves
    ],
)
def test_a_box_is_at_a_place_if_its_centre_is_and_elsewhere_if_it_does_not_reach_it(lexicon, box, text, value):
    claims = [c for c in extract_claims(f"There is a dog {text} of the image.", lexicon) if c.kind == "relation"]
    assert [v.value for v in verify_against_facts(claims, (listed("dog", box), Fact("count", "1 dog")), lexicon)] == [value]
    (uncounted,) = verify_against_facts(claims, (listed("dog", box),), lexicon)
    assert uncounted.value == ("unknown" if value == "contradicted" else value)  # there may be another dog


def test_evidence_shows_the_boxes():
    facts = (listed("dog", DOG), Fact("object", "cat", "coco", box=CAT))
    (verdict,) = verify_against_facts([Claim("relation", "dog", relation="left of", target="cat")], facts)
    assert verdict.evidence == "object: dog [0.10, 0.40, 0.30, 0.60]; object: cat [0.50, 0.40, 0.90, 0.80] (coco)"


@given(st.lists(st.tuples(*[st.integers(0, 9)] * 4), min_size=2, max_size=2))
def test_opposite_relations_are_never_both_true(corners):
    boxes = [(x / 20, y / 20, (x + w + 1) / 20, (y + h + 1) / 20) for x, y, w, h in corners]
    facts = (listed("dog", boxes[0]), listed("cat", boxes[1]), *COUNTS)
    for relation, reverse in (("left of", "right of"), ("above", "below")):
        values = {relation_value("dog", r, "cat", *facts) for r in (relation, reverse)}
        assert values in ({"supported", "contradicted"}, {"unknown"})
