"""Run independent parts of the demo at the same time, each in its own process.

The tiny VLM gains little from a second thread, so two processes with one thread each use two cores
better.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from mmrlhf.files import stop_signals
from mmrlhf.models.prefetch import num_cores
from mmrlhf.records import InputError
from mmrlhf.report.library_output import print_engine_notes, prints_engine_notes, silence_libraries

T = TypeVar("T")


def run_side_by_side(jobs: Mapping[str, Callable[[], T]]) -> dict[str, T]:
    """Run jobs in separate processes, and return their results by name.

    jobs: module-level functions, or partials of them. Their lines of output begin with their names.
    With one job, or on one core, they run in this process, in turn.

    A signal to this process, or the failure of a job, ends the other jobs by a signal, so that they
    can save a checkpoint. Jobs ignore Ctrl-C, which a terminal also sends to them: the first
    process sends them SIGTERM. Raises a job's InputError or OSError, and InputError if one was
    killed.
    """
    if len(jobs) < 2 or num_cores() < 2:
        return {name: job() for name, job in jobs.items()}
    context = multiprocessing.get_context("spawn")
    running: dict[Connection, tuple[str, Any]] = {}
    results: dict[str, T] = {}
    verbose = prints_engine_notes()
    try:
        resource_tracker.ensure_running()  # which unblocks Ctrl-C once it has started
        for name, job in jobs.items():
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_run_job, args=(name, job, len(jobs), verbose, sender), daemon=True)
            with _ctrl_c_blocked():  # in the job, too, until it ignores it
                process.start()
                running[receiver] = (name, process)
            sender.close()  # the job has the only open end, so its death ends `recv`
        while running:
            ready = wait(list(running))
            for receiver in [receiver for receiver in running if receiver in ready]:
                name, process = running.pop(receiver)
                results[name] = _receive(receiver, name, process)
    except BaseException as error:
        number = error.signal_number if isinstance(error, stop_signals.Stopped) else signal.SIGTERM
        number = signal.SIGTERM if number == signal.SIGINT else number
        for _, process in running.values():
            if process.is_alive():
                os.kill(process.pid, number)
        for _, process in running.values():
            process.join()
        raise
    return {name: results[name] for name in jobs}


@contextlib.contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Hold Ctrl-C back in the block; processes that start in it never receive it."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _receive(receiver: Connection, name: str, process: Any) -> Any:
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        cause = "its error is above" if process.exitcode > 0 else "run the same command again, which continues"
        raise InputError(f"the process of {name} ended with exit code {process.exitcode}: {cause}") from None
    if isinstance(result, InputError | OSError):
        raise result
    return result


# ---- in the process of a job ---------------------------------------------------------------------


def _run_job(name: str, job: Callable[[], Any], num_jobs: int, verbose: bool, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=exit_after_parent, daemon=True).start()
    torch.set_num_threads(max(1, min(torch.get_num_threads(), num_cores() // num_jobs)))
    sys.stdout = _NamedLines(name)
    silence_libraries()
    if verbose:
        print_engine_notes()
    try:
        with stop_signals.handled():
            sender.send(job())
    except InputError as error:
        sender.send(InputError(str(error)))  # subclasses may not be picklable
    except OSError as error:  # which the command reports in a sentence, or with a traceback
        error.add_note(traceback.format_exc())
        sender.send(error)
    except stop_signals.Stopped as error:  # the first process reports it
        sys.exit(error.exit_code)


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
