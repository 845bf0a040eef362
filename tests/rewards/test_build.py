"""Rewards that can never vary are refused: their rows lack what they read."""

import dataclasses
from types import SimpleNamespace

import pytest

from mmrlhf.config import FeedbackConfig, PPOConfig, RFTConfig
from mmrlhf.datasets import Records, read_examples
from mmrlhf.ppo import ppo
from mmrlhf.records import InputError
from mmrlhf.rewards.build import check_reward_rows, penalty_note
from mmrlhf.rewards.checkpoint import print_facts_note
from mmrlhf.rft import rft
from mmrlhf.training.feedback.settings import check_rows
from tests.helpers.rows import write_jsonl


def config(terms):
    return PPOConfig(model_name_or_path="m", dataset_name="rows.jsonl", output_dir="o", reward_terms=terms)


@pytest.mark.parametrize(
    ("terms", "field", "message"),
    [
        ("correctness=1, length=-1", "answer", "names correctness, and none of the 3 rows has an answer.*add `solution`"),
        ("coverage=1", "facts", "names coverage, which compares claims with facts.*give --facts_file.*coverage@vlm"),
        ("hallucination@facts=-1", "facts", "names hallucination@facts.*such as hallucination@vlm"),
    ],
)
def test_a_reward_without_what_it_reads_is_refused(examples, terms, field, message):
    check_reward_rows(config(terms), examples[:3])
    bare = [dataclasses.replace(example, **{field: {"answer": None, "facts": ()}[field]}) for example in examples[:3]]
    with pytest.raises(InputError, match=f"^rows.jsonl: reward_terms {message}"):
        check_reward_rows(config(terms), bare)
    check_reward_rows(config(terms), [*bare, examples[0]])
    check_reward_rows(config("length=1"), bare)


def test_correctness_alone_needs_an_answer_in_each_row(examples):
    rows = [examples[0], dataclasses.replace(examples[1], answer=None), examples[2]]
    with pytest.raises(
        InputError, match=f"correctness alone, and 1 of 3 rows have no answer to compare with, row {rows[1].id} first"
    ):
        check_reward_rows(config("correctness=1"), rows)
    check_reward_rows(config("correctness=1, missing_eos=-1"), rows)


def test_facts_of_a_table_are_not_looked_for_again(tmp_path, monkeypatch):
    rows = [{"images": [], "prompt": "?", "facts": []}] * 3 + [
        {"images": [], "prompt": "?", "facts": [{"kind": "ocr", "text": "x"}]}
    ]
    records = read_examples(write_jsonl(tmp_path, *rows))
    monkeypatch.setattr(Records, "__getitem__", None)  # a read would fail
    check_reward_rows(config("coverage=1"), records)
    print_facts_note("r", SimpleNamespace(facts="given"), records)
    check_rows(FeedbackConfig(model_name_or_path="m", dataset_name="d", output_dir="o", verifier="facts"), records)


def test_rows_of_llava_rlhf_need_no_answer_for_correctness(examples):
    row = dataclasses.replace(examples[0], answer=None, meta={"caption_type": 2})
    check_reward_rows(config("correctness=1"), [row])


@pytest.mark.parametrize(
    ("terms", "given", "negated"),
    [
        ("fact_rm=1, hallucination=1", "hallucination=1", "hallucination=-1"),
        (
            "hallucination@clip=0.5, missing_eos=-1, repetition=2",
            "hallucination@clip=0.5, repetition=2",
            "hallucination@clip=-0.5, repetition=-2",
        ),
    ],
)
def test_a_positive_weight_of_a_mistake_is_noted(terms, given, negated):
    assert penalty_note(terms) == (
        f"note: reward_terms has {given}: a positive weight rewards such mistakes; to penalise them, use {negated}"
    )


@pytest.mark.parametrize(("stage", "config_class"), [(ppo, PPOConfig), (rft, RFTConfig)])
def test_ppo_and_rft_print_the_note_before_they_load_a_model(stage, config_class, examples, tmp_path, capsys):
    settings = {"model_name_or_path": str(tmp_path / "missing"), "dataset_name": "x", "output_dir": str(tmp_path / "run")}
    with pytest.raises(InputError, match="missing"):
        stage(config_class(**settings, reward_terms="missing_eos=1"), examples)
    assert penalty_note("missing_eos=1") in capsys.readouterr().out


@pytest.mark.parametrize(
    "terms", ["hallucination=-1, missing_eos=-1, repetition=-1", "missing_eos=0, length=1, coverage=1", "my.py:repetition=1"]
)
def test_other_weights_are_not_noted(terms):
    assert penalty_note(terms) == ""
