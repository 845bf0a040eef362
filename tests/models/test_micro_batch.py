"""Micro-batches by tokens: planning them, and halving them when a GPU runs out of memory."""

import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.models.micro_batch import Budget, MicroBatch


def test_plan_batches_prompts_while_they_fit():
    # Two prompts of 10 with answers of 5, 5 and 5: 2 x 10 + 3 x 5 = 35 tokens. A third prompt would
    # make it 3 x 10 + 4 x 5 = 50.
    micro_batches = list(Budget(40).micro_batches([10, 10, 10], [[5, 5], [5], [5]]))
    assert micro_batches == [MicroBatch([0, 1], [[0, 1, 2]]), MicroBatch([2], [[3]])]


def test_plan_separates_short_answers_from_long_ones():
    # Twelve answers of 5 to prompts of 60 are 780 tokens; with one of 100 they would be padded to
    # 13 x 160 = 2,080.
    micro_batches = Budget(100_000).micro_batches([60] * 13, [[5]] * 6 + [[100]] + [[5]] * 6)
    assert [m.prompt_indices for m in micro_batches] == [[0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12], [6]]


def test_plan_keeps_small_batches_together():
    assert [m.prompt_indices for m in Budget(100_000).micro_batches([10, 10], [[5], [100]])] == [[0, 1]]


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
    prompt_lengths, answer_lengths = [prompt for prompt, _ in rows], [answers for _, answers in rows]
    micro_batches = list(Budget(tokens).micro_batches(prompt_lengths, answer_lengths))
    assert sorted(p for m in micro_batches for p in m.prompt_indices) == list(range(len(rows)))
    prompt_of_answer = [p for p, answers in enumerate(answer_lengths) for _ in answers]
    flat_lengths = [length for answers in answer_lengths for length in answers]
    for m in micro_batches:
        expected = [i for i, p in enumerate(prompt_of_answer) if p in m.prompt_indices]
        assert m.prompt_indices == sorted(m.prompt_indices)
        assert [i for batch in m.answer_batches for i in batch] == expected
        longest_prompt = max(prompt_lengths[p] for p in m.prompt_indices)
        for batch in m.answer_batches:
            padded = len(m.prompt_indices) * longest_prompt + len(batch) * max(flat_lengths[i] for i in batch)
            assert padded <= tokens or (len(m.prompt_indices) == 1 and len(batch) == 1)


def test_retry_on_oom_halves_the_token_budget(capsys):
    budget, tried = Budget(1000), []

    def work(name):
        tried.append(budget.max_tokens)
        if budget.max_tokens > 300:
            raise torch.OutOfMemoryError
        return name

    assert budget.retry_on_oom(work, "done") == "done" and tried == [1000, 500, 250]
    assert "out of GPU memory: going on with micro-batches of 250 tokens" in capsys.readouterr().out


def test_retry_on_oom_frees_the_failed_attempt_before_it_empties_the_cache(monkeypatch):
    budget, attempts, alive = Budget(1000), [], []

    class Activations:
        pass

    def work():
        activations = Activations()
        attempts.append(weakref.ref(activations))
        if len(attempts) == 1:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(attempts[0]() is not None))
    budget.retry_on_oom(work)
    assert alive == [False]


def test_retry_on_oom_raises_when_nothing_fits():
    def work():
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        Budget(1000).retry_on_oom(work)
