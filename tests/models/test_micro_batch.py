"""Micro-batches by tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.models.micro_batch import Budget, MicroBatch


def test_plan_batches_prompts_while_they_fit():
    # Two prompts of 10 with answers of 5, 5 and 5: 2 x 10 + 3 x 5 = 35. A third prompt would make 3 x 10 + 4 x 5 = 50.
    found = list(Budget(40).micro_batches([10, 10, 10], [[5, 5], [5], [5]]))
    assert found == [MicroBatch([0, 1], [[0, 1, 2]]), MicroBatch([2], [[3]])]


def test_plan_separates_short_answers_from_long_ones():
    # Twelve answers of 5 on prompts of 60 are 780 tokens; beside one of 100 they would be padded to 13 x 160 = 2,080.
    found = list(Budget(100_000).micro_batches([60] * 13, [[5]] * 6 + [[100]] + [[5]] * 6))
    assert [piece.prompt_indices for piece in found] == [[0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12], [6]]


def test_plan_keeps_small_batches_together():
    assert [piece.prompt_indices for piece in Budget(100_000).micro_batches([10, 10], [[5], [100]])] == [[0, 1]]


def test_plan_splits_many_answers_to_one_prompt():
    # 10 + 2 x 5 = 20 fit; five answers are three batches on one prefix.
    assert list(Budget(20).micro_batches([10], [[5] * 5])) == [MicroBatch([0], [[0, 1], [2, 3], [4]])]


def test_plan_runs_oversized_answer_alone():
    assert list(Budget(1).micro_batches([10, 10], [[5, 5], [7]])) == [MicroBatch([0], [[0], [1]]), MicroBatch([1], [[2]])]


@given(
    rows=st.lists(st.tuples(st.integers(1, 50), st.lists(st.integers(1, 50), max_size=6)), min_size=1, max_size=12),
    tokens=st.integers(1, 400),
)
def test_plan_covers_every_answer_once(rows, tokens):
    prompts, answers = [p for p, _ in rows], [a for _, a in rows]
    pieces = list(Budget(tokens).micro_batches(prompts, answers))
    assert sorted(p for piece in pieces for p in piece.prompt_indices) == list(range(len(rows)))
    owner = [p for p, group in enumerate(answers) for _ in group]
    for piece in pieces:
        numbers = [i for batch in piece.answer_batches for i in batch]
        assert piece.prompt_indices == sorted(piece.prompt_indices) and numbers == [
            i for i, p in enumerate(owner) if p in piece.prompt_indices
        ]
    lengths = [n for a in answers for n in a]
    for piece in pieces:
        longest = max(prompts[p] for p in piece.prompt_indices)
        for batch in piece.answer_batches:
            cost = len(piece.prompt_indices) * longest + len(batch) * max(lengths[i] for i in batch)
            assert cost <= tokens or (len(piece.prompt_indices) == 1 and len(batch) == 1)


def test_retry_on_oom_halves_the_token_budget(capsys):
    budget, asked = Budget(1000), []

    def work(name):
        asked.append(budget.max_tokens)
        if budget.max_tokens > 300:
            raise torch.OutOfMemoryError
        return name

    assert budget.retry_on_oom(work, "done") == "done" and asked == [1000, 500, 250]
    assert "out of GPU memory: going on with micro-batches of 250 tokens" in capsys.readouterr().out


def test_retry_on_oom_raises_when_nothing_fits():
    def work():
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        Budget(1000).retry_on_oom(work)
