"""The order in which ppo uses prompts, and the share of each process."""

from __future__ import annotations

from collections.abc import Sequence

from accelerate import Accelerator

from mmrlhf.config import PPOConfig
from mmrlhf.engine.rollout import numbered_ids
from mmrlhf.models.processes import gather_object
from mmrlhf.records import Example
from mmrlhf.training.row_order import row_at

NumberedRow = tuple[Example, str]
"""A row, and its id in a step, in which it may occur again."""


class PromptOrder:
    """The order of the prompts, shuffled with a seed in each epoch, and how far a run has got.

    `position` is the number of prompts used so far, over all processes. A resumed run needs nothing
    else.
    """

    def __init__(self, examples: Sequence[Example], seed: int) -> None:
        self.position = 0
        self._examples, self._seed = examples, seed

    def take(self, count: int) -> list[Example]:
        """Return the next prompts."""
        positions = range(self.position, self.position + count)
        self.position += count
        return [self._examples[row_at(position, len(self._examples), self._seed)] for position in positions]


class StepPrompts:
    """Takes the prompts of one step.

    Prompt i goes to process i modulo the number of processes, and so does its replacement.
    """

    def __init__(self, config: PPOConfig, accelerator: Accelerator, prompt_order: PromptOrder) -> None:
        self.num_processes, self.rank = accelerator.num_processes, accelerator.process_index
        self.num_prompts = config.per_device_train_batch_size * self.num_processes
        self.taken: list[Example] = []
        self._order = prompt_order

    def take_all(self) -> dict[int, NumberedRow]:
        """Return this process's prompts by their place among its own."""
        return self.take(range(self.num_prompts))

    def take(self, slots: Sequence[int]) -> dict[int, NumberedRow]:
        """Return this process's prompts among the next ones, which take the places `slots`."""
        self.taken.extend(self._order.take(len(slots)))
        # A row that occurs twice in a step gets other answers the second time, also if the two are
        # on different processes.
        ids = numbered_ids([row.id for row in self.taken])
        numbered = zip(slots, list(zip(self.taken, ids, strict=True))[-len(slots) :], strict=True)
        return {slot // self.num_processes: row for slot, row in numbered if slot % self.num_processes == self.rank}

    def slots_of(self, is_chosen: Sequence[bool]) -> list[int]:
        """Return the places in the step of prompts, each process choosing among its own."""
        own = [i * self.num_processes + self.rank for i, chosen in enumerate(is_chosen) if chosen]
        return sorted(gather_object(own))
