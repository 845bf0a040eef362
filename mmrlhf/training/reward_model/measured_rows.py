"""The rows on which a reward model is normalised and measured, and these measurements."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mmrlhf.claims import extract_claims, load_lexicon
from mmrlhf.config import RewardConfig
from mmrlhf.facts import facts_about, read_facts
from mmrlhf.files.inputs import has_same_content
from mmrlhf.metrics.calibration import fit_temperature
from mmrlhf.metrics.youden import ALL_KINDS, Outcomes, RowsOfClaims, j_change, youden_j_with_intervals
from mmrlhf.records import InputError, Preference
from mmrlhf.rewards.detection import SCORE_TOLERANCE, Removal, removals, score_rises, with_removals
from mmrlhf.rewards.probes import INJECTED_CLAIMS, NOTHING_TO_INJECT, Probe, make_probes, probe_outcomes
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel
from mmrlhf.verifiers import verify_against_facts

NUM_PROBE_ROWS = 100
"""Number of rows whose claims are removed, and into which false claims are injected."""
NUM_MEASURED_ROWS = 256
"""Number of training rows for normalisation and measurements if none are held out."""


@dataclass(frozen=True)
class MeasuredRows:
    """The held-out rows, or else some training rows.

    `probes` are false and true claims, injected into the first of them. `removals` are their
    answers without single claims, if truth_file says which claims are true: J is measured on these,
    otherwise on the probes.
    """

    rows: Sequence[Preference]
    is_held_out: bool
    probes: Sequence[Probe]
    removals: Sequence[Removal] = ()

    @property
    def groups(self) -> list[AnswerGroup]:
        return [to_answer_group(row) for row in self.rows]

    @property
    def probed_groups(self) -> list[AnswerGroup]:
        """The groups whose claims are removed."""
        return [to_answer_group(row) for row in _probed_rows(self.rows)]

    @property
    def clusters(self) -> list[int]:
        """For each untied comparison, the first row with the same images, or its own row."""
        first_rows: dict[Hashable, int] = {}
        rows = [(first_rows.setdefault(row.images or index, index), row) for index, row in enumerate(self.rows)]
        return [first_row for first_row, row in rows for comparison in row.comparisons if not comparison.is_tie]

    def check(self, config: RewardConfig) -> None:
        """Raise InputError if the metric that chooses the best weights cannot be measured."""
        name = config.eval_dataset_name or "the held-out rows"
        if config.truth_file and not self.removals:
            raise InputError(
                f"truth_file {config.truth_file} decides no claim in the answers of {name}: give facts about their images, by the "
                "names that the rows have"
            )
        if not config.load_best_model_at_end:
            return
        is_known = {removal.is_false for removal in self.removals} == {True, False} if self.removals else bool(self.probes)
        if config.metric_for_best_model == "j" and not is_known:
            raise InputError(f"metric_for_best_model j needs true and false claims in {name}: {NOTHING_TO_INJECT}")
        if config.metric_for_best_model == "accuracy" and all(c.is_tie for row in self.rows for c in row.comparisons):
            raise InputError(
                f"{name} has ties only, which say nothing about accuracy: give other rows or metric_for_best_model j"
            )

    def outcomes(self, model: RewardModel) -> Outcomes:
        """Return which claims lower the score, by kind."""
        # An added claim must not end a run, so the length is not limited.
        model = model.without_limit()
        if not self.removals:
            return probe_outcomes(model, self.probes)
        groups = self.probed_groups
        lowers = score_rises(groups, self.removals, model.score(with_removals(groups, self.removals))) > SCORE_TOLERANCE
        by_kind: dict[str, tuple[list[bool], list[bool]]] = {}
        for removal, is_lower in zip(self.removals, lowers, strict=True):
            by_kind.setdefault(removal.claim.kind, ([], []))[not removal.is_false].append(bool(is_lower))
        return {kind: (np.array(false, dtype=bool), np.array(true, dtype=bool)) for kind, (false, true) in by_kind.items()}

    @property
    def rows_of_claims(self) -> RowsOfClaims:
        """The row of each claim in `outcomes`. Rows with the same images count as one."""
        groups = self.probed_groups
        claims: list[tuple[str, AnswerGroup, tuple[bool, ...]]] = [
            (removal.claim.kind, groups[removal.group_index], (removal.is_false,)) for removal in self.removals
        ] or [(probe.kind, probe.group, (True, False)) for probe in self.probes]
        by_kind: dict[str, tuple[list[Hashable], list[Hashable]]] = {}
        for kind, group, truths in claims:
            for is_false in truths:
                by_kind.setdefault(kind, ([], []))[not is_false].append(group.images or group.id)
        return by_kind

    def calibrate(self, model: RewardModel, advance: Callable[[int], None]) -> np.ndarray:
        """Set the model's scale, temperature and, on held-out rows, accuracy; return their margins.

        `advance` is called as in `RewardModel.score`.
        """
        scores = model.score(self.groups, advance)
        raw_scores_N = torch.tensor([score for group_scores in scores for score in group_scores])
        model.mean, model.std = raw_scores_N.mean().item(), max(raw_scores_N.std().item(), 1e-6)
        margins = score_margins(self.rows, scores) / model.std
        model.temperature = fit_temperature(margins)
        if self.is_held_out:
            model.accuracy = float((margins > 0).mean()) if len(margins) else None
        return margins

    def probe(self, model: RewardModel, outcomes_before: Outcomes) -> None:
        """Set the model's probe rates and J, and J before training from its outcomes then."""
        probed = probe_outcomes(model.without_limit(), self.probes)
        model.probes = {kind: float(false_F.mean()) for kind, (false_F, _) in probed.items()}
        outcomes = self.outcomes(model) if self.removals else probed
        rows = self.rows_of_claims
        if change := j_change(outcomes_before, outcomes, rows):
            measured_on = "claims of answers" if self.removals else INJECTED_CLAIMS
            before, after = (youden_j_with_intervals(each, rows) for each in (outcomes_before, outcomes))
            model.j = {"measured_on": measured_on, "before": before, "after": after, "change": change}


