"""Run requests of many threads on a model, one batch at a time.

Threads put jobs in a bounded queue and wait for the result. A single worker takes the oldest job
and all others that can share its batch, so batches form automatically while a model is busy.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

import torch

from mmrlhf.records import InputError
from mmrlhf.text.printable import first_line

RunBatch = Callable[[Hashable, Sequence[Any]], Sequence[Any]]
"""Maps a key and the items of a batch, which all have that key, to a result for each item."""


class BusyError(Exception):
    """The queue is full or closed."""


@dataclass
class _Job:
    key: Hashable
    item: Any
    future: Future[Any] = field(default_factory=Future)


class BatchQueue:
    """Jobs that wait, in the order in which they came."""

    def __init__(self, run_batch: RunBatch, max_batch: int, max_waiting: int) -> None:
        self._run_batch, self._max_batch, self._max_waiting = run_batch, max_batch, max_waiting
        self._jobs: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._changed = threading.Condition()
        self._is_closed = False
        self._failure = ""

    def __len__(self) -> int:
        return len(self._jobs)

    def check_open(self) -> None:
        """Raise BusyError if the queue is closed."""
        if self._is_closed:
            raise BusyError("the server is shutting down")
        if self._failure:
            raise BusyError(f"the device has failed ({self._failure}): start the server again")

    def submit(self, key: Hashable, item: Any) -> Future[Any]:
        """Add a job; jobs of one key may share a batch. Raises BusyError if it cannot wait."""
        job = _Job(key, item)
        with self._changed:
            self.check_open()
            if len(self._jobs) >= self._max_waiting:
                raise BusyError(f"the queue is full ({self._max_waiting} waiting): try again later")
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Accept no more jobs. `work` returns once the waiting ones are done."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Close, and raise BusyError for all jobs; results of running ones are dropped."""
        self.close()
        with self._changed:
            jobs = [*self._running, *self._jobs]
            self._jobs.clear()
        for job in jobs:
            _fail(job, BusyError("the server is shutting down"))

    def work(self) -> None:
        """Run jobs until the queue is closed and empty."""
        while jobs := self._next_batch():
            self._run(jobs)

    def _next_batch(self) -> list[_Job]:
        """Wait for a job; return the oldest with others of its key, or nothing after `close`."""
        with self._changed:
            while not self._jobs and not self._is_closed:
                self._changed.wait()
            batch = [job for job in self._jobs if job.key == self._jobs[0].key][: self._max_batch]
            for job in batch:
                self._jobs.remove(job)
            self._running = batch
            return batch

    def _run(self, jobs: Sequence[_Job]) -> None:
        """Run a batch. If one job's input is unusable, run each alone, so that only it fails."""
        try:
            results = list(zip(jobs, self._run_batch(jobs[0].key, [job.item for job in jobs]), strict=True))
        except InputError as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._run([job])
            else:
                _fail(jobs[0], error)
        except Exception as error:  # whatever happens to a batch, the server goes on
            if isinstance(error, torch.AcceleratorError):  # all later batches would fail as well
                self._failure = first_line(error)
            for job in jobs:
                _fail(job, error)
        else:
            for job, result in results:
                with contextlib.suppress(InvalidStateError):  # it was abandoned
                    job.future.set_result(result)


def _fail(job: _Job, error: Exception) -> None:
    with contextlib.suppress(InvalidStateError):  # it has ended already, or was abandoned
        job.future.set_exception(error)
