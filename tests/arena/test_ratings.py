"""Ratings that can be checked with a pencil, and against scipy's optimiser."""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from mmrlhf.arena import ratings as ratings_module
from mmrlhf.arena.ratings import ELO_PER_UNIT, Vote, expanded_tail, rate, score_tables
from mmrlhf.arena.style import STYLE_NAMES, style_counts, style_difference
from mmrlhf.records import InputError


@pytest.fixture(autouse=True)
def resamples(monkeypatch):
    """Take 50 resamples, for speed. Returns a function that sets another number."""
    set_number = partial(monkeypatch.setattr, ratings_module, "NUM_RESAMPLES")
    set_number(50)
    return set_number


def votes_of(*results, **fields):
    """Return votes from (first, second, score), each on a question of its own."""
    return [Vote(first, second, score, f"q{i}", **fields) for i, (first, second, score) in enumerate(results)]


def simulate(rng, skills, num_votes, num_impressions=1, num_voters=1, **style):
    """Return votes of known skill: the mean of `num_impressions` judgements; two may tie."""
    names = list(skills)
    votes = []
    for number in range(num_votes):
        a, b = rng.choice(len(names), 2, replace=False)
        chance = 1 / (1 + math.exp(skills[names[b]] - skills[names[a]]))
        score = rng.binomial(num_impressions, chance) / num_impressions
        votes.append(Vote(names[a], names[b], score, f"q{number}", f"v{number % num_voters}", **style))
    return votes


def test_three_wins_to_one_differ_by_log_three():
    ratings = rate(votes_of(("a", "b", 1), ("b", "a", 0), ("a", "b", 1), ("a", "b", 0)))
    assert ratings.models == ("a", "b")  # the better one first: a sign flip fails here
    assert ratings.value_M == pytest.approx([math.log(3) / 2, -math.log(3) / 2], abs=1e-5)
    assert ratings.difference_MM[0, 1] == pytest.approx(math.log(3), abs=1e-5)
    assert pytest.approx(190.85, abs=0.01) == math.log(3) * ELO_PER_UNIT


def test_a_tie_is_half_a_win_for_each():
    with_ties = rate(votes_of(*[("a", "b", 0.5)] * 2, ("a", "b", 1), ("a", "b", 1)))
    without = rate(votes_of(*[("a", "b", 1)] * 3, ("a", "b", 0)))
    assert with_ties.value_M == pytest.approx(without.value_M, abs=1e-6)


def test_sides_do_not_matter():
    rng = np.random.default_rng(0)
    votes = simulate(rng, {"a": 1, "b": 0, "c": -1}, 200)
    turned = [Vote(v.second, v.first, 1 - v.score, v.question) for v in votes]
    assert rate(votes).value_M == pytest.approx(rate(turned).value_M, abs=1e-9)
    assert rate(votes).low_M == pytest.approx(rate(turned).low_M, abs=1e-9)


def test_the_fit_is_that_of_a_general_optimiser_with_style(resamples):
    resamples(100)
    rng = np.random.default_rng(1)
    models = ["a", "b", "c"]
    votes = []
    for number in range(300):
        first, second = rng.choice(3, 2, replace=False)
        style = tuple(rng.normal(size=4))
        chance = 1 / (1 + math.exp(first - second - style[0]))
        votes.append(Vote(models[first], models[second], float(rng.random() < chance), f"q{number}", style=style))

    columns = np.zeros((300, 7))
    for row, vote in zip(columns, votes, strict=True):
        row[models.index(vote.first)], row[models.index(vote.second)] = 1, -1
        row[3:] = vote.style
    columns[:, 3:] /= np.sqrt((columns[:, 3:] ** 2).mean(0))
    signs = np.array([2 * vote.score - 1 for vote in votes])
    naive = minimize(lambda w: np.logaddexp(0, -signs * (columns @ w)).sum() + 1e-6 * w @ w, np.zeros(7), tol=1e-10).x
    ratings = rate(votes, control_style=True)
    assert ratings.models == ("a", "b", "c")
    assert ratings.value_M == pytest.approx(naive[:3] - naive[:3].mean(), abs=1e-3)
    assert [ratings.style[name][0] for name in ratings.style] == pytest.approx(naive[3:], abs=1e-3)
    assert ratings.style["length"][1] > 0 and ratings.style["bold"][1] < 0 < ratings.style["bold"][2]


