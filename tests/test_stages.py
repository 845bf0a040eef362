"""Each stage, tiny: it learns something, resumes exactly after a kill, and its artefacts hold what they say."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmrlhf.commands.score import score
from mmrlhf.config import GenerateConfig, PPOConfig, RewardConfig, ScoreConfig, SFTConfig
from mmrlhf.files.bundled import folder
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.generate import generate
from mmrlhf.ppo import ppo
from mmrlhf.records import InputError, Preference
from mmrlhf.reward_model import preference_loss, train_reward_model
from mmrlhf.rewards import checkpoint
from mmrlhf.rewards.checkpoint import load_reward_model
from mmrlhf.rewards.reward_model import AnswerGroup
from mmrlhf.sft import sft
from mmrlhf.training import advantages

SAMPLES = folder("data") / "samples"


@pytest.fixture(scope="module")
def pairs(examples):
    return [
        Preference.from_pair(e.id, e.images, e.prompt, e.answer, "There is a pink ring. That makes nine objects.", e.facts)
        for e in examples
    ]


def reward_config(base, out, **more):
    return RewardConfig(model_name_or_path=base, dataset_name="x", output_dir=str(out), learning_rate=2e-3, lora_r=4,
                        per_device_train_batch_size=6, max_steps=4, **more)  # fmt: skip


@pytest.fixture(scope="module")
def reward_dir(tiny_vlm_path, pairs, tmp_path_factory):
    return train_reward_model(reward_config(tiny_vlm_path, tmp_path_factory.mktemp("reward")), pairs, pairs)


def ppo_config(base, reward_dir, out, **more):
    settings = {"max_steps": 3, "save_steps": 1, **more}
    return PPOConfig(model_name_or_path=base, dataset_name="x", output_dir=str(out), reward_model_path=reward_dir and str(reward_dir), min_probe_detection_rate=0,
                     learning_rate=1e-3, lora_r=4, per_device_train_batch_size=3, num_generations=2, response_length=10, **settings)  # fmt: skip


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_sft_learns_and_writes_an_ordinary_checkpoint(tiny_vlm_path, examples, tmp_path, tuning):
    config = SFTConfig(model_name_or_path=tiny_vlm_path, dataset_name="x", output_dir=str(tmp_path), tuning=tuning, max_steps=5,
                       learning_rate=2e-3, per_device_train_batch_size=6, lora_r=8)  # fmt: skip
    rows = [dataclasses.replace(e, answer="A purple elephant sings.") for e in examples]
    model = sft(config, rows)
    losses = [r["loss"] for r in read_jsonl(tmp_path / "metrics.jsonl")]
    assert losses[-1] < losses[0] - 0.5
    before, after = load_file(f"{tiny_vlm_path}/model.safetensors"), load_file(model / "model.safetensors")
    assert set(before) == set(after)
    changed = {k for k in before if not torch.allclose(before[k].float(), after[k].float(), atol=1e-6)}
    assert changed and not [k for k in changed if "vision" in k or "projector" in k]
    assert sft(config, rows) == model  # finished: nothing is done again


def test_train_reward_model_does_not_depend_on_micro_batches(tiny_vlm_path, examples, pairs, tmp_path):
    found = []
    for tokens in (16384, 200):
        config = reward_config(tiny_vlm_path, tmp_path / str(tokens), micro_batch_tokens=tokens)
        train_reward_model(config, pairs)
        found.append([r["loss"] for r in read_jsonl(tmp_path / str(tokens) / "metrics.jsonl")])
    assert found[0] == pytest.approx(found[1], abs=2e-4)


def test_train_reward_model_learns_and_scores_standalone(tiny_vlm_path, pairs, reward_dir):
    metrics = read_jsonl(reward_dir / "metrics.jsonl")
    assert metrics[-1]["accuracy"] == 1.0 and metrics[-1]["loss"] < metrics[0]["loss"]
    model = load_reward_model(str(reward_dir))
    groups = [AnswerGroup(p.images, p.prompt, (p.chosen, p.rejected), p.facts) for p in pairs]
    scores = torch.tensor(model.score(groups))
    assert (scores[:, 0] > scores[:, 1]).all()
    assert scores.mean().abs() < 1e-3 and abs(scores.std() - 1) < 1e-3  # normalised on these pairs
    alone = model.score([dataclasses.replace(groups[0], answers=(groups[0].answers[1],))])
    assert alone[0][0] == pytest.approx(float(scores[0, 1]), abs=1e-4)  # not on what stands beside it


@pytest.mark.parametrize("position", ["before", "after"])
def test_reward_model_uses_facts_only_when_given(tiny_vlm_path, pairs, tmp_path, position):
    for facts in ("given", "none"):
        model = load_reward_model(
            str(train_reward_model(reward_config(tiny_vlm_path, tmp_path / facts, facts=facts, facts_position=position), pairs))
        )
        one = AnswerGroup(pairs[0].images, pairs[0].prompt, (pairs[0].chosen,), pairs[0].facts)
        with_, without = model.score([one])[0], model.score([dataclasses.replace(one, facts=())])[0]
        assert (abs(with_[0] - without[0]) > 1e-4) == (facts == "given")


def test_ppo_starts_on_policy_and_trains_only_its_adapters(tiny_vlm_path, examples, reward_dir, tmp_path):
    calls = []
    target = ppo(ppo_config(tiny_vlm_path, reward_dir, tmp_path, eval_steps=2), examples, lambda vlm: calls.append(1) or {"x": 1.0})
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in rows] == [0, 1, 2, 3] and len(calls) == 3
    assert abs(rows[1]["objective/kl"]) < 1e-4 and rows[2]["objective/kl"] != 0
    assert all(abs(r["val/ratio_first"] - 1) < 1e-4 for r in rows[1:])
    assert max(p.abs().max() for k, p in load_file(target / "adapter_model.safetensors").items() if "lora_B" in k) > 0


def test_ppo_metrics_do_not_depend_on_engine_settings(tiny_vlm_path, examples, reward_dir, tmp_path):
    """The plain way, small micro-batches, recomputed layers: the same scores, KL and losses, up to rounding."""
    ways = {
        "engine": {},
        "plain": {"share_prefix": "off"},
        "small": {"micro_batch_tokens": 90},
        "again": {"activation_checkpointing": True},
    }
    found = {}
    for name, how in ways.items():
        ppo(ppo_config(tiny_vlm_path, reward_dir, tmp_path / name, **how), examples)
        rows = read_jsonl(tmp_path / name / "metrics.jsonl")[1:]
        found[name] = [
            [r[k] for k in ("objective/scores", "objective/kl", "loss/policy_avg", "loss/value_avg", "grad_norm")] for r in rows
        ]
    for name in ways:
        assert found[name] == [pytest.approx(row, rel=2e-3, abs=2e-4) for row in found["engine"]], name


def test_ppo_with_grpo_has_no_critic_and_raises_reward(tiny_vlm_path, examples, tmp_path):
    """Answers are worth their length: they grow against the others of their prompt."""

    def longer(samples):
        return [float(len(s.answer)) for s in samples]

    how = {"advantage_estimator": "grpo", "max_steps": 12, "kl_coef": 0.0, "reward_terms": "longer=1"}
    config = dataclasses.replace(
        ppo_config(tiny_vlm_path, None, tmp_path, **how), learning_rate=5e-3, num_generations=6, response_length=30
    )
    ppo(config, examples, extra_reward_functions={"longer": longer})
    rows = read_jsonl(tmp_path / "metrics.jsonl")[1:]
    scores = [r["objective/scores"] for r in rows]
    assert sum(scores[-3:]) > sum(scores[:3]) and "critic/vf_explained_var" not in rows[0] and "loss/value_avg" not in rows[0]
    assert set(p.name for p in (tmp_path / "policy").iterdir()) >= {"adapter_model.safetensors", "base.json"}


def test_ppo_ledger_matches_the_rewards_trained_on(tiny_vlm_path, examples, reward_dir, tmp_path, monkeypatch):
    """Every answer's terms and its KL add up to the rewards that advantages were made of, dense ones at their tokens."""
    paid = []
    real = advantages.gae
    monkeypatch.setattr(advantages, "gae", lambda rewards, *rest: paid.append(rewards.clone()) or real(rewards, *rest))

    def first_word(samples):
        return [[(0, len(s.answer.split()[0]), 1.0)] if s.answer.split() else [] for s in samples]

    terms = "fact_rm=1, missing_eos=-1, length=-2, repetition=-1, first_word=0.5"
    config = ppo_config(tiny_vlm_path, reward_dir, tmp_path, max_steps=2, reward_terms=terms)
    ppo(config, examples, extra_reward_functions={"first_word": first_word})
    rows = read_jsonl(tmp_path / "ledger.jsonl")
    assert len(rows) == 2 * 6 and [r["step"] for r in rows] == [1] * 6 + [2] * 6
    assert [r["total"] for r in rows] == pytest.approx([float(v) for t in paid for v in t.sum(1)], abs=1e-5)
    for row in rows:
        assert set(row["terms"]) == {"fact_rm", "missing_eos", "length", "repetition", "first_word"}
        assert sum(row["terms"].values()) + row["kl"] == pytest.approx(row["total"], abs=1e-5)
        assert row["terms"]["first_word"] == 0.5 * bool(row["answer"].split())
    assert any(float(t[n, 0]) > 0.4 for t in paid for n in range(6))  # where the first word ends, not at the end
    logged = read_jsonl(tmp_path / "metrics.jsonl")[1]
    mean = sum(r["terms"]["fact_rm"] for r in rows[:6]) / 6
    assert logged["rewards/fact_rm/mean"] == pytest.approx(mean, abs=1e-5) and "hacking/refusal_rate" in logged


