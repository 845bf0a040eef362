"""Claims are parsed back exactly from the scenes' language, and the scene graph decides them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf import scenes
from mmrlhf.records import Claim
from mmrlhf.scenes import Difficulty, Scene, SceneObject

SCENE = Scene(
    "s",
    (SceneObject("star", "red", "large", 0), SceneObject("circle", "blue", "small", 5), SceneObject("circle", "red", "large", 7)),
    1,
    Difficulty(),
)


def truth_by_claim(text):
    return {(c.kind, c.subject, c.value): scenes.verify_claim(SCENE, c).value == "supported" for c in scenes.parse_claims(text)}


def test_parse_claims_of_a_description_and_their_truth():
    text = (
        "There is a red star, a small blue circle and a moon. That makes four objects. The red star is left of the blue circle."
    )
    assert truth_by_claim(text) == {
        ("object", "star", ""): True,
        ("attribute", "star", "red"): True,
        ("object", "circle", ""): True,
        ("attribute", "circle", "blue"): True,
        ("attribute", "blue circle", "small"): True,
        ("object", "moon", ""): False,
        ("count", "object", "4"): False,
        ("relation", "red star", "left of blue circle"): True,
    }


def test_parse_claims_reads_locations():
    claims = scenes.parse_claims("I can see a red star at the top left and a circle at the right.")
    assert {"at top left", "at right"} <= {claim.value for claim in claims}


def test_parse_claims_spans_cover_the_claim_text():
    text = "I can see a red star."
    for claim in scenes.parse_claims(text):
        assert text[slice(*claim.span)] == "a red star"


@pytest.mark.parametrize(
    ("text", "is_true"),
    [
        ("No, there is no moon.", True),
        ("No, there is no red circle.", False),
        ("There are two circles.", True),
        ("There is one circle.", False),
        ("The star is red.", True),
        ("The star is blue.", False),
        ("There is a red circle at the bottom.", True),
        ("There is a red circle at the bottom left.", False),
        ("There is nothing at the centre.", True),
        ("There is nothing at the top left.", False),
        ("The blue circle is below the red star.", True),
        ("The blue circle is above the red star.", False),
        ("The circle is right of the circle.", True),
    ],
)
def test_verify_claim_matches_hand_labels_of_single_sentences(text, is_true):
    verdicts = truth_by_claim(text)
    assert verdicts and all(verdicts.values()) == is_true


@pytest.mark.parametrize(
    ("text", "evidence"),
    [
        ("The moon is left of the star.", "the picture has no moon; it shows a red star, a blue circle and a red circle"),
        ("The red star is right of the moon.", "the picture has no moon; it shows a red star, a blue circle and a red circle"),
        ("There is nothing at the top left.", "a large plain red star at the top left"),
        (
            "There is a red circle at the centre.",
            "a small plain blue circle at the right; a large plain red circle at the bottom",
        ),
        ("There are three crosses.", "the picture has no crosses"),
    ],
)
def test_verify_claim_evidence_states_what_refutes_a_claim(text, evidence):
    verdict = scenes.verify_claim(SCENE, scenes.parse_claims(text)[-1])
    assert (verdict.value, verdict.evidence) == ("contradicted", evidence)


def test_verify_answer_counts_distinct_claims_by_kind_of_error():
    verdicts = scenes.verify_answer(SCENE, "There is a red star and a yellow moon. The star is blue.")
    assert {c.value for c in verdicts.true_claims} == {"", "red"}
    assert verdicts.cooccurrence_errors == {Claim("object", "moon"), Claim("attribute", "moon", "yellow")}
    assert verdicts.perception_errors == {Claim("attribute", "star", "blue")}
    repeated = scenes.verify_answer(SCENE, "There is a red star and a red star. There is a red star.")
    assert len(repeated.true_claims) == 2 and repeated.num_covered == 2
    # Canonical: star, circle, red star, blue circle, red circle, three objects.
    assert repeated.num_canonical == 6
    assert scenes.verify_answer(SCENE, "").num_covered == 0


# Stars: large striped red at the top left, small plain red at the centre. A dotted blue moon below.
PATTERNS = Scene(
    "p",
    (
        SceneObject("star", "red", "large", 0, "striped"),
        SceneObject("star", "red", "small", 4, "plain"),
        SceneObject("moon", "blue", "large", 7, "dotted"),
    ),
    1,
    Difficulty(),
)


def test_parse_claims_of_patterns():
    claims = scenes.parse_claims("There is a large striped red star at the top left and a dotted moon. The moon is dotted.")
    assert [(c.kind, c.subject, c.value) for c in claims] == [
        ("object", "star", ""),
        ("attribute", "star", "red"),
        ("attribute", "red star", "striped"),
        ("attribute", "red star", "large"),
        ("relation", "red star", "at top left"),
        ("object", "moon", ""),
        ("attribute", "moon", "dotted"),
        ("attribute", "moon", "dotted"),
    ]


@pytest.mark.parametrize(
    ("text", "false_claims"),
    [
        ("There is a striped red star, a plain star and a dotted blue moon.", set()),
        ("The moon is dotted.", set()),
        ("The moon is striped.", {("attribute", "moon", "striped")}),
        ("The star is plain.", set()),
        ("The star is dotted.", {("attribute", "star", "dotted")}),
        ("There is a plain blue moon.", {("attribute", "blue moon", "plain")}),
        ("There is a striped star and a striped red star.", {("count", "striped star", "2")}),
        # Each word is true of one of the stars, but of different ones.
        ("There is a small striped star.", {("count", "small striped star", "1")}),
        ("There is a striped star at the centre.", {("count", "striped star at the centre", "1")}),
        ("There is a striped star and a star at the top left.", {("object", "star at the top left", "")}),
    ],
)
def test_claims_of_patterns_are_decided(text, false_claims):
    found = {(c.kind, c.subject, c.value) for c in scenes.verify_answer(PATTERNS, text).false_claims}
    assert found == false_claims


# Rings: orange and small at the top, blue and large at the left. One yellow moon.
RINGS = Scene(
    "r",
    (
        SceneObject("ring", "orange", "small", 1),
        SceneObject("ring", "blue", "large", 3),
        SceneObject("moon", "yellow", "large", 4),
    ),
    1,
    Difficulty(),
)


@pytest.mark.parametrize(
    ("text", "false_claims"),
    [
        ("I can see an orange ring and an orange ring.", {("orange ring", "2")}),
        ("I can see an orange ring, an orange ring and an orange ring.", {("orange ring", "3")}),
        ("I can see a moon and a moon.", {("moon", "2")}),
        ("I can see a moon and a yellow moon.", {("moon", "2")}),
        ("I can see a ring, a ring and a ring.", {("ring", "3")}),
        ("I can see a small ring and a small orange ring.", {("small ring", "2")}),
        ("I can see a large orange ring.", {("orange ring", "large")}),
        ("I can see a small ring at the left.", {("small ring at the left", "1")}),
        ("I can see a ring at the left and a ring at the left.", {("ring at the left", "2")}),
        ("I can see an orange ring and a blue ring.", set()),
        ("I can see a ring and an orange ring.", set()),
        ("I can see an orange ring and a ring.", set()),
        ("I can see a blue ring, a moon and a ring.", set()),
        # The false colour is counted once, not as a third ring, too.
        ("I can see an orange ring, a blue ring and a green ring.", {("ring", "green")}),
        # A sentence may speak of an object again.
        ("I can see an orange ring. I can see an orange ring.", set()),
        ("There is a moon. The moon is below the orange ring.", set()),
    ],
)
def test_a_sentence_that_names_more_of_a_kind_than_there_are_is_false(text, false_claims):
    found = {(c.subject, c.value) for c in scenes.verify_answer(RINGS, text).false_claims}
    assert found == false_claims
    verdicts = [v for v in scenes.verify_description(RINGS, text) if v.value == "contradicted"]
    assert {(v.claim.subject, v.claim.value) for v in verdicts} == found


def test_a_surplus_mention_has_its_own_span_and_the_true_number_as_evidence():
    text = "I can see an orange ring and an orange ring. That makes three objects."
    (verdict,) = [v for v in scenes.verify_description(RINGS, text) if v.value == "contradicted"]
    assert text[slice(*verdict.claim.span)] == "an orange ring"
    assert verdict.evidence == "the picture has one orange ring"
    assert scenes.utility(RINGS, text, 4.0) == 3 - 4


def test_utility_is_true_claims_less_weighted_false_claims():
    assert scenes.utility(SCENE, "There is a red star and a yellow moon.", 2.0) == 2 - 2 * 2


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from(["sft", "ood_1", "ood_2", "ood_3"]))
def test_verify_answer_finds_no_false_claim_in_captions_and_answers_without_faults(index, split):
    scene, rng = scenes.generate_scene(split, index, 0), np.random.default_rng(index)
    caption = scenes.caption(scene, rng)
    assert scenes.parse_claims(caption) and not scenes.verify_answer(scene, caption).false_claims, caption
    for _ in range(4):
        question = scenes.short_question(scene, rng)
        assert scenes.parse_claims(question.answer), question
        assert not scenes.verify_answer(scene, question.answer).false_claims, question


def test_true_denials_earn_nothing_and_false_ones_cost():
    scene = next(s for s in (scenes.generate_scene("selection", i, 0) for i in range(99)) if s.objects[0].shape == "ring")
    absent = [shape for shape in scenes.SHAPES if shape not in {o.shape for o in scene.objects}]
    padding = " ".join(f"There is no {shape}." for shape in absent)
    assert scenes.utility(scene, f"There is a ring. {padding}", 4.0) == scenes.utility(scene, "There is a ring.", 4.0) == 1
    assert scenes.utility(scene, "There is no ring.", 4.0) == -4


SAMPLED_WORDS = (*scenes.SHAPES, *scenes.COLOURS, *scenes.SIZES, *scenes.PATTERNS, *scenes.CELL_NAMES, *scenes.NUMBER_WORDS)
SAMPLED_WORDS += ("a", "the", "at the", "to the", "on", "is", "are", "not", "no", "nothing", "and", ",", ".", "above", "below")
SAMPLED_WORDS += ("left of", "right of", "object", "objects", "zero", "17", "There", "without")


@settings(max_examples=400)
@given(st.lists(st.sampled_from(SAMPLED_WORDS), max_size=14))
def test_every_jumble_of_the_scenes_words_can_be_judged(words):
    """Hot samples are jumbles, and PPO's too: one that cannot be judged would stop a run."""
    scene = scenes.generate_scene("selection", 0, 0)
    scenes.verify_description(scene, " ".join(words))
    scenes.utility(scene, " ".join(words), 4.0)


def test_relation_after_at_the_is_a_relation():
    (claim,) = [c for c in scenes.parse_claims("There is a pink star at the above a blue moon.") if c.kind == "relation"]
    assert (claim.subject, claim.value) == ("pink star", "above blue moon")
