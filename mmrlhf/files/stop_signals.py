"""Stop on SIGTERM, SIGHUP and Ctrl-C: keep what is written, and exit with 128 + the signal.

A signal raises `Stopped` wherever the command is. A run with steps that no checkpoint holds defers
it to the end of its step, where it saves. A second signal is not deferred. But a launcher passes on
what Slurm or `timeout` has sent to its processes as well: what repeats a signal within
REPEAT_SECONDS is the same one.
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
"""What Ctrl-C, Slurm before it kills a job, and a closed terminal send."""

REPEAT_SECONDS = 2.0
"""Seconds in which a signal that comes again is not a second one."""

_deferred = False
_pending: int | None = None
_pending_since = 0.0


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop. No handler of errors catches a KeyboardInterrupt."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number

    @property
    def name(self) -> str:
        """Return the signal's name, such as SIGTERM."""
        return signal.Signals(self.signal_number).name

    @property
    def exit_code(self) -> int:
        """Return what a shell reports for a process that such a signal ended: 143 for SIGTERM."""
        return 128 + self.signal_number


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Turn signals into `Stopped` in the block.

    A signal that the process was started to ignore (`nohup`) stays ignored. Without effect outside
    the main thread, which alone may handle signals.
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
    """Defer signals from now on, or no longer; one that was deferred stays `pending`."""
    global _deferred
    _deferred = active


def pending() -> int:
    """Return the number of the signal that was deferred, or 0."""
    return _pending or 0


def _reset() -> None:
    global _deferred, _pending
    _deferred, _pending = False, None


def _handle(number: int, frame: FrameType | None) -> None:
    global _pending, _pending_since
    if _deferred and _pending == number and time.monotonic() - _pending_since < REPEAT_SECONDS:
        return
    if _deferred and _pending is None:
        _pending, _pending_since = number, time.monotonic()
        text = f"{signal.Signals(number).name}: stopping after this step, with a checkpoint; a second signal stops at once\n"
        os.write(2, text.encode())  # print may be in the middle of a line of the interrupted code
        return
    raise Stopped(number)


def discard_output() -> int:
    """Discard what is left to print once nobody reads it, and return the exit code of SIGPIPE."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
