"""Give tasks to annotators, and record each answer once: the store and the schedule together.

The order in which answers appear is drawn for each time a task is shown, and stored under a token
that says nothing. A form returns the token; the store has what it stands for.
"""

from __future__ import annotations

import secrets
import statistics
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmrlhf.labeling.schedule import Schedule
from mmrlhf.labeling.store import DuplicateError, Event, Store
from mmrlhf.labeling.tasks import Task

ANSWERS = ("label", "skip", "flag")
PACE_LABELS = 20
"""An annotator's latest labels, whose median time is their pace."""


@dataclass(frozen=True)
class Shown:
    """A task as an annotator sees it: `order` has the indices of its answers as they appear.

    `previous` is the annotator's own answer that they have taken back to change it.
    """

    token: str
    task_id: int
    task: Task
    order: tuple[int, ...]
    previous: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Progress:
    """How far an annotator is. `pace` is the median number of seconds of their latest labels."""

    num_labels: int
    num_left: int
    pace: float | None
    last_answer: int | None
    """The event that `undo` would take back."""


class Assignments:
    """Who works on what. Threads may share it."""

    def __init__(
        self, store: Store, schedule: Schedule, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time
    ) -> None:
        """Rebuild the schedule from the events of a store. `clock` never jumps, `now` may."""
        self.store, self._schedule, self._clock, self._now = store, schedule, clock, now
        self._lock = threading.RLock()
        self._last_task = 0
        self._current: dict[int, Event] = {}
        """By annotator, the event that showed them the task that they have before them."""
        self._shown_at: dict[str, float] = {}
        self._answers: dict[int, list[Event]] = defaultdict(list)
        """By annotator, the answers that stand, oldest first."""
        self._paces: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=PACE_LABELS))
        self._add_new_tasks()
        for event in store.events():
            self._replay(event)

    def _replay(self, event: Event) -> None:
        if event.task is None:
            return
        if event.kind == "shown":
            self._lease(event)
        elif event.kind in ANSWERS:
            self._note_answer(event)
        elif event.kind == "undo":
            self._note_undo(event)

    def _lease(self, event: Event) -> None:
        assert event.task is not None
        self._schedule.lease(event.annotator, event.task, self._clock())
        self._current[event.annotator] = event

    def _shown(self, event: Event) -> Shown:
        assert event.task is not None and event.token is not None
        order, previous = tuple(event.content["order"]), event.content.get("previous")
        return Shown(event.token, event.task, self.store.task(event.task), order, previous)

    def _note_answer(self, event: Event) -> None:
        assert event.task is not None
        self._schedule.answer(event.annotator, event.task, event.kind)
        self._answers[event.annotator].append(event)
        shown = self._current.get(event.annotator)
        if shown is not None and shown.task == event.task:
            del self._current[event.annotator]
        if event.kind == "label" and event.seconds is not None:
            self._paces[event.annotator].append(event.seconds)

    def _note_undo(self, event: Event) -> Event | None:
        answers = self._answers[event.annotator]
        target = next((answer for answer in answers if answer.id == event.target), None)
        if target is None or target.task is None:
            return None
        answers.remove(target)
        self._schedule.take_back(event.annotator, target.task, target.kind)
        return target

    def _add_new_tasks(self) -> None:
        """Take up tasks that another process has added to the store."""
        for entry in self.store.task_entries(self._last_task):
            self._schedule.add(entry)
            self._last_task = entry.id

    # ---- what annotators do --------------------------------------------------------------------

    def current(self, annotator: int) -> Shown | None:
        """Return the task that an annotator has before them, else a new one, else None.

        A page that is loaded again shows the same task, in the same order, under the same token.
        Raises StorageError.
        """
        with self._lock:
            if annotator in self._current:
                shown = self._shown(self._current[annotator])
                self._shown_at.setdefault(shown.token, self._clock())
                return shown
            self._add_new_tasks()
            task_id = self._schedule.next(annotator, self._clock())
            return None if task_id is None else self._show(annotator, task_id)

    def _show(self, annotator: int, task_id: int, previous: Event | None = None) -> Shown:
        num_answers = len(self.store.task(task_id).answers)
        order = list(range(num_answers))
        secrets.SystemRandom().shuffle(order)
        content: dict[str, Any] = {"order": order}
        if previous is not None:
            content["previous"] = {"kind": previous.kind, **previous.content}
        token = secrets.token_urlsafe(18)
        event = self.store.append("shown", annotator, task_id, self._now(), content, token=token)
        self._shown_at[token] = self._clock()
        self._lease(event)
        return self._shown(event)

    def find(self, annotator: int, token: str) -> Shown | None:
        """Return what a token stands for, None if it was not given to this annotator."""
        event = next(self.store.events("shown", token), None)
        return None if event is None or event.annotator != annotator else self._shown(event)

    def submit(
        self, annotator: int, shown: Shown, kind: str, content: Mapping[str, Any], seconds: float | None = None
    ) -> Event | None:
        """Record an answer, and return its event once it is on disk.

        A form that is sent again, or a second form about the same task, records nothing and returns
        None. `seconds` is what the page measured; no more time can have passed than the server's
        own clock says. Raises StorageError if nothing was written.
        """
        with self._lock:
            if self._schedule.has_answered(annotator, shown.task_id):
                return None
            since = self._shown_at.get(shown.token)
            passed = None if since is None else self._clock() - since
            if seconds is None or (passed is not None and not 0 <= seconds <= passed + 1):
                seconds = passed
            try:
                event = self.store.append(
                    kind, annotator, shown.task_id, self._now(), content, token=shown.token, seconds=seconds
                )
            except DuplicateError:
                return None
            self._shown_at.pop(shown.token, None)
            self._note_answer(event)
            return event

    def undo(self, annotator: int, answer_id: int) -> Shown | None:
        """Take back an annotator's latest answer and show its task again. Raises StorageError.

        Does nothing and returns None if `answer_id` is not their latest answer that stands.
        """
        with self._lock:
            answers = self._answers[annotator]
            if not answers or answers[-1].id != answer_id:
                return None
            target = answers[-1]
            assert target.task is not None
            event = self.store.append("undo", annotator, target.task, self._now(), {}, target=target.id)
            self._note_undo(event)
            self._current.pop(annotator, None)
            return self._show(annotator, target.task, previous=target)

    def progress(self, annotator: int) -> Progress:
        """Return how far an annotator is."""
        with self._lock:
            paces, answers = self._paces[annotator], self._answers[annotator]
            pace = statistics.median(paces) if paces else None
            schedule = self._schedule
            last = answers[-1].id if answers else None
            return Progress(schedule.num_labels(annotator), schedule.num_left(annotator), pace, last)
