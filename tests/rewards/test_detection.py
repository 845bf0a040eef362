"""Detection rates by hand: TPR, FPR and J of rewards whose decisions are known."""

import numpy as np
import pytest

from mmrlhf.claims import extract_claims
from mmrlhf.records import Message, Verdict
from mmrlhf.rewards.detection import detection_rates, removals, score_rises, with_removals
from mmrlhf.rewards.reward_model import AnswerGroup

ANSWERS = ("There is a red cup, a dog and a cat.", "There is a cup and a hat.")
FALSE_WORDS = {"cat", "hat"}
"""What the images do not show."""


def make_groups(num_groups=2):
    return [AnswerGroup((), (Message("user", "?"),), ANSWERS, (), str(i)) for i in range(num_groups)]


def make_verdicts(groups, false_words=FALSE_WORDS):
    return [
        [[Verdict(c, "contradicted" if c.subject in false_words else "supported") for c in extract_claims(a)] for a in g.answers]
        for g in groups
    ]


def count_words(words):
    """Return a reward that is minus the number of times that these words occur."""
    return lambda groups: [[-float(sum(a.count(w) for w in words)) for a in g.answers] for g in groups]


def measure_detection(groups, verdicts, score, **settings):
    found = removals(groups, verdicts)
    return detection_rates(found, score_rises(groups, found, score(with_removals(groups, found))), **settings)


def test_a_reward_that_knows_the_truth_has_j_of_1():
    groups = make_groups()
    rates = measure_detection(groups, make_verdicts(groups), count_words(FALSE_WORDS))
    assert rates["object"]["TPR"]["value"] == 1 and rates["object"]["FPR"]["value"] == 0
    assert rates["object"]["J"] == {"value": 1, "low": 1, "high": 1}
    # Each group: cat and hat are false; cup, dog, cup are true, as is red.
    assert (rates["object"]["num_false"], rates["object"]["num_true"], rates["attribute"]["num_true"]) == (4, 6, 2)
    assert rates["object"]["rise_false"] == 1 and rates["object"]["rise_true"] == 0
    assert rates["attribute"]["TPR"] is None and rates["attribute"]["J"] is None
    assert rates["all"]["num_true"] == 8


@pytest.mark.parametrize(
    ("words", "tpr", "fpr"),
    [
        (("dog", "cup"), 0, 1),  # a reward with the truth upside down
        (("a ",), 1, 1),  # one that likes short answers
        ((), 0, 0),  # one that does not care
        (("hat",), 1 / 2, 0),
        (("hat", "dog"), 1 / 2, 1 / 3),
    ],
)
def test_rates_follow_from_the_words_that_a_reward_dislikes(words, tpr, fpr):
    groups = make_groups()
    rates = measure_detection(groups, make_verdicts(groups), count_words(words))["object"]
    assert rates["TPR"]["value"] == pytest.approx(tpr) and rates["FPR"]["value"] == pytest.approx(fpr)
    assert rates["J"]["value"] == pytest.approx(tpr - fpr)


def test_claims_whose_removal_is_neither_right_nor_wrong_are_left_out():
    (group,) = make_groups(1)
    claims = extract_claims(ANSWERS[0])
    values = {"cup": "supported", "dog": "unknown", "cat": "supported"}
    verdicts = [Verdict(c, "contradicted" if c.kind == "attribute" else values[c.subject]) for c in claims]
    found = removals([group], [[verdicts, []]])
    # The cup takes its wrong colour with it, and nothing is known of the dog.
    assert [(r.claim.kind, r.claim.subject, r.is_false) for r in found] == [("attribute", "cup", True), ("object", "cat", False)]
    assert [r.answer for r in found] == ["There is a cup, a dog and a cat.", "There is a red cup and a dog."]


def test_intervals_resample_prompts_not_claims():
    groups = make_groups(20)
    found = removals(groups, make_verdicts(groups))
    # In every other group all false claims are found, in the rest none.
    rises = [float(r.is_false and r.group_index % 2 == 0) for r in found]
    rates = detection_rates(found, rises, seed=1)["object"]
    assert rates["J"]["value"] == pytest.approx(0.5)
    # 20 prompts, half of them 1: the standard error is sqrt(.25 / 20) = .11, not that of 40 claims.
    assert rates["J"]["low"] == pytest.approx(0.5 - 1.96 * 0.112, abs=0.05)
    assert rates["J"]["high"] == pytest.approx(0.5 + 1.96 * 0.112, abs=0.05)


def test_kinds_may_be_of_the_callers_making():
    groups = make_groups()
    rates = measure_detection(groups, make_verdicts(groups), count_words(FALSE_WORDS), kind_of=lambda claim: claim.subject)
    assert set(rates) == {"all", "cat", "cup", "dog", "hat"} and rates["cat"]["num_true"] == 0


def test_answers_without_claims_have_no_rates():
    group = AnswerGroup((), (Message("user", "?"),), ("Yes.",))
    rates = measure_detection([group], [[[]]], lambda groups: [[0.0]])
    assert rates == {
        "all": {"TPR": None, "FPR": None, "J": None, "num_false": 0, "num_true": 0, "rise_false": None, "rise_true": None}
    }
    assert np.array_equal(score_rises([group], [], [[0.0]]), np.zeros(0))
