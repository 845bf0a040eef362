"""Refuse settings and rows of feedback that make no sense, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmrlhf.config import FeedbackConfig
from mmrlhf.datasets import have_facts
from mmrlhf.engine.rollout import check_answer_lengths
from mmrlhf.files.inputs import has_same_content
from mmrlhf.records import Example, InputError
from mmrlhf.rewards.claim_rewards import parse_unknown_costs
from mmrlhf.verifiers.build import VERIFIERS, validate_verifier

JUDGE = "judge"
LOOKING = ("clip", "vlm", JUDGE)
"""Verifiers that look at the images."""
RECIPES = {"none": (), "dpo": ("dpo_config",), "ppo": ("reward_config", "ppo_config")}
"""Recipes that each algorithm reads."""


def verifier_names(config: FeedbackConfig) -> list[str]:
    """Return the single verifiers of a run. Raises InputError if one is unknown or repeated."""
    return validate_verifier(config.verifier, "verifier", (*VERIFIERS, JUDGE)).split("+")


def check_settings(config: FeedbackConfig) -> None:
    """Raise InputError for settings that contradict each other, or need others that are missing."""
    if config.num_generations == 1:
        raise InputError("num_generations 1 leaves nothing to compare: sample at least 2 answers to a prompt, such as 8")
    check_answer_lengths(config.min_new_tokens, config.response_length, config.max_length)
    parse_unknown_costs(config.unknown_claim_costs)
    _check_verifier(config)
    _check_algorithm(config)
    if config.human_dataset_name is None:
        if config.human_image_folder is not None or config.human_weight != 1:
            name = "human_weight" if config.human_weight != 1 else "human_image_folder"
            raise InputError(f"{name} is about pairs labelled by people: give human_dataset_name, or leave it out")
    elif config.algorithm == "none":
        raise InputError("human_dataset_name is learnt beside the pairs, and algorithm none learns nothing: give dpo or ppo")


def _check_verifier(config: FeedbackConfig) -> None:
    names = verifier_names(config)
    if JUDGE in names and config.judge is None:
        raise InputError("verifier judge needs a server: give --judge http://HOST:PORT/v1")
    if config.judge is not None and "@" in config.judge.partition("://")[2].partition("/")[0]:
        raise InputError("the judge's address holds a password, which the run's files would keep: set OPENAI_API_KEY instead")
    if JUDGE not in names and (config.judge or config.judge_model):
        raise InputError(f"judge is given, and verifier {config.verifier} does not ask it: add it, as {config.verifier}+judge")
    if "clip" in names and config.clip_model is None:
        raise InputError("the verifier clip needs an open_clip model: give --clip_model, or use facts, vlm or judge")
    facts_file = (config.facts_file or config.dataset_name) if "facts" in names else None
    if config.truth_file and has_same_content(config.truth_file, facts_file):
        raise InputError(
            f"truth_file {config.truth_file} has the facts that the verifier reads, and it agrees with those, true or not: "
            "give facts kept apart (more complete, or by another annotator)"
        )


def _check_algorithm(config: FeedbackConfig) -> None:
    for name in ("dpo_config", "reward_config", "ppo_config"):
        if getattr(config, name) is not None and name not in RECIPES[config.algorithm]:
            raise InputError(
                f"{name} is a recipe that algorithm {config.algorithm} does not read: leave it out, or change algorithm"
            )
    if config.algorithm == "none":
        if config.num_rounds > 1:
            raise InputError(
                f"num_rounds {config.num_rounds} with algorithm none would label answers of the same model again: "
                "give --algorithm dpo or ppo, or one round"
            )
        if config.eval_benchmarks is not None or config.metric_for_best_model is not None:
            raise InputError("eval_benchmarks and metric_for_best_model choose a trained policy: give --algorithm dpo or ppo")
    elif config.num_rounds > 1 and config.metric_for_best_model is None:
        raise InputError(
            f"num_rounds {config.num_rounds} goes on from each round's best policy, and nothing chooses it: give eval_benchmarks "
            "with held-out prompts (a selection set) and metric_for_best_model, such as scenes/utility"
        )


def check_rows(config: FeedbackConfig, examples: Sequence[Example]) -> None:
    """Raise InputError for rows without the facts or the images that verifiers need."""
    names, dataset = verifier_names(config), Path(config.dataset_name).name
    if "facts" in names and not have_facts(examples):
        raise InputError(
            f"{dataset}: verifier facts compares claims with facts, and none of the {len(examples)} rows has any: give "
            "--facts_file, or another verifier, such as vlm"
        )
    if looking := [name for name in names if name in LOOKING]:
        without = next((row for row in examples if not row.images), None)
        if without is not None:
            raise InputError(
                f"{dataset}, row {without.id}: verifier {looking[0]} looks at the image, and the row has none: drop the row, or use "
                "verifier facts"
            )
