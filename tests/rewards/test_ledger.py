"""The list of reward functions, the sums they make, and what happens when one fails."""

import json
import math

import pytest

from mmrlhf.records import ImageSource, InputError, Message
from mmrlhf.rewards.ledger import (
    RewardBreakdown,
    WeightedReward,
    ledger_rows,
    mean_values,
    parse_reward_spec,
    resolve_rewards,
    score_samples,
)
from mmrlhf.rewards.types import Sample


def make_sample(answer, **fields):
    return Sample(**{"id": "row-1", "images": (), "prompt": (Message("user", "?"),), "answer": answer, **fields})


def test_parse_reward_spec_reads_weights():
    assert parse_reward_spec("fact_rm=1, missing_eos=-2,x.py:f=.5") == {"fact_rm": 1.0, "missing_eos": -2.0, "x.py:f": 0.5}


@pytest.mark.parametrize(
    ("reward_terms", "message"),
    [
        ("fact_rm", r"reward_terms has 'fact_rm': write NAME=WEIGHT"),
        ("fact_rm=much", "write NAME=WEIGHT"),
        ("fact_rm=nan", "write NAME=WEIGHT"),
        ("length=1, length=2", "names length twice"),
        (" , ", "reward_terms is empty"),
    ],
)
def test_parse_reward_spec_refuses_malformed_lists(reward_terms, message):
    with pytest.raises(InputError, match=message):
        parse_reward_spec(reward_terms)


def test_resolve_rewards_loads_users_functions_and_refuses_unknown_names(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def polite(samples):\n    return [('please' in s.answer) for s in samples]\n\nnumber = 3\n"
    )
    (tmp_path / "broken.py").write_text("def (")
    (polite,) = resolve_rewards(f"{tmp_path}/mine.py:polite=0.5", {})
    assert score_samples([polite], [make_sample("please"), make_sample("now")], tmp_path / "unused.json")[0].total == 0.5
    for name, message in {
        "lenght": "names lenght, which does not exist: use answer_format, correctness, length",
        f"{tmp_path}/gone.py:f": "gone.py does not exist",
        f"{tmp_path}/mine.py:rude": "has no function rude",
        f"{tmp_path}/mine.py:number": "has no function number",
        f"{tmp_path}/broken.py:f": "cannot be imported .SyntaxError",
    }.items():
        with pytest.raises(InputError, match=message):
            resolve_rewards(f"{name}=1", {})


def test_functions_of_a_users_file_share_one_module(tmp_path):
    """It may load a model; a corrected file is read again."""
    file = tmp_path / "mine.py"
    file.write_text("calls = []\ndef a(samples):\n    calls.append(1)\n    return [len(calls)] * len(samples)\nb = a\n")
    for total in (1 + 2, 3 + 4):
        rewards = resolve_rewards(f"{file}:a=1, {file}:b=1", {})
        assert score_samples(rewards, [make_sample("x")], tmp_path / "unused.json")[0].total == total
    file.write_text("def a(samples):\n    return [100.0] * len(samples)\n")
    (corrected,) = resolve_rewards(f"{file}:a=1", {})
    assert corrected.function([make_sample("x")]) == [100.0]


def test_resolve_rewards_loads_user_file_with_dataclasses(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom mmrlhf.records import InputError\n"
        "@dataclass\nclass Word:\n    text: str\n"
        "def mine(samples):\n    raise InputError(f'image {Word(samples[0].id).text} is damaged')\n"
    )
    rewards = resolve_rewards(f"{tmp_path / 'mine.py'}:mine=1", {})
    sample = make_sample("A mug.", id="row-7", images=(ImageSource(data=b"\x89PNG"),))
    message = r"reward function .*mine raised InputError: image row-7 is damaged on an answer to row row-7"
    with pytest.raises(InputError, match=message):
        score_samples(rewards, [sample], tmp_path / "failed.json")
    assert json.loads((tmp_path / "failed.json").read_text())["images"] == [{"base64": "iVBORw=="}]


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
