"""First slopes: how a policy's number of false claims changes when it starts to follow a reward.

The policy with the highest mean of r - b KL is proportional to p exp(r / b), where p is the policy
at the start, r the reward and b the KL coefficient (Korbak et al. 2022). As 1 / b grows from 0, the
mean number n of false claims in an answer changes at the rate Cov(n, r), and KL = Var(r) / 2 b^2,
both among the answers to a prompt. So along the root of KL, on which rewards are compared (Gao et
al. 2023), n starts with the slope sqrt(2) Cov(n, r) / Std(r), which a sample of answers estimates.

It is the slope of a policy that can follow the reward exactly. A trained policy follows it only in
part, so the sign and the ratio of two slopes are more reliable than their size. A reward that does
not vary among the answers to a prompt does not change the policy: its slopes are 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmrlhf.metrics.intervals import SufficientStats, unflatten, with_intervals
from mmrlhf.metrics.youden import ALL_KINDS
from mmrlhf.records import CLAIM_KINDS, Verdict
from mmrlhf.rewards.detection import SCORE_TOLERANCE, GroupVerdicts
from mmrlhf.rewards.reward_model import AnswerGroup

Scores = Sequence[Sequence[float]]
"""A score for each answer of each group; further scores after the group's answers are ignored."""
SLOPE_KINDS = (ALL_KINDS, *CLAIM_KINDS)
TRUTHS = ("false", "true")


def first_slopes(groups: Sequence[AnswerGroup], scores: Scores, verdicts: GroupVerdicts, seed: int = 0) -> dict[str, Any]:
    """Return the first slopes of false and of true claims by kind, and over all kinds as `all`.

    Each kind has `false` and `true`, in claims per answer and root of a nat of KL, as {"value",
    "low", "high"} with a 95% bootstrap interval over prompts, None without such claims. Each also
    has the numbers of claims, `num_false` and `num_true`, and of prompts with a false one,
    `num_prompts`, or a true one, `num_prompts_true`. A claim counts once in an answer; hedged ones
    and true denials do not count. Kinds without any claims are left out, as are answers of unknown
    truth (they would count as free of false claims, and shrink the slopes), and prompts with fewer
    than two other answers. A prompt of A answers weighs A - 1.
    """
    prompts = _known_answers(groups, [scores], verdicts)
    if not prompts:
        return {}
    centred = [_centred(score_rows, counts) for score_rows, counts in prompts]
    stats = SufficientStats(
        range(len(centred)),
        np.array([_products(rows) for rows in centred]),
        lambda sums: dict(zip(_SLOPE_NAMES, np.moveaxis(_slopes(sums), -1, 0), strict=True)),
    )
    intervals = with_intervals(stats, seed)[0]
    counts_PS = np.array([counts.sum(0) for _, counts in prompts])
    num_claims = dict(zip(_SLOPE_NAMES, counts_PS.sum(0).astype(int).tolist(), strict=True))
    num_prompts = dict(zip(_SLOPE_NAMES, (counts_PS > 0).sum(0).tolist(), strict=True))
    return {
        kind: {truth: intervals[f"{truth} {kind}"] if num_claims[f"{truth} {kind}"] else None for truth in TRUTHS}
        | {f"num_{truth}": num_claims[f"{truth} {kind}"] for truth in TRUTHS}
        | {"num_prompts": num_prompts[f"false {kind}"], "num_prompts_true": num_prompts[f"true {kind}"]}
        for kind in SLOPE_KINDS
        if any(num_claims[f"{truth} {kind}"] for truth in TRUTHS)
    }


def measured_answers(verdicts: GroupVerdicts) -> list[list[int]]:
    """Return each prompt's answers for slopes: those of known truth, none if fewer than two."""
    known = [[index for index, answer in enumerate(group_verdicts) if answer is not None] for group_verdicts in verdicts]
    return [indices if len(indices) > 1 else [] for indices in known]


def compare_slopes(
    groups: Sequence[AnswerGroup], scores: Scores, base_scores: Scores, verdicts: GroupVerdicts, seed: int = 0
) -> dict[str, dict[str, dict[str, float] | None]]:
    """Return by kind the slope of false claims under one reward minus that under another, as
    `difference`, and divided by it, as `ratio`; None where that is 0.

    Both are of the same answers, so the 95% bootstrap intervals over prompts are paired. The result
    is empty without prompts that have two answers of known truth.
    """
    prompts = _known_answers(groups, [scores, base_scores], verdicts)
    if not prompts:
        return {}
    centred = [_centred(score_rows, counts) for score_rows, counts in prompts]  # two rewards, then counts
    columns = [np.concatenate([_products(np.delete(rows, 1, 0)), _products(np.delete(rows, 0, 0))]) for rows in centred]

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        own, base = np.split(sums, 2, axis=-1)
        own_slopes, base_slopes = (_slopes(part)[..., : len(SLOPE_KINDS)] for part in (own, base))  # of false claims
        values = {"difference": own_slopes - base_slopes, "ratio": own_slopes / base_slopes}
        return {f"{kind}/{name}": v[..., i] for name, v in values.items() for i, kind in enumerate(SLOPE_KINDS)}

    stats = SufficientStats(range(len(centred)), np.array(columns), metrics)
    return unflatten(with_intervals(stats, seed)[0])


