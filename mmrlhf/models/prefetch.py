"""Run work on threads, a few items ahead of the consumer."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_ahead(num_workers: int, work: Callable[[S], T], items: Sequence[S]) -> Iterator[T]:
    """Yield `work(item)` for each item, in order, on threads that run a few items ahead.

    Raises what `work` raises, and cancels the remaining items. The workers themselves use the
    cores, so each has one torch thread. New threads of the process would inherit this number, so it
    is reset at the end.
    """
    num_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(min(num_workers, len(items)), "images", lambda: torch.set_num_threads(1))
    futures: deque[Future[T]] = deque()
    try:
        for item in items:
            futures.append(pool.submit(work, item))
            if len(futures) > 2 * num_workers:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(num_threads)
