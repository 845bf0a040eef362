"""The rewards of `facts_map.py`: facts of each arm, reward models, the oracle; what each is worth.

Both are measured on the SFT model's own samples, with truth from the scene graph: the first slopes
of false claims, and J, the share of false claims whose removal raises the reward, minus the same
for true claims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from common import Experiment

from mmrlhf import scenes
from mmrlhf.claims import load_lexicon
from mmrlhf.commands.reward_metrics import accuracy
from mmrlhf.config import RewardConfig
from mmrlhf.demo import data
from mmrlhf.demo.pipeline import stage_config
from mmrlhf.engine.rollout import generate_batches
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.jsonl import json_line, read_jsonl
from mmrlhf.models.loading import load as load_vlm
from mmrlhf.records import Fact, InputError, Preference
from mmrlhf.reward_model import train_reward_model
from mmrlhf.rewards.checkpoint import load_reward_model
from mmrlhf.rewards.claim_rewards import ClaimScorer
from mmrlhf.rewards.detection import GroupVerdicts, ScoreGroups, detection_rates, removals, score_rises, with_removals
from mmrlhf.rewards.first_slopes import first_slopes
from mmrlhf.rewards.ledger import score_samples
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel, make_fact_rm
from mmrlhf.rewards.reward_terms import WeightedReward, resolve_rewards
from mmrlhf.rewards.types import RewardFunction, Sample
from mmrlhf.training.reward_model.measured_rows import to_answer_group
from mmrlhf.verifiers.cascade import facts_verifier

FactsArm = Literal["none", "annotator", "all", "empty", "swapped"]
FACT_QUALITIES: dict[FactsArm, tuple[float, float]] = {"annotator": (0.8, 0.05), "all": (1.0, 0.0), "swapped": (0.8, 0.05)}
"""Share of true facts listed, and share of the list that is wrong."""
EMPTY_LIST = (Fact("scope", "incomplete", "annotator"), Fact("object", "nothing", "annotator"))
"""Facts of the arm `empty`: a list that names nothing, in words that facts and answers use. A scope
by itself is rendered as no facts at all, which is the arm `none`."""
REWARD_MODEL_TERMS = "fact_rm=1"
CLAIM_TERMS = "hallucination=-1, coverage=0.2"
LEXICON_FILE = str(Path(scenes.__file__).parent / "lexicon.txt")
FEW_LABELS = 1000
"""Up to this many labels, reward models train for two epochs instead of one."""
NUM_SAMPLED_PROMPTS = 100
"""Prompts whose answers by the SFT model J is measured on."""


@dataclass(frozen=True)
class Cell:
    """A reward. `labels` is None without a reward model; `facts` is what the reward reads.

    `ranked_by`: facts by whose claim rewards the pairs are ranked, instead of an annotator.
    """

    reward_terms: str
    facts: FactsArm
    labels: int | None = None
    ranked_by: FactsArm | None = None


def scene_index(row_id: str) -> int:
    """Return the number of the scene of a row, whose id begins with SPLIT-NUMBER."""
    return int(row_id.split("-")[1])


def arm_facts(arm: FactsArm, split: scenes.Split, row_id: str, experiment: Experiment) -> tuple[Fact, ...]:
    """Return the facts of a row (SPLIT-INDEX...) in an arm."""
    if arm not in FACT_QUALITIES:
        return EMPTY_LIST if arm == "empty" else ()
    index = scene_index(row_id) + (1 if arm == "swapped" else 0)
    scene = data.training_scene(split, index, experiment.data_config)
    recall, error_rate = FACT_QUALITIES[arm]
    return scenes.annotator_facts(
        scene, np.random.default_rng([experiment.seed, 67, index]), recall=recall, error_rate=error_rate
    )


def with_facts(rows: Sequence[Preference], arm: FactsArm, experiment: Experiment) -> list[Preference]:
    return [replace(row, facts=arm_facts(arm, "pairs", row.id, experiment)) for row in rows]


def rank_by_claims(rows: Sequence[Preference], arm: FactsArm, experiment: Experiment) -> list[Preference]:
    """Return pairs ranked by claims checked against an arm's facts, without ties."""
    weighted_rewards = resolve_rewards(CLAIM_TERMS, claim_rewards())
    groups = [(row, arm_facts(arm, "pairs", row.id, experiment)) for row in rows]
    samples = [Sample(row.id, row.images, row.prompt, answer, facts) for row, facts in groups for answer in row.answers]
    scores = [b.total for b in score_samples(weighted_rewards, samples, experiment.directory / "failed_term.json")]
    ranked = []
    for row, first, second in zip(rows, scores[::2], scores[1::2], strict=True):
        if first != second:
            ranked.append(replace(row, answers=row.answers if first > second else row.answers[::-1], ranks=(1, 2), ratings=()))
    return ranked


def claim_rewards() -> dict[str, RewardFunction]:
    """Return the reward functions of CLAIM_TERMS, which check claims against a row's facts."""
    lexicon = load_lexicon(LEXICON_FILE)
    return ClaimScorer(lexicon, {"facts": facts_verifier(lexicon)}).reward_functions(CLAIM_TERMS)


