"""Captions, questions and facts are true unless a fault, a bias or an error makes them false."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf import scenes


def false_claims(scene, text):
    return scenes.verify_answer(scene, text).false_claims


def test_captions_and_questions_of_a_seed_never_change():
    scene, rng = scenes.generate_scene("held_out", 0, 0), np.random.default_rng(0)
    texts = [
        scenes.caption(scene, rng, cooccurrence_bias=0.5, num_faults=2, location_rate=0.5),
        scenes.description_question(scene, rng).answer,
        *(scenes.short_question(scene, rng).text for _ in range(3)),
        *(fact.text for fact in scenes.annotator_facts(scene, rng)),
    ]
    assert texts == PINNED_TEXTS


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_caption_injected_faults_are_few_and_cooccurrence_is_detected(index):
    scene, rng = scenes.generate_scene("sft", index, 0), np.random.default_rng(index)
    # Few, and possibly none: the wrong colour may be that of another object with the same shape.
    assert len(false_claims(scene, scenes.caption(scene, rng, num_faults=1))) <= 4
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


def test_annotator_facts_are_incomplete_and_sometimes_wrong():
    num_listed = num_wrong = num_objects = 0
    for i in range(400):
        scene = scenes.generate_scene("pairs", i, 0)
        names = [f"{o.size} {o.name}" for o in scene.objects]
        listed = [f.text for f in scenes.annotator_facts(scene, np.random.default_rng(i)) if f.kind == "object"]
        num_listed, num_objects = num_listed + len(listed), num_objects + len(names)
        num_wrong += sum(text not in names for text in listed)
    assert 0.76 < num_listed / num_objects < 0.84 and 0.02 < num_wrong / num_listed < 0.08


def test_annotator_facts_corrupted_counts_and_relations_are_false():
    is_false = {"count": [], "relation": []}
    for i in range(200):
        scene = scenes.generate_scene("pairs", i, 0)
        for fact in scenes.annotator_facts(scene, np.random.default_rng(i), recall=1.0, error_rate=1.0):
            sentence = fact.text if fact.kind == "count" else f"The {fact.text}"
            for relation in ("left of", "right of", "above", "below"):
                sentence = sentence.replace(f" {relation} ", f" is {relation} the ")
            if fact.kind in is_false:
                is_false[fact.kind].append(bool(false_claims(scene, sentence)))
    assert all(is_false["count"]) and len(is_false["count"]) == 200
    assert np.mean(is_false["relation"]) > 0.95  # with two red circles the opposite may hold as well


PINNED_TEXTS = [
    "This is a picture of a green arrow, a small red cross, a blue circle, an orange moon at the left and a ring. In all I count five objects. The orange ring is right of the green triangle.",
    "The picture shows a small green triangle, a red cross, a blue diamond, an orange moon and an orange ring. There are five objects in total.",
    "What is at the top right?",
    "What is at the left?",
    "Is there a blue diamond in the picture?",
    "small green triangle",
    "small red cross",
    "large blue diamond",
    "large orange moon",
    "large orange ring",
    "five objects",
    "orange ring right of orange moon",
]
"""Models were trained on these texts: a change of any draw would change them."""
