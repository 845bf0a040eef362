"""How much runs at a time: micro-batches by tokens, not by rows, and half as many where a GPU's memory does not hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")
MAX_PADDING = 0.15
"""Share of a piece that may be padding."""
MIN_SPLIT_TOKENS = 512
"""Tokens of a piece from which on padding is not borne for company."""


@dataclass(frozen=True)
class MicroBatch:
    """Some prompts that run together, and their answers in batches, one after another on the same prefix. Both are numbers."""

    prompt_indices: list[int]
    answer_batches: list[list[int]]


@dataclass
class Budget:
    """Most tokens that run at a time: each prompt of a piece as long as its longest, once, and each answer as its longest."""

    max_tokens: int

    def retry_on_oom(self, work: Callable[..., T], *args: Any) -> T:
        """`work(*args)`, which plans itself by this budget; when a GPU runs out of memory, again with half of it. The work must clear what
        an attempt that failed has left (gradients)."""
        while True:
            try:
                return work(*args)
            except torch.OutOfMemoryError:
                if self.max_tokens <= 64:
                    raise
                self.max_tokens //= 2
                torch.cuda.empty_cache()
                print(f"note: out of GPU memory: going on with micro-batches of {self.max_tokens:,} tokens")

    def micro_batches(self, prompt_lengths: Sequence[int], answer_lengths: Sequence[Sequence[int]]) -> Iterator[MicroBatch]:
        """Pieces of all prompts, those with short answers first, from the lengths of prompts and, for each, of its answers; answers are
        numbered through. A piece ends where the next prompt is over the budget, or would make too much of it padding.

        Only where one prompt with its answers is over the budget are the answers split into batches, of one at least.
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

        selected: list[int] = []
        for p in sorted(range(len(prompt_lengths)), key=lambda p: (max(answer_lengths[p], default=0), prompt_lengths[p])):
            if selected:
                padded_size = padded_tokens([*selected, p])
                if padded_size > self.max_tokens or (
                    real_tokens(selected) >= MIN_SPLIT_TOKENS and real_tokens([*selected, p]) < (1 - MAX_PADDING) * padded_size
                ):
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
        selected = sorted(selected)
        answer_indices = [first_answer_index[p] + i for p in selected for i in range(len(answer_lengths[p]))]
        max_answer_length = max((n for p in selected for n in answer_lengths[p]), default=0)
        remaining_tokens = self.max_tokens - len(selected) * max(prompt_lengths[p] for p in selected)
        batch_size = max(1, len(answer_indices) if len(selected) > 1 else remaining_tokens // max(max_answer_length, 1))
        return MicroBatch(selected, [answer_indices[i : i + batch_size] for i in range(0, len(answer_indices), batch_size)])
