"""Training data of the tiny VLM: what is learnt, and where claims are labelled."""

from collections import Counter
from functools import partial

import numpy as np
import pytest

from mmrlhf import scenes
from mmrlhf.demo import tiny_vlm_data
from mmrlhf.demo.tiny_vlm_data import Sample
from mmrlhf.models.heads import YES_NO_QUESTION
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
    row = tiny_vlm_data.tokenize_sample(vlm.tokenizer, 0, Sample(SCENE, turns, has_claim_labels=True))
    labels_by_word = {}
    for position in range(len(row.input_ids)):
        labels = row.claim_labels[position]
        if not labels.isnan().all():
            last_word = vlm.tokenizer.decode(row.input_ids[: position + 1]).rsplit(" ", 1)[-1]
            labels_by_word[last_word] = labels.nan_to_num(-1).tolist()
    # By object, attribute, count and relation; -1: no claim of that kind ends here.
    assert labels_by_word == {"star": [1, 1, -1, -1], "moon": [0, 0, -1, -1], "objects": [-1, -1, 1, -1]}
    assert bool(tiny_vlm_data.tokenize_sample(vlm.tokenizer, 0, Sample(SCENE, turns)).claim_labels.isnan().all())


def test_tokenize_sample_learns_assistant_turns_only(vlm):
    turns = [(Message("user", "What do you see?"), False), (Message("assistant", "A red star."), True)]
    row = tiny_vlm_data.tokenize_sample(vlm.tokenizer, 0, Sample(SCENE, turns))
    learnt = [token_id for token_id, label in zip(row.input_ids, row.labels, strict=True) if label >= 0]
    assert vlm.tokenizer.decode(learnt) == " A red star.</s>"
    turns[1] = (turns[1][0], False)  # an answer that is wrong
    assert set(tiny_vlm_data.tokenize_sample(vlm.tokenizer, 0, Sample(SCENE, turns)).labels) == {-100}


def test_tokenize_sample_has_an_images_tokens_only_where_there_is_an_image(vlm):
    turns = [(Message("user", "What do you see?"), False), (Message("assistant", "A red star."), True)]
    image_token = vlm.tokenizer.convert_tokens_to_ids("<image>")
    for has_image in (True, False):
        row = tiny_vlm_data.tokenize_sample(vlm.tokenizer, 0, Sample(SCENE, turns, has_image=has_image))
        assert row.input_ids.count(image_token) == 9 * has_image


def test_refutation_denies_each_kind_of_claim():
    claims = {
        Claim("object", "moon"): "there is no moon",
        Claim("attribute", "star", "blue"): "there is no blue star",
        Claim("count", "object", "4"): "there are not four objects",
        Claim("count", "arrow", "0"): "there is an arrow",
        Claim("relation", "red star", "left of moon"): "the red star is not left of moon",
    }
    assert {claim: tiny_vlm_data.refutation(claim) for claim in claims} == claims


def micro_batches(batches):
    return (micro_batch for batch in batches for micro_batch in batch)


def reviews(sample):
    """Return each answer that is reviewed and its review, with whether they are learnt."""
    turns = sample.turns
    return [
        (turns[i - 2], turns[i])
        for i, (message, _) in enumerate(turns)
        if message.role == "assistant"
        and message.content.split(",")[0].rstrip(".") in ("Yes", "No")
        and i >= 3
        and YES_NO_QUESTION in turns[i - 1][0].content
    ]


def is_unaided_review(sample):
    return bool(reviews(sample)) and "Facts" not in sample.turns[0][0].content + sample.turns[2][0].content


def samples(make_sample, num_samples):
    for index in range(num_samples):
        scene = tiny_vlm_data.pretraining_scene(index, 0)
        yield make_sample(scene, tiny_vlm_data.sample_rng(0, index))


def test_text_sample_is_about_facts_without_an_image():
    num_reviews = Counter()
    for sample in samples(tiny_vlm_data.text_sample, 200):
        is_complete = any("Facts (complete)" in message.content for message, _ in sample.turns)
        num_reviews[len(reviews(sample))] += 1
        assert not sample.has_image and (len(reviews(sample)) == 1) == (not is_complete)
        places = [i for i, (message, _) in enumerate(sample.turns) if "Facts (" in message.content]
        assert places in ([0], [2], []) and sample.has_claim_labels == (places == [0])  # [] if none is listed
    assert set(num_reviews) == {0, 1, 2, 6} and abs(num_reviews[6] - 100) < 25 and abs(num_reviews[0] - 50) < 20


