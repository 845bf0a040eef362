"""Which task an annotator gets next, from what has been labelled and what others have before them.

Nothing here is stored: the schedule follows from the events of a store.
"""

from __future__ import annotations

import bisect
import hashlib
from collections import defaultdict
from typing import Literal

from mmrlhf.labeling.store import TaskEntry

Order = Literal["file", "random", "uncertainty"]
LEASE_SECONDS = 1800.0
"""How long a task stays with an annotator who does not answer; then others get it, too."""


class Schedule:
    """Tasks that still need labels, most urgent first.

    overlap: annotators who label each task. gold_every: every which task of an annotator is a gold
    question, as long as there are any; 0 for none. Everyone gets all gold questions, in one order.
    """

    def __init__(self, overlap: int, gold_every: int, order: Order, seed: int) -> None:
        self._overlap, self._gold_every, self._order, self._seed = overlap, gold_every, order, seed
        self._keys: dict[int, tuple[float, int]] = {}
        self._open: list[tuple[tuple[float, int], int]] = []
        """Sort keys and ids of tasks with fewer than `overlap` labels."""
        self._gold: list[int] = []
        self._labelled_by: dict[int, set[int]] = defaultdict(set)
        self._answered: dict[int, set[int]] = defaultdict(set)
        """The tasks that each annotator has labelled, skipped or flagged."""
        self._num_labels: dict[int, int] = defaultdict(int)
        self._leases: dict[int, dict[int, float]] = defaultdict(dict)
        """By task, the annotators who have it before them, and since when."""
        self._leased: dict[int, int] = {}
        """By annotator, the task that they have before them."""

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
        """Note that an annotator has a task before them, and no other."""
        self.release(annotator)
        self._leases[task][annotator] = now
        self._leased[annotator] = task

    def release(self, annotator: int) -> None:
        """Note that an annotator has no task before them."""
        task = self._leased.pop(annotator, None)
        if task is not None:
            self._leases[task].pop(annotator, None)

    def answer(self, annotator: int, task: int, kind: str) -> None:
        """Note an answer: a label, or that the annotator does not label the task."""
        if self._leased.get(annotator) == task:
            self.release(annotator)
        self._answered[annotator].add(task)
        if kind == "label":
            self._num_labels[annotator] += 1
            self._labelled_by[task].add(annotator)
            if task in self._keys and len(self._labelled_by[task]) == self._overlap:
                self._open.remove((self._keys[task], task))

    def take_back(self, annotator: int, task: int, kind: str) -> None:
        """Note that an answer was taken back."""
        self._answered[annotator].discard(task)
        if kind == "label":
            self._num_labels[annotator] -= 1
            self._labelled_by[task].discard(annotator)
            if task in self._keys and len(self._labelled_by[task]) == self._overlap - 1:
                bisect.insort(self._open, (self._keys[task], task))

    def has_answered(self, annotator: int, task: int) -> bool:
        """Return whether an annotator's answer to a task stands."""
        return task in self._answered[annotator]

    def next(self, annotator: int, now: float) -> int | None:
        """Return the task that an annotator gets now, None if there is nothing left for them."""
        answered = self._answered[annotator]
        if annotator in self._leased:
            return self._leased[annotator]
        task = next((task for _, task in self._open if task not in answered and self._has_room(annotator, task, now)), None)
        if self._gold_every and task is not None and (self._num_labels[annotator] + 1) % self._gold_every == 0:
            return next((gold for gold in self._gold if gold not in answered), task)
        return task

    def _has_room(self, annotator: int, task: int, now: float) -> bool:
        waiting = sum(
            other != annotator and other not in self._labelled_by[task] and now - since < LEASE_SECONDS
            for other, since in self._leases[task].items()
        )
        return len(self._labelled_by[task]) + waiting < self._overlap

    def num_labels(self, annotator: int) -> int:
        """Return how many labels of an annotator stand."""
        return self._num_labels[annotator]

    def num_left(self, annotator: int) -> int:
        """Return how many tasks an annotator may still get, others permitting."""
        open_ids = sum(task in self._keys and len(self._labelled_by[task]) < self._overlap for task in self._answered[annotator])
        return len(self._open) - open_ids
