"""Build the reward of a run from its settings, and refuse contradictory settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from accelerate import Accelerator

from mmrlhf.config import RewardedConfig
from mmrlhf.datasets import have_facts
from mmrlhf.engine.rollout import check_answer_lengths
from mmrlhf.models.adapters import Adapters
from mmrlhf.records import Example, InputError
from mmrlhf.rewards.claim_rewards import ClaimScorer, build_claim_scorer, check_unknown_costs, claim_reward_verifiers
from mmrlhf.rewards.fact_rm import load_reward_models, reward_model_paths
from mmrlhf.rewards.length_bounds import parse_length_bounds
from mmrlhf.rewards.reward_clip import parse_reward_clip
from mmrlhf.rewards.reward_model import RewardModel, make_fact_rm
from mmrlhf.rewards.reward_terms import WeightedReward, parse_reward_spec, resolve_rewards
from mmrlhf.rewards.types import RewardFunction, Sample

PENALTIES = ("hallucination", "missing_eos", "repetition")
"""Reward functions that count something bad, so that their weights should be negative."""


@dataclass(frozen=True)
class Rewards:
    """A run's weighted reward functions, and the models and verifiers behind them.

    `claim_scorer` is None if the run counts no claims (`counts_claims`).
    """

    reward_models: list[RewardModel]
    weighted_rewards: list[WeightedReward]
    claim_scorer: ClaimScorer | None


def build_rewards(
    config: RewardedConfig,
    adapters: Adapters,
    accelerator: Accelerator,
    extra_reward_functions: Mapping[str, RewardFunction] | None,
    base: Adapters | None = None,
) -> Rewards:
    """Load the functions in `reward_terms`. `base` verifies claims, if it is not the policy's base.

    Raises InputError if a reward function does not exist or a reward model cannot be used.
    """
    reward_models = load_reward_models(config, adapters, accelerator)
    claim_scorer = build_claim_scorer(config, base or adapters)
    reward_functions = {
        "fact_rm": make_fact_rm(reward_models, config.uncertainty_penalty),
        **(claim_scorer.reward_functions(config.reward_terms) if claim_scorer else {}),
        **(extra_reward_functions or {}),
    }
    return Rewards(reward_models, resolve_rewards(config.reward_terms, reward_functions), claim_scorer)


def check_rewards(config: RewardedConfig, extra_names: Collection[str] = ()) -> None:
    """Raise InputError, before anything is loaded, for contradictory reward settings.

    `extra_names` are the functions passed from Python.
    """
    check_unknown_costs(config)
    needs_loading = ("fact_rm", *claim_reward_verifiers(config.reward_terms), *extra_names)
    resolve_rewards(config.reward_terms, dict.fromkeys(needs_loading, _not_loaded))
    if config.compares_terms_in_groups and config.num_generations == 1:
        raise InputError(
            "multi_objective_aggregation normalize_then_sum compares the answers to a prompt, and num_generations is 1: "
            "sample more, or set term_statistics running"
        )
    if config.multi_objective_aggregation == "sum_then_normalize" and config.term_statistics == "running":
        raise InputError(
            "term_statistics running needs multi_objective_aggregation normalize_then_sum: set both, or leave term_statistics out"
        )
    parse_length_bounds(config.length_bounds, config.response_length)
    parse_reward_clip(config.reward_clip_range)
    check_answer_lengths(config.min_new_tokens, config.response_length, config.max_length)
    if "fact_rm" in parse_reward_spec(config.reward_terms) and not reward_model_paths(config):
        raise InputError(
            "reward_terms names fact_rm: give --reward_model_path, or leave fact_rm out (--reward_terms correctness=1 needs no "
            "reward model)"
        )


def check_reward_rows(config: RewardedConfig, examples: Sequence[Example]) -> None:
    """Raise InputError if a reward reads a field that no row has: it would be constant."""
    weights = parse_reward_spec(config.reward_terms)
    if "correctness" in weights and not any(row.answer is not None or "caption_type" in row.meta for row in examples):
        raise InputError(
            f"{config.dataset_name}: reward_terms names correctness, and none of the {len(examples)} rows has an answer "
            "to compare with: add `solution` (or `answer`) to the rows, or leave correctness out"
        )
    if set(weights) == {"correctness"} and (
        without := [row.id for row in examples if row.answer is None and "caption_type" not in row.meta]
    ):
        raise InputError(
            f"{config.dataset_name}: reward_terms names correctness alone, and {len(without)} of {len(examples)} rows have no "
            f"answer to compare with, row {without[0]} first: add `solution` (or `answer`) to them, leave them out, or name "
            "another reward, too"
        )
    by_facts = [name for name, verifier in claim_reward_verifiers(config.reward_terms).items() if verifier == "facts"]
    if by_facts and not have_facts(examples):
        raise InputError(
            f"{config.dataset_name}: reward_terms names {by_facts[0]}, which compares claims with facts, and none of the "
            f"{len(examples)} rows has any: give --facts_file, or another verifier, such as {by_facts[0].partition('@')[0]}@vlm"
        )


def penalty_note(reward_terms: str) -> str:
    """Return a note if a function of PENALTIES has a positive weight, or ""."""
    weights = parse_reward_spec(reward_terms)
    rewarded = {name: weight for name, weight in weights.items() if name.partition("@")[0] in PENALTIES and weight > 0}
    if not rewarded:
        return ""
    given, negated = (", ".join(f"{name}={sign * w:g}" for name, w in rewarded.items()) for sign in (1, -1))
    return f"note: reward_terms has {given}: a positive weight rewards such mistakes; to penalise them, use {negated}"


def _not_loaded(samples: Sequence[Sample]) -> list[float]:
    raise AssertionError("a reward function was called before it was loaded")
