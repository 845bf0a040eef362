"""Run work in threads that do not keep the process alive, as an executor's threads would."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def run_in_background(work: Callable[[], T], slots: threading.Semaphore) -> Future[T]:
    """Run work in a separate thread as soon as `slots` has room; return its future.

    A future that is cancelled before then is not run. Work with torch must have ended before the
    process does: an interpreter that ends while a thread is in torch aborts.
    """
    future: Future[T] = Future()

    def run() -> None:
        with slots:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:  # raised where the result is asked for
                    future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