def build_judge(experiment: Experiment, labels: int, arm: FactsArm, ranked_by: FactsArm | None = None) -> str:
    """Train the reward model of a cell on the first `labels` pairs, and return its directory.

    Without labels it is the SFT model's own yes/no review, scaled on held-out pairs, with an
    adapter of zeros: the critic, a copy of it, has the same rank in all cells. With
    `ranked_by`, claims rank the pairs.

    Raises InputError if there are fewer pairs.
    """
    arm = "annotator" if arm == "empty" else arm
    directory = experiment.directory / f"reward_{labels}_{arm}{f'_ranked_{ranked_by}' if ranked_by else ''}"
    if (directory / "finished.json").exists():
        return str(directory)
    train, held_out = experiment.pairs
    if len(train) < labels:
        raise InputError(f"seed {experiment.seed} has {len(train)} training pairs, not {labels}: raise --pair-scenes")
    length = {"num_train_epochs": 2.0 if labels <= FEW_LABELS else 1.0} if labels else {"max_steps": 0}
    config = stage_config(
        RewardConfig,
        experiment.seed,
        directory,
        model_name_or_path=experiment.sft_path,
        facts="none" if arm == "none" else "given",
        **length,
    )
    chosen = train[: max(labels, 1)]
    rows = with_facts(rank_by_claims(chosen, ranked_by, experiment) if ranked_by else chosen, arm, experiment)
    train_reward_model(config, rows, with_facts(held_out, arm, experiment))
    return str(directory)


def make_oracle(experiment: Experiment) -> RewardFunction:
    """Return the reward of true utility, with mean 0 and deviation 1 on held-out pairs' answers."""
    penalty = experiment.data_config.false_claim_penalty

    def true_utility(split: scenes.Split, row_id: str, answer: str) -> float:
        scene = data.training_scene(split, scene_index(row_id), experiment.data_config)
        return scenes.utility(scene, answer, penalty)

    reference = np.array([true_utility("pairs", row.id, answer) for row in experiment.pairs[1] for answer in row.answers])

    def oracle(samples: Sequence[Sample]) -> list[float]:
        return [(true_utility("rl", s.id, s.answer) - reference.mean()) / reference.std() for s in samples]

    return oracle


def load_judge(experiment: Experiment, cell: Cell) -> RewardModel | None:
    """Return the reward model of a cell, which is trained if need be; None if it has none."""
    if cell.labels is None:
        return None
    return load_reward_model(build_judge(experiment, cell.labels, cell.facts, cell.ranked_by))


def cell_rewards(experiment: Experiment, cell: Cell, judge: RewardModel | None) -> list[WeightedReward]:
    """Return the weighted reward functions of a cell, whose reward model is `judge`."""
    functions: dict[str, RewardFunction] = {} if judge is None else {"fact_rm": make_fact_rm([judge])}
    if CLAIM_TERMS in cell.reward_terms:
        functions |= claim_rewards()
    if not functions:
        functions["oracle"] = make_oracle(experiment)
    return resolve_rewards(cell.reward_terms, functions)


# ---- slopes and J --------------------------------------------------------------------------------


def measure_judge(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    """Return accuracy on held-out pairs as labelled, `slopes` and `detection` of a reward.

    The latter two are by kind of claim, on the SFT model's own samples.
    """
    result: dict[str, Any] = {}
    judge = load_judge(experiment, cell)
    if judge is not None:
        held_out = with_facts(experiment.pairs[1], cell.facts, experiment)
        result["accuracy"] = accuracy(held_out, judge.score([to_answer_group(p) for p in held_out]))["value"]
    weighted_rewards = cell_rewards(experiment, cell, judge)

    def score(groups: Sequence[AnswerGroup]) -> list[list[float]]:
        samples = [Sample(g.id, g.images, g.prompt, answer, g.facts) for g in groups for answer in g.answers]
        breakdowns = iter(score_samples(weighted_rewards, samples, experiment.directory / "failed_term.json"))
        return [[next(breakdowns).total for _ in group.answers] for group in groups]

    groups = [replace(g, facts=arm_facts(cell.facts, "rl", g.id, experiment)) for g in sft_samples(experiment)]
    truth = [
        [scenes.verify_description(data.training_scene("rl", scene_index(g.id), experiment.data_config), a) for a in g.answers]
        for g in groups
    ]
    return result | measure_reward(groups, truth, score)


def measure_reward(groups: Sequence[AnswerGroup], truth: GroupVerdicts, score: ScoreGroups) -> dict[str, Any]:
    """Return `slopes` and `detection` of a reward on sampled answers, by kind of claim."""
    found = removals(groups, truth)
    scores = score(with_removals(groups, found))
    return {
        "slopes": first_slopes(groups, scores, truth),
        "detection": detection_rates(found, score_rises(groups, found, scores)),
    }


def sft_samples(experiment: Experiment) -> list[AnswerGroup]:
    """Return four answers of the SFT model to each of the first prompts, at temperature 1.

    They are written to the seed's directory, or read if they are there.
    """
    path = experiment.directory / "sft_samples.jsonl"
    config = replace(experiment.data_config, rl_scenes=min(NUM_SAMPLED_PROMPTS, experiment.data_config.rl_scenes))
    prompts = data.build_rl_prompts(config)
    if not path.exists():
        params = SamplingParams(data.RESPONSE_LENGTH, 1.0, seed=experiment.seed)
        batches = generate_batches(load_vlm(experiment.sft_path), prompts, params, batch_size=50, num_generations=4)
        write_atomic(path, "".join(json_line({"id": e.id, "answers": answers}) for e, answers in batches))
    answers_by_id = {row["id"]: row["answers"] for row in read_jsonl(path)}
    return [AnswerGroup(e.images, e.prompt, tuple(answers_by_id[e.id]), (), e.id) for e in prompts]
