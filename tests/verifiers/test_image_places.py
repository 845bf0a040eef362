"""Places in the image compared with facts: cells of listed objects, and places that are stated."""

from pathlib import Path

import pytest

from mmrlhf import scenes
from mmrlhf.claims import extract_claims, load_lexicon
from mmrlhf.records import Claim, Fact
from mmrlhf.text.words import IMAGE_RELATIONS
from mmrlhf.verifiers import verify_against_facts

LEXICON = load_lexicon(str(Path(scenes.__file__).with_name("lexicon_with_places.txt")))
SCOPES = ("complete", "incomplete")


def place_verdicts(text, *facts):
    """Return the verdicts on a text's places in the image, in order."""
    verdicts = verify_against_facts(extract_claims(text, LEXICON), [Fact(*fact) for fact in facts], LEXICON)
    return [verdict for verdict in verdicts if verdict.claim.relation in IMAGE_RELATIONS]


def place_values(text, *facts):
    return [verdict.value for verdict in place_verdicts(text, *facts)]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The ring is at the top left.", "supported"),
        ("The ring is on the left side.", "supported"),  # the left column
        ("The ring is in the upper half.", "supported"),
        ("The ring is at the left.", "contradicted"),  # the middle of the left side
        ("The ring is at the top.", "contradicted"),
        ("The ring is at the centre.", "contradicted"),
        ("The ring is on the right side.", "contradicted"),
        ("The ring is in the lower half.", "contradicted"),
        ("The ring is at the top right.", "contradicted"),
        ("The ring is at the bottom left.", "contradicted"),
        ("The ring is not at the top left.", "contradicted"),
        ("The ring is not at the centre.", "supported"),
    ],
)
def test_the_cell_of_a_listed_object_decides(scope, text, value):
    assert place_values(text, ("object", "red ring at the top left"), ("scope", scope)) == [value]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The ring is on the left side.", "supported"),
        ("The ring is at the top left.", "unknown"),  # a finer place
        ("The ring is in the upper half.", "unknown"),
        ("The ring is at the centre.", "unknown"),  # nobody gave a cell
        ("The ring is on the right side.", "contradicted"),
        ("The ring is at the bottom right.", "contradicted"),
    ],
)
def test_a_stated_place_contradicts_only_the_opposite_side(text, value):
    assert place_values(text, ("caption", "The ring is on the left side of the picture.")) == [value]
    assert place_values(text, ("object", "ring on the left side")) == [value]


def test_one_of_several_objects_supports_and_only_all_of_them_contradict():
    rings = (("object", "red ring at the top left"), ("object", "blue ring at the bottom right"))
    assert place_values("A ring at the top left.", *rings) == ["supported"]
    assert place_values("A ring at the bottom right.", *rings) == ["supported"]
    assert place_values("A ring at the centre.", *rings) == ["contradicted"]
    assert place_values("A ring at the centre.", *rings, ("count", "three rings")) == ["unknown"]
    assert place_values("A ring at the centre.", *rings, ("count", "two rings")) == ["contradicted"]
    assert place_values("A ring at the centre.", *rings, ("object", "green ring")) == ["unknown"]  # which may be there
    stated = ("caption", "The ring is on the left side.")
    assert place_values("A ring on the right side.", *rings[:1], stated) == ["contradicted"]
    assert place_values("A ring on the right side.", stated, ("count", "two rings")) == ["unknown"]


def test_an_object_that_an_incomplete_list_leaves_out_may_be_elsewhere():
    text, fact = "There is a ring at the top left and a ring at the right.", ("object", "ring at the right")
    assert place_values(text, fact, ("scope", "incomplete")) == ["unknown", "supported"]  # the first is another ring
    assert place_values(text, fact, ("scope", "complete")) == ["contradicted", "supported"]
    assert place_values("There is a ring at the top left.", fact) == ["contradicted"]
    two = (fact, ("object", "ring at the bottom"))
    assert place_values(text, *two) == ["contradicted", "supported"]  # the second ring is at the bottom


def test_unlisted_and_absent_objects():
    assert place_values("A ring at the top.", ("object", "star at the top")) == ["unknown"]
    assert place_values("A ring at the top.", ("object", "star at the top"), ("scope", "complete")) == ["contradicted"]
    assert place_values("A ring at the top.", ("absent", "ring")) == ["contradicted"]
    assert place_values("An object at the top.", ("object", "star at the left"), ("scope", "complete")) == ["contradicted"]
    assert place_values("A ring at the top.", ("caption", "The ring is not at the top.")) == ["contradicted"]


def test_facts_that_disagree_about_a_place_leave_it_unknown():
    (verdict,) = place_verdicts(
        "A ring on the left side.", ("object", "ring at the left"), ("caption", "A ring on the right side.")
    )
    assert verdict.value == "unknown" and verdict.evidence.startswith("facts disagree: object: ring at the left; ")


def test_a_verdict_on_a_place_names_its_fact_and_is_as_sure():
    (verdict,) = place_verdicts("A ring at the left.", ("object", "ring at the right", "me", 0.9))
    assert (verdict.value, verdict.evidence) == ("contradicted", "object: ring at the right (me)")
    assert verdict.probability == pytest.approx(0.1)


def test_a_denial_of_an_object_at_a_place_does_not_deny_it_elsewhere():
    verdicts = verify_against_facts(
        extract_claims("There is no ring at the left.", LEXICON), [Fact("object", "ring at the right")], LEXICON
    )
    assert [(v.claim.kind, v.value) for v in verdicts] == [("object", "unknown"), ("relation", "supported")]


def test_complete_facts_about_scenes_decide_each_place_as_the_scene_does():
    cells = {cell: name for name, cell in IMAGE_RELATIONS.items()}
    for index in range(20):
        scene = scenes.generate_scene("selection", index, 0)
        facts = [
            *(Fact("object", f"{o.colour} {o.shape} at the {scenes.CELL_NAMES[o.cell]}") for o in scene.objects),
            Fact("scope", "complete"),
        ]
        for shape in {o.shape for o in scene.objects}:
            claims = [Claim("relation", shape, relation=cells[divmod(cell, 3)], target="image") for cell in range(9)]
            # One by one: a claim's verdict does not depend on others if the list is complete.
            values = [verify_against_facts([claim], facts, LEXICON)[0].value for claim in claims]
            shown = {o.cell for o in scene.objects if o.shape == shape}
            assert values == ["supported" if cell in shown else "contradicted" for cell in range(9)]
            assert [v.value for v in verify_against_facts(claims, facts, LEXICON)] == values
