"""Ratings from votes on pairs: Bradley-Terry by maximum likelihood, with bootstrap intervals.

The model (Bradley and Terry 1952): P(i beats j) = sigmoid(rating_i - rating_j), ratings with mean
0. A tie counts as half a win for each side. The ratings then describe the expected score of a vote,
   whatever the reasons for ties, and the regression can have further columns (style control). A
   model of ties such as Rao and Kupper's (1967) would assume a fixed law by which ties become rarer
   with the distance of two models, which "both bad" and equal answers do not follow.

Style control (LM Arena 2024) adds the differences of two answers in length and markdown as columns,
so that ratings compare answers of equal form.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from mmrlhf.arena.style import STYLE_NAMES
from mmrlhf.metrics.intervals import bootstrap_weights
from mmrlhf.records import InputError

ELO_PER_UNIT = 400 / math.log(10)
"""Points on the scale of chess ratings for one unit (a log-odds) of these."""
NUM_RESAMPLES = 1000
MIN_CLUSTERS = 8
"""Minimum number of questions, or voters, to resample these rather than single votes."""
RIDGE = 1e-6
"""Penalty on squared weights: negligible, but it makes the maximum unique."""
HALF_VOTE = 0.5
"""Wins added to the side of a pair that never won if the likelihood has no maximum."""


@dataclass(frozen=True)
class Vote:
    """One judgement of two models' answers to a question.

    `score` is the first model's: 1 for a win, 0.5 for a tie, 0 for a loss. `style` has the
    differences of the answers, first minus second (`style_difference`).
    """

    first: str
    second: str
    score: float
    question: str
    voter: str = ""
    category: str = ""
    style: tuple[float, ...] = (0.0,) * len(STYLE_NAMES)


@dataclass(frozen=True)
class Ratings:
    """Ratings of M models, best first, in log-odds with mean 0; all intervals are of 95%.

    low_M, high_M: of each rating alone. difference_MM: row minus column, with low_MM and high_MM of
    each difference alone. is_real_MM: whether a difference is real, at 5% for all pairs of models
    together (`real_differences`). style: the change of log-odds for one standard deviation of each
    kind of style, with its interval. notes: sentences on what the votes cannot show.
    """

    models: tuple[str, ...]
    value_M: np.ndarray
    low_M: np.ndarray
    high_M: np.ndarray
    difference_MM: np.ndarray
    low_MM: np.ndarray
    high_MM: np.ndarray
    is_real_MM: np.ndarray
    style: dict[str, tuple[float, float, float]]
    num_votes: dict[str, int]
    notes: tuple[str, ...]

    def ranks(self, model: int) -> tuple[int, int]:
        """Return the best and the worst rank of a model that the real differences allow."""
        is_real, difference = self.is_real_MM[model], self.difference_MM[model]
        return 1 + int((is_real & (difference < 0)).sum()), len(self.models) - int((is_real & (difference > 0)).sum())


def rate(votes: Sequence[Vote], *, control_style: bool = False, seed: int = 0) -> Ratings:
    """Rate the models of votes.

    Models that are not connected with the others by votes are left out, with a note. Raises
    InputError if there are no votes.
    """
    if not votes:
        raise InputError("there are no votes that count: vote on some pairs first")
    votes, notes = _connected(votes)
    models = sorted({model for vote in votes for model in (vote.first, vote.second)})
    regression = _Regression(votes, models, control_style)
    notes += regression.notes
    weights, is_anchored = regression.fit(np.ones((1, len(votes))))
    if is_anchored[0]:
        notes += _one_sided_notes(votes, models)
    rng = np.random.default_rng([seed, 83])
    draws, tails = [], []  # resampled weights [B, K] for each kind of cluster
    for clusters in _cluster_kinds(votes, notes):
        num_clusters = clusters.max() + 1
        blocks = bootstrap_weights(num_clusters, rng, NUM_RESAMPLES)
        draws.append(np.concatenate([regression.fit(weights[:, clusters], rng)[0] for weights in blocks]))
        tails.append(expanded_tail(num_clusters))

    order = np.argsort(-weights[0, : len(models)], kind="stable")
    value_M = weights[0, order]
    sampled = [draw[:, order] for draw in draws]
    low_M, high_M = _interval(sampled, tails)
    difference_MM = value_M[:, None] - value_M
    differences = [draw[:, :, None] - draw[:, None, :] for draw in sampled]
    low_MM, high_MM = _interval(differences, tails)
    is_real_MM = np.logical_and.reduce([real_differences(*draw) for draw in zip(differences, tails, strict=True)])
    style_draws = _interval([draw[:, len(models) :] for draw in draws], tails)
    style = {
        name: (float(weight), float(low), float(high))
        for name, weight, low, high in zip(regression.style_names, weights[0, len(models) :], *style_draws, strict=True)
    }
    num_votes = Counter(model for vote in votes for model in (vote.first, vote.second))
    named = tuple(models[i] for i in order)
    return Ratings(
        named, value_M, low_M, high_M, difference_MM, low_MM, high_MM, is_real_MM, style, dict(num_votes), tuple(notes)
    )


def expanded_tail(num_clusters: int) -> float:
    """Return the share of resamples to leave out on each side of a 95% interval.

    It is 2.5% for many clusters, and less for few, whose resamples vary too little, so that the
    interval is as wide as Student's (Hesterberg 2015, doi:10.1080/00031305.2015.1089789).
    """
    if num_clusters < 2:
        return 0.0
    width = math.sqrt(num_clusters / (num_clusters - 1)) * stats.t.ppf(0.975, num_clusters - 1)
    return float(stats.norm.cdf(-width))


def real_differences(draws_BMM: np.ndarray, tail: float) -> np.ndarray:
    """Return which differences are real at 5% for all pairs together.

    Of all resamples, 1 - 2 `tail` lie within the simultaneous band of all pairs (Besag et al. 1995,
    section 6.3): between the k-th smallest and the k-th largest of each difference. A difference
    whose band excludes 0 is real. In 95% of repetitions, no pair of equal models is called real.
    """
    num_draws, num_models, _ = draws_BMM.shape
    first_P, second_P = np.triu_indices(num_models, 1)
    sorted_BP = np.sort(draws_BMM[:, first_P, second_P], axis=0)
    ranks_BP = draws_BMM[:, first_P, second_P].argsort(0, kind="stable").argsort(0)
    outermost_B = np.maximum(ranks_BP, num_draws - 1 - ranks_BP).max(1)
    bound = int(np.quantile(outermost_B, 1 - 2 * tail, method="higher"))
    is_real_MM = np.zeros((num_models, num_models), dtype=bool)
    is_real_MM[first_P, second_P] = (sorted_BP[num_draws - 1 - bound] > 0) | (sorted_BP[bound] < 0)
    return is_real_MM | is_real_MM.T


def _interval(draws: Sequence[np.ndarray], tails: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return percentile intervals over the first axis; for several sets of draws, the wider one."""
    bounds = [np.quantile(draw, [tail, 1 - tail], axis=0) for draw, tail in zip(draws, tails, strict=True)]
    low, high = bounds[0]
    for other_low, other_high in bounds[1:]:
        is_wider = other_high - other_low > high - low
        low, high = np.where(is_wider, other_low, low), np.where(is_wider, other_high, high)
    return low, high


