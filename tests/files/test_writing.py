"""Commands release their outputs however they end, and explain a full disk."""

from __future__ import annotations

import errno
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from mmrlhf.files import lock
from mmrlhf.files.resumable import ResumableWriter
from mmrlhf.files.writing import is_disk_full, writes, writing
from mmrlhf.records import InputError


@dataclass(frozen=True)
class FakeConfig:
    output_dir: str


@pytest.mark.parametrize(
    "error", [None, InputError("row 3"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")]
)
def test_output_is_released_however_the_command_ends(tmp_path, error):
    @writes("output_dir")
    def command(config: FakeConfig) -> str:
        lock.acquire(Path(config.output_dir) / ".lock", Path(config.output_dir), "output_dir")
        assert (tmp_path / "a" / "b" / ".lock").exists()
        if error is not None:
            raise error
        return "done"

    config = FakeConfig(str(tmp_path / "a" / "b"))
    if error is None:
        assert command(config=config) == "done"
    else:
        with pytest.raises(InputError if isinstance(error, OSError) else type(error)) as caught:
            command(config)
        if isinstance(error, OSError):
            assert str(caught.value) == (
                f"{tmp_path / 'a' / 'b'} is on a full disk: make room; the same command continues from what is written"
            )
    assert list(tmp_path.iterdir()) == []  # nor are the folders that were made for the lock


def test_writing_keeps_locks_from_before_and_folders_in_use(tmp_path):
    lock.acquire(tmp_path / "a" / ".lock", tmp_path / "a", "out")
    with writing(tmp_path / "b"):
        lock.acquire(tmp_path / "b" / ".lock", tmp_path / "b", "out")
        (tmp_path / "b" / "answers.jsonl").write_text("")
    assert (tmp_path / "a" / ".lock").exists() and [path.name for path in (tmp_path / "b").iterdir()] == ["answers.jsonl"]
    lock.release(tmp_path / "a" / ".lock")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (SafetensorError("Error while deserializing header (os error 2)"), False),
        (RuntimeError("28"), False),
    ],
)
def test_is_disk_full(error, expected):
    assert is_disk_full(error) is expected


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disks_are_known_from_what_writing_to_one_raises(small_disk):
    with pytest.raises(InputError, match=r"is on a full disk: make room"), writing(small_disk):
        save_file({"w": torch.ones(100_000)}, small_disk / "w.safetensors")
    (small_disk / "w.safetensors").unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"is on a full disk: make room"), writing(small_disk):
        ResumableWriter(small_disk / "out.jsonl", {}).append(["1\n" * 10])
        ResumableWriter(small_disk / "out2.jsonl", {}).append(["x" * 99 + "\n"] * 1000)


def test_resumable_writer_stops_if_its_file_is_removed_or_changed(tmp_path):
    for damage in (Path.unlink, lambda path: path.write_text("")):
        writer = ResumableWriter(tmp_path / "out.jsonl", {})
        writer.append(["1\n"])
        damage(tmp_path / ".out.jsonl.part")
        with pytest.raises(InputError, match=r"\.out\.jsonl\.part was removed or changed while this command was writing"):
            writer.append(["2\n"])
        lock.release(tmp_path / ".out.jsonl.lock")
        (tmp_path / ".out.jsonl.part").unlink(missing_ok=True)
