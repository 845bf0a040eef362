"""The measurements of `algorithms.py`: answers to scenes that no method was trained on, and KL."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from algorithms_training import TEMPERATURES, Policy, World, policy_of
from facts_map_judges import build_judge

from mmrlhf import scenes
from mmrlhf.demo import data
from mmrlhf.demo.measure import score_scenes
from mmrlhf.engine.rollout import generate_batches, prompts_from_examples, sample_completions
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.engine.scoring import sequence_logps
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.loading import load as load_vlm
from mmrlhf.models.policy import load_policy
from mmrlhf.records import Example
from mmrlhf.rewards.checkpoint import load_reward_model
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel

SPLITS: tuple[scenes.Split, ...] = ("held_out", "ood_1", "ood_2", "ood_3")
METRICS = {
    "chair_s": "chair_s",
    "coverage": "coverage",
    "claim_f1": "claim_f1",
    "u": "utility",
    "habit": "cooccurrence_errors",
    "sight": "perception_errors",
    "ead": "ead",
    "chair_i": "chair_i",
    "words": "mean_length",
}
"""Name in a cell -> name in the benchmark."""
DIVERSITY = ("ead_within", "ead", "distinct_2_within", "distinct_2")
"""Of the answers to a prompt, and of first answers across prompts."""
NUM_DIVERSE_ANSWERS = 4
BATCH_SIZE = 100
Answers = dict[str, list[str]]
"""row id -> answers"""


@lru_cache(maxsize=8)
def description_rows(split: scenes.Split, num_scenes: int) -> tuple[Example, ...]:
    """Return the benchmark's requests to describe a scene, without its yes/no questions."""
    return tuple(row for row in data.benchmark_rows(split, num_scenes) if row.meta["kind"] == "describe")


def evaluation_rows(world: World, split: scenes.Split) -> tuple[Example, ...]:
    sizes = world.sizes
    return description_rows(split, sizes.held_out_scenes if split == "held_out" else sizes.shift_scenes)