def test_ppo_critic_sees_facts_changes_only_the_values(tiny_vlm_path, examples, reward_dir, tmp_path):
    """Its values change; the first answers, sampled by the policy, do not."""
    found = {}
    for told in (False, True):
        ppo(ppo_config(tiny_vlm_path, reward_dir, tmp_path / str(told), max_steps=2, critic_sees_facts=told), examples)
        found[told] = read_jsonl(tmp_path / str(told) / "ledger.jsonl"), read_jsonl(tmp_path / str(told) / "metrics.jsonl")
    (without, low), (with_, high) = found[False], found[True]
    assert [r["answer"] for r in without[:6]] == [r["answer"] for r in with_[:6]]
    assert low[1]["critic/vf_explained_var"] == high[1]["critic/vf_explained_var"]  # the head starts at zero
    assert low[2]["loss/value_avg"] != high[2]["loss/value_avg"]


def test_ppo_refuses_reward_model_that_misses_false_claims(tiny_vlm_path, examples, reward_dir, tmp_path):
    shutil.copytree(reward_dir, tmp_path / "reward")
    card = json.loads((tmp_path / "reward" / "reward.json").read_text())
    card |= {"probes": {"object": 0.9, "count": 0.4}}
    card |= {"seal": checkpoint._checksum(tmp_path / "reward", card)}
    (tmp_path / "reward" / "reward.json").write_text(json.dumps(card))
    config = ppo_config(tiny_vlm_path, tmp_path / "reward", tmp_path / "out")
    with pytest.raises(
        InputError, match="lowers its score for 40% of injected false claims of kind count, less than min_probe_detection_rate"
    ):
        ppo(dataclasses.replace(config, min_probe_detection_rate=0.6), examples)
    assert not (tmp_path / "out").exists()
    ppo(dataclasses.replace(config, min_probe_detection_rate=0.4, max_steps=1), examples)