class _Regression:
    """Votes as rows of a logistic regression whose columns are the models, then the style.

    Votes on a pair with equal style share a row. The last rows, one for each compared pair, have no
    votes: `fit` gives them weights where a maximum is missing.
    """

    def __init__(self, votes: Sequence[Vote], models: Sequence[str], control_style: bool) -> None:
        index_of = {model: index for index, model in enumerate(models)}
        pairs = sorted({tuple(sorted((index_of[vote.first], index_of[vote.second]))) for vote in votes})
        pair_of = {pair: number for number, pair in enumerate(pairs)}
        sides = [(index_of[vote.first], index_of[vote.second]) for vote in votes]
        is_turned = np.array([first > second for first, second in sides])
        self._score_V = np.where(is_turned, [1 - vote.score for vote in votes], [vote.score for vote in votes])
        self._pair_V = np.array([pair_of[min(side), max(side)] for side in sides])
        self._first_P, self._second_P = np.array(pairs).T
        self._num_models = len(models)
        identity = np.eye(len(models))
        pair_columns = identity[self._first_P] - identity[self._second_P]
        self.notes: list[str] = []
        style_VS, self.style_names = (
            self._style(votes, is_turned, pair_columns) if control_style else (np.zeros((len(votes), 0)), [])
        )
        columns_VK = np.concatenate([pair_columns[self._pair_V], style_VS], 1)
        rows_RK, row_V = np.unique(columns_VK, axis=0, return_inverse=True)
        anchors_PK = np.concatenate([pair_columns, np.zeros((len(pairs), style_VS.shape[1]))], 1)
        self._design_RK = np.concatenate([rows_RK, anchors_PK])
        num_rows, num_votes = len(rows_RK), np.arange(len(votes))
        ones = np.ones(len(votes))
        self._to_rows = csr_array((ones, (num_votes, row_V.reshape(-1))), shape=(len(votes), num_rows))
        self._to_pairs = csr_array((ones, (num_votes, self._pair_V)), shape=(len(votes), len(pairs)))

    def _style(self, votes: Sequence[Vote], is_turned: np.ndarray, pair_columns: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Return the columns of style that can be controlled, in standard deviations, and names.

        A column that is a function of the models and the previous columns is left out, because its
        effect cannot be separated from theirs.
        """
        style_VS = np.array([vote.style for vote in votes]) * np.where(is_turned, -1.0, 1.0)[:, None]
        columns = pair_columns[self._pair_V]
        names: list[str] = []
        dependent: list[str] = []
        for name, column in zip(STYLE_NAMES, style_VS.T, strict=True):
            size = np.sqrt((column**2).mean())
            if size < 1e-9:  # no answers differ in it
                continue
            lead_V = (self._score_V - 0.5) * column
            if not lead_V.any():
                self.notes.append(f"Style control leaves out {name}: where answers differ in it, every vote here is a tie.")
                continue
            if (lead_V[column != 0] > 0).all() or (lead_V[column != 0] < 0).all():
                self.notes.append(f"Style control leaves out {name}, which decides every vote here: by how much is not known.")
                continue
            extended = np.column_stack([columns, column / size])
            if np.linalg.matrix_rank(extended) > np.linalg.matrix_rank(columns):
                columns, names = extended, [*names, name]
            else:
                dependent.append(name)
        if dependent:
            self.notes.append(
                f"Style control leaves out {joined(dependent)}, which models and the rest of the style explain here."
            )
        return columns[:, pair_columns.shape[1] :], names

    def fit(self, weight_BV: np.ndarray, rng: np.random.Generator | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the ratings and style weights [B, K] for B weightings of the votes, and for each
        whether the maximum was missing.

        If it was, the side of a pair that never won gets HALF_VOTE. Resampling n votes that all
        went one way always gives n wins; with an `rng`, the share of wins of such a pair is drawn
        from Beta(n, 1) instead, whose 2.5% point is Clopper and Pearson's bound (1934). Likewise n
        ties always give n ties: on a pair whose votes are all ties, the share of ties is drawn in
        the same way, and the rest goes to either side with equal probability.
        """
        wins_BV, losses_BV = weight_BV * self._score_V, weight_BV * (1 - self._score_V)
        wins_BP, losses_BP = wins_BV @ self._to_pairs, losses_BV @ self._to_pairs
        is_anchored_B = ~self._has_maximum(wins_BP > 0, losses_BP > 0)
        never_won = np.stack([wins_BP == 0, losses_BP == 0]) & is_anchored_B[:, None]
        if rng is None:
            anchors = HALF_VOTE * never_won
        else:
            is_tied_BP = (wins_BP > 0) & ((weight_BV * (self._score_V != 0.5)) @ self._to_pairs == 0)
            drawn = rng.exponential(size=never_won.shape)
            # Of two exponential draws, the larger exceeds the other by an exponential draw, too.
            anchors = drawn * never_won + np.maximum(drawn - drawn[::-1], 0) * is_tied_BP
            total_BP = np.maximum(wins_BP + losses_BP, HALF_VOTE)
            factor_BP = np.where(never_won.any(0) | is_tied_BP, rng.gamma(total_BP) / total_BP, 1.0)
            wins_BV, losses_BV = (votes * factor_BP[:, self._pair_V] for votes in (wins_BV, losses_BV))
        wins_BR = np.concatenate([wins_BV @ self._to_rows, anchors[0]], 1)
        losses_BR = np.concatenate([losses_BV @ self._to_rows, anchors[1]], 1)
        weights_BK = maximise(self._design_RK, wins_BR, losses_BR)
        weights_BK[:, : self._num_models] -= weights_BK[:, : self._num_models].mean(1, keepdims=True)
        return weights_BK, is_anchored_B

    def _has_maximum(self, first_won_BP: np.ndarray, second_won_BP: np.ndarray) -> np.ndarray:
        """Return where the likelihood has a maximum: if every model can be reached from every other
        through wins (Ford 1957)."""
        reaches = np.zeros((len(first_won_BP), self._num_models, self._num_models))
        reaches[:, self._first_P, self._second_P] = first_won_BP
        reaches[:, self._second_P, self._first_P] = second_won_BP
        reaches[:, range(self._num_models), range(self._num_models)] = 1
        for _ in range(max(1, self._num_models - 1).bit_length()):  # paths of 2, 4, 8, ... wins
            reaches = (reaches @ reaches > 0).astype(float)
        return np.asarray(reaches.all((1, 2)))


def maximise(design_RK: np.ndarray, wins_BR: np.ndarray, losses_BR: np.ndarray) -> np.ndarray:
    """Return the weights [B, K] of B logistic regressions on the same rows, by Newton's method.

    wins_BR and losses_BR are the numbers, or weights, of a row's wins and losses.
    """
    num_columns = design_RK.shape[1]
    products = (design_RK[:, :, None] * design_RK[:, None, :]).reshape(len(design_RK), -1)
    total_BR = wins_BR + losses_BR
    weights_BK = np.zeros((len(wins_BR), num_columns))
    for _ in range(100):
        chance_BR = expit(weights_BK @ design_RK.T)
        gradient = (wins_BR - total_BR * chance_BR) @ design_RK - RIDGE * weights_BK
        curvature = ((total_BR * chance_BR * (1 - chance_BR)) @ products).reshape(-1, num_columns, num_columns)
        step = np.linalg.solve(curvature + RIDGE * np.eye(num_columns), gradient[:, :, None])[:, :, 0]
        weights_BK += np.clip(step, -2, 2)  # far from the maximum, a whole step could overshoot
        if np.abs(step).max() < 1e-8:
            break
    return weights_BK


# ---- what the votes do not say -------------------------------------------------------------------


def _connected(votes: Sequence[Vote]) -> tuple[list[Vote], list[str]]:
    """Return the votes within the largest group of connected models, and a note on the others."""
    models = sorted({model for vote in votes for model in (vote.first, vote.second)})
    label_M = connected_components(_graph(votes, models), directed=False)[1]
    if label_M.max() == 0:
        return list(votes), []
    sizes = Counter(label_M.tolist())
    votes_of = Counter(int(label_M[models.index(vote.first)]) for vote in votes)
    largest = max(sizes, key=lambda label: (sizes[label], votes_of[label]))
    rated = {model for model, label in zip(models, label_M, strict=True) if label == largest}
    others = [model for model in models if model not in rated]
    note = (
        f"{joined(others)} {'was' if len(others) == 1 else 'were'} never compared with {joined(sorted(rated))}, and so "
        f"{'has' if len(others) == 1 else 'have'} no rating here: vote on pairs that connect them."
    )
    return [vote for vote in votes if vote.first in rated], [note]


def _graph(votes: Sequence[Vote], models: Sequence[str]) -> np.ndarray:
    """Return each model's wins against each other one; a tie is half a win."""
    index_of = {model: index for index, model in enumerate(models)}
    wins_MM = np.zeros((len(models), len(models)))
    for vote in votes:
        wins_MM[index_of[vote.first], index_of[vote.second]] += vote.score
        wins_MM[index_of[vote.second], index_of[vote.first]] += 1 - vote.score
    return wins_MM


def _one_sided_notes(votes: Sequence[Vote], models: Sequence[str]) -> list[str]:
    """Return sentences on groups of models that never lost, or never won, against the others."""
    wins_MM = _graph(votes, models)
    num_groups, label_M = connected_components(wins_MM > 0, directed=True, connection="strong")
    notes = []
    for label in range(num_groups):
        inside = label_M == label
        won, lost = wins_MM[inside][:, ~inside].sum(), wins_MM[~inside][:, inside].sum()
        names = joined([model for model, is_inside in zip(models, inside, strict=True) if is_inside])
        if won and not lost:
            notes.append(f"{names} won every vote against the others ({won:g}): how far ahead is not known, only that it is.")
        elif lost and not won and num_groups > 2:  # of two groups, one sentence says it
            notes.append(f"{names} lost every vote against the others ({lost:g}): how far behind is not known, only that it is.")
    return [*notes, "So that ratings are finite, each model got half a win against those it never won against."]


def _cluster_kinds(votes: Sequence[Vote], notes: list[str]) -> Iterator[np.ndarray]:
    """Yield the clusters that the bootstrap resamples, as the index [V] of each vote's cluster.

    Votes on one question are not independent, and neither are those of one voter. Questions are
    resampled and, if there are enough, voters as well.
    """
    questions, voters = _indices(vote.question for vote in votes), _indices(vote.voter for vote in votes)
    if questions.max() + 1 >= min(MIN_CLUSTERS, len(votes)):
        yield questions
    else:
        notes.append(f"With {questions.max() + 1} questions, intervals do not say what other questions would give.")
        yield np.arange(len(votes))
    if MIN_CLUSTERS <= voters.max() + 1 < len(votes):
        yield voters


def _indices(names: Iterator[str]) -> np.ndarray:
    index_of: dict[str, int] = {}
    return np.array([index_of.setdefault(name, len(index_of)) for name in names])


def joined(names: Sequence[str]) -> str:
    """Return names as in a sentence: `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def score_tables(votes: Sequence[Vote], models: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return each model's mean score against each other one [M, M], NaN without votes, and the
    number of votes."""
    rated = [vote for vote in votes if vote.first in models and vote.second in models]
    wins_MM = _graph(rated, models)
    counts_MM = wins_MM + wins_MM.T
    with np.errstate(invalid="ignore"):
        return wins_MM / counts_MM, counts_MM