def batches(rows: Sequence[Example], size: int = BATCH_SIZE) -> Iterator[Sequence[Example]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def metrics_of(rows: Sequence[Example], answers: Answers, seed: int) -> dict[str, float]:
    """Return `METRICS` of answers to rows of one split."""
    (values,) = score_scenes(rows, answers, seed).values()
    return {name: float(values[key]) for name, key in METRICS.items()}


# ---- a method ------------------------------------------------------------------------------------


def selection_utility(world: World, method: str, labels: int, value: float) -> dict[str, Any]:
    """Train a method with a value of its setting; return u on the selection split."""
    policy, rows = policy_of(world, method, labels, value), description_rows("selection", world.sizes.selection_scenes)
    return {"u": metrics_of(rows, answer(policy, rows, 0.0, world.seed), world.seed)["u"]}


def measure_method(world: World, method: str, labels: int, value: float | None) -> dict[str, Any]:
    """Return the metrics of a method by split; of best-of-n also with the facts of the scenes."""
    policy = policy_of(world, method, labels, value)
    result: dict[str, Any] = {}
    for split in SPLITS:
        rows = evaluation_rows(world, split)
        if method == "best_of_n":
            by_ranking = best_of_n(world, labels, rows)
            for ranking, answers in by_ranking.items():
                metrics = metrics_of(rows, answers, world.seed) | {"kl": best_of_n_kl(world.sizes.best_of_n)}
                result.setdefault(ranking, {})[split] = metrics
            continue
        temperature = TEMPERATURES.get(method, 0.0)
        kl = kl_to_sft(policy, world.experiment.sft_path, rows[: world.sizes.kl_scenes], temperature or 1.0, world.seed)
        metrics = metrics_of(rows, answer(policy, rows, temperature, world.seed), world.seed)
        result.setdefault("metrics", {})[split] = metrics | {"kl": kl}
    return result


def answer(policy: Policy, rows: Sequence[Example], temperature: float, seed: int, num_answers: int = 1) -> Answers:
    params = SamplingParams(data.RESPONSE_LENGTH, temperature, seed=seed)
    with load_policy(policy.model_path, policy.adapter_path) as vlm:
        return {e.id: t for e, t in generate_batches(vlm, rows, params, batch_size=BATCH_SIZE, num_generations=num_answers)}


def kl_to_sft(policy: Policy, sft_path: str, rows: Sequence[Example], temperature: float, seed: int) -> float:
    """Return the KL of a policy to the SFT model, in nats per answer, from an answer to each row.

    The policy samples at `temperature`; the SFT model is taken at temperature 1.
    """
    adapters = Adapters(load_vlm(policy.model_path))
    if policy.adapter_path is not None:
        adapters.load("policy", Path(policy.adapter_path), trainable=False)
    role = Role(adapters, None if policy.adapter_path is None else "policy")
    reference = Role(adapters if policy.model_path == sft_path else Adapters(load_vlm(sft_path)), None)
    params, log_ratios = SamplingParams(data.RESPONSE_LENGTH, temperature, seed=seed), []
    for batch in batches(rows):
        with role.active():
            completions = sample_completions(role.vlm, prompts_from_examples(role.vlm, batch), 1, params)
        given = replace(completions, prompts=prompts_from_examples(reference.vlm, batch))
        policy_logps_N = (completions.logps_NT * completions.mask_NT).sum(1)
        log_ratios += (policy_logps_N - sequence_logps(reference, given)).tolist()
    return float(np.mean(log_ratios))


# ---- best-of-n -----------------------------------------------------------------------------------


def best_of_n_kl(n: int) -> float:
    """Return log n - (n - 1) / n, which the KL of best-of-n cannot exceed (Beirami et al. 2024)."""
    return math.log(n) - (n - 1) / n


def best_of_n(world: World, labels: int, rows: Sequence[Example]) -> dict[str, Answers]:
    """Return the best of the same sampled answers, by the judge without facts and with facts.

    Only the second ranking, `with_facts`, knows the annotator's facts about the measured scenes.
    """
    judge = load_reward_model(build_judge(world.experiment, labels, "annotator"))
    sampled = answer(Policy(world.experiment.sft_path), rows, 1.0, world.seed, world.sizes.best_of_n)
    result: dict[str, Answers] = {"metrics": {}, "with_facts": {}}
    for batch in batches(rows, 25):
        for ranking, chosen in result.items():
            groups = [_group(world, judge, row, sampled[row.id], has_facts=ranking == "with_facts") for row in batch]
            for row, scores in zip(batch, judge.score(groups), strict=True):
                chosen[row.id] = [sampled[row.id][int(np.argmax(scores))]]
    return result


def _group(world: World, judge: RewardModel, row: Example, answers: Sequence[str], *, has_facts: bool) -> AnswerGroup:
    scene = scenes.generate_scene(row.meta["split"], row.meta["index"], 0)
    facts = data.evaluation_facts(world.experiment.data_config, scene, row.meta["index"]) if has_facts else ()
    escaped = tuple(map(judge.role.vlm.escape_control_tokens, answers))
    return AnswerGroup(row.images, row.prompt, escaped, facts, row.id)


# ---- diversity -----------------------------------------------------------------------------------


def measure_diversity(world: World, method: str, labels: int, value: float | None) -> dict[str, Any]:
    """Return the diversity of four answers to each of the first held-out scenes, at temperature 1.

    An answer of best-of-n is the best of n samples of its own.
    """
    rows = description_rows("held_out", world.sizes.held_out_scenes)[: world.sizes.diversity_scenes]
    policy = policy_of(world, method, labels, value)
    if method == "best_of_n":
        answers = _several_best(world, labels, rows)
    else:
        answers = answer(policy, rows, 1.0, world.seed, NUM_DIVERSE_ANSWERS)
    (values,) = score_scenes(rows, answers, world.seed).values()
    return {name: float(values[name]) for name in DIVERSITY}


def _several_best(world: World, labels: int, rows: Sequence[Example]) -> Answers:
    n, judge = world.sizes.best_of_n, load_reward_model(build_judge(world.experiment, labels, "annotator"))
    sampled = answer(Policy(world.experiment.sft_path), rows, 1.0, world.seed, n * NUM_DIVERSE_ANSWERS)
    best: Answers = {}
    for batch in batches(rows, 25):
        groups = [_group(world, judge, row, sampled[row.id], has_facts=False) for row in batch]
        for row, scores in zip(batch, judge.score(groups), strict=True):
            best[row.id] = [
                sampled[row.id][start + int(np.argmax(scores[start : start + n]))] for start in range(0, len(scores), n)
            ]
    return best


def tuned_value(utilities: Mapping[float, float]) -> float:
    """Return the value with the highest u on the selection split; the smallest of equals."""
    return max(sorted(utilities), key=lambda value: utilities[value])
