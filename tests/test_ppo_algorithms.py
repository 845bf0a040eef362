"""Every algorithm on the tiny model: what is trained on, and the KL controller after a kill."""

import math

import pytest
from safetensors.torch import load_file

from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.ppo import ppo
from mmrlhf.training.ppo import advantages, policy_losses
from tests.helpers.runs import stopped_after
from tests.helpers.stages import ppo_config

GRPO = {"advantage_estimator": "grpo"}
METHODS = {
    "rloo": {"advantage_estimator": "rloo"},
    "rloo, normalised": {"advantage_estimator": "rloo", "normalize_advantages": True},
    "dr_grpo": {**GRPO, "scale_rewards": "none", "loss_type": "dr_grpo"},
    "dapo": {
        **GRPO,
        "epsilon_high": 0.28,
        "delta": 3.0,
        "kl_coef": 0.0,
        "mask_truncated_completions": True,
        "response_length": 27,
    },
    "gspo": {
        **GRPO,
        "scale_rewards": "batch",
        "importance_sampling_level": "sequence",
        "loss_type": "grpo",
        "kl_estimator": "k2",
    },
    "reinforce_plus_plus": {
        "advantage_estimator": "reinforce_plus_plus",
        "num_generations": 1,
        "kl_estimator": "k3",
        "whiten_rewards": True,
    },
    "ppo, any scale": {"cliprange_value_unit": "returns", "loss_type": "grpo"},
}


def uneven(samples):
    """Reward by position: 40 and 60 for the answers to a prompt, but 50 for both of the first."""
    return [50.0 if i < 2 else 40.0 + 20 * (i % 2) for i in range(len(samples))]


def arguments_of(monkeypatch, module, name):
    """Record the positional arguments of each call of a function, which is called as before."""
    calls, real = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **kw: calls.append(args) or real(*args, **kw))
    return calls


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains(tiny_vlm_path, examples, tmp_path, monkeypatch, name):
    trained_on = arguments_of(monkeypatch, policy_losses, "ppo_policy")
    whitened, estimated = (arguments_of(monkeypatch, advantages, function) for function in ("whiten", "estimate"))
    samples = []
    settings = {"reward_terms": "uneven=1", "num_ppo_epochs": 1, "num_mini_batches": 1, "max_steps": 1, **METHODS[name]}
    functions = {"uneven": lambda answers: samples.extend(answers) or uneven(answers)}
    target = ppo(ppo_config(tiny_vlm_path, None, tmp_path, **settings), examples, extra_reward_functions=functions)
    row = read_jsonl(tmp_path / "metrics.jsonl")[1]
    assert len(trained_on) == 1 and all(math.isfinite(value) for value in row.values())
    assert max(p.abs().max() for k, p in load_file(target / "adapter_model.safetensors").items() if "lora_B" in k) > 0
    assert ("critic/vf_explained_var" in row) == ("loss/value_avg" in row) == name.startswith("ppo")
    assert ("loss/kl_avg" in row) == name.startswith(("dr", "dapo", "gspo"))
    assert ("clip_ratio/delta_mean" in row) == (name == "dapo")
    assert row["objective/kl_coef"] == (0.0 if name == "dapo" else 0.05)
    _, _, trained_advantages, mask, aggregate = trained_on[0]
    first = trained_advantages[:, 0]  # of answers
    if name in ("dr_grpo", "dapo", "gspo"):  # the KL is in the loss, so equal rewards are equal
        assert row["critic/advantages/zero_share"] == pytest.approx(1 / 3) and first.eq(0).sum() == 2
    learnt = [sample.num_tokens * (sample.finished or name != "dapo") for sample in samples]
    assert mask.sum(1).tolist() == learnt and float(aggregate.num_tokens) == sum(learnt) > 0
    if name == "dapo":  # answers that are cut off count in advantages, and not in the loss
        assert 0 in learnt and first[mask[:, 0] == 0].ne(0).any()
    if name == "reinforce_plus_plus":
        (_, rewards, is_token), (_, shaped, *_) = whitened[0], estimated[0]
        before, after = rewards[is_token > 0], shaped[is_token > 0]
        assert before.std(correction=0) > 5 and after.std(correction=0).item() == pytest.approx(1, rel=1e-4)
        assert after.mean().item() == pytest.approx(before.mean().item(), rel=1e-4)  # it is kept
    if name == "rloo":  # 60 - 40; in the first step, the KL is 0
        assert first.sort().values.tolist() == pytest.approx([-20, -20, 0, 0, 20, 20], abs=1e-2)
    if name == "rloo, normalised":
        assert float((first**2).mean()) == pytest.approx(1, rel=1e-4)
    if name == "dr_grpo":
        assert first.sort().values.tolist() == [-10, -10, 0, 0, 10, 10]
    if name == "ppo, any scale":
        assert row["critic/returns/mean"] > 40


