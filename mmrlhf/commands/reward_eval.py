"""`mmrlhf reward-eval`: measure how reliable a reward is, on held-out preferences and on a policy's
own answers.

Of a reward model, or an ensemble, it reports on preferences accuracy (overall, by source, by
hallucination flag, by length), how well scores separate ties, calibration, the effect of injected
false claims, and accuracy with facts that are missing, about another image, or contradicted, and
with another row's picture or none. On the answers of a policy it says which false claims training
would reduce (`policy_outlook`), by reward models, claim rewards, or both. Intervals are 95%
(Wilson, or the bootstrap over prompts).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mmrlhf.claims import load_lexicon
from mmrlhf.commands.claim_truth import check_truth_settings, read_verdicts
from mmrlhf.commands.policy_outlook import answer_groups, contradicted_shares, fact_conditions, measure_outlook
from mmrlhf.commands.policy_reward import Ensemble, check_reward, load_ensemble, reads_facts, weighted_score
from mmrlhf.commands.reward_eval_page import print_table, write_page
from mmrlhf.commands.reward_metrics import (
    accuracy,
    accuracy_difference,
    compute_metrics,
    perturbed_facts,
    perturbed_pictures,
    probe_metrics,
)
from mmrlhf.config import RewardEvalConfig
from mmrlhf.datasets import read_answers, read_preferences
from mmrlhf.facts import read_facts
from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.jsonl import json_line, read_jsonl
from mmrlhf.files.resumable import ResumableWriter
from mmrlhf.files.tables import split_of
from mmrlhf.files.writing import writes
from mmrlhf.records import Fact, InputError, Preference
from mmrlhf.report.progress import progress
from mmrlhf.rewards.detection import GroupVerdicts, Removal, ScoreGroups, removals, with_removals
from mmrlhf.rewards.probes import Probe, make_probes
from mmrlhf.rewards.reward_model import AnswerGroup
from mmrlhf.training.row_checks import refuse_unusable
from mmrlhf.training.run import Run


@dataclass(frozen=True)
class _Pairs:
    """Preferences to score, with injected claims, other facts and other pictures."""

    rows: list[Preference]
    probes: list[Probe]
    facts_of_rows: Mapping[str, Sequence[Sequence[Fact]]]
    """Other facts of each row, by condition; none if they do not matter."""
    indices_with_pictures: list[int]
    pictures: Mapping[str, Sequence[Preference]]
    """The rows at these indices with another picture or none, by condition."""

    def groups_by_condition(self) -> dict[str, list[AnswerGroup]]:
        """Return the groups to score, with a name for each condition."""
        groups = {
            "as given": [_answer_group(row, row.facts) for row in self.rows],
            "probes": [_probe_group(probe) for probe in self.probes],
        }
        for name, facts_of_rows in self.facts_of_rows.items():
            groups[name] = [_answer_group(row, facts) for row, facts in zip(self.rows, facts_of_rows, strict=True)]
        for name, rows in self.pictures.items():
            groups[f"picture {name}"] = [_answer_group(row, row.facts) for row in rows]
        return groups


@dataclass(frozen=True)
class _Policy:
    """A policy's answers to score: groups, the truth about them, and the answers without claims."""

    groups: list[AnswerGroup]
    verdicts: GroupVerdicts | None
    found: list[Removal]
    weights: dict[str, float]
    depends_on_facts: bool


@writes("output_dir")
def reward_eval(config: RewardEvalConfig, preferences: Sequence[Preference] | None = None) -> dict[str, Any]:
    """Score the rows, compute metrics, and plot them; return the content of result.json.

    If the command is killed, the same command resumes. Raises InputError if all rows are ties.
    """
    check_truth_settings(config)
    weights = check_reward(config)
    run = Run(config.output_dir, config)
    if preferences is None:
        preferences = _read_preferences(config)
    run.claim_rows(preferences)
    if run.finished is not None:
        run.print_finished(run.path / "result.json")
        return run.finished
    rows = list(preferences[: config.limit] if config.limit else preferences)
    if rows and all(comparison.is_tie for row in rows for comparison in row.comparisons):
        raise InputError(f"{config.dataset_name} has ties only: accuracy needs rows with a better and a worse answer")
    answers = _read_answers(config)
    ensemble = load_ensemble(config)
    for model in ensemble.models if ensemble else ():
        refuse_unusable(model, rows, lambda row: _answer_group(row, row.facts), str(config.dataset_name), run.console)
    policy = _read_policy(config, answers, ensemble, weights, run.console)
    ensemble = ensemble and ensemble.without_limit()  # rows fit, and a probe or other facts may be a little longer

    # 1. Score the rows, with one file per condition of the facts
    pairs = _make_pairs(rows, ensemble, config) if ensemble and rows else None
    groups_by_condition = pairs.groups_by_condition() if pairs else {}
    policy_groups = {} if policy is None else fact_conditions(with_removals(policy.groups, policy.found), policy.depends_on_facts)
    run.begin()
    inputs = {**run.inputs, "limit": config.limit, "probes": config.probes, "seed": config.seed}
    num_groups = sum(map(len, (*groups_by_condition.values(), *policy_groups.values())))
    with progress(num_groups, "reward-eval") as progress_bar:

        def score_all(groups_by_name: Mapping[str, Sequence[AnswerGroup]], score: ScoreGroups) -> dict[str, list[list[float]]]:
            return {
                name: _score_groups(score, groups, _scores_path(run.path, name), inputs, config.batch_size, progress_bar.advance)
                for name, groups in groups_by_name.items()
            }

        scores = score_all(groups_by_condition, ensemble.score) if ensemble else {}
        score_terms = weighted_score(ensemble, weights, load_lexicon(config.lexicon_file), config.unknown_claim_costs)
        policy_scores = score_all({f"policy {name}": groups for name, groups in policy_groups.items()}, score_terms)

    # 2. Compute the metrics
    result: dict[str, Any] = {"reward_model": config.reward_model_path, "data": config.dataset_name, "n": len(rows)}
    if pairs and ensemble:
        result |= {"facts": ensemble.facts, "probes": config.probes, **_pair_figures(pairs, scores, ensemble.temperature)}
    if policy is not None:
        result["policy"] = _policy_figures(config, policy, {n.removeprefix("policy "): s for n, s in policy_scores.items()})
    write_atomic(run.path / "result.json", json.dumps(result, indent=1))
    write_page(result, rows, run.path / "report.html")
    run.finish(result)
    print_table(result)
    return result


