"""First slopes by hand, and against policies that follow a reward exactly."""

import numpy as np
import pytest

from mmrlhf.claims import extract_claims
from mmrlhf.records import Message, Verdict
from mmrlhf.rewards.first_slopes import compare_slopes, explained_variance, first_slopes, measured_answers
from mmrlhf.rewards.reward_model import AnswerGroup

ANSWERS = ("There is a red cup, a dog and a cat.", "There is a cup and a hat.")
FALSE_WORDS = {"cat", "hat"}
"""What the images do not show."""


def make_groups(num_groups, answers=ANSWERS):
    return [AnswerGroup((), (Message("user", "?"),), answers, (), str(i)) for i in range(num_groups)]


def make_verdicts(groups):
    return [
        [[Verdict(c, "contradicted" if c.subject in FALSE_WORDS else "supported") for c in extract_claims(a)] for a in g.answers]
        for g in groups
    ]


def test_slopes_of_two_answers_by_hand():
    groups = make_groups(8, ("There is a red cup and a cat.", "There is a cup."))
    slopes = first_slopes(groups, [[1.0, 3.0]] * 8, make_verdicts(groups))
    # Around their means the rewards are -1 and 1, false objects 1/2 and -1/2: Cov -1, Std sqrt(2).
    assert slopes["object"]["false"] == pytest.approx({"value": -1, "low": -1, "high": -1})
    assert slopes["object"]["true"]["value"] == pytest.approx(0)  # a cup in both
    assert slopes["attribute"]["true"]["value"] == pytest.approx(-1)  # red goes with the cat
    assert slopes["attribute"]["false"] is None and slopes["attribute"]["num_false"] == 0
    assert (slopes["object"]["num_false"], slopes["object"]["num_true"]) == (8, 16)
    assert slopes["all"]["false"]["value"] == pytest.approx(-1) and slopes["all"]["num_true"] == 24
    assert set(slopes) == {"all", "object", "attribute"}
    reversed_slopes = first_slopes(groups, [[3.0, 1.0]] * 8, make_verdicts(groups))
    assert reversed_slopes["object"]["false"]["value"] == pytest.approx(1)


def test_slopes_do_not_depend_on_the_scale_of_the_reward_or_on_the_means_of_prompts():
    rng = np.random.default_rng(0)
    groups = make_groups(20, ("A cat.", "A cup.", "A cup and a hat.", "A cat and a hat."))
    verdicts, scores = make_verdicts(groups), rng.normal(size=(20, 4))
    expected, other = (first_slopes(groups, s, verdicts) for s in (scores, 7 * scores + rng.normal(size=(20, 1))))
    assert other["object"]["false"] == pytest.approx(expected["object"]["false"])


def test_a_policy_that_follows_the_reward_a_little_has_the_slope():
    answers = ("A cat.", "A cup.", "A cup and a hat.", "A cat and a hat.")
    false_counts, rewards = np.array([1, 0, 1, 2]), np.array([0.3, 1.0, -0.2, -1.5])
    groups = make_groups(5, answers)
    predicted = first_slopes(groups, [rewards.tolist()] * 5, make_verdicts(groups))["object"]["false"]["value"]
    start = np.full(4, 1 / 4)
    policy = start * np.exp(0.001 * rewards)
    policy /= policy.sum()
    root_of_kl = np.sqrt(policy @ np.log(policy / start))
    # Variances of a sample divide by the degrees of freedom, here 3, those of all answers by 4.
    assert (policy - start) @ false_counts / root_of_kl == pytest.approx(predicted * np.sqrt(3 / 4), rel=1e-3)


def test_intervals_resample_prompts():
    groups = make_groups(40, ("A cat.", "A cup."))
    scores = [[-1.0, 1.0] if i % 4 else [1.0, -1.0] for i in range(40)]  # wrong in a quarter of the prompts
    slope = first_slopes(groups, scores, make_verdicts(groups), seed=1)["object"]["false"]
    assert slope["value"] == pytest.approx(-0.5)  # (1 - 3) / 4
    standard_error = np.sqrt((1 - 0.5**2) / 40)  # of a mean of 40 signs
    assert slope["low"] == pytest.approx(-0.5 - 1.96 * standard_error, abs=0.05)
    assert slope["high"] == pytest.approx(-0.5 + 1.96 * standard_error, abs=0.05)


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    groups = make_groups(60, ("A cat.", "A cup.", "A cat and a hat."))
    verdicts, scores = make_verdicts(groups), rng.normal(size=(60, 3))
    better = scores - 0.2 * np.array([1, 0, 2])  # the same noise, and a dislike of false claims
    compared = compare_slopes(groups, better, scores, verdicts)["object"]
    difference, ratio = compared["difference"], compared["ratio"]
    values = [first_slopes(groups, s, verdicts)["object"]["false"] for s in (better, scores)]
    assert difference["value"] == pytest.approx(values[0]["value"] - values[1]["value"])
    assert difference["high"] < 0 and values[0]["high"] > values[1]["low"]  # apart although their intervals overlap
    assert ratio["value"] == pytest.approx(values[0]["value"] / values[1]["value"])
    reversed_difference = compare_slopes(groups, scores, better, verdicts)["object"]["difference"]
    assert reversed_difference["value"] == pytest.approx(-difference["value"])


