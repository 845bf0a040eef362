"""Signals end a command with 128 + their number, and nothing is half-written."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from mmrlhf.cli import main
from mmrlhf.commands import check, claims
from mmrlhf.files import stop_signals


@pytest.mark.parametrize(
    ("number", "code", "reason"),
    [(signal.SIGTERM, 143, "stopped by SIGTERM"), (signal.SIGHUP, 129, "stopped by SIGHUP"), (signal.SIGINT, 130, "interrupted")],
)
def test_main_leaves_with_the_code_of_the_signal(monkeypatch, capsys, number, code, reason):
    monkeypatch.setattr(claims, "extract", lambda *_: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    assert main(["claims", "answers.txt"]) == code
    assert capsys.readouterr().err == f"{reason}: the same command resumes from what is already written\n"
    assert signal.getsignal(number) is before


def test_main_names_no_resumption_that_there_is_not(monkeypatch, capsys):
    monkeypatch.setattr(check, "check", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert main(["data", "check", "rows.jsonl"]) == 130
    assert capsys.readouterr().err == "interrupted: the same command starts over\n"


def test_signals_that_nohup_ignores_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals.handled():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handled_does_nothing_outside_the_main_thread():
    failures = []

    def run() -> None:
        try:
            with stop_signals.handled():
                pass
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failures


def test_a_deferred_signal_is_pending_until_the_block_ends():
    with stop_signals.handled():
        stop_signals.defer(True)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_signals.pending() == signal.SIGTERM
    assert stop_signals.pending() == 0


def test_a_repetition_does_not_interrupt_what_the_signal_ends(monkeypatch):
    with stop_signals.handled():
        with pytest.raises(stop_signals.Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # a launcher passes it on, while files are closed
        with pytest.raises(stop_signals.Stopped, match=r"^2$"):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(stop_signals, "REPEAT_SECONDS", 0.0)
        with pytest.raises(stop_signals.Stopped, match=r"^15$"):
            os.kill(os.getpid(), signal.SIGTERM)
    with stop_signals.handled(), pytest.raises(stop_signals.Stopped):  # of another command
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_comes_twice_at_once_is_one(monkeypatch):
    """Slurm sends it to a launcher and to its processes, and the launcher passes it on."""
    with stop_signals.handled():
        stop_signals.defer(True)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(stop_signals.Stopped, match=r"^2$"):
            os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.setattr(stop_signals, "REPEAT_SECONDS", 0.0)
        with pytest.raises(stop_signals.Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
