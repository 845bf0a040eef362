"""Run independent parts of the demo at the same time, each in its own process.

The tiny VLM gains little from a second thread, so two processes with one thread each use two cores
better.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from mmrlhf.files import stop_signals
from mmrlhf.models.prefetch import num_cores
from mmrlhf.records import InputError

T = TypeVar("T")


def run_side_by_side(jobs: Mapping[str, Callable[[], T]]) -> dict[str, T]:
    """Run jobs in separate processes, and return their results by name.

    jobs: module-level functions, or partials of them. Their lines of output begin with their names.
    With one job, or on one core, they run in this process, in turn.

    A signal to this process is forwarded to all jobs, and the failure of a job ends the others, so
    that they can save a checkpoint. Raises a job's InputError or OSError, and InputError if one was
    killed.
    """
    if len(jobs) < 2 or num_cores() < 2:
        return {name: job() for name, job in jobs.items()}
    context = multiprocessing.get_context("spawn")
    running: dict[Connection, tuple[str, Any]] = {}
    results: dict[str, T] = {}
    try:
        for name, job in jobs.items():
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_run_job, args=(name, job, len(jobs), sender), daemon=True)
            process.start()
            sender.close()  # the job has the only open end, so its death ends `recv`
            running[receiver] = (name, process)
        while running:
            ready = wait(list(running))
            for receiver in [receiver for receiver in running if receiver in ready]:
                name, process = running.pop(receiver)
                results[name] = _receive(receiver, name, process)
    except BaseException as error:
        number = error.signal_number if isinstance(error, stop_signals.Stopped) else signal.SIGTERM
        for _, process in running.values():
            if process.is_alive():
                os.kill(process.pid, number)
        for _, process in running.values():
            process.join()
        raise
    return {name: results[name] for name in jobs}


def _receive(receiver: Connection, name: str, process: Any) -> Any:
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        raise InputError(
            f"the process of {name} ended with exit code {process.exitcode}: run the same command again, which continues"
        ) from None
    if isinstance(result, InputError | OSError):
        raise result
    return result


# ---- in the process of a job ---------------------------------------------------------------------


def _run_job(name: str, job: Callable[[], Any], num_jobs: int, sender: Connection) -> None:
    threading.Thread(target=exit_after_parent, daemon=True).start()
    torch.set_num_threads(max(1, min(torch.get_num_threads(), num_cores() // num_jobs)))
    sys.stdout = _NamedLines(name)
    try:
        with stop_signals.handled():
            sender.send(job())
    except InputError as error:
        sender.send(InputError(str(error)))  # subclasses may not be picklable
    except BrokenPipeError:  # the reader of the output has ended
        sys.exit(141)
    except OSError as error:  # which the command reports in a sentence
        sender.send(error)
    except KeyboardInterrupt as error:  # the first process reports it
        sys.exit(error.exit_code if isinstance(error, stop_signals.Stopped) else 130)


def exit_after_parent() -> None:
    """End this process once the one that started it is gone, even by `kill -9`."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


class _NamedLines(io.TextIOBase):
    """Standard output whose lines begin with a name, each written at once."""

    def __init__(self, name: str) -> None:
        self._name, self._rest = name, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        output = "".join(f"{self._name}: {line}\n" if line.strip() else "\n" for line in lines)
        os.write(1, output.encode())
        return len(text)