def test_style_control_removes_what_length_bought(resamples):
    """Two equal models, one of them wordier, before voters who like length."""
    resamples(200)
    rng = np.random.default_rng(2)
    votes = []
    for number in range(2000):
        length = float(np.clip(rng.normal(0.5, 0.5), -1, 1))
        votes.append(
            Vote("long", "short", float(rng.random() < 1 / (1 + math.exp(-2 * length))), f"q{number}", style=(length, 0, 0, 0))
        )
    plain, controlled = rate(votes), rate(votes, control_style=True)
    assert plain.models[0] == "long" and plain.is_real_MM[0, 1]
    assert not controlled.is_real_MM[0, 1] and abs(controlled.value_M[0]) < 0.15


def test_style_that_is_the_model_is_not_controlled():
    votes = [Vote("a", "b", number % 3 > 0, f"q{number}", style=(0.5, 0, 0, 0)) for number in range(60)]
    ratings = rate(votes, control_style=True)
    assert ratings.style == {} and "Style control leaves out length" in ratings.notes[0]
    assert ratings.value_M[0] == pytest.approx(math.log(2) / 2, abs=1e-5)


def test_style_that_follows_from_other_style_is_left_out():
    """Answers with markdown have all of it, so that one column says it all."""
    rng = np.random.default_rng(6)
    marked = rng.choice([-1.0, 0.0, 1.0], 200)
    votes = [Vote("a", "b", float(rng.random() < 0.5), f"q{i}", style=(0, mark, mark, mark)) for i, mark in enumerate(marked)]
    ratings = rate(votes, control_style=True)
    assert list(ratings.style) == ["headings"] and "leaves out list items and bold" in ratings.notes[0]


def test_style_that_decides_every_vote_is_left_out_with_a_note():
    """How much it counts has no maximum: the ratings would be anything."""
    others = [0.0] * (len(STYLE_NAMES) - 1)
    votes = [Vote("a", "b", float(i % 2), f"q{i}", style=(1.0 if i % 2 else -1.0, *others)) for i in range(40)]
    ratings = rate(votes, control_style=True)
    assert not ratings.style and any(f"{STYLE_NAMES[0]}, which decides every vote" in note for note in ratings.notes)


def test_intervals_cover_and_the_order_comes_out(resamples):
    """A small version of eval/studies/arena_coverage.py."""
    resamples(200)
    skills = {"a": 0.6, "b": 0.2, "c": -0.2, "d": -0.6}
    rng = np.random.default_rng(3)
    hits, total = 0, 0
    for seed in range(30):
        ratings = rate(simulate(rng, skills, 400), seed=seed)
        for model, low, high in zip(ratings.models, ratings.low_M, ratings.high_M, strict=True):
            hits, total = hits + (low <= skills[model] <= high), total + 1
    assert hits / total > 0.87  # 0.95 with a standard error of 0.02
    assert rate(simulate(rng, skills, 5000)).models == tuple(skills)


def test_equal_models_are_rarely_called_different(resamples):
    """The error is 5% for all ten pairs together, where single intervals would give some 20%."""
    resamples(200)
    rng = np.random.default_rng(4)
    found = sum(bool(rate(simulate(rng, dict.fromkeys("abcde", 0.0), 300), seed=seed).is_real_MM.any()) for seed in range(60))
    assert found <= 9


def test_repeated_questions_count_once():
    """Ten votes on each of 40 questions say no more than the questions do, if all ten agree."""
    votes = [Vote("a", "b", float(i % 40 < 24), f"q{i % 40}", f"v{i // 40}") for i in range(400)]
    single = [Vote("a", "b", float(i < 24), f"q{i}") for i in range(40)]
    wide, narrow = rate(votes), rate([Vote(v.first, v.second, v.score, str(i)) for i, v in enumerate(votes)])
    assert wide.high_M[0] - wide.low_M[0] == pytest.approx(rate(single).high_M[0] - rate(single).low_M[0], rel=0.15)
    assert wide.high_M[0] - wide.low_M[0] > 2 * (narrow.high_M[0] - narrow.low_M[0])


