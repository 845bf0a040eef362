"""The list of reward functions, and functions of a user's file."""

import json

import pytest

from mmrlhf.records import ImageSource, InputError
from mmrlhf.rewards.ledger import score_samples
from mmrlhf.rewards.reward_terms import parse_reward_spec, resolve_rewards
from tests.rewards.test_ledger import make_sample


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
