"""Rewards that can never vary are refused: their rows lack what they read."""

import dataclasses

import pytest

from mmrlhf.config import PPOConfig
from mmrlhf.records import InputError
from mmrlhf.rewards.build import check_reward_rows


def config(terms):
    return PPOConfig(model_name_or_path="m", dataset_name="rows.jsonl", output_dir="o", reward_terms=terms)


@pytest.mark.parametrize(
    ("terms", "field", "message"),
    [
        ("correctness=1", "answer", "names correctness, and none of the 3 rows has an answer.*add `solution`"),
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


def test_rows_of_llava_rlhf_need_no_answer_for_correctness(examples):
    row = dataclasses.replace(examples[0], answer=None, meta={"caption_type": 2})
    check_reward_rows(config("correctness=1"), [row])
