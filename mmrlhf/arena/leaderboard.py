"""The leaderboard of one kind of voter, and a judge's agreement with people."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmrlhf.arena.ratings import ELO_PER_UNIT, Ratings, Vote, joined, rate
from mmrlhf.arena.votes import Ballots
from mmrlhf.metrics.calibration import proportion
from mmrlhf.metrics.intervals import Interval, SufficientStats, with_intervals

MAX_CATEGORIES = 12


@dataclass(frozen=True)
class OrderEffect:
    """What a judge's verdicts owe to the order of the answers.

    changed: the share of pairs whose verdict is another one in the other order. first_favoured: of
    these, the share in which the answer that is shown first fares better; without position bias,
    0.5. Each is as of `proportion`, with its 95% interval over questions.
    """

    changed: Mapping[str, Any]
    first_favoured: Mapping[str, Any]


@dataclass(frozen=True)
class Board:
    """Ratings from the votes of people, or of a judge: uncontrolled, with style control, and
    uncontrolled in each category."""

    title: str
    votes: Sequence[Vote]
    plain: Ratings
    controlled: Ratings
    categories: Mapping[str, Ratings]
    num_unusable: int = 0
    """Number of pairs without a usable reply of a judge."""
    order_effect: OrderEffect | None = None
    """None for people, each of whom sees one order."""


@dataclass(frozen=True)
class JudgeAgreement:
    """Agreement of a judge and the majority of people on pairs.

    agreement: the share of pairs, of three outcomes (either answer, or a tie). decided: over pairs
    that neither calls a tie. kappa: Cohen's, which is 0 for chance agreement. Each has its 95%
    interval over resampled questions, or is None where it is not defined.
    """

    judge: str
    num_pairs: int
    num_decided: int
    agreement: Interval | None
    decided: Interval | None
    kappa: Interval | None


def make_boards(ballots: Ballots) -> list[Board]:
    """Return a board of people and one for each judge, leaving out those without votes."""
    boards = []
    for title, scores in [("people", ballots.people), *ballots.judges.items()]:
        votes = ballots.votes(scores)
        if not votes:
            continue
        counts = Counter(vote.category for vote in votes if vote.category)
        names = sorted(name for name, _ in counts.most_common(MAX_CATEGORIES))
        categories = {name: rate([vote for vote in votes if vote.category == name]) for name in names}
        plain, controlled = rate(votes), rate(votes, control_style=True)
        effect = order_effect(ballots, title) if title in ballots.verdicts else None
        boards.append(Board(title, votes, plain, controlled, categories, ballots.num_unusable.get(title, 0), effect))
    return boards


def order_effect(ballots: Ballots, judge: str) -> OrderEffect:
    """Return what the verdicts of a judge owe to the order of the answers."""
    verdicts = ballots.verdicts[judge]
    questions = [ballots.pairs[digest][0].question for digest in verdicts]
    is_changed = np.array([one != other for one, other in verdicts.values()], dtype=bool)
    # A changed verdict favours one place. The first answer is shown first, then second.
    favours_first = [one == "first" or other == "second" for one, other in verdicts.values() if one != other]
    changed_questions = [question for question, changed in zip(questions, is_changed, strict=True) if changed]
    return OrderEffect(proportion(is_changed, questions), proportion(np.array(favours_first, dtype=bool), changed_questions))


# ---- sentences -----------------------------------------------------------------------------------


def headline(board: Board) -> str:
    """Return one sentence on which model leads, as far as the votes show it."""
    ratings = board.plain
    tied = [model for model, is_real in zip(ratings.models[1:], ratings.is_real_MM[0, 1:], strict=True) if not is_real]
    if not tied:
        return f"{ratings.models[0]} is the best of {len(ratings.models)} models"
    if len(tied) == len(ratings.models) - 1:
        return (
            f"No model is shown to be better than {ratings.models[0]}, and {ratings.models[0]} is not shown to be better than any"
        )
    return f"{joined([ratings.models[0], *tied])} lead, and are not distinguishable"


def difference_sentences(ratings: Ratings) -> list[str]:
    """Return, for each model except the last, which of those below it are really worse."""
    sentences = []
    for i, model in enumerate(ratings.models[:-1]):
        below = range(i + 1, len(ratings.models))
        worse = [describe(ratings, i, j) for j in below if ratings.is_real_MM[i, j]]
        tied = [ratings.models[j] for j in below if not ratings.is_real_MM[i, j]]
        parts = [f"is better than {joined(worse)}"] if worse else []
        parts += [f"is not distinguishable from {joined(tied)}"] if tied else []
        sentences.append(f"{model} {', and '.join(parts)}.")
    return sentences


def describe(ratings: Ratings, i: int, j: int) -> str:
    """Return the name of model j, and by how many points model i is ahead of it."""
    ahead, low, high = (points(table[i, j]).lstrip("+") for table in (ratings.difference_MM, ratings.low_MM, ratings.high_MM))
    return f"{ratings.models[j]} (by {ahead} points, {low} to {high})"


def style_sentences(board: Board) -> list[str]:
    """Return sentences on which differences become real, or cease to be, under style control."""
    plain, controlled = board.plain, board.controlled
    if not controlled.style:
        return []
    lost, found = (
        [f"{a} over {b}" for a, b in sorted(one - other)]
        for one, other in itertools.permutations(map(_real_pairs, (plain, controlled)))
    )
    sentences = [f"Once length and markdown are controlled, the lead of {joined(lost)} is not shown any more."] if lost else []
    sentences += [f"Once length and markdown are controlled, the lead of {joined(found)} is real, too."] if found else []
    return sentences or ["Controlling length and markdown changes none of this."]


def _real_pairs(ratings: Ratings) -> set[tuple[str, str]]:
    """Return (better, worse) of each real difference."""
    return {(ratings.models[i], ratings.models[j]) for i, j in zip(*np.triu(ratings.is_real_MM, 1).nonzero(), strict=True)}


def points(value: float) -> str:
    """Return a log-odds in the points of chess ratings."""
    rounded = round(value * ELO_PER_UNIT)
    return f"{'+' if rounded > 0 else '−' if rounded < 0 else ''}{abs(rounded)}"


# ---- agreement -----------------------------------------------------------------------------------


def judge_agreements(ballots: Ballots) -> list[JudgeAgreement]:
    """Return each judge's agreement with the majority of people on the tasks that both judged."""
    results = []
    for judge, scores in ballots.judges.items():
        shared = [digest for digest in scores if digest in ballots.people]
        # By the answers' texts, not the models: a good model would raise the agreement of chance.
        tables_N9 = np.zeros((len(shared), 9))
        for row, digest in zip(tables_N9, shared, strict=True):
            is_turned = ballots.tasks[digest].answers[0] > ballots.tasks[digest].answers[1]
            row[3 * _outcome(ballots.people[digest], is_turned) + _outcome(scores[digest], is_turned)] = 1
        questions = [ballots.pairs[digest][0].question for digest in shared]
        num_decided = int(tables_N9[:, [0, 2, 6, 8]].sum())
        intervals = with_intervals(SufficientStats(questions, tables_N9, _agreement), seed=0)[0] if shared else {}
        results.append(
            JudgeAgreement(judge, len(shared), num_decided, *(intervals.get(name) for name in ("agreement", "decided", "kappa")))
        )
    return results


def _outcome(judged: Sequence[tuple[str, float]], is_turned: bool) -> int:
    """Return 0, 1 or 2 for a loss, a tie and a win of the answer whose text comes first.

    It is the most frequent outcome, a tie if two are equally frequent.
    """
    (sign, most), *others = Counter(int(np.sign(score - 0.5)) for _, score in judged).most_common(2)
    sign = 0 if others and others[0][1] == most else sign
    return 1 - sign if is_turned else 1 + sign


def _agreement(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Return metrics of tables [..., 9] of people's outcome times the judge's."""
    table = sums.reshape(*sums.shape[:-1], 3, 3)
    total = sums.sum(-1)
    observed = np.trace(table, axis1=-2, axis2=-1) / total
    expected = (table.sum(-1) * table.sum(-2)).sum(-1) / total**2
    decided = table[..., [0, 2], :][..., [0, 2]]
    return {
        "agreement": observed,
        "kappa": (observed - expected) / np.where(expected < 1, 1 - expected, np.nan),
        "decided": np.trace(decided, axis1=-2, axis2=-1) / decided.sum((-2, -1)),
    }