def rows_to_measure(
    config: RewardConfig, preferences: Sequence[Preference], held_out: Sequence[Preference] | None
) -> MeasuredRows:
    """Return the rows to measure on: all held-out ones, or the first training rows.

    Raises InputError if truth_file is not a file of facts, or has the facts that the model reads.
    """
    rows = held_out or preferences[: min(len(preferences), NUM_MEASURED_ROWS)]
    probed_rows = _probed_rows(rows)
    probes = make_probes(probed_rows, seed=config.seed)
    if config.truth_file is None:
        return MeasuredRows(rows, bool(held_out), probes)
    if config.facts == "given" and has_same_content(config.truth_file, config.facts_file):
        raise InputError(
            f"truth_file {config.truth_file} has the facts that the reward model reads, with which it agrees, true or not: give "
            "facts kept apart, or leave it out"
        )
    facts, lexicon = read_facts(config.truth_file), load_lexicon(config.lexicon_file)
    groups = [to_answer_group(row) for row in probed_rows]
    true_facts = [facts_about(facts, group.id, group.images) for group in groups]
    verdicts = [
        [verify_against_facts(extract_claims(answer, lexicon), known, lexicon) for answer in group.answers]
        for group, known in zip(groups, true_facts, strict=True)
    ]
    return MeasuredRows(rows, bool(held_out), probes, removals(groups, verdicts))


def _probed_rows(rows: Sequence[Preference]) -> list[Preference]:
    """Return the first rows, without those whose answers show images: claims are text."""
    return [row for row in (rows[i] for i in range(min(len(rows), NUM_PROBE_ROWS))) if not row.answer_images]


def to_answer_group(preference: Preference) -> AnswerGroup:
    """Return a row as the group of answers that a reward model scores."""
    return AnswerGroup(
        preference.images, preference.prompt, preference.answers, preference.facts, preference.id, preference.answer_images
    )


def score_margins(preferences: Sequence[Preference], scores: Sequence[Sequence[float]]) -> np.ndarray:
    """Return better score minus worse score of every comparison that is not a tie."""
    return np.array(
        [s[c.better] - s[c.worse] for p, s in zip(preferences, scores, strict=True) for c in p.comparisons if not c.is_tie]
    )


def j_sentence(j: Mapping[str, Any]) -> str:
    """Return J before and after training, of all claims and by kind, as a sentence."""
    before, after, change = j["before"], j["after"], j["change"]
    kinds = ", ".join(f"{kind} {before[kind]['j']:.2f} and {after[kind]['j']:.2f}" for kind in after if kind != ALL_KINDS)
    kinds = kinds or "not enough claims"
    is_refused = change["high"] < 0 and j["measured_on"] != INJECTED_CLAIMS
    verdict = " (ppo refuses a reward model that training made worse)" if is_refused else ""
    return (
        f"J (share of false claims that lower the score, minus that of true claims) on {j['measured_on']}: "
        f"{before[ALL_KINDS]['j']:.2f} before training, {after[ALL_KINDS]['j']:.2f} after, change {change['value']:+.2f} "
        f"(95% interval {change['low']:+.2f} to {change['high']:+.2f}){verdict}; by kind, before and after: {kinds}"
    )
