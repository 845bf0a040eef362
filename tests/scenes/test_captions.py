"""Captions, questions and facts are true unless a fault, a bias or an error makes them false."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf import scenes
from mmrlhf.records import Fact
from mmrlhf.scenes import Difficulty, Scene, SceneObject


def false_claims(scene, text):
    return scenes.verify_answer(scene, text).false_claims


def test_captions_and_questions_of_a_seed_never_change():
    scene, rng = scenes.generate_scene("base", 0, 0), np.random.default_rng(0)
    texts = [
        scenes.caption(scene, rng, cooccurrence_bias=0.5, num_faults=2, location_rate=0.5),
        scenes.description_question(scene, rng).answer,
        *(scenes.short_question(scene, rng).text for _ in range(3)),
        *(fact.text for fact in scenes.annotator_facts(scene, rng)),
    ]
    assert texts == PINNED_TEXTS


@settings(max_examples=60)
@given(st.integers(0, 10_000))
def test_caption_injected_faults_are_few_and_cooccurrence_is_detected(index):
    scene, rng = scenes.generate_scene("sft", index, 0), np.random.default_rng(index)
    # All five claims of a phrase (object, colour, size, pattern, place) may be false, or none, if
    # the wrong colour is that of another object with the same shape.
    assert len(false_claims(scene, scenes.caption(scene, rng, num_faults=1))) <= 5
    biased = scenes.verify_answer(scene, scenes.caption(scene, rng, cooccurrence_bias=1.0))
    assert bool(biased.cooccurrence_errors) == bool(scenes.absent_partners({o.shape for o in scene.objects}))


def test_caption_with_injected_faults_is_nearly_always_detected():
    sampled = [scenes.generate_scene("sft", i, 0) for i in range(300)]
    is_false = [bool(false_claims(s, scenes.caption(s, np.random.default_rng(s.render_seed), num_faults=1))) for s in sampled]
    assert np.mean(is_false) > 0.9


def test_caption_positions_are_true_claims():
    for scene in (scenes.generate_scene("sft", i, 0) for i in range(50)):
        text = scenes.caption(scene, np.random.default_rng(scene.render_seed), location_rate=1.0)
        assert " at the " in text and not false_claims(scene, text)


def test_caption_states_nine_of_ten_patterns_and_never_plain():
    num_stated = num_patterned = 0
    for scene in (scenes.generate_scene("sft", i, 0) for i in range(1000)):
        text = scenes.caption(scene, np.random.default_rng(scene.render_seed))
        num_patterned += sum(o.pattern != "plain" for o in scene.objects)
        num_stated += text.count("striped") + text.count("dotted")
        assert "plain" not in text
    assert num_patterned > 400 and 0.86 < num_stated / num_patterned < 0.94


def test_caption_with_and_without_fault_changes_one_thing_alone():
    num_false = 0
    for index in range(400):
        scene = scenes.generate_scene("selection", index, 0)
        true, faulty = scenes.caption_with_and_without_fault(scene, np.random.default_rng(index))
        assert not false_claims(scene, true), true
        false = false_claims(scene, faulty)
        num_false += bool(false)
        # One phrase, number or relation is wrong; a wrong shape falsifies each word of its phrase.
        assert len({claim.span for claim in false}) <= 1, faulty
        # No words but the fault's differ, and articles and plurals.
        added, removed = different_words(faulty, true), different_words(true, faulty)
        assert (added or removed) and len(removed) <= 2
        assert len(added) <= 2 or is_longer_by_one_object(scene, faulty)
    assert num_false > 360  # a second ring may have the wrong colour


SWAP_SCENE = Scene(
    "s",
    (
        SceneObject("star", "red", "large", 0),
        SceneObject("moon", "blue", "small", 5, "striped"),
        SceneObject("ring", "red", "large", 7),
    ),
    1,
    Difficulty(),
)


def test_caption_with_swaps_says_false_things_in_words_that_are_true_of_something():
    shown = {"red", "blue", "striped", "star", "moon", "ring", "top", "left", "right", "bottom", "large", "small"}
    faults = Counter()
    for index in range(300):
        text = scenes.caption_with_swaps(SWAP_SCENE, np.random.default_rng(index), num_swaps=1, relation_rate=0.0)
        assert vocabulary_words(text) <= shown, text
        false = false_claims(SWAP_SCENE, text)
        assert false and {claim.kind for claim in false} <= {"attribute", "relation"}, text
        assert len({claim.span for claim in false}) <= 2, text  # both objects of one exchange
        faults.update({claim.kind for claim in false})
    # Of seven swaps three exchange places; colours and patterns differ in two pairs each.
    assert 0.33 < faults["relation"] / 300 < 0.53


def test_caption_with_swaps_turns_a_relation_round():
    texts = [scenes.caption_with_swaps(SWAP_SCENE, np.random.default_rng(i), 1, 0.0, relation_rate=1.0) for i in range(200)]
    turned = [
        [c for c in false_claims(SWAP_SCENE, text) if " of " in c.value or c.value.startswith(("above", "below"))]
        for text in texts
    ]
    assert 0.4 < np.mean([bool(claims) for claims in turned]) < 0.75


def test_caption_with_swaps_has_another_fault_where_nothing_can_be_swapped():
    scene = Scene("s", (SceneObject("star", "red", "large", 0),), 1, Difficulty())
    texts = [scenes.caption_with_swaps(scene, np.random.default_rng(i), 2) for i in range(50)]
    assert np.mean([bool(false_claims(scene, text)) for text in texts]) > 0.9


def vocabulary_words(text):
    words = {*scenes.SHAPES, *scenes.COLOURS, *scenes.PATTERNS, *scenes.SIZES, "top", "left", "right", "bottom", "centre"}
    return {word for word in re.findall(r"[a-z]+", text.lower()) if word in words}


def different_words(text, other_text):
    """Return the words that `text` has more often than the other, without articles and plurals."""
    words, other_words = (Counter(re.findall(r"[a-z]+", t.lower())) for t in (text, other_text))
    ignored = {"a", "an", "and", "is", "are", "object", "objects"}
    return [word for word in (words - other_words).elements() if word not in ignored]


def is_longer_by_one_object(scene, text):
    return sum(claim.kind == "object" for claim in scenes.parse_claims(text)) == len(scene.objects) + 1


def test_pattern_question_names_the_pattern_of_a_shape_that_occurs_once():
    patterns = set()
    for index in range(400):
        scene = scenes.generate_scene("base", index, 0)
        question = scenes.short_question(scene, np.random.default_rng(index))
        if question.kind == "pattern":
            (obj,) = [o for o in scene.objects if o.shape in question.text.split()]
            assert question.text == f"What pattern does the {obj.shape} have?"
            assert question.answer == f"The {obj.shape} is {obj.pattern}."
            patterns.add(obj.pattern)
    assert patterns == set(scenes.PATTERNS)


def test_wrong_answer_to_a_pattern_question_names_another_pattern():
    question = scenes.Question("pattern", "What pattern does the star have?", "The star is plain.")
    answers = {scenes.wrong_answer(question, np.random.default_rng(seed)) for seed in range(20)}
    assert answers == {"The star is striped.", "The star is dotted."}


def test_description_question_answers_as_caption_does():
    scene = scenes.generate_scene("sft", 5, 0)
    options = {"cooccurrence_bias": 1.0, "num_faults": 2, "location_rate": 1.0}
    rng = np.random.default_rng(0)
    rng.choice(4)  # the prompt is drawn first
    assert scenes.description_question(scene, np.random.default_rng(0), **options).answer == scenes.caption(scene, rng, **options)


def test_location_question_is_answered_truly_for_every_cell():
    scene = scenes.generate_scene("sft", 3, 0)
    for cell, name in enumerate(scenes.CELL_NAMES):
        question = scenes.location_question(scene, cell)
        assert question.text == f"What is at the {name}?" and not false_claims(scene, question.answer)
        assert ("nothing" in question.answer) == (cell not in {o.cell for o in scene.objects})


def test_wrong_answer_contradicts_the_right_one():
    question = scenes.Question("yes_no", "Is there an arrow?", "No, there is no arrow.")
    assert scenes.wrong_answer(question, np.random.default_rng(0)) == "Yes, there is an arrow."
    question = scenes.Question("yes_no", "Is there an arrow?", "Yes, there is an arrow.")
    assert scenes.wrong_answer(question, np.random.default_rng(0)) == "No, there is no arrow."
    num_false = 0
    for index in range(200):
        scene, rng = scenes.generate_scene("base", index, 0), np.random.default_rng(index)
        question = scenes.short_question(scene, rng)
        wrong = scenes.wrong_answer(question, rng)
        assert wrong != question.answer and scenes.parse_claims(wrong)
        num_false += bool(false_claims(scene, wrong))
    assert num_false > 180  # the replaced word is sometimes true: a second ring of another colour


def listed_objects(facts):
    """Return the objects that a list of facts names."""
    matches = [re.fullmatch(r"(\w+) (\w+) (\w+) (\w+) at the (.+)", f.text) for f in facts if f.kind == "object"]
    return tuple(scenes.SceneObject(m[4], m[3], m[1], scenes.CELL_NAMES.index(m[5]), m[2]) for m in matches)


def test_annotator_facts_are_incomplete_and_sometimes_wrong():
    num_listed = num_wrong = num_objects = 0
    for i in range(400):
        scene = scenes.generate_scene("pairs", i, 0)
        facts = scenes.annotator_facts(scene, np.random.default_rng(i))
        assert facts[0] == Fact("scope", "incomplete", "annotator")
        listed = listed_objects(facts)
        num_listed, num_objects = num_listed + len(listed), num_objects + len(scene.objects)
        num_wrong += sum(obj not in scene.objects for obj in listed)
    assert 0.76 < num_listed / num_objects < 0.84 and 0.02 < num_wrong / num_listed < 0.08


def test_annotator_facts_that_are_wrong_differ_in_colour_shape_or_pattern_and_in_the_count():
    differences = set()
    for i in range(100):
        scene = scenes.generate_scene("pairs", i, 0)
        facts = scenes.annotator_facts(scene, np.random.default_rng(i), recall=1.0, error_rate=1.0)
        for listed, obj in zip(listed_objects(facts), scene.objects, strict=True):
            (name,) = [
                name for name in ("shape", "colour", "size", "pattern", "cell") if getattr(listed, name) != getattr(obj, name)
            ]
            differences.add(name)
        assert false_claims(scene, facts[-1].text), facts[-1]
    assert differences == {"shape", "colour", "pattern"}


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from(["selection", "ood_1", "ood_2"]))
def test_complete_annotator_facts_decide_every_claim_that_a_caption_can_make(index, split):
    """The listed objects alone are the scene, so they verify each claim as the scene does."""
    scene, rng = scenes.generate_scene(split, index, 0), np.random.default_rng(index)
    facts = scenes.annotator_facts(scene, rng, recall=1.0, error_rate=0.0)
    assert facts[0] == Fact("scope", "complete", "annotator")
    known = replace(scene, objects=listed_objects(facts))
    for num_faults in range(4):
        text = scenes.caption(scene, rng, cooccurrence_bias=0.5, num_faults=num_faults, location_rate=0.5)
        assert scenes.verify_answer(known, text) == scenes.verify_answer(scene, text)


PINNED_TEXTS = [
    "I can see a yellow arrow at the top, a dotted green star, a yellow ring at the bottom right and a yellow moon. In all I count three objects.",
    "I can see a yellow arrow, a dotted purple star and a cyan ring. That makes three objects.",
    "Do you see a moon?",
    "What colour is the arrow?",
    "What is at the bottom left?",
    "incomplete",
    "small dotted purple star at the bottom left",
    "large plain cyan ring at the bottom right",
    "three objects",
]
"""Models were trained on these texts: a change of any draw would change them."""


def test_binding_question_asks_for_properties_that_something_in_the_picture_has():
    num_yes = 0
    for index in range(400):
        question = scenes.binding_question(SWAP_SCENE, np.random.default_rng(index))
        assert vocabulary_words(question.text) <= {"red", "blue", "striped", "large", "small", "star", "moon", "ring"}
        assert not scenes.verify_answer(SWAP_SCENE, question.answer).false_claims, question
        wrong = scenes.wrong_answer(question, np.random.default_rng(index))
        assert scenes.verify_answer(SWAP_SCENE, wrong).false_claims, wrong
        num_yes += question.answer.startswith("Yes")
    assert 200 < num_yes < 340  # half by the object itself, some by chance: two of three are red
