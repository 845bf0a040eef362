"""The sums that reward functions make, and what happens when one fails."""

import json
import math

import pytest

from mmrlhf.records import ImageSource, InputError, Message
from mmrlhf.rewards.ledger import RewardBreakdown, ledger_rows, mean_values, score_samples
from mmrlhf.rewards.reward_terms import WeightedReward
from mmrlhf.rewards.types import Sample


def make_sample(answer, **fields):
    return Sample(**{"id": "row-1", "images": (), "prompt": (Message("user", "?"),), "answer": answer, **fields})


WHOLE = WeightedReward("whole", 2.0, lambda samples: [1.5 for _ in samples])
SPANS = WeightedReward("spans", -1.0, lambda samples: [[(0, 3, 1.0), (4, 7, 0.25)] for _ in samples])


def test_score_samples_adds_up(tmp_path):
    (breakdown,) = score_samples([WHOLE, SPANS], [make_sample("one two three")], tmp_path / "unused.json")
    spans, weights = {"spans": [(0, 3, -1.0), (4, 7, -0.25)]}, {"whole": 2.0, "spans": -1.0}
    assert breakdown == RewardBreakdown({"whole": 3.0, "spans": -1.25}, spans, {"whole": 1.5, "spans": 1.25}, weights)
    assert (breakdown.answer_total, breakdown.total) == (3.0, 1.75) and breakdown.weighted_values == breakdown.terms


def test_a_function_need_not_apply_to_every_answer(tmp_path):
    rewards = [
        WeightedReward("length", -1.0, lambda samples: [float(len(s.answer)) for s in samples]),
        WeightedReward("number", 2.0, lambda samples: [float(s.answer == "4") if s.answer.isdigit() else None for s in samples]),
    ]
    breakdowns = score_samples(rewards, [make_sample(a) for a in ("4", "55", "a cup")], tmp_path / "unused.json")
    assert [b.terms for b in breakdowns] == [{"length": -1, "number": 2}, {"length": -2, "number": 0}, {"length": -5}]
    assert [b.total for b in breakdowns] == [1, -2, -5]
    assert mean_values([b.weighted_values for b in breakdowns]) == {"length": pytest.approx(-8 / 3), "number": 1}
    with pytest.raises(InputError, match="number returned None, as every other one did, on an answer to row row-1"):
        score_samples(rewards[1:], [make_sample("4"), make_sample("a cup")], tmp_path / "failed.json")
    assert json.loads((tmp_path / "failed.json").read_text())["answer"] == "a cup"


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda samples: [1 / (len(s.answer) - 3) for s in samples], "raised ZeroDivisionError.*row row-1"),
        (lambda samples: [math.nan if s.answer == "two" else 0 for s in samples], "returned nan"),
        (lambda samples: [1.0], "returned 1 values for 2 samples"),
        (lambda samples: [[(0, 99, 1.0)] for _ in samples], "returned the span 0..99 of an answer of 5 characters"),
        (lambda samples: [[(0, 2, math.inf)] for _ in samples], "returned inf for the span 0..2"),
        (lambda samples: [[(0.0, 2.0, 1.0)] for _ in samples], "neither a number, a list"),
        (lambda samples: [10**400 for _ in samples], "returned a number that is beyond float64"),
        (lambda samples: [[(0, 2, -(10**400))] for _ in samples], "returned a number that is beyond float64"),
        (lambda samples: ["good" for _ in samples], "neither a number, a list"),
        (lambda samples: None, "raised TypeError"),
    ],
)
def test_score_samples_names_failing_function_and_keeps_sample(function, problem, tmp_path):
    failure_file = tmp_path / "failed_term.json"
    samples = [make_sample("three"), make_sample("two", meta={"key": {1}})]
    message = f"reward function mine .*{problem}.*failed_term.json: correct the function"
    with pytest.raises(InputError, match=message) as caught:
        score_samples([WeightedReward("mine", 1.0, function)], samples, failure_file)
    assert "\n" not in str(caught.value)
    record = json.loads(failure_file.read_text())
    assert record["term"] == "mine" and record["answer"] in ("three", "two")
    assert record["prompt"] == [{"role": "user", "content": "?"}]


def test_score_samples_says_if_a_weight_makes_a_value_too_large(tmp_path):
    reward = WeightedReward("mine", 1e300, lambda samples: [0.5])
    with pytest.raises(InputError, match=r"returned 0.5, which times its weight 1e\+300 is beyond float32, on"):
        score_samples([reward], [make_sample("two")], tmp_path / "failed_term.json")


def test_ledger_rows_add_up_to_total(tmp_path):
    sample = make_sample("one two three", images=(ImageSource(path="a.png"),))
    breakdowns = score_samples([WHOLE, SPANS], [sample], tmp_path / "unused.json")
    (row,) = ledger_rows([sample], breakdowns, [1.5], [[{"claim": "a dog"}]])
    assert row["terms"] == {"whole": 3.0, "spans": -1.25} and row["kl"] == -0.25 and row["total"] == 1.5
    assert row["spans"] == {"spans": [(0, 3, -1.0), (4, 7, -0.25)]}
    assert row["images"] == ["a.png"] and row["question"] == "?" and row["claims"] == [{"claim": "a dog"}]
    (row,) = ledger_rows([sample], score_samples([WHOLE], [sample], tmp_path / "unused.json"), [3.0], None)
    assert set(row) == {"id", "answer", "terms", "kl", "total"}
