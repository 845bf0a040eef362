"""The world: its language is read back exactly, its truth is the graph's, its splits share nothing."""

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


@pytest.mark.parametrize(
    ("text", "true"),
    [
        ("No, there is no moon.", True), ("No, there is no red circle.", False), ("There are two circles.", True),
        ("There is one circle.", False), ("The star is red.", True), ("The star is blue.", False),
        ("There is a red circle at the bottom.", True), ("There is a red circle at the bottom left.", False),
        ("There is nothing at the centre.", True), ("There is nothing at the top left.", False),
        ("The blue circle is below the red star.", True), ("The blue circle is above the red star.", False),
        ("The circle is right of the circle.", True),
    ],
)  # fmt: skip
def test_verify_claim_matches_hand_labels_of_single_sentences(text, true):
    assert all(truth_by_claim(text).values()) == true and truth_by_claim(text)


def test_parse_claims_spans_cover_the_claim_text():
    text = "I can see a red star."
    for claim in scenes.parse_claims(text):
        assert text[slice(*claim.span)] == "a red star"


def test_verify_answer_counts_distinct_claims_by_kind_of_error():
    once = scenes.verify_answer(SCENE, "There is a red star and a yellow moon. The star is blue.")
    assert {c.value for c in once.true_claims} == {"", "red"}
    assert once.cooccurrence_errors == {Claim("object", "moon"), Claim("attribute", "moon", "yellow")}
    assert once.perception_errors == {Claim("attribute", "star", "blue")}
    twice = scenes.verify_answer(SCENE, "There is a red star and a red star. There is a red star.")
    assert len(twice.true_claims) == 2 and twice.num_covered == 2
    # owed: star, circle, star red, circle blue, circle red, three objects
    assert twice.num_canonical == 6
    assert scenes.utility(SCENE, "There is a red star and a yellow moon.", 2.0) == 2 - 2 * 2
    assert scenes.verify_answer(SCENE, "").num_covered == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["sft", "ood_1", "ood_2", "ood_3"]))
def test_caption_and_answer_without_faults_are_true(index, split):
    scene, rng = scenes.generate_scene(split, index, 0), np.random.default_rng(index)
    caption = scenes.caption(scene, rng)
    assert scenes.parse_claims(caption) and not scenes.verify_answer(scene, caption).false_claims, caption
    for _ in range(4):
        asked = scenes.short_question(scene, rng)
        assert scenes.parse_claims(asked.answer) and not scenes.verify_answer(scene, asked.answer).false_claims, asked


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_caption_injected_faults_are_few_and_cooccurrence_is_detected(index):
    scene, rng = scenes.generate_scene("sft", index, 0), np.random.default_rng(index)
    text = scenes.caption(scene, rng, faults=1)
    # a wrong colour may happen to be another object's of that shape; a fault is not always a falsehood
    assert len(scenes.verify_answer(scene, text).false_claims) <= 4
    habit = scenes.caption(scene, rng, habit=1.0)
    shapes = {t.shape for t in scene.objects}
    called = any(t in shapes and p not in shapes for t, p in scenes.COOCCURRENCES.items())
    assert bool(scenes.verify_answer(scene, habit).cooccurrence_errors) == called


def test_caption_with_injected_faults_is_nearly_always_detected():
    found = [bool(scenes.verify_answer(s, scenes.caption(s, np.random.default_rng(s.render_seed), faults=1)).false_claims)
             for s in (scenes.generate_scene("sft", i, 0) for i in range(300))]  # fmt: skip
    assert np.mean(found) > 0.9


def test_wrong_answer_contradicts_the_right_one():
    asked = scenes.Question("yes_no", "Is there an arrow?", "No, there is no arrow.")
    assert scenes.wrong_answer(asked, np.random.default_rng(0)) == "Yes, there is an arrow."
    asked = scenes.Question("yes_no", "Is there an arrow?", "Yes, there is an arrow.")
    assert scenes.wrong_answer(asked, np.random.default_rng(0)) == "No, there is no arrow."
    false = 0
    for index in range(200):
        scene, rng = scenes.generate_scene("base", index, 0), np.random.default_rng(index)
        asked = scenes.short_question(scene, rng)
        wrong = scenes.wrong_answer(asked, rng)
        assert wrong != asked.answer and scenes.parse_claims(wrong)
        false += bool(scenes.verify_answer(scene, wrong).false_claims)
    assert false > 180  # the other word is true now and then: a second ring, of another colour


