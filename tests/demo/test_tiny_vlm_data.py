"""Training data of the tiny VLM: what is learnt, and where claims are labelled."""

import numpy as np

from mmrlhf import scenes
from mmrlhf.demo import tiny_vlm_data
from mmrlhf.records import Claim, Message
from mmrlhf.scenes import Difficulty, Scene, SceneObject

SCENE = Scene(
    "s",
    (SceneObject("star", "red", "large", 0), SceneObject("circle", "blue", "small", 5), SceneObject("circle", "red", "large", 7)),
    1,
    Difficulty(),
)


def test_tokenize_sample_labels_the_last_token_of_each_claim(vlm):
    answer = "There is a red star and a blue moon. That makes three objects."
    turns = [(Message("user", "What do you see?"), False), (Message("assistant", answer), True)]
    row = tiny_vlm_data.tokenize_sample(vlm.tokenizer, 0, SCENE, turns)
    labels_by_word = {}
    for position in range(len(row.input_ids)):
        labels = row.claim_labels[position]
        if not labels.isnan().all():
            last_word = vlm.tokenizer.decode(row.input_ids[: position + 1]).rsplit(" ", 1)[-1]
            labels_by_word[last_word] = labels.nan_to_num(-1).tolist()
    # By object, attribute, count and relation; -1: no claim of that kind ends here.
    assert labels_by_word == {"star": [1, 1, -1, -1], "moon": [0, 0, -1, -1], "objects": [-1, -1, 1, -1]}


def test_tokenize_sample_learns_assistant_turns_only(vlm):
    turns = [(Message("user", "What do you see?"), False), (Message("assistant", "A red star."), True)]
    row = tiny_vlm_data.tokenize_sample(vlm.tokenizer, 0, SCENE, turns)
    learnt = [token_id for token_id, label in zip(row.input_ids, row.labels, strict=True) if label >= 0]
    assert vlm.tokenizer.decode(learnt) == " A red star.</s>"
    turns[1] = (turns[1][0], False)  # an answer that is wrong
    assert set(tiny_vlm_data.tokenize_sample(vlm.tokenizer, 0, SCENE, turns).labels) == {-100}


def test_refutation_denies_each_kind_of_claim():
    claims = {
        Claim("object", "moon"): "there is no moon",
        Claim("attribute", "star", "blue"): "there is no blue star",
        Claim("count", "object", "4"): "there are not four objects",
        Claim("count", "arrow", "0"): "there is an arrow",
        Claim("relation", "red star", "left of moon"): "the red star is not left of moon",
    }
    assert {claim: tiny_vlm_data.refutation(claim) for claim in claims} == claims


def test_chat_sample_learns_true_answers_and_every_review():
    for index in range(60):
        scene = tiny_vlm_data.pretraining_scene(index, 0)
        turns = tiny_vlm_data.chat_sample(scene, tiny_vlm_data.sample_rng(0, index))
        (answer, learns_answer), (review, learns_review) = [turn for turn in turns if turn[0].role == "assistant"][:2]
        is_true = not scenes.verify_answer(scene, answer.content).false_claims
        assert learns_answer == is_true == (review.content == "Yes.") and learns_review


def test_grounding_sample_is_true():
    for index in range(20):
        scene = tiny_vlm_data.pretraining_scene(index, 0)
        turns = tiny_vlm_data.grounding_sample(scene, np.random.default_rng(index))
        assert len(turns) == 10
        for message, is_learnt in turns:
            assert is_learnt == (message.role == "assistant")
            assert not is_learnt or not scenes.verify_answer(scene, message.content).false_claims


def test_sample_batches_pad_rows_of_similar_length(vlm):
    batches = tiny_vlm_data.SampleBatches(vlm.tokenizer, tiny_vlm_data.grounding_sample, 10, num_steps=3, batch_size=4, seed=0)
    shapes = []
    for image_indices, input_ids, labels, claim_labels in batches:
        shapes.append(image_indices.shape)
        assert input_ids.shape == labels.shape and claim_labels.shape == (*labels.shape, 4)
        assert bool((labels[input_ids == vlm.tokenizer.pad_token_id] == -100).all())
    assert shapes == [(4,)] * 3


def test_render_images_targets_name_the_contents_of_cells():
    pixels, targets = tiny_vlm_data.render_images(2, 0)
    assert pixels.shape == (2, scenes.IMAGE_SIZE, scenes.IMAGE_SIZE, 3) and targets.shape == (2, 9, 3)
    objects = {o.cell: o for o in tiny_vlm_data.pretraining_scene(1, 0).objects}
    for cell, (shape, colour, size) in enumerate(targets[1].tolist()):
        if cell not in objects:
            assert (shape, colour, size) == (len(scenes.SHAPES), -100, -100)
            continue
        obj = objects[cell]
        assert (scenes.SHAPES[shape], list(scenes.COLOURS)[colour], list(scenes.SIZES)[size]) == (obj.shape, obj.colour, obj.size)
