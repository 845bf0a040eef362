"""Training the reward model: its data, its losses, and what it refuses."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.ppo import ppo
from mmrlhf.records import InputError, Preference
from mmrlhf.reward_model import preference_loss, train_reward_model
from mmrlhf.rewards.checkpoint import load_reward_model
from mmrlhf.rewards.reward_model import AnswerGroup
from tests.helpers.stages import ppo_config, reward_config


def test_train_reward_model_does_not_depend_on_micro_batches(tiny_vlm_path, examples, pairs, tmp_path):
    losses = []
    for tokens in (16384, 200):
        config = reward_config(tiny_vlm_path, tmp_path / str(tokens), micro_batch_tokens=tokens)
        train_reward_model(config, pairs)
        losses.append([r["loss"] for r in read_jsonl(tmp_path / str(tokens) / "metrics.jsonl")])
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)


def test_train_reward_model_learns_and_scores_standalone(tiny_vlm_path, pairs, reward_dir):
    metrics = read_jsonl(reward_dir / "metrics.jsonl")
    assert metrics[-1]["accuracy"] == 1.0 and metrics[-1]["loss"] < metrics[0]["loss"]
    model = load_reward_model(str(reward_dir))
    groups = [AnswerGroup(p.images, p.prompt, (p.chosen, p.rejected), p.facts) for p in pairs]
    scores = torch.tensor(model.score(groups))
    assert (scores[:, 0] > scores[:, 1]).all()
    assert scores.mean().abs() < 1e-3 and abs(scores.std() - 1) < 1e-3  # normalised on these pairs
    alone = model.score([dataclasses.replace(groups[0], answers=(groups[0].answers[1],))])
    assert alone[0][0] == pytest.approx(float(scores[0, 1]), abs=1e-4)  # does not depend on the other answers


@pytest.mark.parametrize("position", ["before", "after"])
def test_reward_model_uses_facts_only_when_given(tiny_vlm_path, pairs, tmp_path, position):
    for facts in ("given", "none"):
        model = load_reward_model(
            str(train_reward_model(reward_config(tiny_vlm_path, tmp_path / facts, facts=facts, facts_position=position), pairs))
        )
        one = AnswerGroup(pairs[0].images, pairs[0].prompt, (pairs[0].chosen,), pairs[0].facts)
        with_, without = model.score([one])[0], model.score([dataclasses.replace(one, facts=())])[0]
        assert (abs(with_[0] - without[0]) > 1e-4) == (facts == "given")


def test_train_reward_model_with_full_tuning_brings_its_own_base(tiny_vlm_path, examples, pairs, tmp_path):
    """A fully tuned reward model has its own base, and a policy on another base can train on it."""
    config = dataclasses.replace(
        reward_config(tiny_vlm_path, tmp_path / "reward"), tuning="full", learning_rate=3e-4, save_steps=2
    )
    path = train_reward_model(config, pairs, pairs)
    card = json.loads((path / "reward.json").read_text())
    assert card["base"] == "model" and not (path / "adapter_model.safetensors").exists()
    before, after = load_file(f"{tiny_vlm_path}/model.safetensors"), load_file(path / "model" / "model.safetensors")
    changed = {k for k in before if not torch.allclose(before[k].float(), after[k].float(), atol=1e-6)}
    assert changed and not [k for k in changed if "vision" in k or "projector" in k]
    assert read_jsonl(path / "metrics.jsonl")[-1]["accuracy"] == 1.0
    ppo(ppo_config(tiny_vlm_path, path, tmp_path / "ppo", max_steps=1), examples)
    moved = shutil.move(path, tmp_path / "elsewhere")
    assert load_reward_model(str(moved)).role.vlm.name == str(tmp_path / "elsewhere" / "model")


@pytest.mark.parametrize("loss_type", ["bt_margin", "bt_label_smoothing", "rao_kupper"])
def test_train_reward_model_learns_with_other_losses_and_rankings(tiny_vlm_path, examples, tmp_path, loss_type):
    """Rank three answers, two of them tied; without ratings, bt_margin refuses the rows."""
    rows = [
        Preference(e.id, e.images, e.prompt, (e.answer, "There is a pink ring.", "That makes nine objects."), (1, 2, 2), (2.0, 0.5, 0.5), e.facts)
        for e in examples
    ]  # fmt: skip
    path = train_reward_model(reward_config(tiny_vlm_path, tmp_path / "r", loss_type=loss_type), rows, rows)
    metrics = read_jsonl(path / "metrics.jsonl")
    assert metrics[-1]["loss"] < metrics[0]["loss"] and json.loads((path / "finished.json").read_text())["accuracy"] > 0.9
    if loss_type == "bt_margin":
        bare = [dataclasses.replace(r, ratings=()) for r in rows]
        with pytest.raises(InputError, match=r"row .* has no margin: loss_type bt_margin needs one in every row"):
            train_reward_model(reward_config(tiny_vlm_path, tmp_path / "bare", loss_type="bt_margin"), bare)


def test_preference_loss_weighs_a_ranking_like_a_pair():
    """Each comparison in a row of K answers has weight 1 / C(K, 2)."""
    config = reward_config("x", "x", center_rewards_coefficient=0.0)
    three = Preference("a", (), (), ("1", "2", "3"), (1, 2, 3))
    two = Preference.from_pair("b", (), (), "1", "2")
    raw = torch.tensor([math.log(3), 0.0, -math.log(3), math.log(3), 0.0])
    loss, metrics = preference_loss(config, [three, two], raw)
    gaps = [math.log(4 / 3), math.log(10 / 9), math.log(4 / 3)]  # sigmoid of log 3, log 9, log 3
    assert loss.item() == pytest.approx(sum(gaps) / 3 + math.log(4 / 3)) and metrics["accuracy"] == pytest.approx(2.0)
    tie = Preference("c", (), (), ("1", "2"), (1, 1))
    # Ties are left out unless the loss models them.
    assert preference_loss(config, [tie], torch.tensor([5.0, 0.0]))[0].item() == 0.0
    partly_tied = Preference("d", (), (), ("1", "2", "3"), (1, 1, 3))
    loss, metrics = preference_loss(config, [partly_tied, tie], torch.tensor([0.0, 5.0, 0.0, 9.0, 0.0]))
    # A tie keeps its share of the row's weight, and counts as neither right nor wrong.
    assert loss.item() == pytest.approx((math.log(2) + math.log1p(math.exp(-5))) / 3)
    assert metrics["accuracy"] / metrics["ranked"] == pytest.approx(0.5)


def test_train_reward_model_refuses_rows_that_teach_nothing(tiny_vlm_path, examples, tmp_path):
    tie = Preference("c", examples[0].images, examples[0].prompt, ("1", "2"), (1, 1))
    with pytest.raises(InputError, match="has ties only, and only loss_type rao_kupper learns from ties"):
        train_reward_model(reward_config(tiny_vlm_path, tmp_path / "ties"), [tie])
    longer = Preference.from_pair("l", tie.images, tie.prompt, "one two three", "one")
    with pytest.raises(InputError, match="balance_lengths leaves no row"):
        train_reward_model(reward_config(tiny_vlm_path, tmp_path / "none", balance_lengths=True), [longer])
