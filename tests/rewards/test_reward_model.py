"""The reward model as an artefact: what it starts from, what it says of damage."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from mmrlhf import scenes
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.heads import yes_no_head
from mmrlhf.models.images import open_image
from mmrlhf.models.loading import load
from mmrlhf.records import InputError, Message
from mmrlhf.rewards.checkpoint import load_reward_model, save_reward_model
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel, make_fact_rm, reward_messages
from mmrlhf.rewards.types import Sample


@pytest.fixture
def groups(examples):
    return [AnswerGroup(e.images, e.prompt, (e.answer, "There is a moon."), e.facts, e.id) for e in examples[:3]]


@pytest.fixture
def untrained_reward_model(vlm):
    adapters = Adapters(vlm)
    adapters.add("reward", 4, 8, seed=0)
    return RewardModel(Role(adapters, "reward", yes_no_head(vlm)), "given", "before")


def test_reward_messages_place_question_and_facts():
    prompt = (Message("user", "What is here?"),)
    before = reward_messages(prompt, "A mug.", "Facts: red mug.", "before")
    assert [m.content for m in before] == ["Facts: red mug. What is here?", "A mug.", "Is all of this true of the picture?"]
    after = reward_messages(prompt, "A mug.", "Facts: red mug.", "after")
    assert [m.content for m in after] == ["What is here?", "A mug.", "Facts: red mug. Is all of this true of the picture?"]


def test_reward_model_untrained_score_is_base_yes_no_log_odds(vlm, untrained, groups):
    """The score is the log-odds of Yes against No as the review's first word, by a forward that shares nothing with it."""
    facts_free = [dataclasses.replace(g, facts=()) for g in groups]
    raw = [s for _, scores in untrained.raw_scores(facts_free) for s in scores.tolist()]
    expected = []
    for group in facts_free:
        for answer in group.answers:
            text = vlm.apply_chat_template(reward_messages(group.prompt, answer, "", "before"), 1, generation_prompt=True)
            inputs = vlm.processor(text=text, images=[open_image(group.images[0])], return_tensors="pt")
            with torch.no_grad():
                logits = vlm.model(**inputs).logits[0, -1]
            yes, no = (vlm.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No"))
            expected.append(float(logits[yes] - logits[no]))
    assert raw == pytest.approx(expected, abs=1e-3)


def test_reward_model_untrained_ranks_clean_over_faulty_captions(untrained):
    """It ranks a clean description over one with a planted fault, with facts or without, before any reward training."""
    rows = []
    for index in range(60):
        scene, rng = scenes.generate_scene("selection", index, 0), np.random.default_rng([5, index])
        asked, faulty = scenes.description_question(scene, rng), scenes.caption(scene, rng, faults=1)
        if scenes.verify_answer(scene, faulty).false_claims:
            rows.append(
                AnswerGroup(
                    (scene.image_source(),),
                    (Message("user", asked.text),),
                    (asked.answer, faulty),
                    scenes.annotator_facts(scene, rng),
                )
            )
    for facts in ("given", "none"):
        scores = torch.tensor(dataclasses.replace(untrained, facts=facts).score(rows))
        assert (scores[:, 0] > scores[:, 1]).float().mean() > 0.85


def test_load_reward_model_scores_the_same_and_detects_damage(untrained, groups, tmp_path):
    untrained.mean, untrained.std = 0.5, 2.0
    save_reward_model(untrained, tmp_path, groups)
    scores = untrained.score(groups)
    loaded = load_reward_model(str(tmp_path))
    assert torch.tensor(loaded.score(groups)) == pytest.approx(torch.tensor(scores), abs=1e-5)

    head = (tmp_path / "head.safetensors").read_bytes()
    (tmp_path / "head.safetensors").write_bytes(head[:20])
    changed = "is not as it was saved, a file of it was changed: copy it again, or train it again"
    with pytest.raises(InputError, match=changed):
        load_reward_model(str(tmp_path))
    (tmp_path / "head.safetensors").unlink()
    with pytest.raises(InputError, match=changed):
        load_reward_model(str(tmp_path))
    (tmp_path / "head.safetensors").write_bytes(head)

    card = json.loads((tmp_path / "reward.json").read_text())
    for name, value in (("temperature", 9.0), ("probes", {"count": 1.0}), ("dtype", "bfloat16"), ("mean", 0.0)):
        (tmp_path / "reward.json").write_text(json.dumps(card | {name: value}))
        with pytest.raises(InputError, match=changed):
            load_reward_model(str(tmp_path))
    (tmp_path / "reward.json").write_text(json.dumps(card))
    kept = (tmp_path / "reference.jsonl").read_bytes()
    (tmp_path / "reference.jsonl").write_bytes(b"")
    with pytest.raises(InputError, match=changed):
        load_reward_model(str(tmp_path))
    (tmp_path / "reference.jsonl").write_bytes(kept)
    (tmp_path / "reward.json").write_text(json.dumps(card | {"base": str(tmp_path / "gone")}))
    with pytest.raises(InputError, match=r"needs the base it was trained on, and that model .*gone"):
        load_reward_model(str(tmp_path))
    (tmp_path / "reward.json").write_text("{")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_reward_model(str(tmp_path))


def test_load_reward_model_keeps_its_calibrated_precision(untrained, groups, tiny_vlm_path, tmp_path, capsys):
    save_reward_model(untrained, tmp_path, groups)
    mine, other = Adapters(load(tiny_vlm_path)), Adapters(load(tiny_vlm_path, "bfloat16"))
    assert load_reward_model(str(tmp_path), mine).role.adapters is mine and "calibrated" not in capsys.readouterr().out
    loaded = load_reward_model(str(tmp_path), other)
    assert loaded.role.vlm.dtype == "float32" and "was calibrated in float32: it runs in that" in capsys.readouterr().out


def test_reward_model_names_row_of_too_long_answer(untrained, groups):
    long = dataclasses.replace(groups[1], answers=("There is a red star. " * 40,))
    with pytest.raises(InputError, match=f"an answer of row {groups[1].id} has .* more than max_length 100 together"):
        next(dataclasses.replace(untrained, max_length=100).raw_scores([groups[0], long]))


def test_fact_rm_escapes_placeholder_in_answer(untrained, groups):
    sample = Sample("r", groups[0].images, groups[0].prompt, "A <image> star.", groups[0].facts)
    broken = Sample("r", groups[0].images, groups[0].prompt, "A < image> star.", groups[0].facts)
    assert make_fact_rm([untrained])([sample]) == pytest.approx(make_fact_rm([untrained])([broken]))
    with pytest.raises(InputError, match="which the model takes for a control token"):
        untrained.score([dataclasses.replace(groups[0], answers=("A <image> star.",))])
