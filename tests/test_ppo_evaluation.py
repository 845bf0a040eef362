"""PPO that evaluates along the way: benchmarks, the best policy, and both after a kill."""

import dataclasses
import json
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file

from mmrlhf.engine.rollout import generate_batches
from mmrlhf.evaluation import policy_eval
from mmrlhf.evaluation.policy_eval import PolicyEvaluation
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.models.finite import NotFiniteError
from mmrlhf.models.policy import load_policy
from mmrlhf.ppo import ppo
from mmrlhf.records import InputError
from tests.helpers.runs import stopped_after
from tests.helpers.stages import ppo_config

VALUES = [0.5, 0.7, 0.9, 0.9, 0.6]
"""Values of a metric at steps 0 to 4: step 2 is the first best one."""


def scripted(values=VALUES):
    """Return an eval_function that returns these values in turn."""
    remaining = list(values)
    return lambda vlm: {"my_f1": remaining.pop(0)}


def config_of(model, folder, **settings):
    defaults = {"reward_terms": "length=1", "max_steps": 4, "save_steps": 3, "eval_steps": 1}
    return ppo_config(model, None, folder, **{**defaults, **settings})


def adapter_of(folder):
    return load_file(folder / "adapter_model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_ppo_evaluates_benchmarks_without_a_change_to_training(tiny_vlm_path, examples, tmp_path):
    """Evaluated before the first step, at every second one and after the last."""
    ppo(config_of(tiny_vlm_path, tmp_path / "plain", max_steps=3, eval_steps=None), examples)
    config = config_of(tiny_vlm_path, tmp_path / "run", max_steps=3, eval_benchmarks="scenes", eval_limit=3, eval_steps=2)
    policy = ppo(config, examples)
    metrics, rows = read_jsonl(tmp_path / "run/metrics.jsonl"), read_jsonl(tmp_path / "run/eval.jsonl")
    assert [row["step"] for row in metrics if "eval/scenes/claim_f1" in row] == [0, 2, 3] == [row["step"] for row in rows]
    for row, logged in zip(rows, (metrics[0], *metrics[2:]), strict=True):
        leaf = row["metrics"]["claim_f1"]
        assert leaf["low"] <= leaf["value"] == logged["eval/scenes/claim_f1"] <= leaf["high"]
        assert (row["benchmark"], row["n"], row["headline"]) == ("scenes", 5, "chair_s")  # three scenes, two yes/no questions
    assert same(adapter_of(policy), adapter_of(tmp_path / "plain/policy")) and not (tmp_path / "run/best").exists()
    assert (tmp_path / "run/ledger.jsonl").read_text() == (tmp_path / "plain/ledger.jsonl").read_text()


def test_ppo_keeps_the_best_policy(tiny_vlm_path, examples, tmp_path, capsys):
    """Without load_best_model_at_end it is beside the last one, with it in its place."""
    beside = config_of(tiny_vlm_path, tmp_path / "beside", metric_for_best_model="my_f1", lr_scheduler_type="constant")
    ppo(dataclasses.replace(beside, output_dir=str(tmp_path / "until_2"), max_steps=2), examples, scripted())
    ppo(beside, examples, scripted())
    assert "my_f1 was best after step 2 of 4, 0.9" in capsys.readouterr().out
    ppo(dataclasses.replace(beside, output_dir=str(tmp_path / "in"), load_best_model_at_end=True), examples, scripted())
    best = {"metric": "my_f1", "value": 0.9, "step": 2, "greater_is_better": True}
    for name, step in (("beside", 4), ("in", 2)):
        finished = json.loads((tmp_path / name / "finished.json").read_text())
        assert finished["best"] == best and finished["policy_step"] == step and finished["steps"] == 4
    after_step_2 = adapter_of(tmp_path / "until_2/policy")
    assert same(adapter_of(tmp_path / "beside/best"), after_step_2) and same(adapter_of(tmp_path / "in/policy"), after_step_2)
    assert not same(adapter_of(tmp_path / "beside/policy"), after_step_2) and not (tmp_path / "in/best").exists()
    assert json.loads((tmp_path / "beside/best/best.json").read_text()) == best
    with load_policy(tiny_vlm_path, str(tmp_path / "beside/best")):  # as any adapter that ppo writes
        pass
    assert str(tmp_path / "beside/best") in (tmp_path / "beside/best/README.md").read_text()


def test_ppo_returns_the_untrained_policy_if_no_step_was_better(tiny_vlm_path, examples, tmp_path):
    config = config_of(
        tiny_vlm_path, tmp_path, max_steps=2, metric_for_best_model="my_f1", greater_is_better=False, load_best_model_at_end=True
    )
    policy = ppo(config, examples, scripted((0.1, 0.1, 0.2)))
    assert all((tensor == 0).all() for name, tensor in adapter_of(policy).items() if "lora_B" in name)
    assert json.loads((tmp_path / "finished.json").read_text())["policy_step"] == 0


@pytest.mark.parametrize("best_step", [1, 2])
def test_ppo_resumes_with_the_same_best_policy(tiny_vlm_path, examples, tmp_path, best_step):
    """The best step is in the checkpoint, or comes after it; each step is logged once."""
    settings = {"eval_benchmarks": "scenes", "eval_limit": 2, "metric_for_best_model": "my_f1", "load_best_model_at_end": True}
    values = [0.9 if step == best_step else 0.1 for step in range(4)]
    whole, killed = (
        config_of(tiny_vlm_path, tmp_path / name, max_steps=3, save_steps=1, **settings) for name in ("whole", "killed")
    )
    ppo(whole, examples, scripted(values))
    with stopped_after(step=1):
        ppo(killed, examples, scripted(values))
    assert json.loads((tmp_path / "killed/best/best.json").read_text())["step"] == (1 if best_step == 1 else 0)
    ppo(killed, examples, scripted(values[2:]))
    assert same(*(adapter_of(tmp_path / name / "policy") for name in ("whole", "killed")))
    for name in ("finished.json", "eval.jsonl", "ledger.jsonl"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "killed" / name).read_text()
    assert [row["step"] for row in read_jsonl(tmp_path / "killed/metrics.jsonl")] == [0, 1, 2, 3]


@pytest.mark.parametrize("failing_call", [0, 1])
def test_an_evaluation_that_is_not_finite_does_not_end_the_run(tiny_vlm_path, examples, tmp_path, monkeypatch, failing_call):
    """The one before the first step does, since nothing is lost: the model cannot be used."""
    calls = []

    def generate(*args, **settings):
        calls.append(args)
        if len(calls) == failing_call + 1:
            raise NotFiniteError("m gives logits that are not finite")
        return generate_batches(*args, **settings)

    monkeypatch.setattr(policy_eval, "generate_batches", generate)
    config = config_of(tiny_vlm_path, tmp_path / "run", max_steps=2, eval_benchmarks="scenes", eval_limit=2)
    if failing_call == 0:
        with pytest.raises(NotFiniteError, match="logits that are not finite"):
            ppo(config, examples)
        return
    ppo(config, examples)
    assert [row["step"] for row in read_jsonl(tmp_path / "run/eval.jsonl")] == [0, 2]
    (warning,) = [row for row in read_jsonl(tmp_path / "run/warnings.jsonl") if row["name"] == "undefined_evaluation"]
    assert warning["step"] == 1 and "m gives logits" in warning["warning"]


@pytest.mark.parametrize(
    ("reward_terms", "settings", "is_refused"),
    [
        ("hallucination=-1, coverage=1", {}, True),
        ("fact_rm=1, coverage@clip+facts=1", {}, True),
        ("hallucination=-1", {"allow_monitoring_reward_verifiers": True}, False),
        ("hallucination=-1", {"metric_for_best_model": None}, False),  # it is shown, and does not choose
        ("fact_rm=1, hallucination@clip=-1", {}, False),
    ],
)
def test_a_rewarded_verifier_does_not_choose_the_best_policy(tmp_path, reward_terms, settings, is_refused):
    row = {"id": "1", "messages": [{"role": "user", "content": "What is there?"}, {"role": "assistant", "content": "A cat."}]}
    facts = [{"kind": "object", "text": "cat"}]
    (tmp_path / "held_out.jsonl").write_text(json.dumps({**row, "facts": facts}))
    benchmark = {"eval_benchmarks": "facts", "eval_data": str(tmp_path / "held_out.jsonl")}
    chooses = {"metric_for_best_model": "facts/chair_s", **benchmark, **settings}
    config = config_of("model", tmp_path / "run", reward_terms=reward_terms, **chooses)
    refusal = pytest.raises(InputError, match=r"facts/chair_s is measured by the verifier facts, which the reward (hallu|cover)")
    with refusal if is_refused else nullcontext():
        PolicyEvaluation(config)


def test_ppo_refuses_other_evaluations_and_metrics_that_are_not_given(tiny_vlm_path, examples, tmp_path):
    config = config_of(tiny_vlm_path, tmp_path / "run", max_steps=1, eval_benchmarks="scenes", eval_limit=2)
    ppo(config, examples)
    with pytest.raises(InputError, match="holds a run with other settings, eval_limit"):
        ppo(dataclasses.replace(config, eval_limit=3), examples)
    missing = config_of(tiny_vlm_path, tmp_path / "missing", metric_for_best_model="their_f1")
    with pytest.raises(InputError, match="metric_for_best_model their_f1 is not what the evaluation gives: my_f1"):
        ppo(missing, examples, scripted())
    assert not (tmp_path / "missing").exists()
    (tmp_path / "full/best").mkdir(parents=True)
    with pytest.raises(InputError, match="holds something else"):
        ppo(config_of(tiny_vlm_path, tmp_path / "full", metric_for_best_model="my_f1"), examples, scripted())
