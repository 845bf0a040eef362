"""Give tasks to annotators, and record each answer once: the store and the schedule together.

The order of answers is drawn each time a task is shown, and stored under a random token. A form
returns the token, and the store has its meaning.
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
    """A task shown to an annotator: `order` has the indices of its answers in display order.

    `previous` is the annotator's own answer that they have taken back to change it.
    """

    token: str
    task_id: int
    task: Task
    order: tuple[int, ...]
    previous: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Progress:
    """An annotator's progress. `pace` is the median number of seconds of their latest labels."""

    num_labels: int
    num_left: int
    pace: float | None
    last_answer: int | None
    """The event that `undo` would take back."""


class Assignments:
    """The assignments of tasks to annotators. Threads may share it."""

    def __init__(
        self, store: Store, schedule: Schedule, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time
    ) -> None:
        """Rebuild the schedule from the events of a store. `clock` is monotonic, `now` may jump."""
        self.store, self._schedule, self._clock, self._now = store, schedule, clock, now
        self._lock = threading.RLock()
        self._last_task = 0
        self._open: dict[int, list[Event]] = defaultdict(list)
        """For each annotator, the `shown` events of their open tasks. The last is on the page;
        those that an undo interrupted come back after it."""
        self._shown_at: dict[str, float] = {}
        """By token of an open task, when it was first shown, by `clock`."""
        self._answers: dict[int, list[Event]] = defaultdict(list)
        """By annotator, the answers that were not taken back, oldest first."""
        self._paces: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=PACE_LABELS))
        self._add_new_tasks()
        for event in store.events():
            self._replay(event)

    def _replay(self, event: Event) -> None:
        if event.task is None:
            return
        if event.kind == "shown":
            # The clock restarts with the process: the time of day gives the age of older events.
            self._open_task(event, self._clock() - max(0.0, self._now() - event.time))
        elif event.kind in ANSWERS:
            self._note_answer(event)
        elif event.kind == "undo":
            self._note_undo(event)

    def _open_task(self, event: Event, since: float) -> None:
        assert event.task is not None and event.token is not None
        self._close_task(event.annotator, event.task)
        self._schedule.lease(event.annotator, event.task, since)
        self._open[event.annotator].append(event)
        self._shown_at[event.token] = since

    def _close_task(self, annotator: int, task_id: int) -> None:
        events = self._open[annotator]
        for event in [event for event in events if event.task == task_id]:
            events.remove(event)
            self._shown_at.pop(event.token or "", None)
        self._schedule.release(annotator, task_id)

    def _shown(self, event: Event) -> Shown:
        assert event.task is not None and event.token is not None
        order, previous = tuple(event.content["order"]), event.content.get("previous")
        return Shown(event.token, event.task, self.store.task(event.task), order, previous)

    def _note_answer(self, event: Event) -> None:
        assert event.task is not None
        self._close_task(event.annotator, event.task)
        self._schedule.answer(event.annotator, event.task, event.kind)
        self._answers[event.annotator].append(event)
        if event.kind == "label" and event.seconds is not None:
            self._paces[event.annotator].append(event.seconds)

    def _note_undo(self, event: Event) -> None:
        answers = self._answers[event.annotator]
        target = next((answer for answer in answers if answer.id == event.target), None)
        if target is not None and target.task is not None:
            answers.remove(target)
            self._schedule.take_back(event.annotator, target.task, target.kind)

    def _add_new_tasks(self) -> None:
        """Schedule tasks that another process has added to the store."""
        for entry in self.store.task_entries(self._last_task):
            self._schedule.add(entry)
            self._last_task = entry.id

    # ---- what annotators do --------------------------------------------------------------------

    def current(self, annotator: int) -> Shown | None:
        """Return an annotator's open task, else a new one, else None.

        A page that is loaded again shows the same task, in the same order, under the same token,
        unless others have taken it over. Raises StorageError.
        """
        with self._lock:
            now = self._clock()
            while self._open[annotator]:
                event = self._open[annotator][-1]
                assert event.task is not None
                if self._schedule.may_keep(annotator, event.task, now):
                    return self._shown(event)
                self._close_task(annotator, event.task)
            self._add_new_tasks()
            task_id = self._schedule.next(annotator, now)
            if task_id is None:
                return None
            (event,) = self.store.append_all([self._drawn(annotator, task_id)])
            self._open_task(event, now)
            return self._shown(event)

    def _drawn(self, annotator: int, task_id: int, previous: Event | None = None) -> Event:
        """Return an event that shows a task, its answers in an order that is drawn."""
        order = list(range(len(self.store.task(task_id).answers)))
        secrets.SystemRandom().shuffle(order)
        content: dict[str, Any] = {"order": order}
        if previous is not None:
            content["previous"] = {"kind": previous.kind, **previous.content}
        return Event(0, "shown", annotator, task_id, secrets.token_urlsafe(18), None, self._now(), None, content)

    def find(self, annotator: int, token: str) -> Shown | None:
        """Return the event of a token, None if it was not given to this annotator."""
        event = next(self.store.events("shown", token), None)
        return None if event is None or event.annotator != annotator else self._shown(event)

    def submit(
        self, annotator: int, shown: Shown, kind: str, content: Mapping[str, Any], seconds: float | None = None
    ) -> Event | None:
        """Record an answer, and return its event once it is on disk.

        A form that is sent again, or a second form about the same task, records nothing and returns
        None. `seconds` is the time measured by the page, at most the time since the server first
        showed the task. The time of a task that others had taken over is unknown. Raises
        StorageError if nothing was written, NotOnDiskError if it may not be on disk.
        """
        with self._lock:
            event = self._submit(annotator, shown, kind, content, seconds)
        self.store.flush()  # without the lock, so that others answer meanwhile, and one flush serves all
        return event

    def _submit(self, annotator: int, shown: Shown, kind: str, content: Mapping[str, Any], seconds: float | None) -> Event | None:
        if self._schedule.has_answered(annotator, shown.task_id):
            return None
        since = self._shown_at.get(shown.token)
        passed = None if since is None else self._clock() - since
        if seconds is None or passed is None or not 0 <= seconds <= passed + 1:
            seconds = passed
        try:
            event = self.store.append(kind, annotator, shown.task_id, self._now(), content, token=shown.token, seconds=seconds)
        except DuplicateError:
            return None
        self._note_answer(event)
        return event

    def undo(self, annotator: int, answer_id: int) -> Shown | None:
        """Take back an annotator's latest answer and show its task again. Raises StorageError.

        Their open task comes back after it. Does nothing and returns None if `answer_id` is not
        their latest answer.
        """
        with self._lock:
            shown = self._undo(annotator, answer_id)
        self.store.flush()
        return shown

    def _undo(self, annotator: int, answer_id: int) -> Shown | None:
        answers = self._answers[annotator]
        if not answers or answers[-1].id != answer_id:
            return None
        target = answers[-1]
        assert target.task is not None
        undo = Event(0, "undo", annotator, target.task, None, target.id, self._now(), None, {})
        undo, shown = self.store.append_all([undo, self._drawn(annotator, target.task, previous=target)])
        self._note_undo(undo)
        self._open_task(shown, self._clock())
        return self._shown(shown)

    def progress(self, annotator: int) -> Progress:
        """Return an annotator's progress."""
        with self._lock:
            paces, answers = self._paces[annotator], self._answers[annotator]
            pace = statistics.median(paces) if paces else None
            schedule = self._schedule
            last = answers[-1].id if answers else None
            return Progress(schedule.num_labels(annotator), schedule.num_left(annotator), pace, last)