def test_ppo_failing_reward_function_stops_the_run_by_name(tiny_vlm_path, examples, reward_dir, tmp_path):
    def picky(samples):
        return [1.0 if s.num_tokens else 0.0 for s in samples][:-1]

    config = ppo_config(tiny_vlm_path, reward_dir, tmp_path / "out", reward_terms="fact_rm=1, picky=1")
    with pytest.raises(InputError, match="reward function picky returned 5 values for 6 samples"):
        ppo(config, examples, extra_reward_functions={"picky": picky})
    assert json.loads((tmp_path / "out" / "failed_term.json").read_text())["term"] == "picky"
    with pytest.raises(InputError, match="give --reward_model_path, or leave fact_rm out"):
        ppo(ppo_config(tiny_vlm_path, None, tmp_path / "none"), examples)


def test_ppo_uncertainty_penalty_lowers_disputed_scores(tiny_vlm_path, examples, pairs, reward_dir, tmp_path):
    other = train_reward_model(
        dataclasses.replace(reward_config(tiny_vlm_path, tmp_path / "other"), seed=5, learning_rate=3e-3), pairs, pairs
    )
    scores = {}
    for name, path, penalty in (
        ("one", reward_dir, 0.0), ("two", other, 0.0), ("mean", f"{reward_dir}, {other}", 0.0), ("less", f"{reward_dir},{other}", 1.0),
    ):  # fmt: skip
        ppo(ppo_config(tiny_vlm_path, path, tmp_path / name, max_steps=1, uncertainty_penalty=penalty), examples)
        scores[name] = np.array([r["terms"]["fact_rm"] for r in read_jsonl(tmp_path / name / "ledger.jsonl")])
    assert scores["mean"] == pytest.approx((scores["one"] + scores["two"]) / 2, abs=1e-4)
    assert scores["less"] == pytest.approx(scores["mean"] - np.abs(scores["one"] - scores["two"]) / 2, abs=1e-4)