def test_the_ratio_of_slopes_is_paired():
    """A reward that ranks as another does, in two of three prompts, has an interval around 1."""
    groups = make_groups(60, ("A cat.", "A cup."))
    verdicts, sign = make_verdicts(groups), [-1 if i % 3 == 0 else 1 for i in range(60)]
    scores = [[-float(s), float(s)] for s in sign]
    same = compare_slopes(groups, [[3 * a, 3 * b] for a, b in scores], scores, verdicts)["object"]["ratio"]
    assert same == pytest.approx({"value": 1, "low": 1, "high": 1})  # though either slope is uncertain
    sure = compare_slopes(groups, [[-1.0, 1.0]] * 60, scores, verdicts)["object"]["ratio"]
    assert sure["value"] == pytest.approx(3) and 1 < sure["low"] < 3 < sure["high"]  # slopes of -1 and of -1/3


def test_a_reward_that_does_not_vary_changes_nothing():
    groups = make_groups(3)
    nothing = {"value": 0, "low": 0, "high": 0}
    constant = first_slopes(groups, [[0.1 + 0.2, 0.3]] * 3, make_verdicts(groups))  # equal but for the last bit
    assert constant["object"] == {
        "false": nothing,
        "true": nothing,
        "num_false": 6,
        "num_true": 9,
        "num_prompts": 3,
        "num_prompts_true": 3,
    }
    compared = compare_slopes(groups, [[1.0, 2.0]] * 3, [[1.0, 1.0]] * 3, make_verdicts(groups))["object"]
    slope = first_slopes(groups, [[1.0, 2.0]] * 3, make_verdicts(groups))["object"]["false"]
    assert compared["difference"] == pytest.approx(slope) and compared["ratio"] is None


def test_without_several_answers_nothing_is_measured():
    single = make_groups(3, ("A cat.",))
    assert first_slopes(single, [[1.0]] * 3, make_verdicts(single)) == {}
    assert compare_slopes(single, [[1.0]] * 3, [[1.0]] * 3, make_verdicts(single)) == {}


def test_claims_count_once_and_hedged_ones_and_denials_not_at_all():
    groups = make_groups(4, ("A cat and a cat.", "There may be a cat. There is no cat."))
    verdicts = [
        [[Verdict(c, "supported" if c.negated else "contradicted") for c in extract_claims(a)] for a in g.answers] for g in groups
    ]
    assert any(v.claim.hedged for v in verdicts[0][1]) and any(v.claim.negated for v in verdicts[0][1])
    slopes = first_slopes(groups, [[1.0, 3.0]] * 4, verdicts)
    assert (slopes["object"]["num_false"], slopes["object"]["num_true"], slopes["object"]["num_prompts"]) == (4, 0, 4)


def test_answers_of_unknown_truth_are_left_out():
    """Half of the prompts known give the figures of these prompts alone, not half the slope."""
    rng = np.random.default_rng(0)
    groups = make_groups(20, ("A cat.", "A cup.", "A cat and a hat."))
    verdicts, scores, base = make_verdicts(groups), rng.normal(size=(20, 3)), rng.normal(size=(20, 3))
    nothing, one = [None] * 3, [verdicts[0][0], None, None]
    partly = [answers if i < 10 else one if i < 15 else nothing for i, answers in enumerate(verdicts)]
    half = groups[:10], scores[:10]
    assert first_slopes(groups, scores, partly) == first_slopes(*half, verdicts[:10])
    assert compare_slopes(groups, scores, base, partly) == compare_slopes(*half, base[:10], verdicts[:10])
    explained = explained_variance(groups, scores, partly)["explained"]
    assert explained == explained_variance(*half, verdicts[:10])["explained"]
    assert explained_variance(groups, scores, [nothing] * 20)["explained"] is None
    assert measured_answers(partly) == [[0, 1, 2]] * 10 + [[]] * 10
    # Of three answers two are known: the third does not matter, whatever its score.
    two = first_slopes(groups, scores, [[a, b, None] for a, b, _ in verdicts])
    assert two == first_slopes(make_groups(20, ("A cat.", "A cup.")), scores[:, :2], [v[:2] for v in verdicts])


def test_variance_is_explained_by_claims_as_slopes_count_them():
    """A reward that counts distinct false claims is explained in full, whatever is said twice."""
    groups = make_groups(4, ("A cat and a cat and a hat.", "There may be a cat.", "A cat."))
    verdicts = make_verdicts(groups)
    assert explained_variance(groups, [[-2.0, 0.0, -1.0]] * 4, verdicts)["explained"]["value"] == pytest.approx(1)


def test_scores_after_those_of_the_answers_are_not_read():
    groups = make_groups(4, ("A cat.", "A cup."))
    verdicts = make_verdicts(groups)
    assert first_slopes(groups, [[1.0, 3.0, 9.0]] * 4, verdicts) == first_slopes(groups, [[1.0, 3.0]] * 4, verdicts)


def test_explained_variance_is_the_share_that_truth_explains():
    groups = make_groups(6)
    verdicts = make_verdicts(groups)
    # Answer 0 has cup, red, dog true and cat false; answer 1 has cup true and hat false.
    by_truth = [[float(i + 3), float(i + 1)] for i in range(6)]
    figures = explained_variance(groups, by_truth, verdicts)
    assert figures["within_std"] == pytest.approx(2**0.5)  # 1 and -1 around the mean, one degree of freedom
    assert figures["between_std"] == pytest.approx(np.std(range(6)))
    assert figures["explained"]["value"] == pytest.approx(1)
    # The sign of the difference is reversed in half of the prompts: nothing is explained.
    by_coin = [[1.0, -1.0] if i % 2 else [-1.0, 1.0] for i in range(6)]
    assert explained_variance(groups, by_coin, verdicts)["explained"]["value"] == pytest.approx(0, abs=1e-9)
    assert explained_variance(groups, by_coin, None)["explained"] is None
    single = [AnswerGroup((), (Message("user", "?"),), ("A cup.",))]
    assert explained_variance(single, [[1.0]], None) == {"within_std": None, "between_std": None, "explained": None}
