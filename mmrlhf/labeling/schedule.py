"""The choice of an annotator's next task, from labelled tasks and the open tasks of others.

Nothing here is stored: the schedule is computed from the events of a store.
"""

from __future__ import annotations

import bisect
import hashlib
from collections import defaultdict
from typing import Literal

from mmrlhf.labeling.store import TaskEntry

Order = Literal["file", "random", "uncertainty"]
LEASE_SECONDS = 1800.0
"""How long a task stays with an annotator who does not answer, before others also get it."""


class Schedule:
    """Tasks that still need labels, most urgent first.

    overlap: annotators who label each task. gold_every: one task in this many is a gold question,
    as long as an annotator has new ones; 0 for none. Everyone gets all of them, in the same order,
    at places drawn for each annotator from `seed` and `secret`, so that neither a count nor the
    seed reveals them.
    """

    def __init__(self, overlap: int, gold_every: int, order: Order, seed: int, secret: str) -> None:
        self._overlap, self._gold_every, self._order, self._seed, self._secret = overlap, gold_every, order, seed, secret
        self._keys: dict[int, tuple[float, int]] = {}
        self._open: list[tuple[tuple[float, int], int]] = []
        """Sort keys and ids of tasks with fewer than `overlap` labels."""
        self._gold: list[int] = []
        self._labelled_by: dict[int, set[int]] = defaultdict(set)
        self._answered: dict[int, set[int]] = defaultdict(set)
        """The tasks that each annotator has labelled, skipped or flagged."""
        self._num_labels: dict[int, int] = defaultdict(int)
        self._leases: dict[int, dict[int, float]] = defaultdict(dict)
        """By task, the annotators who have it open, and since when."""

    def add(self, entry: TaskEntry) -> None:
        """Add a task."""
        if entry.is_gold:
            self._gold.append(entry.id)
            return
        urgency = 0.0
        if self._order == "random":
            urgency = int.from_bytes(hashlib.sha256(f"{self._seed} {entry.id}".encode()).digest()[:6])
        elif self._order == "uncertainty":  # tasks without any come last
            urgency = float("inf") if entry.uncertainty is None else -entry.uncertainty
        self._keys[entry.id] = (urgency, entry.id)
        bisect.insort(self._open, (self._keys[entry.id], entry.id))

    def lease(self, annotator: int, task: int, now: float) -> None:
        """Record that an annotator has a task open since `now`."""
        self._leases[task][annotator] = now

    def release(self, annotator: int, task: int) -> None:
        """Record that an annotator no longer has a task open."""
        self._leases[task].pop(annotator, None)

    def may_keep(self, annotator: int, task: int, now: float) -> bool:
        """Return whether an annotator keeps an open task: for LEASE_SECONDS, and after that if
        nobody else has taken it over."""
        since = self._leases[task].get(annotator)
        if since is not None and now - since < LEASE_SECONDS:
            return True
        if task in self._keys and not self._has_room(annotator, task, now):
            return False
        self.lease(annotator, task, now)
        return True

    def answer(self, annotator: int, task: int, kind: str) -> None:
        """Record an answer: a label, or that the annotator does not label the task."""
        self.release(annotator, task)
        self._answered[annotator].add(task)
        if kind == "label":
            self._num_labels[annotator] += 1
            self._labelled_by[task].add(annotator)
            if task in self._keys and len(self._labelled_by[task]) == self._overlap:
                self._open.remove((self._keys[task], task))

    def take_back(self, annotator: int, task: int, kind: str) -> None:
        """Record that an answer was taken back."""
        self._answered[annotator].discard(task)
        if kind == "label":
            self._num_labels[annotator] -= 1
            self._labelled_by[task].discard(annotator)
            if task in self._keys and len(self._labelled_by[task]) == self._overlap - 1:
                bisect.insort(self._open, (self._keys[task], task))

    def has_answered(self, annotator: int, task: int) -> bool:
        """Return whether an annotator has a current answer to a task."""
        return task in self._answered[annotator]

    def next(self, annotator: int, now: float) -> int | None:
        """Return an annotator's next task, None if there is none left for them."""
        answered = self._answered[annotator]
        task = next((task for _, task in self._open if task not in answered and self._has_room(annotator, task, now)), None)
        if task is None or not self._gold_every:
            return task
        if len(answered) == self._gold_place(annotator, len(answered) // self._gold_every):
            return next((gold for gold in self._gold if gold not in answered), task)
        return task

    def _gold_place(self, annotator: int, block: int) -> int:
        """Return how many answers come before the gold question of a block of `gold_every`."""
        drawn = hashlib.sha256(f"{self._seed} {self._secret} gold {annotator} {block}".encode()).digest()[:6]
        return block * self._gold_every + int.from_bytes(drawn) % self._gold_every

    def _has_room(self, annotator: int, task: int, now: float) -> bool:
        waiting = sum(
            other != annotator and other not in self._labelled_by[task] and now - since < LEASE_SECONDS
            for other, since in self._leases[task].items()
        )
        return len(self._labelled_by[task]) + waiting < self._overlap

    def num_labels(self, annotator: int) -> int:
        """Return the number of an annotator's current labels."""
        return self._num_labels[annotator]

    def num_left(self, annotator: int) -> int:
        """Return how many tasks an annotator may still get, others permitting, gold questions
        included: a count that left them out would give them away."""
        answered = self._answered[annotator]
        num_answered = sum(task in self._keys and len(self._labelled_by[task]) < self._overlap for task in answered)
        num_open = len(self._open) - num_answered
        return num_open + self._num_gold_left(annotator, num_open)

    def _num_gold_left(self, annotator: int, num_open: int) -> int:
        """Return how many gold questions come before the last of an annotator's open tasks."""
        answered = self._answered[annotator]
        if not self._gold_every:
            return 0
        num_unseen = sum(gold not in answered for gold in self._gold)
        num_gold, block = 0, len(answered) // self._gold_every
        while num_gold < num_unseen:
            num_before = self._gold_place(annotator, block) - len(answered)  # tasks, gold ones included
            if num_before - num_gold >= num_open:
                break
            num_gold += num_before >= 0
            block += 1
        return num_gold
