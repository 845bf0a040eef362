"""PPO and GRPO on the tiny model: on-policy start, ledger, critic, ensembles, resuming."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmrlhf.config import PPOConfig
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.ppo import ppo
from mmrlhf.records import InputError
from mmrlhf.reward_model import train_reward_model
from mmrlhf.rewards import checkpoint
from mmrlhf.rewards.checkpoint import load_reward_model
from mmrlhf.rewards.reward_model import AnswerGroup
from mmrlhf.training import monitor
from mmrlhf.training.ppo import advantages
from tests.helpers.runs import stopped_after
from tests.helpers.stages import ppo_config, reward_config

KILLED_SCRIPT = """
import os, sys
import torch
from mmrlhf import ppo as stage
from mmrlhf.training import run
from mmrlhf.config import PPOConfig
from mmrlhf.config.loader import load_config
saves = run.Run.save_checkpoint
def save(self, step, *rest):
    saves(self, step, *rest)
    if step == 2: os.kill(os.getpid(), 9)
run.Run.save_checkpoint = save
from tests.helpers.scene_rows import scene_examples
from pathlib import Path
torch.set_num_threads(int(sys.argv[2]))  # the number of threads decides the order of sums
stage.ppo(load_config(PPOConfig, Path(sys.argv[1]), {}), scene_examples())
"""


def test_ppo_starts_on_policy_and_trains_only_its_adapters(tiny_vlm_path, examples, reward_dir, tmp_path):
    calls = []
    target = ppo(
        ppo_config(tiny_vlm_path, reward_dir, tmp_path, eval_steps=2), examples, lambda vlm: calls.append(1) or {"x": 1.0}
    )
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in rows] == [0, 1, 2, 3] and len(calls) == 3
    assert abs(rows[1]["objective/kl"]) < 1e-4 and rows[2]["objective/kl"] != 0
    assert all(abs(r["val/ratio_first"] - 1) < 1e-4 for r in rows[1:])
    assert max(p.abs().max() for k, p in load_file(target / "adapter_model.safetensors").items() if "lora_B" in k) > 0


def test_ppo_metrics_do_not_depend_on_engine_settings(tiny_vlm_path, examples, reward_dir, tmp_path):
    """The naive path, small micro-batches and recomputed layers change metrics by rounding only."""
    settings_by_name = {
        "default": {},
        "naive": {"share_prefix": "off"},
        "small": {"micro_batch_tokens": 90},
        "recomputed": {"activation_checkpointing": True},
    }
    figures = {}
    for name, settings in settings_by_name.items():
        ppo(ppo_config(tiny_vlm_path, reward_dir, tmp_path / name, max_steps=2, **settings), examples)
        rows = read_jsonl(tmp_path / name / "metrics.jsonl")[1:]
        figures[name] = [
            [r[k] for k in ("objective/scores", "objective/kl", "loss/policy_avg", "loss/value_avg", "grad_norm")] for r in rows
        ]
    for name in settings_by_name:
        assert figures[name] == [pytest.approx(row, rel=2e-3, abs=2e-4) for row in figures["default"]], name


def test_ppo_with_grpo_has_no_critic_and_raises_reward(tiny_vlm_path, examples, tmp_path):
    """The reward is the length of an answer, so answers get longer."""

    def longer(samples):
        return [float(len(s.answer)) for s in samples]

    settings = {"advantage_estimator": "grpo", "max_steps": 12, "kl_coef": 0.0, "reward_terms": "longer=1"}
    config = dataclasses.replace(
        ppo_config(tiny_vlm_path, None, tmp_path, **settings), learning_rate=5e-3, num_generations=6, response_length=30
    )
    ppo(config, examples, extra_reward_functions={"longer": longer})
    rows = read_jsonl(tmp_path / "metrics.jsonl")[1:]
    scores = [r["objective/scores"] for r in rows]
    assert sum(scores[-3:]) > sum(scores[:3]) and "critic/vf_explained_var" not in rows[0] and "loss/value_avg" not in rows[0]
    assert set(p.name for p in (tmp_path / "policy").iterdir()) >= {"adapter_model.safetensors", "base.json"}


def test_ppo_ledger_matches_the_rewards_trained_on(tiny_vlm_path, examples, reward_dir, tmp_path, monkeypatch):
    """The ledger adds up to the rewards trained on, and span rewards are on their own tokens."""
    token_rewards = []
    real = advantages.gae
    monkeypatch.setattr(advantages, "gae", lambda rewards, *rest: token_rewards.append(rewards.clone()) or real(rewards, *rest))

    def first_word(samples):
        return [[(0, len(s.answer.split()[0]), 1.0)] if s.answer.split() else [] for s in samples]

    terms = "fact_rm=1, missing_eos=-1, length=-2, repetition=-1, first_word=0.5"
    config = ppo_config(tiny_vlm_path, reward_dir, tmp_path, max_steps=2, reward_terms=terms)
    ppo(config, examples, extra_reward_functions={"first_word": first_word})
    rows = read_jsonl(tmp_path / "ledger.jsonl")
    assert len(rows) == 2 * 6 and [r["step"] for r in rows] == [1] * 6 + [2] * 6
    assert [r["total"] for r in rows] == pytest.approx([float(v) for t in token_rewards for v in t.sum(1)], abs=1e-5)
    for row in rows:
        assert set(row["terms"]) == {"fact_rm", "missing_eos", "length", "repetition", "first_word"}
        assert sum(row["terms"].values()) + row["kl"] == pytest.approx(row["total"], abs=1e-5)
        assert row["terms"]["first_word"] == 0.5 * bool(row["answer"].split())
    assert any(float(t[n, 0]) > 0.4 for t in token_rewards for n in range(6))  # on the token that ends the first word
    logged = read_jsonl(tmp_path / "metrics.jsonl")[1]
    mean = sum(r["terms"]["fact_rm"] for r in rows[:6]) / 6
    assert logged["rewards/fact_rm/mean"] == pytest.approx(mean, abs=1e-5) and "hacking/refusal_rate" in logged
    squares = sum((r["terms"]["fact_rm"] - mean) ** 2 for r in rows[:6])
    assert logged["rewards/fact_rm/std"] == pytest.approx((squares / 5) ** 0.5, abs=1e-5)
    lengths = [r["terms"]["length"] / -2 * config.response_length for r in rows[:6]]  # the share of it that is used
    names = ("completions/min_length", "completions/mean_length", "completions/max_length")
    assert [logged[name] for name in names] == pytest.approx([min(lengths), sum(lengths) / 6, max(lengths)], abs=1e-3)
    # Claims are counted without a verifier, too, but the ledger lists only those with verdicts.
    assert 0 <= logged["hacking/zero_claim_rate"] <= 1 and not any("claims" in row for row in rows)


def test_ppo_critic_sees_facts_changes_only_the_values(tiny_vlm_path, examples, reward_dir, tmp_path):
    """The critic's values change; the first answers, which the policy samples, do not."""
    runs = {}
    for sees_facts in (False, True):
        ppo(
            ppo_config(tiny_vlm_path, reward_dir, tmp_path / str(sees_facts), max_steps=2, critic_sees_facts=sees_facts), examples
        )
        runs[sees_facts] = (
            read_jsonl(tmp_path / str(sees_facts) / "ledger.jsonl"),
            read_jsonl(tmp_path / str(sees_facts) / "metrics.jsonl"),
        )
    (ledger_without, metrics_without), (ledger_with, metrics_with) = runs[False], runs[True]
    assert [r["answer"] for r in ledger_without[:6]] == [r["answer"] for r in ledger_with[:6]]
    # The head starts at zero.
    assert metrics_without[1]["critic/vf_explained_var"] == metrics_with[1]["critic/vf_explained_var"]
    assert metrics_without[2]["loss/value_avg"] != metrics_with[2]["loss/value_avg"]