_SLOPE_NAMES = [f"{truth} {kind}" for truth in TRUTHS for kind in SLOPE_KINDS]


def _count_claims(answers: Sequence[Sequence[Verdict]]) -> np.ndarray:
    """Return the numbers of claims in a prompt's A answers [A, S], in the order of _SLOPE_NAMES."""
    rows = []
    for verdicts in answers:
        distinct = {v.claim: v.value for v in verdicts if not v.claim.hedged}
        kinds: dict[str, list[str]] = {
            "false": [claim.kind for claim, value in distinct.items() if value == "contradicted"],
            "true": [claim.kind for claim, value in distinct.items() if value == "supported" and not claim.negated],
        }
        rows.append([len(kinds[t]) if kind == ALL_KINDS else kinds[t].count(kind) for t in TRUTHS for kind in SLOPE_KINDS])
    return np.array(rows, dtype=float)


def _known_answers(
    groups: Sequence[AnswerGroup], rewards: Sequence[Scores], verdicts: GroupVerdicts
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return rewards [R, A] and counts of claims [A, S] of each prompt's `measured_answers`.

    Prompts without any are left out.
    """
    prompts = []
    for index, (_, indices) in enumerate(zip(groups, measured_answers(verdicts), strict=True)):
        if indices:
            score_rows = np.array([[scores[index][i] for i in indices] for scores in rewards], dtype=float)
            prompts.append((score_rows, _count_claims([verdicts[index][i] or () for i in indices])))
    return prompts


def _centred(score_rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return a prompt's rewards and counts of claims around their means [R + S, A]."""
    rows = np.concatenate([score_rows, counts.T])
    rows -= rows.mean(1, keepdims=True)
    rewards = rows[: len(score_rows)]
    rewards[np.abs(rewards) < SCORE_TOLERANCE] = 0
    return rows


def _products(rows: np.ndarray) -> np.ndarray:
    """Return a prompt's terms of the sums from which slopes are computed [2 + S].

    These are the degrees of freedom, the square of the reward, and its products with the counts.
    """
    return np.concatenate([[rows.shape[1] - 1], rows @ rows[0]])


def _slopes(sums: np.ndarray) -> np.ndarray:
    """Return sqrt(2) Cov(n, r) / Std(r) of each count n [..., S] from sums [..., 2 + S].

    It is 0 for a reward that does not vary.
    """
    freedom, square, products = sums[..., :1], sums[..., 1:2], sums[..., 2:]
    return np.asarray(np.sqrt(2) * products / np.sqrt(np.where(square == 0, 1, freedom * square)))


# ---- the spread of the reward --------------------------------------------------------------------


def explained_variance(
    groups: Sequence[AnswerGroup], scores: Scores, verdicts: GroupVerdicts | None, seed: int = 0
) -> dict[str, Any]:
    """Return the spread of the reward within prompts, and the share of it that truth explains.

    `within_std` is the standard deviation of the scores of a prompt's answers around their mean,
    which sets how fast a policy learns (Razin et al. 2025); `between_std` that of the means.
    `explained` is R^2, with a 95% bootstrap interval over prompts, of a regression of the former on
    the numbers of true and of false claims, both around their means. Claims and answers count as in
    `first_slopes`; it is None without prompts that have two answers of known truth. Groups of one
    answer have no spread, and all are None without groups of two.
    """
    score_groups = [np.array(scores[i][: len(g.answers)], dtype=float) for i, g in enumerate(groups) if len(g.answers) > 1]
    if not score_groups:
        return {"within_std": None, "between_std": None, "explained": None}
    freedom = sum(len(score_N) - 1 for score_N in score_groups)
    return {
        "within_std": float((sum(len(score_N) * score_N.var() for score_N in score_groups) / freedom) ** 0.5),
        "between_std": float(np.std([score_N.mean() for score_N in score_groups])),
        "explained": None if verdicts is None else _explained(groups, scores, verdicts, seed),
    }


def _explained(groups: Sequence[AnswerGroup], scores: Scores, verdicts: GroupVerdicts, seed: int) -> dict[str, float] | None:
    """Return R^2 of `explained_variance` with its interval."""
    columns = []
    for score_rows, counts in _known_answers(groups, [scores], verdicts):
        centred_3A = _centred(score_rows, counts[:, [_SLOPE_NAMES.index(f"{truth} {ALL_KINDS}") for truth in TRUTHS]])
        columns.append((centred_3A @ centred_3A.T).ravel())
    if not columns:
        return None
    stats = SufficientStats(range(len(columns)), np.array(columns), lambda sums: {"explained": _r_squared(sums)})
    return with_intervals(stats, seed)[0]["explained"]


def _r_squared(sums: np.ndarray) -> np.ndarray:
    """Return R^2 from sums of products [..., 9] of the centred score and the two counts."""
    products = sums.reshape(*sums.shape[:-1], 3, 3)
    yy, xy, xx = products[..., 0, 0], products[..., 0, 1:], products[..., 1:, 1:]
    solved = np.einsum("...i,...ij,...j->...", xy, np.linalg.pinv(xx, hermitian=True), xy)
    return np.asarray(np.where(yy > 0, solved / np.where(yy > 0, yy, 1), np.nan))
