"""Stop on SIGTERM, SIGHUP and Ctrl-C: keep the written output, and exit with 128 + the signal.

A signal raises `Stopped` wherever the command is. A run with steps that are not in a checkpoint
defers it to the end of the current step, and saves there. A second signal is not deferred. But
launchers forward signals that Slurm or `timeout` also sent to their processes: a repetition within
REPEAT_SECONDS counts as the same signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals of Ctrl-C, of Slurm before it kills a job, and of a closed terminal."""

REPEAT_SECONDS = 2.0
"""Seconds within which a repeated signal does not count as a second one."""

_deferred = False
_pending: int | None = None
_times: dict[int, float] = {}
"""When each signal came last, without its repetitions."""


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop. Error handlers do not catch a KeyboardInterrupt."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number

    @property
    def name(self) -> str:
        """Return the signal's name, such as SIGTERM."""
        return signal.Signals(self.signal_number).name

    @property
    def exit_code(self) -> int:
        """Return a shell's exit code for a process ended by this signal: 143 for SIGTERM."""
        return 128 + self.signal_number


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Turn signals into `Stopped` in the block.

    A signal that the process was started to ignore (`nohup`) stays ignored. Has no effect outside
    the main thread, because only that may handle signals.
    """
    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.getsignal(number) for number in SIGNALS}
        previous = {number: handler for number, handler in previous.items() if handler is not signal.SIG_IGN}
    try:
        for number in previous:
            signal.signal(number, _handle)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _reset()


def defer(active: bool) -> None:
    """Start or stop deferring signals; a deferred signal stays `pending`."""
    global _deferred
    _deferred = active


def pending() -> int:
    """Return the number of the deferred signal, or 0."""
    return _pending or 0


def _reset() -> None:
    global _deferred, _pending
    _deferred, _pending = False, None
    _times.clear()


def _handle(number: int, frame: FrameType | None) -> None:
    global _pending
    now = time.monotonic()
    if number in _times and now - _times[number] < REPEAT_SECONDS:
        return  # also if `Stopped` is already raised: what it ends may be in the middle of closing a file
    _times[number] = now
    if _deferred and _pending is None:
        _pending = number
        text = f"{signal.Signals(number).name}: stopping after this step, with a checkpoint; a second signal stops at once\n"
        os.write(2, text.encode())  # print may be in the middle of a line of the interrupted code
        return
    raise Stopped(number)


def discard_output() -> int:
    """Discard the remaining output once nobody reads it, and return the exit code of SIGPIPE."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
