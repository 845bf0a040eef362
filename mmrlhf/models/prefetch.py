"""Run work on threads, a few items ahead of the consumer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")


def map_ahead(num_workers: int, work: Callable[[S], T], items: Sequence[S]) -> Iterator[T]:
    """Yield `work(item)` for each item, in order, on threads that run a few items ahead.

    Raises what `work` raises, and cancels the remaining items.
    """
    # One torch thread per worker: the workers themselves use the cores.
    with ThreadPoolExecutor(min(num_workers, len(items)), "images", lambda: torch.set_num_threads(1)) as pool:
        futures: deque[Future[T]] = deque()
        try:
            for item in items:
                futures.append(pool.submit(work, item))
                if len(futures) > 2 * num_workers:
                    yield futures.popleft().result()
            while futures:
                yield futures.popleft().result()
        finally:
            for future in futures:
                future.cancel()
