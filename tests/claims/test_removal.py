"""Removing a claim: what is left, by hand, and that no other claim changes."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.claims import extract_claims
from mmrlhf.claims.removal import remove_claim
from mmrlhf.records import Claim
from mmrlhf.scenes import parse_claims
from mmrlhf.scenes.captions import caption
from mmrlhf.scenes.scene_graph import generate_scene

SCENE = (
    "There is a small red star at the top left, a blue ring and a moon. There are three objects in total. "
    "The red star is left of the blue ring."
)
SHOWS = "The picture shows a pink cross, an orange square and a large green diamond. In all I count three objects."


def find_claim(text, *fields, extract=extract_claims):
    """Return the one claim of a text with these fields: kind, subject, value, relation, target."""
    (claim,) = {c for c in extract(text) if (c.kind, c.subject, c.value, c.relation, c.target)[: len(fields)] == fields}
    return claim


@pytest.mark.parametrize(
    ("text", "fields", "rest"),
    [
        (SCENE, ("object", "star"), "There is a blue ring and a moon. There are three objects in total."),
        (
            SCENE,
            ("attribute", "star", "red"),
            "There is a small star at the top left, a blue ring and a moon. There are three objects in total. "
            "The star is left of the blue ring.",
        ),
        (
            SCENE,
            ("attribute", "red star", "small"),
            "There is a red star at the top left, a blue ring and a moon. There are three objects in total. "
            "The red star is left of the blue ring.",
        ),
        (
            SCENE,
            ("relation", "red star", "at top left"),
            "There is a small red star, a blue ring and a moon. There are three objects in total. "
            "The red star is left of the blue ring.",
        ),
        (SCENE, ("object", "ring"), "There is a small red star at the top left and a moon. There are three objects in total."),
        (
            SCENE,
            ("object", "moon"),
            "There is a small red star at the top left and a blue ring. There are three objects in total. "
            "The red star is left of the blue ring.",
        ),
        (
            SCENE,
            ("count", "object"),
            "There is a small red star at the top left, a blue ring and a moon. The red star is left of the blue ring.",
        ),
        (
            SCENE,
            ("relation", "red star", "left of blue ring"),
            "There is a small red star at the top left, a blue ring and a moon. There are three objects in total.",
        ),
        (SHOWS, ("object", "cross"), SHOWS.replace("a pink cross, an orange square and", "an orange square and")),
        (SHOWS, ("attribute", "square", "orange"), SHOWS.replace("an orange square", "a square")),
        (SHOWS, ("object", "diamond"), "The picture shows a pink cross and an orange square. In all I count three objects."),
        (SHOWS, ("count", "object", "3"), "The picture shows a pink cross, an orange square and a large green diamond."),
        ("I can see a red ring. That makes one object.", ("object", "ring"), "That makes one object."),
        ("I can see a red ring. That makes one object.", ("count", "object"), "I can see a red ring."),
        ("I can see a red ring.", ("object", "ring"), ""),
        ("There is a red star and a blue star.", ("attribute", "star", "red"), "There is a star and a blue star."),
        ("There are two red stars and no moon.", ("count", "moon", "0"), "There are two red stars."),
        ("There is a moon. There is nothing at the left.", ("relation", "nothing"), "There is a moon."),
        ("There are three objects: two stars and a blue ring.", ("count", "object"), "There are objects: two stars and a blue ring."),
    ],
)  # fmt: skip
def test_remove_claim_from_a_scenes_caption(text, fields, rest):
    assert remove_claim(text, find_claim(text, *fields, extract=parse_claims)) == rest


HORSE = "A man in a red shirt is riding a brown horse on the beach. Two dogs are running next to him."
TABLE = "The table has a white plate, a fork, and three cups on it. The plate is round and shiny. There is no cat here."


@pytest.mark.parametrize(
    ("text", "fields", "rest"),
    [
        (HORSE, ("object", "man"), "Two dogs are running next to him."),
        (HORSE, ("object", "shirt"), HORSE.replace(" in a red shirt", "")),
        (HORSE, ("attribute", "shirt", "red"), HORSE.replace("red ", "")),
        (HORSE, ("object", "horse"), "There is a man in a red shirt. Two dogs are running next to him."),
        (HORSE, ("action", "man", "", "ride"), HORSE.replace("riding a brown horse ", "")),
        (HORSE, ("relation", "man", "", "on"), HORSE.replace(" on the beach", "")),
        (HORSE, ("object", "dog"), "A man in a red shirt is riding a brown horse on the beach."),
        (HORSE, ("count", "dog"), HORSE.replace("Two dogs", "Dogs")),
        (HORSE, ("relation", "dog"), HORSE.replace(" next to him", "")),
        (TABLE, ("object", "plate"), "The table has a fork, and three cups on it. There is no cat here."),
        (TABLE, ("object", "fork"), TABLE.replace(", a fork", "")),
        (TABLE, ("object", "cup"), TABLE.replace(", a fork, and three cups on it", " and a fork")),
        (TABLE, ("count", "cup"), TABLE.replace("three ", "")),
        (TABLE, ("relation", "cup"), TABLE.replace(" on it", "")),
        (TABLE, ("attribute", "plate", "round"), TABLE.replace("round and ", "")),
        (TABLE, ("attribute", "plate", "shiny"), TABLE.replace(" and shiny", "")),
        (TABLE, ("object", "cat"), TABLE.replace(" There is no cat here.", "")),
        ("The cup is blue. A dog sleeps.", ("attribute", "cup", "blue"), "A dog sleeps."),
        ("A man holds an umbrella, and a dog sits.", ("object", "dog"), "A man holds an umbrella."),
        ("There are two cats and a bowl.", ("object", "cat"), "There is a bowl."),
        ("On the table, there is a cup. A dog sleeps.", ("object", "table"), "There is a cup. A dog sleeps."),
        ("In the image, a girl is sitting on a swing. A dog sleeps.", ("object", "girl"), "A dog sleeps."),
        ("A man and a dog are sitting on a bench.", ("object", "bench"), "There is a man and a dog."),
        ("A man and a dog are sitting on a bench.", ("object", "man"), "A dog is sitting on a bench."),
        ("There is a lighthouse and a few boats.", ("object", "lighthouse"), "There are a few boats."),
    ],
)
def test_remove_claim_from_natural_text(text, fields, rest):
    assert remove_claim(text, find_claim(text, *fields)) == rest


def test_words_that_are_not_found_leave_the_answer_as_it_is():
    text = "Both teams are playing."
    assert remove_claim(text, Claim("count", "team", "2", (0, 10))) == text


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, 2))
def test_a_caption_without_a_claim_keeps_all_claims_that_do_not_depend_on_it(index, num_faults):
    scene = generate_scene("rl", index, 0)
    text = caption(
        scene, np.random.default_rng(index), cooccurrence_bias=0.5, num_faults=num_faults, location_rate=0.3
    )  # fmt: skip
    claims = Counter(parse_claims(text))
    for claim in claims:
        rest = Counter(parse_claims(remove_claim(text, claim)))
        assert rest[claim] < claims[claim]
        for other in claims - rest:
            # What goes too names the object that goes, or the adjective.
            word = claim.value if claim.kind == "attribute" else claim.subject
            assert other == claim or (claim.kind in ("object", "attribute") and word in f"{other.subject} {other.value}".split())
        if claim.kind != "attribute":  # "red star at the top" is "star at the top" without red
            assert not rest - claims


@settings(max_examples=100)
@given(st.text(alphabet="a dog.,;:\nand is on the two no -*()'’", max_size=80), st.integers(0, 80), st.integers(0, 80))
def test_any_text_and_span_give_a_text(text, start, length):
    for kind in ("object", "attribute", "count", "relation", "action"):
        claim = Claim(kind, "dog", "two", (min(start, len(text)), min(start + length, len(text))))
        assert isinstance(remove_claim(text, claim), str)
    for claim in extract_claims(text):
        assert len(remove_claim(text, claim)) <= len(text) + len("There are")