def test_ppo_refuses_reward_model_that_misses_false_claims(tiny_vlm_path, examples, reward_dir, tmp_path):
    shutil.copytree(reward_dir, tmp_path / "reward")
    card = json.loads((tmp_path / "reward" / "reward.json").read_text())
    card |= {"probes": {"object": 0.9, "count": 0.4}}
    card |= {"seal": checkpoint._checksum(tmp_path / "reward", card)}
    (tmp_path / "reward" / "reward.json").write_text(json.dumps(card))
    config = ppo_config(tiny_vlm_path, tmp_path / "reward", tmp_path / "out")
    with pytest.raises(
        InputError, match="lowers its score for 40% of injected hallucinations of kind count, less than min_probe_detection_rate"
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


def test_ppo_keeps_the_steps_before_a_reward_function_fails(tiny_vlm_path, examples, tmp_path):
    """A judge that does not answer once must not cost the steps since the last checkpoint."""
    config = ppo_config(tiny_vlm_path, None, tmp_path / "out", reward_terms="picky=1", save_steps=100)
    steps = []

    def picky(samples):
        steps.append(1)
        if len(steps) == 3:
            raise TimeoutError("no answer")
        return [float(len(s.answer)) for s in samples]

    with pytest.raises(
        InputError,
        match=r"picky raised TimeoutError: no answer.*out is saved after step 2, and the same command .*add --allow_change",
    ):
        ppo(config, examples, extra_reward_functions={"picky": picky})
    ppo(config, examples, extra_reward_functions={"picky": picky})
    assert [row["step"] for row in read_jsonl(tmp_path / "out" / "metrics.jsonl") if row["step"]] == [1, 2, 3]


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


def test_ppo_accepts_reward_model_of_another_family(tiny_vlm_path, examples, pairs, tmp_path):
    """A reward model of another architecture and tokenizer receives images and text."""
    from tests.helpers.tiny_models import build_checkpoint

    build_checkpoint("qwen2_5_vl", tmp_path / "qwen")
    path = train_reward_model(reward_config(str(tmp_path / "qwen"), tmp_path / "reward"), pairs, pairs)
    ppo(ppo_config(tiny_vlm_path, path, tmp_path / "ppo", max_steps=1), examples)
    rows = [(e, r) for r in read_jsonl(tmp_path / "ppo" / "ledger.jsonl") for e in examples if e.id == r["id"]]
    groups = [AnswerGroup(e.images, e.prompt, (r["answer"],), e.facts, e.id) for e, r in rows]
    alone = [s for (s,) in load_reward_model(str(path)).score(groups)]
    assert [r["terms"]["fact_rm"] for _, r in rows] == pytest.approx(alone, abs=1e-3) and len(rows) == 6


def test_ppo_missing_eos_penalty_is_in_the_reward(tiny_vlm_path, examples, reward_dir, tmp_path):
    mean = {}
    for penalty in (0.0, 5.0):
        terms = f"fact_rm=1, missing_eos={-penalty}"
        ppo(ppo_config(tiny_vlm_path, reward_dir, tmp_path / str(penalty), max_steps=1, reward_terms=terms), examples)
        row = read_jsonl(tmp_path / str(penalty) / "metrics.jsonl")[1]
        mean[penalty] = row["objective/scores"], 1 - row["val/num_eos_tokens"] / 6
    assert mean[0.0][0] - mean[5.0][0] == pytest.approx(5 * mean[0.0][1], abs=1e-4) and mean[0.0][1] > 0


def test_ppo_resumes_exactly_after_kill(tiny_vlm_path, examples, reward_dir, tmp_path):
    from mmrlhf.config.loader import save_config

    uninterrupted = ppo_config(tiny_vlm_path, reward_dir, tmp_path / "uninterrupted", max_steps=4)
    ppo(uninterrupted, examples)
    killed = dataclasses.replace(uninterrupted, output_dir=str(tmp_path / "killed"))
    save_config(killed, tmp_path / "killed.yaml")
    process = subprocess.run(
        [sys.executable, "-c", KILLED_SCRIPT, tmp_path / "killed.yaml", str(torch.get_num_threads())],
        cwd=Path(__file__).parents[1],  # where `tests` is found
        env=os.environ,
        capture_output=True,
    )
    assert process.returncode == -9, process.stderr.decode()[-2000:]
    ppo(killed, examples)
    names = ("loss/policy_avg", "loss/value_avg", "objective/scores", "objective/kl")
    expected, resumed = (
        [{name: row.get(name) for name in names} for row in read_jsonl(tmp_path / run / "metrics.jsonl")]
        for run in ("uninterrupted", "killed")
    )
    assert expected == resumed and len(expected) == 5
    expected, resumed = (
        load_file(tmp_path / run / "policy" / "adapter_model.safetensors") for run in ("uninterrupted", "killed")
    )
    assert all(torch.equal(expected[k], resumed[k]) for k in expected)


def test_ppo_warnings_after_a_kill_cover_the_same_steps(tiny_vlm_path, examples, tmp_path, monkeypatch):
    """Warnings at a logging step are about all steps since the last, those before the kill too."""
    warned = []
    monkeypatch.setattr(monitor, "hacking_warnings", lambda means: warned.append(means) or {"any": f"{len(warned[-1])} metrics"})

    def config(name: str) -> PPOConfig:
        settings = {"reward_terms": "length=1", "logging_steps": 3, "max_steps": 4, "save_steps": 2}
        return ppo_config(tiny_vlm_path, None, tmp_path / name, **settings)

    ppo(config("uninterrupted"), examples)
    uninterrupted = list(warned)
    with stopped_after(step=2):
        ppo(config("killed"), examples)
    warned.clear()
    ppo(config("killed"), examples)
    assert warned == uninterrupted and len(warned) == 2
    assert (tmp_path / "killed/warnings.jsonl").read_text() == (tmp_path / "uninterrupted/warnings.jsonl").read_text()


def test_ppo_refuses_run_with_other_settings(tiny_vlm_path, examples, reward_dir, tmp_path):
    ppo(ppo_config(tiny_vlm_path, reward_dir, tmp_path, max_steps=1), examples)
    with pytest.raises(InputError, match="kl_coef"):
        ppo(ppo_config(tiny_vlm_path, reward_dir, tmp_path, max_steps=1, kl_coef=0.9), examples)


def test_ppo_refuses_response_length_that_leaves_no_room_for_prompt(tiny_vlm_path, examples, reward_dir, tmp_path):
    with pytest.raises(InputError, match="response_length 10 leaves no room"):
        ppo(ppo_config(tiny_vlm_path, reward_dir, tmp_path / "new", max_length=10), examples)
    with pytest.raises(InputError, match="min_new_tokens 11 is more than response_length 10"):
        ppo(ppo_config(tiny_vlm_path, reward_dir, tmp_path / "new", min_new_tokens=11), examples)
    assert not (tmp_path / "new").exists()
