"""Two commands never write to one output; a killed one's lock is taken over."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mmrlhf.config import ScenesConfig
from mmrlhf.files import lock
from mmrlhf.files.resumable import ResumableWriter
from mmrlhf.records import InputError
from mmrlhf.training.run import Run

HOLD_SCRIPT = """
import sys, time
from pathlib import Path
from mmrlhf.files import lock
for name in (".lock", ".out.jsonl.lock"):
    lock.acquire(Path(sys.argv[1]) / name, Path("runs/a"), "output_dir")
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the locks of a run directory and of a file in it."""
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_SCRIPT, str(tmp_path)],
        stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def test_lock_names_the_process_that_has_it_and_is_taken_over_after_a_kill(tmp_path, holder):
    owner = f"process {holder.pid} on {socket.gethostname()}"
    with pytest.raises(
        InputError, match=f"^runs/a is being written by another command .{owner}.: wait .*, or give another --out"
    ):
        lock.acquire(tmp_path / ".lock", Path("runs/a"), "output_dir")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".lock").exists()
    lock.acquire(tmp_path / ".lock", Path("runs/a"), "output_dir")
    lock.release(tmp_path / ".lock")
    assert not (tmp_path / ".lock").exists()


def test_runs_and_output_files_are_locked_before_anything_is_written(tmp_path, holder):
    with pytest.raises(InputError, match=f"being written by another command .process {holder.pid}"):
        Run(str(tmp_path), ScenesConfig()).begin()
    with pytest.raises(InputError, match=f"being written by another command .process {holder.pid}"):
        ResumableWriter(tmp_path / "out.jsonl", {}).append(["1\n"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", ".out.jsonl.lock"]
    holder.kill()
    holder.wait()
    Run(str(tmp_path), ScenesConfig()).begin()
    ResumableWriter(tmp_path / "out.jsonl", {}).finish()
    assert (tmp_path / "config.yaml").is_file() and (tmp_path / "out.jsonl").is_file()


def test_lock_of_this_process_may_be_taken_again(tmp_path):
    for _ in range(2):
        lock.acquire(tmp_path / ".lock", Path("runs/a"), "output_dir")
    lock.release(tmp_path / ".lock")
    lock.release(tmp_path / ".lock")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", '{"pid": 4}', "[]"])
def test_lock_file_that_nobody_holds_is_taken_over(tmp_path, content):
    (tmp_path / ".lock").write_text(content)
    lock.acquire(tmp_path / ".lock", Path("runs/a"), "output_dir")
    lock.release(tmp_path / ".lock")


def test_lock_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(InputError, match=r"\.lock cannot be written .*: remove it, or give another --out"):
        lock.acquire(tmp_path / ".lock", Path("runs/a"), "out")