def test_train_reward_model_with_full_tuning_brings_its_own_base(tiny_vlm_path, examples, pairs, tmp_path):
    """It brings its own base, is scored by pictures and text, and a policy learns from it."""
    config = dataclasses.replace(reward_config(tiny_vlm_path, tmp_path / "reward"), tuning="full", learning_rate=3e-4, save_steps=2)
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


def test_ppo_accepts_reward_model_of_another_family(tiny_vlm_path, examples, pairs, tmp_path):
    """A policy of one architecture, a reward model of another with another tokenizer: they meet in pictures and text."""
    from tests.helpers.tiny_models import build_checkpoint

    build_checkpoint("qwen2_5_vl", tmp_path / "qwen")
    path = train_reward_model(reward_config(str(tmp_path / "qwen"), tmp_path / "reward"), pairs, pairs)
    ppo(ppo_config(tiny_vlm_path, path, tmp_path / "ppo", max_steps=1), examples)
    rows = [(e, r) for r in read_jsonl(tmp_path / "ppo" / "ledger.jsonl") for e in examples if e.id == r["id"]]
    groups = [AnswerGroup(e.images, e.prompt, (r["answer"],), e.facts, e.id) for e, r in rows]
    alone = [s for (s,) in load_reward_model(str(path)).score(groups)]
    assert [r["terms"]["fact_rm"] for _, r in rows] == pytest.approx(alone, abs=1e-3) and len(rows) == 6


@pytest.mark.parametrize("loss_type", ["bt_margin", "bt_label_smoothing", "rao_kupper"])
def test_train_reward_model_learns_with_other_losses_and_rankings(tiny_vlm_path, examples, tmp_path, loss_type):
    """Three answers with a tie in the middle; the rows without ratings are refused where margins are asked for."""
    rows = [
        Preference(e.id, e.images, e.prompt, (e.answer, "There is a pink ring.", "That makes nine objects."), (1, 2, 2), (2.0, 0.5, 0.5), e.facts)
        for e in examples
    ]  # fmt: skip
    path = train_reward_model(reward_config(tiny_vlm_path, tmp_path / "r", loss_type=loss_type), rows, rows)
    told = read_jsonl(path / "metrics.jsonl")
    assert told[-1]["loss"] < told[0]["loss"] and json.loads((path / "finished.json").read_text())["accuracy"] > 0.9
    if loss_type == "bt_margin":
        bare = [dataclasses.replace(r, ratings=()) for r in rows]
        with pytest.raises(InputError, match=r"row .* has no margin: loss_type bt_margin needs one in every row"):
            train_reward_model(reward_config(tiny_vlm_path, tmp_path / "bare", loss_type="bt_margin"), bare)


