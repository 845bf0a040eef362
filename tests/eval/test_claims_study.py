"""The study of claims in the reward: its variants, and what its comparisons say."""

import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest

from mmrlhf.config import PPOConfig
from mmrlhf.ppo import ppo
from mmrlhf.records import InputError
from mmrlhf.rewards.reward_terms import parse_reward_spec
from mmrlhf.training.ppo.settings import check_settings

STUDIES = Path(__file__).parents[2] / "eval" / "studies"


@pytest.fixture
def claims(load_study):
    return load_study("claims")


def make_run(cell, seed, f1):
    """Return a run whose F1 is .8 at the start and `f1` at KL 1."""
    curves = importlib.import_module("facts_map_curves")
    metrics = {name: np.array([0.8, f1]) for name in ("held_out_claim_f1", "selection_claim_f1")}
    return curves.Run(seed, cell, 0.03, np.array([0, 8]), np.array([0.0, 1.0]), metrics, {}, True)


def test_variants_are_valid_settings_and_decisive_pairs_differ_in_one(claims):
    for variant in claims.VARIANTS.values():
        config = PPOConfig(model_name_or_path="m", dataset_name="d", output_dir="o", num_generations=4, **variant.settings)
        check_settings(config)
        assert parse_reward_spec(variant.reward_terms)["missing_eos"] < 0
    for name, pairs in claims.EFFECTS.items():
        for a, b in (tuple(claims.VARIANTS[v] for v in pair) for pair in pairs):
            assert a.reward_terms == b.reward_terms
            added = {k: v for k, v in a.settings.items() if k not in b.settings}
            assert added == (claims.BOUNDED if name.startswith("bounds") else claims.GROUP_NORMALIZED)
    with pytest.raises(InputError, match="--only sum does not exist: use rewards, aggregation, running"):
        claims.select_variants(["sum"])
    assert claims.select_variants(["claims-group", "all-sum"]) == ["all-sum", "claims-group"]


def test_a_policy_is_trained_with_its_variant_and_the_budget_given(claims, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(claims, "ppo", lambda *args, **named: calls.append(inspect.signature(ppo).bind(*args, **named)))
    monkeypatch.setattr(claims, "write_truth", lambda directory, data_config: [])
    monkeypatch.setattr(claims, "load_run", lambda directory, seed, data_config: make_run("claims-group-bounds", seed, 0.9))
    experiment = importlib.import_module("common").Experiment(tmp_path, 7, data_overrides={"rl_scenes": 20})
    experiment.__dict__["sft_path"] = "sft"
    budget = ["--steps", "5", "--prompts-per-step", "3", "--eval-scenes", "2", "--eval-steps", "4"]
    result = claims.train_variant(experiment, "claims-group-bounds", claims.parse_arguments(["--out", str(tmp_path), *budget]))
    assert [row["held_out_claim_f1"] for row in result["evaluations"]] == [0.8, 0.9]
    config, prompts, evaluation = (calls[0].arguments[name] for name in ("config", "examples", "eval_function"))
    assert (config.max_steps, config.per_device_train_batch_size, config.eval_steps, config.seed) == (5, 3, 4, 7)
    assert (config.multi_objective_aggregation, config.length_bounds) == ("normalize_then_sum", "auto")
    assert config.reward_model_path is None and config.output_dir == str(tmp_path / "demo-7/ppo_claims-group-bounds_kl0.3")
    assert len(prompts) == 18 and all(row.facts for row in prompts) and callable(evaluation)  # nine of ten describe


def test_effect_is_the_mean_over_pairs_within_seeds_that_have_all(claims):
    """Seed 5 lacks a run and does not count. In seed 4: (.90 - .80 + .84 - .80) / 2 = .07."""
    values = {"all-group": 0.9, "all-sum": 0.8, "claims-group": 0.84, "claims-sum": 0.8}
    runs = {name: {4: make_run(name, 4, f1), 5: make_run(name, 5, 0.1)} for name, f1 in values.items()}
    del runs["claims-sum"][5]
    effect = claims.effect(runs, claims.EFFECTS["group - sum"], "claim_f1")
    assert effect["same steps"] == effect["largest common KL"] == pytest.approx([0.07])
    assert effect["best checkpoints"] == pytest.approx([0.07])
    assert claims.effect(runs, claims.EFFECTS["bounds - none"], "claim_f1") == {}
    assert "+7.0 | nan | - | open |" in claims.effects_table(runs)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([0.02, 0.021, 0.019], "better by a difference that matters"),
        ([-0.02, -0.021, -0.019], "worse by a difference that matters"),
        ([0.002, 0.0021, 0.0019], "better by less than matters"),
        ([0.001, -0.001, 0.0], "no difference that matters"),
        ([0.03, -0.03, 0.02], "open"),
        ([0.5], "open"),
    ],
)
def test_verdict(claims, values, says):
    assert claims.verdict(values) == says