def test_voters_are_resampled_if_there_are_enough():
    """Each of twenty voters always votes for one model."""
    votes = [Vote("a", "b", float(i % 20 < 12), f"q{i}", f"v{i % 20}") for i in range(400)]
    alone = [Vote(v.first, v.second, v.score, v.question) for v in votes]
    assert np.ptp(rate(votes).value_M) == pytest.approx(np.ptp(rate(alone).value_M))
    assert rate(votes).high_M[0] > 2 * rate(alone).high_M[0] - rate(alone).value_M[0]


def test_a_model_that_is_never_beaten_has_a_finite_rating_and_a_note(resamples):
    resamples(100)
    votes = votes_of(*[("gold", "b", 1)] * 5, *[("b", "c", 1), ("c", "b", 1)] * 3)
    ratings = rate(votes)
    assert ratings.models[0] == "gold" and np.isfinite([ratings.value_M, ratings.low_M, ratings.high_M]).all()
    assert ratings.notes[0] == "gold won every vote against the others (5): how far ahead is not known, only that it is."
    assert "half a win" in ratings.notes[-1]


def test_votes_that_all_went_one_way_are_not_certain(resamples):
    """Of 12 wins in 12 votes, Clopper and Pearson's chance to win is at least 0.735."""
    resamples(4000)
    ratings = rate([Vote("a", "b", 1, f"q{i}") for i in range(12)])
    assert 1 / (1 + math.exp(-ratings.low_MM[0, 1])) == pytest.approx(0.70, abs=0.03)  # Student's
    assert ratings.value_M[0] == pytest.approx(math.log(24) / 2, abs=1e-4) and ratings.high_MM[0, 1] > 5


@pytest.mark.parametrize("num_votes, tail", [(30, 0.0188), (12, 0.0107)])
def test_votes_that_are_all_ties_are_not_certain(resamples, num_votes, tail):
    """If a share d of votes is decided, all for one side, n ties have the chance (1 - d)^n.

    Each side gets half of the draws, so that the interval ends where that chance is twice its tail.
    """
    resamples(4000)
    assert expanded_tail(num_votes) == pytest.approx(tail, abs=1e-4)
    ratings = rate([Vote("a", "b", 0.5, f"q{i}") for i in range(num_votes)])
    decided = 1 - (2 * tail) ** (1 / num_votes)
    low, high = (1 / (1 + math.exp(-bound[0, 1])) for bound in (ratings.low_MM, ratings.high_MM))
    assert low == pytest.approx(0.5 - decided / 2, abs=0.015) and high == pytest.approx(0.5 + decided / 2, abs=0.015)
    assert ratings.difference_MM[0, 1] == pytest.approx(0, abs=1e-6) and not ratings.is_real_MM.any()


def test_a_single_tie_says_next_to_nothing():
    ratings = rate([Vote("a", "b", 0.5, "q")])
    assert ratings.low_MM[0, 1] < -3 and ratings.high_MM[0, 1] > 3 and np.isfinite(ratings.low_MM).all()


def test_ties_on_one_pair_widen_its_interval_beside_other_votes(resamples):
    """Four votes by way of c add doubt to 30 ties, which alone leave a share of 0.1 decided votes.

    As log-odds, half of that on either side of an even chance is log(1.1 / 0.9) = 0.20.
    """
    resamples(4000)
    others = votes_of(("a", "c", 1), ("c", "a", 1), ("b", "c", 1), ("c", "b", 1))
    ratings = rate([*others, *(Vote("a", "b", 0.5, f"tie {i}") for i in range(30))])
    assert 1 - (2 * expanded_tail(34)) ** (1 / 30) == pytest.approx(0.1, abs=0.005)
    a, b = ratings.models.index("a"), ratings.models.index("b")
    assert ratings.low_MM[a, b] < -0.2 and ratings.high_MM[a, b] > 0.2


def test_style_on_which_all_votes_are_ties_is_left_out_with_a_note():
    votes = [Vote("a", "b", 0.5, f"q{i}", style=(0.1 * (i % 3 + 1), 0.0, 0.0, 0.0)) for i in range(12)]
    ratings = rate(votes, control_style=True)
    assert not ratings.style
    assert ratings.notes == (f"Style control leaves out {STYLE_NAMES[0]}: where answers differ in it, every vote here is a tie.",)