def test_text_sample_learns_answers_where_complete_facts_come_first():
    num_learnt = 0
    for sample in samples(tiny_vlm_data.text_sample, 60):
        if not reviews(sample):
            assert all(learns == (message.role == "assistant") for message, learns in sample.turns)
            continue
        (first_answer, learns_first), _ = reviews(sample)[0]
        is_decided = "Facts (complete)" in sample.turns[0][0].content
        assert learns_first == (is_decided and not scenes.verify_answer(sample.scene, first_answer.content).false_claims)
        num_learnt += learns_first
        if "Facts (incomplete)" in sample.turns[0][0].content + sample.turns[2][0].content:
            assert not any(learns for (_, learns), _ in reviews(sample)) and len(sample.turns) == 4
    assert num_learnt > 5


def test_claims_about_some_of_a_scenes_objects_are_labelled_as_they_are_reviewed(vlm):
    num_objects = Counter()
    for index, sample in enumerate(samples(tiny_vlm_data.text_sample, 60)):
        num_objects[len(sample.scene.objects) < len(tiny_vlm_data.pretraining_scene(index, 0).objects)] += 1
        if sample.has_claim_labels and reviews(sample):
            labels = tiny_vlm_data.tokenize_sample(vlm.tokenizer, index, sample).claim_labels
            has_false_claim = any(review.content.startswith("No") for _, (review, _) in reviews(sample))
            assert bool((labels == 0).any()) == has_false_claim
    assert 10 < num_objects[True] < 45


def test_object_labels_are_what_the_claimed_object_looks_like_in_the_scene():
    objects = (
        SceneObject("moon", "yellow", "small", 0, "plain"),
        SceneObject("star", "red", "large", 5, "striped"),
        SceneObject("star", "blue", "small", 7, "dotted"),
    )
    scene = Scene("s", objects, 0, Difficulty())
    colours, sizes = list(scenes.COLOURS), list(scenes.SIZES)
    moon = [colours.index("yellow"), sizes.index("small"), scenes.PATTERNS.index("plain"), 0]
    red_star = [colours.index("red"), sizes.index("large"), scenes.PATTERNS.index("striped"), 5]
    absent = [size - 1 for size in tiny_vlm_data.OBJECT_LABEL_SIZES]
    none = [-100]
    for kind, subject, value, expected in (
        ("object", "moon", "", moon + none),
        ("attribute", "moon", "green", moon + none),  # false, but the moon is meant
        ("attribute", "green moon", "large", moon + none),
        ("attribute", "star", "red", red_star + none),
        ("object", "star", "", none * 5),  # one of two
        ("object", "ring", "", absent[:4] + none),
        ("relation", "red star", "at top", red_star + none),
        ("relation", "red star", "below yellow moon", [*red_star, 0]),
        ("relation", "moon", "above blue star", [*moon, 7]),
        ("relation", "moon", "above ring", [*moon, absent[4]]),
        ("relation", "moon", "above star", moon + none),
        ("count", "moon", "2", none * 5),
    ):
        assert tiny_vlm_data.object_labels(scene, Claim(kind, subject, value)) == expected, (kind, subject, value)


def test_claims_are_labelled_at_their_last_token(vlm):
    scene = Scene("s", (SceneObject("moon", "yellow", "small", 0),), 0, Difficulty())
    turns = [(Message("user", "Facts. What do you see?"), False), (Message("assistant", "There is a red moon."), True)]
    row = tiny_vlm_data.tokenize_sample(vlm.tokenizer, 3, Sample(scene, turns, has_image=False, has_claim_labels=True))
    (position,) = (row.object_labels[:, 0] >= 0).nonzero().flatten().tolist()
    assert vlm.tokenizer.decode(row.input_ids[position]).strip() == "moon"
    assert row.object_labels[position].tolist() == tiny_vlm_data.object_labels(scene, Claim("object", "moon", ""))
    labels = dict(zip(scenes.CLAIM_KINDS, row.claim_labels[position].tolist(), strict=True))
    assert (labels["object"], labels["attribute"]) == (1.0, 0.0) and labels["count"] != labels["count"]  # NaN


def test_picture_sample_reviews_pictures_mostly_where_facts_stand_too():
    for rate in (0.0, 0.5):
        make_sample = partial(tiny_vlm_data.picture_sample, unaided_review_rate=rate)
        about_images = [sample for sample in samples(make_sample, 600) if sample.has_image]
        assert abs(len(about_images) / 600 - (1 - tiny_vlm_data.TEXT_SHARE)) < 0.06
        unaided = [sample for sample in about_images if is_unaided_review(sample)]
        # An incomplete list of facts may be empty: a few reviews more are unaided.
        assert -0.08 < len(unaided) / len(about_images) - rate < (0.08 if rate else 0.01)
        # Claims are labelled only behind facts, so that their truth is no lesson in looking.
        assert not any(sample.has_claim_labels for sample in unaided)
        for sample in about_images:
            assert not sample.has_claim_labels or "Facts (" in sample.turns[0][0].content