def test_preference_loss_weighs_a_ranking_like_a_pair():
    """All comparisons of a prompt count as one row: each 1 / C(K, 2)."""
    config = reward_config("x", "x", center_rewards_coefficient=0.0)
    three = Preference("a", (), (), ("1", "2", "3"), (1, 2, 3))
    two = Preference.from_pair("b", (), (), "1", "2")
    raw = torch.tensor([math.log(3), 0.0, -math.log(3), math.log(3), 0.0])
    loss, told = preference_loss(config, [three, two], raw)
    gaps = [math.log(4 / 3), math.log(10 / 9), math.log(4 / 3)]  # sigmoid of log 3, log 9, log 3
    assert loss.item() == pytest.approx(sum(gaps) / 3 + math.log(4 / 3)) and told["accuracy"] == pytest.approx(2.0)
    tie = Preference("c", (), (), ("1", "2"), (1, 1))
    assert (
        preference_loss(config, [tie], torch.tensor([5.0, 0.0]))[0].item() == 0.0
    )  # who does not learn from ties leaves them out
    partly = Preference("d", (), (), ("1", "2", "3"), (1, 1, 3))
    loss, told = preference_loss(config, [partly, tie], torch.tensor([0.0, 5.0, 0.0, 9.0, 0.0]))
    assert loss.item() == pytest.approx((math.log(2) + math.log1p(math.exp(-5))) / 3)  # a tie keeps its share of the weight
    assert told["accuracy"] / told["ranked"] == pytest.approx(0.5)  # and is neither right nor wrong


def test_train_reward_model_refuses_rows_that_teach_nothing(tiny_vlm_path, examples, tmp_path):
    tie = Preference("c", examples[0].images, examples[0].prompt, ("1", "2"), (1, 1))
    with pytest.raises(InputError, match="has ties only, and only loss_type rao_kupper learns from ties"):
        train_reward_model(reward_config(tiny_vlm_path, tmp_path / "ties"), [tie])
    longer = Preference.from_pair("l", tie.images, tie.prompt, "one two three", "one")
    with pytest.raises(InputError, match="balance_lengths leaves no row"):
        train_reward_model(reward_config(tiny_vlm_path, tmp_path / "none", balance_lengths=True), [longer])


def test_ppo_missing_eos_penalty_is_in_the_reward(tiny_vlm_path, examples, reward_dir, tmp_path):
    mean = {}
    for penalty in (0.0, 5.0):
        terms = f"fact_rm=1, missing_eos={-penalty}"
        ppo(ppo_config(tiny_vlm_path, reward_dir, tmp_path / str(penalty), max_steps=1, reward_terms=terms), examples)
        row = read_jsonl(tmp_path / str(penalty) / "metrics.jsonl")[1]
        mean[penalty] = row["objective/scores"], 1 - row["val/num_eos_tokens"] / 6
    assert mean[0.0][0] - mean[5.0][0] == pytest.approx(5 * mean[0.0][1], abs=1e-4) and mean[0.0][1] > 0


KILLED_SCRIPT = """
import os, sys, pickle
from mmrlhf import ppo as stage
from mmrlhf.training import run
from mmrlhf.config import PPOConfig
from mmrlhf.config_loader import load_config
saves = run.Run.save_checkpoint
def save(self, step, *rest):
    saves(self, step, *rest)
    if step == 2: os.kill(os.getpid(), 9)
run.Run.save_checkpoint = save
sys.path.insert(0, sys.argv[2])
from conftest_rows import rows
from pathlib import Path
stage.ppo(load_config(PPOConfig, Path(sys.argv[1]), {}), rows())
"""


def test_ppo_resumes_exactly_after_kill(tiny_vlm_path, examples, reward_dir, tmp_path):
    from mmrlhf.config_loader import save_config

    whole = ppo_config(tiny_vlm_path, reward_dir, tmp_path / "whole", max_steps=4)
    ppo(whole, examples)
    killed = dataclasses.replace(whole, output_dir=str(tmp_path / "killed"))
    save_config(killed, tmp_path / "killed.yaml")
    (tmp_path / "conftest_rows.py").write_text(ROWS_MODULE)
    done = subprocess.run(
        [sys.executable, "-c", KILLED_SCRIPT, tmp_path / "killed.yaml", tmp_path], env=os.environ, capture_output=True
    )
    assert done.returncode == -9, done.stderr.decode()[-2000:]
    ppo(killed, examples)
    same = [("loss/policy_avg", "loss/value_avg", "objective/scores", "objective/kl")] * 2
    a, b = (
        [{k: r.get(k) for k in keys} for r in read_jsonl(tmp_path / n / "metrics.jsonl")]
        for n, keys in zip(("whole", "killed"), same, strict=True)
    )
    assert a == b and len(a) == 5
    one, two = (load_file(tmp_path / n / "policy" / "adapter_model.safetensors") for n in ("whole", "killed"))
    assert all(torch.equal(one[k], two[k]) for k in one)