@pytest.mark.parametrize("num_votes", range(2, 17))
def test_few_votes_on_equal_models_are_rarely_called_real(resamples, num_votes):
    """The chance of a wrong call, over all outcomes of fair coins: not far above the nominal 5%."""
    resamples(400)
    chance = 0.0
    for wins in range(num_votes + 1):
        ratings = rate([Vote("a", "b", float(i < wins), f"q{i}") for i in range(num_votes)])
        chance += math.comb(num_votes, wins) / 2**num_votes * bool(ratings.is_real_MM[0, 1])
    assert chance < 0.08


def test_models_that_nothing_connects_are_left_out_with_a_note():
    votes = votes_of(*[("a", "b", 1), ("b", "a", 1), ("b", "c", 1), ("c", "a", 1)] * 3, ("x", "y", 1))
    ratings = rate(votes)
    assert set(ratings.models) == {"a", "b", "c"}
    assert ratings.notes[0].startswith("x and y were never compared with a, b and c, and so have no rating here")
    with pytest.raises(InputError, match="no votes that count"):
        rate([])


def test_ranks_span_what_is_not_shown(resamples):
    resamples(200)
    rng = np.random.default_rng(5)
    ratings = rate(simulate(rng, {"a": 2, "b": 0, "c": 0}, 600))
    assert [ratings.ranks(i) for i in range(3)] == [(1, 1), (2, 3), (2, 3)]


def test_win_rates_are_mean_scores():
    scores, counts = score_tables(votes_of(("a", "b", 1), ("b", "a", 0.5), ("a", "c", 0)), ["a", "b", "c"])
    assert scores[0, 1] == 0.75 and scores[1, 0] == 0.25 and counts[0, 1] == 2 and np.isnan(scores[1, 2])


def test_style_counts_words_and_markdown():
    text = "# A title\n\n- one **bold** word\n- two\n3. three __strong__\nplain * star and 2 ** 3"
    assert style_counts(text) == (19, 1, 3, 2)
    assert style_counts("桌上有两个杯子。")[0] == 7
    assert style_difference("a b c", "a") == (0.5, 0, 0, 0)
    assert style_difference("# x", "x") == (pytest.approx(1 / 3), 1, 0, 0)


MODELS = st.sampled_from("abcd")
SCORES = st.sampled_from([0.0, 0.5, 1.0])
STYLES = st.tuples(*[st.sampled_from([-1.0, -0.3, 0.0, 0.5])] * 4)
WILD_VOTES = st.lists(
    st.builds(
        Vote, MODELS, MODELS, SCORES, st.sampled_from(["q1", "q2", "q3"]), st.sampled_from(["v1", "v2"]), st.just(""), STYLES
    ).filter(lambda vote: vote.first != vote.second),
    min_size=1,
    max_size=25,
)


@settings(max_examples=60)
@given(WILD_VOTES, st.booleans())
def test_any_votes_have_ratings(votes, control_style):
    """However few and lopsided: finite, with mean 0, ordered, and the same from either side."""
    ratings = rate(votes, control_style=control_style)
    numbers = np.concatenate([ratings.value_M, ratings.low_M, ratings.high_M, ratings.low_MM.ravel()])
    assert np.isfinite(numbers).all() and ratings.value_M.mean() == pytest.approx(0, abs=1e-6)
    assert list(ratings.value_M) == sorted(ratings.value_M, reverse=True)
    assert not ratings.is_real_MM.diagonal().any() and (ratings.is_real_MM == ratings.is_real_MM.T).all()
    turned = [Vote(v.second, v.first, 1 - v.score, v.question, v.voter, "", tuple(-s for s in v.style)) for v in votes]
    assert np.sort(rate(turned, control_style=control_style).value_M) == pytest.approx(np.sort(ratings.value_M), abs=1e-4)


def test_list_items_are_counted_in_time_that_grows_with_the_text():
    """A pattern that looks back over blank lines would take minutes here."""
    assert style_counts("\n" * 1_000_000 + "- one\n\n  * two\n3) three")[2] == 3
