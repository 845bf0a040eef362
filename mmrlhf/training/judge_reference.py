"""The rows that a reward model is normalised and measured on, and what is measured there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mmrlhf.metrics.calibration import fit_temperature
from mmrlhf.metrics.youden import ALL_KINDS, Outcomes, j_change, youden_j
from mmrlhf.records import Preference
from mmrlhf.rewards.probes import Probe, make_probes, probe_outcomes
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel

NUM_PROBE_ROWS = 100
"""Number of rows that are probed with injected false claims."""
NUM_REFERENCE_ROWS = 256
"""Number of training rows to normalise and measure on, if none are held out."""


@dataclass(frozen=True)
class Reference:
    """The held-out rows, or else some training rows.

    `probes` are false and true claims, injected into the first of them.
    """

    rows: Sequence[Preference]
    probes: Sequence[Probe]
    is_held_out: bool

    @property
    def groups(self) -> list[AnswerGroup]:
        return [to_answer_group(row) for row in self.rows]

    def outcomes(self, model: RewardModel, advance: Callable[[int], None] | None = None) -> Outcomes:
        """Return which injected claims lower the score, as `probe_outcomes` does."""
        # An added claim must not end a run, so the length is not limited.
        return probe_outcomes(replace(model, max_length=1 << 30), self.probes, advance)

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

    def probe(self, model: RewardModel, outcomes_before: Outcomes, advance: Callable[[int], None]) -> None:
        """Set the model's probe rates and J, with J before training from its outcomes then."""
        outcomes = self.outcomes(model, advance)
        model.probes = {kind: float(false_F.mean()) for kind, (false_F, _) in outcomes.items()}
        if change := j_change(outcomes_before, outcomes):
            model.j = {"before": youden_j(outcomes_before), "after": youden_j(outcomes), "change": change}


def reference_rows(preferences: Sequence[Preference], held_out: Sequence[Preference] | None, seed: int) -> Reference:
    """Return the rows to measure on: all held-out ones, or the first training rows."""
    rows = held_out or preferences[: min(len(preferences), NUM_REFERENCE_ROWS)]
    return Reference(rows, make_probes(rows[:NUM_PROBE_ROWS], seed=seed), bool(held_out))


def to_answer_group(preference: Preference) -> AnswerGroup:
    """Return a row as the group of answers that a reward model scores."""
    return AnswerGroup(preference.images, preference.prompt, preference.answers, preference.facts, preference.id)


def score_margins(preferences: Sequence[Preference], scores: Sequence[Sequence[float]]) -> np.ndarray:
    """Return better score minus worse score of every comparison that is not a tie."""
    return np.array(
        [s[c.better] - s[c.worse] for p, s in zip(preferences, scores, strict=True) for c in p.comparisons if not c.is_tie]
    )


def j_sentence(j: Mapping[str, Any]) -> str:
    """Return J before and after training, of all claims and by kind, as a sentence."""
    before, after, change = j["before"], j["after"], j["change"]
    kinds = ", ".join(f"{kind} {before[kind]['j']:.2f} and {after[kind]['j']:.2f}" for kind in after if kind != ALL_KINDS)
    verdict = " (ppo refuses a judge that training made worse)" if change["high"] < 0 else ""
    return (
        f"J, false claims that lower the score minus true ones that do: {before[ALL_KINDS]['j']:.2f} before training, "
        f"{after[ALL_KINDS]['j']:.2f} after, change {change['value']:+.2f} "
        f"(95% interval {change['low']:+.2f} to {change['high']:+.2f}){verdict}; by kind, before and after: {kinds}"
    )