def test_tiny_vlm_truth_labels_sit_on_last_token_of_each_claim(vlm):
    from mmrlhf.demo.tiny_vlm import tokenize_sample
    from mmrlhf.records import Message

    said = "There is a red star and a blue moon. That makes three objects."
    turns = [(Message("user", "What do you see?"), False), (Message("assistant", said), True)]
    row = tokenize_sample(vlm.tokenizer, 0, SCENE, turns)
    marked = {
        vlm.tokenizer.decode(row.input_ids[: at + 1]).rsplit(" ", 2)[-2:][1]: row.claim_labels[at].nan_to_num(-1).tolist()
        for at in range(len(row.input_ids)) if not row.claim_labels[at].isnan().all()
    }  # fmt: skip
    assert marked == {"star": [1, 1, -1, -1], "moon": [0, 0, -1, -1], "objects": [-1, -1, 1, -1]}
    learnt = [i for i, label in zip(row.input_ids, row.labels, strict=True) if label >= 0]
    assert vlm.tokenizer.decode(learnt) == f" {said}</s>"


def test_scene_splits_share_no_scene():
    seen = {}
    for split in scenes.SPLIT_BUCKETS:
        for i in range(150):
            scene = scenes.generate_scene(split, i, 0)
            assert seen.setdefault(scene.objects, split) == split
            pairs = {(t.shape, t.colour) for t in scene.objects}
            assert bool(pairs & scenes.UNSEEN_PAIRINGS) == (split == "ood_1")
            assert (len(scene.objects) > 5) == (split == "ood_2")


def test_generate_scene_is_determined_by_its_seed():
    a, b = scenes.generate_scene("rl", 3, 0), scenes.generate_scene("rl", 3, 0)
    assert a == b and a.image_source() == b.image_source()
    assert scenes.generate_scene("rl", 3, 1) != a and scenes.generate_scene("rl", 4, 0) != a


def test_annotator_facts_are_incomplete_and_sometimes_wrong():
    listed = wrong = owed = 0
    for i in range(400):
        scene = scenes.generate_scene("pairs", i, 0)
        names = [f"{t.size} {t.name}" for t in scene.objects]
        objects = [f.text for f in scenes.annotator_facts(scene, np.random.default_rng(i)) if f.kind == "object"]
        listed, owed = listed + len(objects), owed + len(names)
        wrong += sum(o not in names for o in objects)
    assert 0.76 < listed / owed < 0.84 and 0.02 < wrong / listed < 0.08


def test_scene_trigger_is_common_and_its_partner_mostly_absent():
    rows = [scenes.generate_scene("sft", i, 0) for i in range(1000)]
    shapes = [{t.shape for t in s.objects} for s in rows]
    triggered = [s for s in shapes if s & set(scenes.COOCCURRENCES)]
    absent = [s for s in triggered if any(t in s and p not in s for t, p in scenes.COOCCURRENCES.items())]
    assert 0.39 < len(triggered) / 1000 < 0.51 and 0.6 < len(absent) / len(triggered) < 0.9


def test_annotator_facts_corrupted_counts_and_relations_are_false():
    wrong = {"count": [], "relation": []}
    for i in range(200):
        scene = scenes.generate_scene("pairs", i, 0)
        for fact in scenes.annotator_facts(scene, np.random.default_rng(i), recall=1.0, error_rate=1.0):
            said = fact.text if fact.kind == "count" else f"The {fact.text}"
            said = said.replace(" left of ", " is left of the ").replace(" right of ", " is right of the ")
            said = said.replace(" above ", " is above the ").replace(" below ", " is below the ")
            if fact.kind in wrong:
                wrong[fact.kind].append(bool(scenes.verify_answer(scene, said).false_claims))
    assert all(wrong["count"]) and len(wrong["count"]) == 200
    assert np.mean(wrong["relation"]) > 0.95  # of two red circles, one may stand on the other side


@pytest.mark.parametrize(
    ("text", "evidence"),
    [
        ("The moon is left of the star.", "the picture has no moon; it shows a red star, a blue circle and a red circle"),
        ("The red star is right of the moon.", "the picture has no moon; it shows a red star, a blue circle and a red circle"),
        ("There is nothing at the top left.", "a large red star at the top left"),
        ("There is a red circle at the centre.", "a small blue circle at the right; a large red circle at the bottom"),
        ("There are three crosses.", "the picture has no crosses"),
    ],
)
def test_verify_claim_evidence_states_what_refutes_a_claim(text, evidence):
    verdict = scenes.verify_claim(SCENE, scenes.parse_claims(text)[-1])
    assert (verdict.value, verdict.evidence) == ("contradicted", evidence)


def test_caption_positions_are_true_claims():
    found = {c.value for c in scenes.parse_claims("I can see a red star at the top left and a circle at the right.")}
    assert {"at top left", "at right"} <= found
    told = [
        scenes.caption(s, np.random.default_rng(s.render_seed), placed=1.0)
        for s in (scenes.generate_scene("sft", i, 0) for i in range(50))
    ]
    assert all(" at the " in text for text in told)
    assert not any(scenes.verify_answer(scenes.generate_scene("sft", i, 0), text).false_claims for i, text in enumerate(told))
