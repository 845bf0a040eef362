"""How much runs at a time: micro-batches by tokens, not by rows, and half as many where a GPU's memory does not hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")
PADDING = 0.15
"""Share of a piece that may be padding."""
ENOUGH = 512
"""Tokens of a piece from which on padding is not borne for company."""


@dataclass(frozen=True)
class Piece:
    """Some prompts that run together, and their answers in batches, one after another on the same prefix. Both are numbers."""

    prompts: list[int]
    answers: list[list[int]]


@dataclass
class Budget:
    """Most tokens that run at a time: each prompt of a piece as long as its longest, once, and each answer as its longest."""

    tokens: int

    def within(self, work: Callable[..., T], *args: Any) -> T:
        """`work(*args)`, which plans itself by this budget; when a GPU runs out of memory, again with half of it. The work must clear what
        an attempt that failed has left (gradients)."""
        while True:
            try:
                return work(*args)
            except torch.OutOfMemoryError:
                if self.tokens <= 64:
                    raise
                self.tokens //= 2
                torch.cuda.empty_cache()
                print(f"note: out of GPU memory: going on with micro-batches of {self.tokens:,} tokens")

    def plan(self, prompts: Sequence[int], answers: Sequence[Sequence[int]]) -> Iterator[Piece]:
        """Pieces of all prompts, those with short answers first, from the lengths of prompts and, for each, of its answers; answers are
        numbered through. A piece ends where the next prompt is over the budget, or would make too much of it padding.

        Only where one prompt with its answers is over the budget are the answers split into batches, of one at least.
        """
        first, at = [], 0
        for group in answers:
            first.append(at)
            at += len(group)

        def padded(some: Sequence[int]) -> int:
            lengths = [n for p in some for n in answers[p]]
            return len(some) * max(prompts[p] for p in some) + len(lengths) * max(lengths, default=0)

        def real(some: Sequence[int]) -> int:
            return sum(prompts[p] + sum(answers[p]) for p in some)

        some: list[int] = []
        for p in sorted(range(len(prompts)), key=lambda p: (max(answers[p], default=0), prompts[p])):
            if some:
                more = padded([*some, p])
                if more > self.tokens or (real(some) >= ENOUGH and real([*some, p]) < (1 - PADDING) * more):
                    yield self._piece(some, prompts, answers, first)
                    some = []
            some.append(p)
        if some:
            yield self._piece(some, prompts, answers, first)

    def _piece(self, some: list[int], prompts: Sequence[int], answers: Sequence[Sequence[int]], first: list[int]) -> Piece:
        some = sorted(some)
        numbers = [first[p] + i for p in some for i in range(len(answers[p]))]
        longest = max((n for p in some for n in answers[p]), default=0)
        room = self.tokens - len(some) * max(prompts[p] for p in some)
        size = max(1, len(numbers) if len(some) > 1 else room // max(longest, 1))
        return Piece(some, [numbers[i : i + size] for i in range(0, len(numbers), size)])
