"""Places in the image: what they locate, what is none, and that no other claim changes."""

import json
from pathlib import Path

import pytest

from mmrlhf import scenes
from mmrlhf.claims import extract_claims, load_lexicon
from mmrlhf.claims.removal import remove_claim
from mmrlhf.text.words import IMAGE_RELATIONS

SCENES = Path(scenes.__file__).parent
PHOTO_PLACES = """
[image places]
top left: upper left, upper left-hand
bottom right: lower right
left: left hand side
right: right-hand
top:
bottom:
centre: center
"""


@pytest.fixture(scope="module")
def lexicon(tmp_path_factory):
    path = tmp_path_factory.mktemp("lexicon") / "places.txt"
    path.write_text(PHOTO_PLACES)
    return load_lexicon(str(path))


def claimed_places(text, lexicon):
    """Return the claims about places in the image in short: `dog: left`, `not dog: left`."""
    return [
        f"{'not ' * c.negated}{'maybe ' * c.hedged}{c.subject}: {c.relation.removeprefix('at the ').removesuffix(' of')}"
        for c in extract_claims(text, lexicon)
        if c.relation in IMAGE_RELATIONS and c.target == "image"
    ]


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("A red ball at the top left.", ["ball: top left"]),
        ("A dog lies in the lower right corner of the image.", ["dog: bottom right"]),
        ("A dog at the top left of this picture.", ["dog: top left"]),
        ("A dog at the top left of image.", ["dog: top left"]),
        ("The dog is on the far left.", ["dog: left"]),
        ("The dog is in upper left corner.", ["dog: top left"]),
        ("A dog to the left side of the picture.", ["dog: left"]),
        ("A dog on the left hand side.", ["dog: left"]),
        ("On the left side of the photo, a woman waits for a bus.", ["woman: left"]),
        ("At the top left there is a dog and a cat.", ["dog: top left", "cat: top left"]),
        ("On the right is a dog, and on the left there is a cat.", ["dog: right", "cat: left"]),
        ("In the center of the image, we see a chef.", ["chef: centre"]),
        ("There is a dog. On the left, it holds a bone.", ["dog: left"]),
        # In a list, a place is that of the phrase before it; after a verb, that of all subjects.
        ("A dog, a cat at the top and a bird on the left.", ["cat: top", "bird: left"]),
        ("There is a dog, and on the left, a cat sleeps.", ["cat: left"]),
        ("The dog, on the left, is asleep.", ["dog: left"]),
        ("A dog and a cat are on the left.", ["dog: left", "cat: left"]),
        ("A bridge crosses a lake. A boat crosses it on the left.", ["boat: left"]),
        ("The dog on the left is smaller than the cat on the right.", ["dog: left", "cat: right"]),
        ("There is no dog on the left.", ["not dog: left"]),
        ("The dog is not on the left.", ["not dog: left"]),
        ("The dog is probably on the left.", ["maybe dog: left"]),
    ],
)
def test_a_place_in_the_image_is_a_relation_to_it(text, places, lexicon):
    assert claimed_places(text, lexicon) == places


@pytest.mark.parametrize(
    "text",
    [
        "A girl waves at the top of the stairs.",
        "A dog is to the left of the couch.",
        "A lamp hangs to the left of the picture.",
        "A mirror hangs on the right wall.",
        "A cake has a cherry on top.",
        "Trees stand on the left and right.",
        "A building with a clock at the top is old.",
        "The room has a table in the center.",
        "A cup is on a tray on the left.",
        "On the table is a cup on the left.",
        "He holds a phone in his left hand and a cup in the right.",
        "Is there a dog on the left?",
        "There is a dog, on the left, a cat and a bird.",  # the dog or the cat?
    ],
)
def test_words_for_places_that_may_be_in_something_else_make_no_claim(text, lexicon):
    assert claimed_places(text, lexicon) == []


def test_the_span_of_a_place_covers_the_object_and_the_place(lexicon):
    text = "There is a red ball at the top left of the image."
    (claim,) = (c for c in extract_claims(text, lexicon) if c.kind == "relation")
    assert text[slice(*claim.span)] == "ball at the top left of the image"
    assert (claim.relation, claim.target, claim.category) == ("at the top left of", "image", "sports ball")


def test_without_the_section_there_are_no_places():
    text = "A dog lies in the lower right corner of the image, and a cat is on the left."
    assert [c.kind for c in extract_claims(text)] == ["object", "object"]
    assert claimed_places(text, load_lexicon(str(SCENES / "lexicon.txt"))) == []


def test_reading_places_changes_no_other_claim(lexicon):
    lines = (Path(__file__).parent / "long_answers.jsonl").read_text(encoding="utf-8").splitlines()
    num_places = 0
    for text in (json.loads(line)["text"] for line in lines):
        claims = extract_claims(text, lexicon)
        others = [(c, c.span) for c in claims if c.relation not in IMAGE_RELATIONS]
        assert others == [(c, c.span) for c in extract_claims(text)]
        num_places += len(claims) - len(others)
    assert num_places > 5


# ---- removal -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("A dog, a cat at the top left, and a bird.", "A dog, a cat, and a bird."),
        ("There is a ball at the top left of the image and a dog.", "There is a ball and a dog."),
        ("A brown dog is at the top left.", "There is a brown dog."),
        ("A dog is lying in the upper left corner and a cat sleeps.", "A dog is lying and a cat sleeps."),
        ("On the left, there is a cat.", "There is a cat."),
        ("On the left is a cat.", "There is a cat."),
        ("On the left side of the photo, a woman waits.", "A woman waits."),
        ("The dog is on the left. A cat sleeps.", "A cat sleeps."),
        ("A red ball at the top, a blue ball at the top and a dog.", "A red ball, a blue ball and a dog."),
    ],
)
def test_removing_a_place_removes_its_words(text, rest, lexicon):
    claim = next(c for c in extract_claims(text, lexicon) if c.relation in IMAGE_RELATIONS)
    assert remove_claim(text, claim, lexicon) == rest


# ---- synthetic scenes --------------------------------------------------------------------------


def test_the_scenes_lexicon_with_places_has_the_same_nouns():
    plain, with_places = (load_lexicon(str(SCENES / name)) for name in ("lexicon.txt", "lexicon_with_places.txt"))
    assert with_places.word_sets == plain.word_sets and with_places.canonical == plain.canonical
    assert not plain.image_places and with_places.image_places


@pytest.mark.parametrize("cell", range(9))
def test_the_scenes_lexicon_reads_each_cell(cell):
    lexicon = load_lexicon(str(SCENES / "lexicon_with_places.txt"))
    (claim,) = (c for c in extract_claims(f"A ring at the {scenes.CELL_NAMES[cell]}.", lexicon) if c.kind == "relation")
    assert IMAGE_RELATIONS[claim.relation] == divmod(cell, 3)
    (claim,) = (c for c in extract_claims("A ring on the left side.", lexicon) if c.kind == "relation")
    assert IMAGE_RELATIONS[claim.relation] == (None, 0)
