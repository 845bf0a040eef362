"""Answers that a reader of rows refuses are none that rounds of training learn."""

import pytest

from mmrlhf.datasets import read_examples
from mmrlhf.records import Message
from mmrlhf.rewards.types import Sample
from mmrlhf.training.sampled_answers import why_unusable
from tests.helpers.rows import error_of, write_jsonl


@pytest.mark.parametrize(("answer", "reason"), [("A\0dog.", "with a NUL character"), ("\u200b", "empty")])
def test_what_the_reader_refuses_is_unusable(tmp_path, answer, reason):
    sample = Sample("1", (), (Message("user", "?"),), answer, finished=True)
    assert why_unusable(sample, str) == reason
    path = write_jsonl(tmp_path, {"images": [], "prompt": "?", "completion": answer})
    assert "line 1: `completion`" in error_of(read_examples, path)