def test_a_policy_learns_nothing_from_answers_that_are_all_cut_off(tiny_vlm_path, examples, tmp_path):
    """The critic does: its loss is over all answers."""
    settings = {"reward_terms": "uneven=1", "max_steps": 1, "response_length": 2, "mask_truncated_completions": True}
    target = ppo(ppo_config(tiny_vlm_path, None, tmp_path, **settings), examples, extra_reward_functions={"uneven": uneven})
    row = read_jsonl(tmp_path / "metrics.jsonl")[1]
    assert row["completions/clipped_ratio"] == 1 and row["loss/policy_avg"] == 0 < row["loss/value_avg"]
    assert all(not p.any() for k, p in load_file(target / "adapter_model.safetensors").items() if "lora_B" in k)


def test_a_large_reward_with_a_small_value_clip_is_noted(tiny_vlm_path, examples, tmp_path, capsys):
    settings = {"reward_terms": "uneven=1", "max_steps": 1}
    ppo(ppo_config(tiny_vlm_path, None, tmp_path, **settings), examples, extra_reward_functions={"uneven": uneven})
    assert "cliprange_value lets values move by 0.2 in a step" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("estimator", [{"advantage_estimator": "reinforce_plus_plus"}, {"use_critic": False, "lam": 1.0}])
def test_span_rewards_without_a_critic_are_summed_per_answer(tiny_vlm_path, examples, tmp_path, monkeypatch, estimator):
    estimated, gae = [], advantages.gae
    monkeypatch.setattr(advantages, "gae", lambda *args: estimated.append(gae(*args)) or estimated[-1])
    settings = {**estimator, "reward_terms": "word=1", "max_steps": 1, "kl_coef": 0.0}

    def word(samples):
        return [[(0, 1, 1.0)] if s.answer else [] for s in samples]

    ppo(ppo_config(tiny_vlm_path, None, tmp_path, **settings), examples, extra_reward_functions={"word": word})
    ((to_go, _),) = estimated
    assert to_go.max() == 1 and all(len(set(row[row != 0].tolist())) <= 1 for row in to_go)


def test_adaptive_weight_of_the_kl_moves_and_survives_a_kill(tiny_vlm_path, examples, tmp_path):
    """A run that is killed ends with the weights, adapters and metrics of one that is not."""
    settings = {"kl_controller": "adaptive", "target_kl": 1e-4, "reward_terms": "length=1", "max_steps": 4, "save_steps": 3}
    whole = ppo(ppo_config(tiny_vlm_path, None, tmp_path / "whole", **settings), examples)
    weights = [row["objective/kl_coef"] for row in read_jsonl(tmp_path / "whole/metrics.jsonl")[1:]]
    assert weights[:2] == [0.05, pytest.approx(0.05 * math.exp(-1.05))]  # the first KL is 0: error -0.5
    assert len(set(weights)) == 4
    killed = ppo_config(tiny_vlm_path, None, tmp_path / "killed", **settings)
    with stopped_after(step=3):
        ppo(killed, examples)
    resumed = ppo(killed, examples)
    assert [row["objective/kl_coef"] for row in read_jsonl(tmp_path / "killed/metrics.jsonl")[1:]] == weights
    assert (whole / "adapter_model.safetensors").read_bytes() == (resumed / "adapter_model.safetensors").read_bytes()
