"""Jobs in separate processes: results, errors, signals and output."""

import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

from mmrlhf.demo import side_by_side
from mmrlhf.demo.side_by_side import run_side_by_side
from mmrlhf.records import InputError


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(side_by_side, "num_cores", lambda: 2)


def report(word):
    print(word, end=" ")
    print("and more\n\nlast")
    warnings.warn("`is_gradient_checkpointing` is deprecated and will be removed", FutureWarning, stacklevel=1)
    logging.getLogger("mmrlhf.engine.prefill").info("shared-prefix batching is on")
    return word, os.getpid(), torch.get_num_threads()


def refuse(path):
    raise InputError(f"{path} has no rows")


def raise_error(error):
    raise error


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_a_signal(folder, name):
    """Write a file at the start, and another one when a signal comes."""
    try:
        (folder / f"{name}-began").touch()
        time.sleep(60)
    except KeyboardInterrupt as error:
        (folder / f"{name}-stopped").write_text(error.name)
        raise


@pytest.mark.slow
def test_jobs_run_in_processes_with_a_core_each(capfd, caplog):
    """They print engine notes if this process does (`--verbose`), and no advice of libraries."""
    caplog.set_level(logging.INFO, "mmrlhf")
    results = run_side_by_side({"sft": partial(report, "one"), "clean_sft": partial(report, "two")})
    assert list(results) == ["sft", "clean_sft"]
    words, pids, threads = zip(*results.values(), strict=True)
    assert words == ("one", "two") and len({*pids, os.getpid()}) == 3 and threads == (1, 1)
    output, errors = capfd.readouterr()
    note = "note: shared-prefix batching is on"
    for name, word in (("sft", "one"), ("clean_sft", "two")):
        lines = [line.removeprefix(f"{name}: ") for line in output.splitlines() if line.startswith(f"{name}: ")]
        assert lines == [f"{word} and more", "last", note]
    assert "deprecated" not in errors


@pytest.mark.parametrize("cores", [1, 2])
def test_one_job_and_one_core_need_no_process(monkeypatch, cores):
    monkeypatch.setattr(side_by_side, "num_cores", lambda: cores)
    jobs = {name: partial(report, name) for name in ("one", "two")[: 3 - cores]}
    assert {pid for _, pid, _ in run_side_by_side(jobs).values()} == {os.getpid()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "message"),
    [
        (partial(refuse, "rows.jsonl"), r"^rows\.jsonl has no rows$"),
        (die, "^the process of b ended with exit code -9: run the same command"),
        (partial(raise_error, ValueError("a bug")), "^the process of b ended with exit code 1: its error is above"),
    ],
)
def test_the_failure_of_a_job_stops_the_others(tmp_path, job, message):
    with pytest.raises(InputError, match=message):
        run_side_by_side({"a": partial(wait_for_a_signal, tmp_path, "a"), "b": partial(after, tmp_path / "a-began", job)})
    assert (tmp_path / "a-stopped").read_text() == "SIGTERM"


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device", "weights.bin"),
        BrokenPipeError(32, "Broken pipe"),  # the reader of the output has ended
        OSError("no file is named"),
    ],
)
def test_an_os_error_is_raised_as_in_one_process(tmp_path, error):
    """Its note has the traceback of the job, which the command prints if no file is named."""
    with pytest.raises(type(error)) as raised:
        run_side_by_side({"a": partial(wait_for_a_signal, tmp_path, "a"), "b": partial(raise_error, error)})
    assert raised.value.args == error.args and raised.value.filename == error.filename
    assert "in raise_error" in raised.value.__notes__[0]


def after(path, job):
    while not path.exists():
        time.sleep(0.05)
    job()


SCRIPT = """
import sys, time
from functools import partial
from pathlib import Path
if __name__ == "__mp_main__" and sys.argv[2:]:  # in a job, which imports its main module
    Path(sys.argv[1], f"importing-{time.time_ns()}").touch()
    time.sleep(60)
from mmrlhf.demo import side_by_side
from mmrlhf.files import stop_signals
from tests.demo.test_side_by_side import wait_for_a_signal
if __name__ == "__main__":
    side_by_side.num_cores = lambda: 2
    try:
        with stop_signals.handled():
            side_by_side.run_side_by_side({n: partial(wait_for_a_signal, Path(sys.argv[1]), n) for n in "ab"})
    except stop_signals.Stopped as error:
        sys.exit(error.exit_code)
"""


def start_script(*arguments, **options):
    """Start two jobs, which wait for a signal, in a process of their own."""
    script = arguments[0] / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, str(script), *map(str, arguments)], env=environment, **options)


def children(process):
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_for_jobs(process, folder, files="?-began"):
    while len(list(folder.glob(files))) < 2:
        assert process.poll() is None
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "files", "stopped"), [((), "?-began", ["SIGTERM"] * 2), (["imports"], "importing-*", [])])
def test_ctrl_c_in_a_terminal_ends_jobs_without_a_traceback(tmp_path, arguments, files, stopped):
    """It reaches all processes, also those that still import modules."""
    process = start_script(tmp_path, *arguments, stderr=subprocess.PIPE, start_new_session=True)
    wait_for_jobs(process, tmp_path, files)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and errors == b""
    assert [path.read_text() for path in tmp_path.glob("?-stopped")] == stopped


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_jobs_end_with_the_process_that_started_them(tmp_path, number):
    process = start_script(tmp_path)
    wait_for_jobs(process, tmp_path)
    jobs = children(process)
    process.send_signal(number)
    assert process.wait(120) == (-9 if number == signal.SIGKILL else 128 + number)
    while any(is_running(pid) for pid in jobs):  # forever, if they outlive it
        time.sleep(0.05)
    stopped = sorted(path.read_text() for path in tmp_path.glob("?-stopped"))
    assert stopped == ([] if number == signal.SIGKILL else [number.name] * 2)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
