"""Lock an output, so that two commands never write to the same one."""

from __future__ import annotations

import atexit
import errno
import fcntl
import json
import os
import socket
from contextlib import suppress
from pathlib import Path

from mmrlhf.records import InputError

_descriptors: dict[Path, int] = {}
"""Open lock files of this process, by resolved path."""


def acquire(lock_file: Path, output: Path, setting: str) -> None:
    """Lock an output for this process, until `release` or until the process ends.

    The system releases the lock of a killed process; its file is then taken over. Does nothing if
    this process already holds the lock, or on a file system without locks. Raises InputError if
    another process holds it.
    """
    key = lock_file.resolve()
    if key in _descriptors:
        return
    while True:
        try:
            descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InputError(
                f"{lock_file} cannot be written ({error.strerror}): remove it, or give another --{setting}"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _read_owner(descriptor)
            os.close(descriptor)
            raise InputError(
                f"{output} is being written by another command ({owner}): wait until it ends, or give another --{setting}"
            ) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                return
            raise
        # The previous owner may have removed the file between `open` and `flock`.
        with suppress(FileNotFoundError):
            if os.stat(lock_file).st_ino == os.fstat(descriptor).st_ino:
                break
        os.close(descriptor)
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
    _descriptors[key] = descriptor


def release(lock_file: Path) -> None:
    """Release the lock and remove its file. Does nothing if this process does not hold it."""
    descriptor = _descriptors.pop(lock_file.resolve(), None)
    if descriptor is not None:
        lock_file.unlink(missing_ok=True)
        os.close(descriptor)


@atexit.register
def _release_all() -> None:
    for lock_file in list(_descriptors):
        with suppress(OSError):
            release(lock_file)


def _read_owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(owner['pid'])} on {str(owner['host'])[:100]}"
    except (ValueError, KeyError, TypeError):  # it holds the lock, and has not written its name yet
        return "a process that has just started"