def test_every_review_is_right_and_learnt_and_no_false_answer_is():
    make_sample = partial(tiny_vlm_data.picture_sample, unaided_review_rate=0.1)
    for sample in samples(make_sample, 150):
        for (answer, learns_answer), (review, learns_review) in reviews(sample):
            is_true = not any(
                scenes.verify_claim(sample.scene, claim).value == "contradicted" for claim in scenes.parse_claims(answer.content)
            )
            assert learns_review and (review.content == "Yes.") == is_true and not (learns_answer and not is_true)


def test_grounding_sample_is_true():
    for index in range(20):
        scene = tiny_vlm_data.pretraining_scene(index, 0)
        turns = tiny_vlm_data.grounding_sample(scene, np.random.default_rng(index))
        assert len(turns) == 12
        for message, is_learnt in turns:
            assert is_learnt == (message.role == "assistant")
            assert not is_learnt or not scenes.verify_answer(scene, message.content).false_claims


def test_sample_batches_pad_rows_of_similar_length(vlm):
    batches = tiny_vlm_data.SampleBatches(vlm.tokenizer, tiny_vlm_data.text_sample, 10, num_steps=3, batch_size=4, seed=0)
    shapes = []
    for image_indices, input_ids, labels, claim_labels, object_labels in micro_batches(batches):
        shapes.append(image_indices.shape)
        assert input_ids.shape == labels.shape and claim_labels.shape == (*labels.shape, 4)
        assert object_labels.shape == (*labels.shape, 5)
        assert bool((labels[input_ids == vlm.tokenizer.pad_token_id] == -100).all())
    assert shapes == [(4,)] * 3


def test_sample_batches_split_a_batch_into_micro_batches_of_their_own_length(vlm):
    batches = tiny_vlm_data.SampleBatches(vlm.tokenizer, tiny_vlm_data.text_sample, 60, num_steps=2, batch_size=20, seed=0)
    for batch in batches:
        assert [len(indices) for indices, *_ in batch] == [8, 8, 4]
        lengths = [input_ids.shape[1] for _, input_ids, *_ in batch]
        assert lengths == sorted(lengths) and lengths[0] < lengths[-1]
        for _, input_ids, *_ in batch:  # the longest row has no padding
            assert bool((input_ids != vlm.tokenizer.pad_token_id).all(1).any())


@pytest.mark.parametrize("stream", [0, 1])
def test_conversations_are_about_the_scenes_that_the_images_show(vlm, stream):
    def make_sample(scene, rng):
        return tiny_vlm_data.Sample(scene, tiny_vlm_data.grounding_sample(scene, rng))

    data = tiny_vlm_data.SampleBatches(vlm.tokenizer, make_sample, 40, num_steps=2, batch_size=8, seed=3, stream=stream)
    texts = []
    for image_indices, input_ids, *_ in micro_batches(data):
        for index, ids in zip(image_indices.tolist(), input_ids, strict=True):
            texts.append(vlm.tokenizer.decode(ids, skip_special_tokens=True))
            description = texts[-1].split("Assistant:")[1].split("User:")[0]
            # The seed of the images, whatever the stream.
            scene = tiny_vlm_data.pretraining_scene(index, 3)
            assert not scenes.verify_answer(scene, description).false_claims, (index, description)
    assert len(set(texts)) == len(texts) == 16


def test_streams_give_other_conversations(vlm):
    def first_ids(stream):
        batches = tiny_vlm_data.SampleBatches(vlm.tokenizer, tiny_vlm_data.text_sample, 10, 1, 4, seed=0, stream=stream)
        return next(micro_batches(batches))[1].tolist()

    assert first_ids(0) != first_ids(1)


def test_render_images_targets_name_the_contents_of_cells():
    pixels, targets = tiny_vlm_data.render_images(2, 0)
    assert pixels.shape == (2, scenes.IMAGE_SIZE, scenes.IMAGE_SIZE, 3) and targets.shape == (2, 9, 4)
    objects = {o.cell: o for o in tiny_vlm_data.pretraining_scene(1, 0).objects}
    for cell, (shape, colour, size, pattern) in enumerate(targets[1].tolist()):
        if cell not in objects:
            assert (shape, colour, size, pattern) == (len(scenes.SHAPES), -100, -100, -100)
            continue
        obj = objects[cell]
        assert (scenes.SHAPES[shape], list(scenes.COLOURS)[colour]) == (obj.shape, obj.colour)
        assert (list(scenes.SIZES)[size], scenes.PATTERNS[pattern]) == (obj.size, obj.pattern)
