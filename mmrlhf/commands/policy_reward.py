"""The reward that `mmrlhf reward-eval` measures: reward models, claims checked against facts, or
their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from mmrlhf.claims import Lexicon, extract_claims
from mmrlhf.config import RewardEvalConfig
from mmrlhf.config.unread import refuse_unread
from mmrlhf.records import InputError
from mmrlhf.rewards.checkpoint import load_reward_model
from mmrlhf.rewards.claim_rewards import CLAIM_REWARDS, hallucination, parse_unknown_costs, verifier_for
from mmrlhf.rewards.detection import ScoreGroups
from mmrlhf.rewards.fact_rm import reward_model_paths
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel
from mmrlhf.rewards.reward_terms import parse_reward_spec
from mmrlhf.verifiers import verify_against_facts


@dataclass(frozen=True)
class Ensemble:
    """One or several reward models, which score as `fact_rm` does: their mean, minus
    `uncertainty_penalty` times their standard deviation."""

    models: Sequence[RewardModel]
    uncertainty_penalty: float = 0.0

    @property
    def facts(self) -> str:
        """`given` if any of the models reads facts, else `none`."""
        return "given" if any(model.facts == "given" for model in self.models) else "none"

    @property
    def temperature(self) -> float:
        """The mean of the models' temperatures."""
        return float(np.mean([model.temperature for model in self.models]))

    def without_limit(self) -> Ensemble:
        """Return the ensemble for rows that were checked before: max_length refuses none."""
        return replace(self, models=[model.without_limit() for model in self.models])

    def score(self, groups: Sequence[AnswerGroup]) -> list[list[float]]:
        """Return a score for each answer of each group."""
        groups_by_model = [model.score(groups) for model in self.models]
        return [
            (np.mean(scores_MA, 0) - self.uncertainty_penalty * np.std(scores_MA, 0)).tolist()
            for scores_MA in zip(*groups_by_model, strict=True)
        ]


def load_ensemble(config: RewardEvalConfig) -> Ensemble | None:
    """Load the reward models of a configuration; those on one base share it. None without any.

    Raises InputError if one cannot be loaded.
    """
    models: list[RewardModel] = []
    for index, path in enumerate(reward_model_paths(config)):
        models.append(
            load_reward_model(
                path,
                models[0].role.adapters if models else None,
                config.max_length,
                engine=config,
                pixels=config,
                adapter_name="reward" if index == 0 else f"reward_{index}",
                base_model_name_or_path=config.base_model_name_or_path,
            )
        )
    return Ensemble(models, config.uncertainty_penalty) if models else None


def check_reward(config: RewardEvalConfig) -> dict[str, float]:
    """Return the weights of the reward of a configuration: fact_rm, and claim rewards by facts.

    Raises InputError for any other reward, and for settings that do not fit the reward.
    """
    weights = parse_reward_spec(config.reward_terms)
    for name in weights:
        if name != "fact_rm" and verifier_for(name) != "facts":
            raise InputError(
                f"reward_terms names {name}: reward-eval scores single claims by fact_rm, hallucination, coverage and "
                "verifier_score@facts; leave out the others"
            )
    if parse_unknown_costs(config.unknown_claim_costs) and not any(n.partition("@")[0] == "hallucination" for n in weights):
        raise InputError("unknown_claim_costs is for the claim reward hallucination: name it in reward_terms, or leave it out")
    models = reward_model_paths(config)
    if len(models) < 2 or ("fact_rm" not in weights and config.dataset_name is None):
        refuse_unread(config, ["uncertainty_penalty"], "is for several reward models whose scores are measured (fact_rm)")
    if models:
        if config.dataset_name is None and config.answers is None:
            raise InputError("nothing to measure the reward model on: give --dataset_name (preferences), --answers, or both")
        return weights
    if "fact_rm" in weights:
        raise InputError(
            "reward_terms names fact_rm: give --reward_model_path, or measure claim rewards alone (--reward_terms "
            '"hallucination=-1, coverage=0.2")'
        )
    if config.dataset_name is not None:
        raise InputError(
            f"dataset_name {config.dataset_name} has preferences for a reward model: give --reward_model_path, or leave it out"
        )
    if config.answers is None:
        raise InputError("claim rewards are measured on sampled answers: give --answers, which `mmrlhf generate` writes")
    return weights


def weighted_score(
    ensemble: Ensemble | None, weights: Mapping[str, float], lexicon: Lexicon, unknown_claim_costs: str | None = None
) -> ScoreGroups:
    """Return the reward as a function of groups of answers, which reads each group's facts.

    ensemble: may be None without fact_rm.
    """
    costs = parse_unknown_costs(unknown_claim_costs)

    def score(groups: Sequence[AnswerGroup]) -> list[list[float]]:
        totals = [np.zeros(len(group.answers)) for group in groups]
        for name, weight in weights.items():
            if name == "fact_rm":
                assert ensemble is not None
                for total, scores in zip(totals, ensemble.score(groups), strict=True):
                    total += weight * np.array(scores)
                continue
            claim_reward = CLAIM_REWARDS[name.partition("@")[0]].function
            if claim_reward is hallucination:
                claim_reward = partial(hallucination, unknown_costs=costs)
            for total, group in zip(totals, groups, strict=True):
                for index, answer in enumerate(group.answers):
                    verdicts = verify_against_facts(extract_claims(answer, lexicon), group.facts, lexicon)
                    total[index] += weight * sum(value for *_, value in claim_reward(verdicts))
        return [total.tolist() for total in totals]

    return score


def reads_facts(ensemble: Ensemble | None, weights: Mapping[str, float]) -> bool:
    """Return whether a reward depends on facts."""
    return any(name != "fact_rm" or (ensemble is not None and ensemble.facts == "given") for name in weights)