ROWS_MODULE = """
import numpy as np
from mmrlhf import scenes
from mmrlhf.records import Example, Message
def rows():
    found = []
    for i in range(12):
        scene, rng = scenes.generate_scene("selection", i, 0), np.random.default_rng(i)
        asked = scenes.description_question(scene, rng)
        found.append(Example(scene.id, (scene.image_source(),), (Message("user", asked.text),), asked.answer, scenes.annotator_facts(scene, rng)))
    return found
"""


def test_ppo_refuses_run_with_other_settings(tiny_vlm_path, examples, reward_dir, tmp_path):
    ppo(ppo_config(tiny_vlm_path, reward_dir, tmp_path, max_steps=1), examples)
    with pytest.raises(InputError, match="kl_coef"):
        ppo(ppo_config(tiny_vlm_path, reward_dir, tmp_path, max_steps=1, kl_coef=0.9), examples)


def test_ppo_refuses_response_length_that_leaves_no_room_for_prompt(tiny_vlm_path, examples, reward_dir, tmp_path):
    with pytest.raises(InputError, match="response_length 10 leaves no room"):
        ppo(ppo_config(tiny_vlm_path, reward_dir, tmp_path / "new", max_length=10), examples)
    assert not (tmp_path / "new").exists()


def test_generate_refuses_adapter_of_another_base(tiny_vlm_path, examples, reward_dir, tmp_path):
    other = sft(SFTConfig(model_name_or_path=tiny_vlm_path, dataset_name="x", output_dir=str(tmp_path / "o"), tuning="full", max_steps=1,
                          learning_rate=1e-2, per_device_train_batch_size=2), examples)  # fmt: skip
    policy = ppo(ppo_config(tiny_vlm_path, reward_dir, tmp_path / "p", max_steps=1), examples)
    with pytest.raises(InputError, match="was trained on"):
        generate(
            GenerateConfig(
                model_name_or_path=str(other), adapter_path=str(policy), dataset_name="x", output_file=str(tmp_path / "a")
            ),
            examples,
        )
    # ...but a reward model may stand on a base of its own, scored by images and text
    ppo(ppo_config(str(other), reward_dir, tmp_path / "q", max_steps=1), examples)


def test_stages_run_from_files_to_scores(tiny_vlm_path, tmp_path):
    """The stages on data files as a user has them: TRL's rows, LLaVA-RLHF's rows, facts beside them."""
    common = {
        "model_name_or_path": tiny_vlm_path,
        "image_folder": str(SAMPLES),
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "lora_r": 4,
    }
    facts = str(SAMPLES / "image_to_caption.json")
    trained = train_reward_model(
        RewardConfig(
            dataset_name=str(SAMPLES / "llava_rlhf_preference.json"), facts_file=facts, output_dir=str(tmp_path / "r"), **common
        )
    )
    policy = ppo(PPOConfig(dataset_name=str(SAMPLES / "llava_rlhf_ppo.json"), facts_file=facts, output_dir=str(tmp_path / "p"),
                           reward_model_path=str(trained), num_generations=2, response_length=8, **common))  # fmt: skip
    out = generate(GenerateConfig(model_name_or_path=tiny_vlm_path, adapter_path=str(policy), dataset_name=str(SAMPLES / "llava_rlhf_ppo.json"),
                                  image_folder=str(SAMPLES), output_file=str(tmp_path / "answers.jsonl"), response_length=8))  # fmt: skip
    rows = read_jsonl(out)
    assert rows and all(r["answer"] and r["images"] for r in rows)
    scores = read_jsonl(score(ScoreConfig(reward_model_path=str(trained), dataset_name=str(out), image_folder=str(SAMPLES),
                                          output_file=str(tmp_path / "scores.jsonl"))))  # fmt: skip
    assert len(scores) == len(rows) and all(isinstance(s["score"], float) for s in scores)


