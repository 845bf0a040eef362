"""The order in which ppo takes prompts."""

from __future__ import annotations

from collections.abc import Sequence

from mmrlhf.records import Example
from mmrlhf.training.optim import batch_indices


class PromptOrder:
    """A seeded shuffle of the prompts in every epoch, as far as a run has got in it.

    `position` is the number of prompts taken so far, over all processes: all that a resumed run
    needs.
    """

    def __init__(self, examples: Sequence[Example], seed: int) -> None:
        self.position = 0
        self._examples, self._seed = examples, seed

    def take(self, count: int) -> list[Example]:
        """Return the next prompts."""
        positions = range(self.position, self.position + count)
        self.position += count
        return [self._examples[i] for p in positions for i in batch_indices(p, 1, len(self._examples), self._seed)]
