"""Detection: does a reward rise when a false claim is removed from an answer, and not a true one?

For each claim of a sampled answer, the answer is scored with and without it (`remove_claim`). TPR
is the share of false claims whose removal raises the score, FPR the same share of true claims, and
J = TPR - FPR (Youden 1950). J counts how often the reward is right about a claim, not by how much.
The effect on a policy also depends on the size of the differences (`rewards.first_slopes`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmrlhf.claims import Lexicon
from mmrlhf.claims.removal import remove_claim
from mmrlhf.metrics.intervals import SufficientStats, with_intervals
from mmrlhf.metrics.youden import ALL_KINDS
from mmrlhf.records import Claim, Verdict
from mmrlhf.rewards.reward_model import AnswerGroup

ScoreGroups = Callable[[Sequence[AnswerGroup]], Sequence[Sequence[float]]]
"""Maps groups of answers to a score for each answer, as `RewardModel.score` does."""
GroupVerdicts = Sequence[Sequence[Sequence[Verdict] | None]]
"""The truth: a verdict on each claim of each group's answers; None for an unjudged answer."""
SCORE_TOLERANCE = 1e-6
"""Scores closer than this count as equal: one text in two batches need not score the same."""


@dataclass(frozen=True)
class Removal:
    """A claim, known to be true or false, and the answer without it.

    The claim is one of answer number `answer_index` of group number `group_index`.
    """

    group_index: int
    answer_index: int
    claim: Claim
    is_false: bool
    answer: str


def removals(groups: Sequence[AnswerGroup], verdicts: GroupVerdicts, lexicon: Lexicon | None = None) -> list[Removal]:
    """Return the answers without each of their claims, one claim at a time.

    Three kinds of claims are left out: hedged ones and those of unknown truth; claims that make up
    the whole answer; and true claims whose removal also removes a false one (a star that is there,
    in the wrong colour), because such a removal is neither right nor wrong.
    """
    found: list[Removal] = []
    for group_index, (group, group_verdicts) in enumerate(zip(groups, verdicts, strict=True)):
        for answer_index, (answer, answer_verdicts) in enumerate(zip(group.answers, group_verdicts, strict=True)):
            found += _answer_removals(group_index, answer_index, answer, answer_verdicts or (), lexicon)
    return found


def _answer_removals(
    group_index: int, answer_index: int, answer: str, verdicts: Sequence[Verdict], lexicon: Lexicon | None
) -> list[Removal]:
    found: list[Removal] = []
    false_claims = [v.claim for v in verdicts if v.value == "contradicted"]
    for claim, verdict in {v.claim: v for v in reversed(verdicts)}.items():
        if verdict.value == "unknown" or claim.hedged:
            continue
        is_false = verdict.value == "contradicted"
        if not is_false and any(_depends(other, claim) for other in false_claims):
            continue
        rest = remove_claim(answer, claim, lexicon)
        if rest.strip() and rest != answer:
            found.append(Removal(group_index, answer_index, claim, is_false, rest))
    return found[::-1]


def _depends(claim: Claim, other: Claim) -> bool:
    """Return whether removing an object also removes a claim."""
    if other.kind != "object" or claim == other or (claim.kind == "count" and claim.subject == "object"):
        return False
    words = f"{claim.subject} {claim.value} {claim.target}".split()
    return other.subject in (claim.subject, claim.target) or other.subject.split()[-1] in words


def with_removals(groups: Sequence[AnswerGroup], removed: Sequence[Removal]) -> list[AnswerGroup]:
    """Return the groups, extended by the answers of `removed` in their order.

    All texts about a prompt are then scored in one call.
    """
    added: list[list[str]] = [[] for _ in groups]
    for removal in removed:
        added[removal.group_index].append(removal.answer)
    return [replace(group, answers=(*group.answers, *texts)) for group, texts in zip(groups, added, strict=True)]


def score_rises(groups: Sequence[AnswerGroup], removed: Sequence[Removal], scores: Sequence[Sequence[float]]) -> np.ndarray:
    """Return by how much each removal raises the score [n], given the scores of `with_removals`."""
    next_index = [len(group.answers) for group in groups]
    rises = np.zeros(len(removed))
    for number, removal in enumerate(removed):
        group_scores = scores[removal.group_index]
        rises[number] = group_scores[next_index[removal.group_index]] - group_scores[removal.answer_index]
        next_index[removal.group_index] += 1
    return rises


def detection_rates(
    removed: Sequence[Removal],
    rises: Sequence[float] | np.ndarray,
    *,
    kind_of: Callable[[Claim], str] = lambda claim: claim.kind,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Return TPR, FPR and J by kind of claim, and over all kinds as `all`.

    Each is {"value", "low", "high"} with a 95% bootstrap interval over groups (prompts), None
    without claims. Also `num_false` and `num_true`, the numbers of claims, and `rise_false` and
    `rise_true`, the mean rise of the score for each, None without claims.
    """
    kinds = sorted({kind_of(removal.claim) for removal in removed})
    return {kind: _rates_of(removed, rises, kind_of, kind, seed) for kind in [ALL_KINDS, *kinds]}


def _rates_of(
    removed: Sequence[Removal], rises: Sequence[float] | np.ndarray, kind_of: Callable[[Claim], str], kind: str, seed: int
) -> dict[str, Any]:
    pairs = [(r, float(rise)) for r, rise in zip(removed, rises, strict=True) if kind in (ALL_KINDS, kind_of(r.claim))]
    is_false = np.array([removal.is_false for removal, _ in pairs], dtype=bool)
    rise_N = np.array([rise for _, rise in pairs])
    raised = rise_N > SCORE_TOLERANCE
    columns = np.stack([is_false & raised, is_false, ~is_false & raised, ~is_false], axis=1)

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        tpr, fpr = sums[..., 0] / sums[..., 1], sums[..., 2] / sums[..., 3]
        return {"TPR": tpr, "FPR": fpr, "J": tpr - fpr}

    stats = SufficientStats([removal.group_index for removal, _ in pairs], columns, metrics)
    intervals, _ = with_intervals(stats, seed)
    return {
        **intervals,
        "num_false": int(is_false.sum()),
        "num_true": int((~is_false).sum()),
        "rise_false": float(rise_N[is_false].mean()) if is_false.any() else None,
        "rise_true": float(rise_N[~is_false].mean()) if (~is_false).any() else None,
    }
