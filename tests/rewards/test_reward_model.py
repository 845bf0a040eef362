"""The reward model: the conversation it reads, and its scores before any training."""

import dataclasses

import numpy as np
import pytest
import torch

from mmrlhf import scenes
from mmrlhf.models.adapters import Adapters
from mmrlhf.models.images import open_image
from mmrlhf.models.loading import load
from mmrlhf.records import InputError, Message
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel, make_fact_rm, prompt_with_facts, reward_messages, untrained_role
from mmrlhf.rewards.types import Sample


def test_reward_messages_place_question_and_facts():
    prompt = (Message("user", "What is here?"),)
    before = reward_messages(prompt, "A mug.", "Facts: red mug.", "before")
    assert [m.content for m in before] == ["Facts: red mug. What is here?", "A mug.", "Is all of this true of the picture?"]
    after = reward_messages(prompt, "A mug.", "Facts: red mug.", "after")
    assert [m.content for m in after] == ["What is here?", "A mug.", "Facts: red mug. Is all of this true of the picture?"]


def test_reward_model_untrained_score_is_base_yes_no_log_odds(vlm, untrained_reward_model, groups):
    """The score is the log-odds of Yes against No as the reply's first word, in a plain forward."""
    facts_free = [dataclasses.replace(g, facts=()) for g in groups]
    raw_scores = [s for _, scores in untrained_reward_model.raw_scores(facts_free) for s in scores.tolist()]
    expected = []
    for group in facts_free:
        for answer in group.answers:
            text = vlm.apply_chat_template(reward_messages(group.prompt, answer, "", "before"), 1, generation_prompt=True)
            inputs = vlm.processor(text=text, images=[open_image(group.images[0])], return_tensors="pt")
            with torch.no_grad():
                logits = vlm.model(**inputs).logits[0, -1]
            yes, no = (vlm.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No"))
            expected.append(float(logits[yes] - logits[no]))
    assert raw_scores == pytest.approx(expected, abs=1e-3)


def test_reward_model_untrained_ranks_clean_over_faulty_captions(bundled_vlm_path):
    """With complete facts, it ranks a description over the same with a fault."""
    untrained = RewardModel(untrained_role(Adapters(load(bundled_vlm_path))), "given", "before")
    groups = []
    for index in range(60):
        scene, rng = scenes.generate_scene("selection", index, 0), np.random.default_rng([5, index])
        question, answers = scenes.description_question(scene, rng), scenes.caption_with_and_without_fault(scene, rng)
        if scenes.verify_answer(scene, answers[1]).false_claims:
            facts = scenes.annotator_facts(scene, rng, recall=1.0, error_rate=0.0)
            groups.append(AnswerGroup((scene.image_source(),), (Message("user", question.text),), answers, facts))
    scores = torch.tensor(untrained.score(groups))
    assert (scores[:, 0] > scores[:, 1]).float().mean() > 0.9


def test_reward_model_names_row_of_too_long_answer(untrained_reward_model, groups):
    too_long = dataclasses.replace(groups[1], answers=("There is a red star. " * 40,))
    with pytest.raises(InputError, match=f"an answer of row {groups[1].id} has .* together more than max_length 130"):
        next(dataclasses.replace(untrained_reward_model, max_length=130).raw_scores([groups[0], too_long]))


def test_equal_answers_score_equally(untrained_reward_model, groups):
    """To the last bit, wherever they stand: they run once."""
    long, short = "There is a red star and a blue ring.", "A star."
    repeated = dataclasses.replace(groups[0], answers=(short, long, short, long, short))
    scores, other, empty = untrained_reward_model.score([repeated, groups[1], dataclasses.replace(groups[0], answers=())])
    assert scores[0] == scores[2] == scores[4] != scores[1] == scores[3] and empty == []
    (alone,) = untrained_reward_model.score([dataclasses.replace(groups[0], answers=(short, long))])
    assert scores[:2] == pytest.approx(alone, abs=1e-4)
    assert other == pytest.approx(untrained_reward_model.score([groups[1]])[0], abs=1e-4)


def test_fact_rm_escapes_placeholder_in_answer(untrained_reward_model, groups):
    sample = Sample("r", groups[0].images, groups[0].prompt, "A <image> star.", groups[0].facts)
    escaped = Sample("r", groups[0].images, groups[0].prompt, "A < image> star.", groups[0].facts)
    assert make_fact_rm([untrained_reward_model])([sample]) == pytest.approx(make_fact_rm([untrained_reward_model])([escaped]))
    with pytest.raises(InputError, match="which the model takes for a control token"):
        untrained_reward_model.score([dataclasses.replace(groups[0], answers=("A <image> star.",))])


def test_fact_rm_scores_an_answer_that_is_longer_than_its_row_was_counted(untrained_reward_model, groups):
    """The judge's tokenizer may need more tokens than the policy's; the row was checked before."""
    sample = Sample("r", groups[0].images, groups[0].prompt, "A red star.", groups[0].facts)
    tight = dataclasses.replace(untrained_reward_model, max_length=8)
    with pytest.raises(InputError, match="max_length"):
        tight.score(groups)
    assert make_fact_rm([tight])([sample]) == make_fact_rm([untrained_reward_model])([sample])


def test_facts_move_images_with_the_text():
    """An image in front of the turn stays in front of the facts."""
    prompt = (Message("user", "Hi", (0,)), Message("assistant", "Hello."), Message("user", "Is it  red?", (0, 6)))
    *earlier, last = prompt_with_facts(prompt, "Facts: a cup.")
    assert earlier == list(prompt[:2]) and last == Message("user", "Facts: a cup. Is it  red?", (0, 20))
    assert prompt_with_facts(prompt, "") == prompt
