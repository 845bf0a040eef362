"""Split work into micro-batches by tokens, not rows; halve them if a GPU runs out of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")
MAX_PADDING = 0.15
"""Share of a micro-batch that may be padding."""
MIN_SPLIT_TOKENS = 512
"""Micro-batches with at least this many real tokens are split rather than padded beyond
MAX_PADDING. Smaller ones run faster together, padding included."""
MIN_BUDGET = 64
"""A budget of this many tokens or fewer is not halved again."""


@dataclass(frozen=True)
class MicroBatch:
    """Prompts that are prefilled together, and their answers in batches that run in turn."""

    prompt_indices: list[int]
    """Sorted."""
    answer_batches: list[list[int]]
    """Indices of answers, numbered across all prompts."""


@dataclass
class Budget:
    """Maximum padded tokens per micro-batch.

    Each prompt counts once at the longest prompt's length, each answer at the longest answer's.
    """

    max_tokens: int

    def retry_on_oom(self, work: Callable[..., T], *args: Any) -> T:
        """Run `work(*args)`; on CUDA out-of-memory halve the budget and retry.

        `work` plans its micro-batches by this budget. It must be safe to rerun: it clears gradients
        left by a failed attempt. Raises torch.OutOfMemoryError if even MIN_BUDGET does not fit.
        """
        while True:
            try:
                return work(*args)
            except torch.OutOfMemoryError:
                if self.max_tokens <= MIN_BUDGET:
                    raise
            # Not within `except`, where the traceback keeps the failed attempt's tensors alive.
            self.max_tokens //= 2
            torch.cuda.empty_cache()
            print(f"note: out of GPU memory: going on with micro-batches of {self.max_tokens:,} tokens")

    def micro_batches(self, prompt_lengths: Sequence[int], answer_lengths: Sequence[Sequence[int]]) -> Iterator[MicroBatch]:
        """Yield micro-batches that cover all prompts and answers, those with short answers first.

        `answer_lengths` holds the lengths of each prompt's answers. A micro-batch ends if the next
        prompt would exceed the budget or pad too much. Answers are split into several batches only
        if a single prompt with all of its answers exceeds the budget; a batch has at least one
        answer.
        """
        first_answer_index, num_answers = [], 0
        for group in answer_lengths:
            first_answer_index.append(num_answers)
            num_answers += len(group)

        def padded_tokens(selected: Sequence[int]) -> int:
            lengths = [n for p in selected for n in answer_lengths[p]]
            return len(selected) * max(prompt_lengths[p] for p in selected) + len(lengths) * max(lengths, default=0)

        def real_tokens(selected: Sequence[int]) -> int:
            return sum(prompt_lengths[p] + sum(answer_lengths[p]) for p in selected)

        def should_split(selected: Sequence[int], p: int) -> bool:
            padded_size = padded_tokens([*selected, p])
            if padded_size > self.max_tokens:
                return True
            is_large = real_tokens(selected) >= MIN_SPLIT_TOKENS
            return is_large and real_tokens([*selected, p]) < (1 - MAX_PADDING) * padded_size

        # Put similar lengths next to each other, for little padding.
        order = sorted(range(len(prompt_lengths)), key=lambda p: (max(answer_lengths[p], default=0), prompt_lengths[p]))
        selected: list[int] = []
        for p in order:
            if selected and should_split(selected, p):
                yield self._micro_batch(selected, prompt_lengths, answer_lengths, first_answer_index)
                selected = []
            selected.append(p)
        if selected:
            yield self._micro_batch(selected, prompt_lengths, answer_lengths, first_answer_index)

    def _micro_batch(
        self,
        selected: list[int],
        prompt_lengths: Sequence[int],
        answer_lengths: Sequence[Sequence[int]],
        first_answer_index: list[int],
    ) -> MicroBatch:
        """Build a micro-batch of these prompts; split a lone prompt's answers to fit the budget."""
        selected = sorted(selected)
        answer_indices = [first_answer_index[p] + i for p in selected for i in range(len(answer_lengths[p]))]
        max_answer_length = max((n for p in selected for n in answer_lengths[p]), default=0)
        remaining_tokens = self.max_tokens - len(selected) * max(prompt_lengths[p] for p in selected)
        batch_size = max(1, len(answer_indices) if len(selected) > 1 else remaining_tokens // max(max_answer_length, 1))
        return MicroBatch(selected, [answer_indices[i : i + batch_size] for i in range(0, len(answer_indices), batch_size)])