def _answer_group(preference: Preference, facts: Sequence[Fact]) -> AnswerGroup:
    return AnswerGroup(preference.images, preference.prompt, preference.answers, tuple(facts), preference.id)


def _probe_group(probe: Probe) -> AnswerGroup:
    return replace(probe.group, answers=(probe.group.answers[0], probe.false_answer, probe.true_answer))


def _read_preferences(config: RewardEvalConfig) -> Sequence[Preference]:
    """Return the preferences of the dataset, none without one."""
    if config.dataset_name is None:
        return []
    facts = read_facts(config.facts_file) if config.facts_file else None
    return read_preferences(config.dataset_name, config.dataset_train_split, config.image_folder, facts)


def _make_pairs(rows: list[Preference], ensemble: Ensemble, config: RewardEvalConfig) -> _Pairs:
    uses_facts = ensemble.facts == "given" and any(row.facts for row in rows)
    facts_of_rows = perturbed_facts(rows, config.seed) if uses_facts else {}
    return _Pairs(rows, make_probes(rows[: config.probes], seed=config.seed), facts_of_rows, *perturbed_pictures(rows))


def _pair_figures(pairs: _Pairs, scores: Mapping[str, list[list[float]]], temperature: float) -> dict[str, Any]:
    """Return the metrics of scores by condition."""
    figures = compute_metrics(pairs.rows, scores["as given"], temperature)
    figures["probe"] = probe_metrics(pairs.probes, scores["probes"])
    if pairs.facts_of_rows:
        figures["facts_curve"] = {name: accuracy(pairs.rows, scores[name]) for name in ("as given", *pairs.facts_of_rows)}
    if pairs.pictures:
        own_rows = [pairs.rows[index] for index in pairs.indices_with_pictures]
        own_scores = [scores["as given"][index] for index in pairs.indices_with_pictures]
        figures["picture_curve"] = {"own": accuracy(own_rows, own_scores)} | {
            name: accuracy(rows, scores[f"picture {name}"]) for name, rows in pairs.pictures.items()
        }
        figures["picture_gain"] = accuracy_difference(own_rows, own_scores, scores["picture another row's"])
    return figures


def _read_answers(config: RewardEvalConfig) -> list[AnswerGroup]:
    """Return the policy's answers by prompt, none if the command was given none."""
    if config.answers is None:
        return []
    facts = read_facts(config.facts_file) if config.facts_file else None
    rows = read_answers(config.answers, split_of(config.answers, config.dataset_train_split), config.image_folder, facts)
    return answer_groups(rows, config.answers)


def _read_policy(
    config: RewardEvalConfig,
    groups: list[AnswerGroup],
    ensemble: Ensemble | None,
    weights: dict[str, float],
    console: Console,
) -> _Policy | None:
    """Return the answers with their truth and the answers without claims; None without answers.

    Raises InputError if a reward model cannot read the answers, or the truth cannot be used.
    """
    if not groups:
        return None
    for model in ensemble.models if ensemble else ():
        refuse_unusable(model, groups, lambda group: group, str(config.answers), console)
    lexicon, depends_on_facts = load_lexicon(config.lexicon_file), reads_facts(ensemble, weights)
    verdicts = read_verdicts(config, groups, lexicon, depends_on_facts)
    found = [] if verdicts is None else removals(groups, verdicts, lexicon)
    return _Policy(groups, verdicts, found, weights, depends_on_facts)


def _policy_figures(config: RewardEvalConfig, policy: _Policy, scores: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    names = ("answers", "reward_terms", "unknown_claim_costs", "truth")
    figures: dict[str, Any] = {name: getattr(config, name) for name in names}
    figures |= measure_outlook(policy.groups, policy.found, policy.verdicts, scores, config.seed)
    if any(name != "fact_rm" for name in policy.weights):
        figures["contradicted"] = contradicted_shares(policy.groups, load_lexicon(config.lexicon_file))
    return figures


def _scores_path(run_path: Path, name: str) -> Path:
    return run_path / "scores" / f"{re.sub(r'[^a-z0-9]+', '_', name)}.jsonl"


def _score_groups(
    score: ScoreGroups,
    groups: Sequence[AnswerGroup],
    path: Path,
    inputs: Mapping[str, Any],
    batch_size: int,
    advance: Callable[[int], None],
) -> list[list[float]]:
    """Write the groups' scores to a file, which a killed command continues, and return them."""
    writer = ResumableWriter(path, inputs)
    if writer.is_finished:
        advance(len(groups))
        return [row["scores"] for row in read_jsonl(path)]
    advance(writer.num_done)
    for start in range(writer.num_done, len(groups), batch_size):
        batch = groups[start : start + batch_size]
        scored_groups = zip(batch, score(batch), strict=True)
        writer.append([json_line({"id": group.id, "scores": scores}) for group, scores in scored_groups])
        advance(len(batch))
    writer.finish()
    return [row["scores"] for row in read_jsonl(path)]