def test_stages_run_on_photos_with_llava_shaped_checkpoint(shared_data, tmp_path):
    """Another checkpoint than the world's, 576 image tokens, real photographs."""
    subprocess.run([sys.executable, shared_data / "speed" / "tiny_llava.py", tmp_path / "llava"], check=True, capture_output=True)
    common = {"model_name_or_path": str(tmp_path / "llava"), "image_folder": str(shared_data / "photos"), "max_steps": 1,
              "per_device_train_batch_size": 2, "lora_r": 4}  # fmt: skip
    trained = train_reward_model(RewardConfig(dataset_name=str(shared_data / "photos" / "pairs.jsonl"), facts_file=str(shared_data / "photos" / "facts.jsonl"),
                                  output_dir=str(tmp_path / "r"), **common))  # fmt: skip
    ppo(PPOConfig(dataset_name=str(shared_data / "photos" / "pairs.jsonl"), facts_file=str(shared_data / "photos" / "facts.jsonl"),
                  output_dir=str(tmp_path / "p"), reward_model_path=str(trained), num_generations=2, response_length=6, min_probe_detection_rate=0, **common))  # fmt: skip
    row = read_jsonl(tmp_path / "p" / "metrics.jsonl")[1]
    assert abs(row["objective/kl"]) < 1e-4 and abs(row["val/ratio_first"] - 1) < 1e-4
    assert json.loads((tmp_path / "r" / "reward.json").read_text())["base"] == str(tmp_path / "llava")


STAGES_SCRIPT = """
import sys
import numpy as np, torch
from mmrlhf import scenes
from mmrlhf.config import PPOConfig, RewardConfig, SFTConfig
from mmrlhf.ppo import ppo
from mmrlhf.records import Example, Message, Preference
from mmrlhf.reward_model import train_reward_model
from mmrlhf.sft import sft

torch.set_num_threads(1)
base, out, processes = sys.argv[1], sys.argv[2], int(sys.argv[3])
rows = []
for i in range(12):
    scene, rng = scenes.generate_scene("selection", i, 0), np.random.default_rng(i)
    asked = scenes.description_question(scene, rng)
    rows.append(Example(scene.id, (scene.image_source(),), (Message("user", asked.text),), asked.answer, scenes.annotator_facts(scene, rng)))
pairs = [Preference.from_pair(e.id, e.images, e.prompt, e.answer, "There is a pink ring.", e.facts) for e in rows]
same = dict(model_name_or_path=base, dataset_name="x", lora_r=4, max_steps=2, learning_rate=2e-3,
            per_device_train_batch_size=4 // processes)
sft(SFTConfig(output_dir=f"{out}/sft", **same), rows)
model = train_reward_model(RewardConfig(output_dir=f"{out}/reward", **same), pairs)
ppo(PPOConfig(output_dir=f"{out}/ppo", reward_model_path=str(model), num_generations=2, response_length=10, num_ppo_epochs=1,
              num_mini_batches=1, min_probe_detection_rate=0, **same), rows)
"""


def test_stages_on_two_processes_train_as_one(tiny_vlm_path, tmp_path):
    """The same rows over two processes: the same losses, gradients, KL and rewards as in one."""
    (tmp_path / "stages.py").write_text(STAGES_SCRIPT)
    logged = []
    for processes in (1, 2):
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
        subprocess.run(
            [sys.executable, *launch, str(tmp_path / "stages.py"), tiny_vlm_path, str(tmp_path / str(processes)), str(processes)],
            check=True, capture_output=True, timeout=900,
            env=os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder("data").parent)},
        )  # fmt: skip
        logged.append({name: read_jsonl(tmp_path / str(processes) / name / "metrics.jsonl") for name in ("sft", "reward", "ppo")})
    same = {
        "sft": ("loss", "num_tokens", "grad_norm"),
        "reward": ("loss", "accuracy", "margin", "grad_norm"),
        "ppo": ("objective/kl", "objective/scores", "loss/policy_avg", "loss/value_avg", "grad_norm", "val/num_eos_tokens"),
    }
    for name, figures in same.items():
        for one, two in zip(logged[0][name], logged[1][name], strict=True):
            for figure in figures:
                assert one.get(figure, 0) == pytest.approx(two.get(figure, 0), rel=2e-3, abs=2e-4), (name, figure)
