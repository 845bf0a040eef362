"""Lock an output, so that no two commands write to it, and none writes to a removed one."""

from __future__ import annotations

import atexit
import errno
import fcntl
import itertools
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmrlhf.records import InputError

_descriptors: dict[Path, int] = {}
"""Open lock files of this process, by resolved path."""
_created_folders: dict[Path, list[Path]] = {}
"""Folders created for a lock file, innermost first: `release` removes them if they are empty."""

MAX_ATTEMPTS = 100


def acquire(lock_file: Path, output: Path, setting: str) -> None:
    """Lock an output for this process, until `release` or until the process ends.

    Creates the folder, which `release` removes again if nothing was written to it. The system
    releases the lock of a killed process; its file is then taken over. Does nothing if this process
    already holds the lock, or on a file system without locks. Raises InputError if another process
    holds it.
    """
    key = lock_file.resolve()
    if key in _descriptors:
        return
    missing_folders = [folder for folder in lock_file.parents if not folder.exists()]
    for attempt in itertools.count():
        try:
            lock_file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and attempt < MAX_ATTEMPTS:
                continue  # another process has just removed the folder that it had created
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
            _remove(lock_file, missing_folders)
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
    _descriptors[key], _created_folders[key] = descriptor, missing_folders


def check(lock_file: Path, output: Path, setting: str) -> None:
    """Raise InputError if the output was removed or replaced since it was locked.

    Without a lock (a file system without locks), only the folder has to exist.
    """
    descriptor = _descriptors.get(lock_file.resolve())
    try:
        if descriptor is None or os.stat(lock_file).st_ino == os.fstat(descriptor).st_ino:
            lock_file.parent.stat()
            return
    except FileNotFoundError:
        pass
    raise InputError(
        f"{output} was removed or replaced while this command was writing to it, so it stops: "
        f"run it again to start over, or give another --{setting}"
    )


def release(lock_file: Path) -> None:
    """Release the lock and remove its file. Does nothing if this process does not hold it."""
    _release(lock_file.resolve())


def _release(key: Path) -> None:
    descriptor = _descriptors.pop(key, None)
    if descriptor is None:
        return
    folders = _created_folders.pop(key, [])
    with suppress(OSError):  # the output was removed
        if os.stat(key).st_ino == os.fstat(descriptor).st_ino:
            _remove(key, folders)
    os.close(descriptor)


def _remove(lock_file: Path, folders: list[Path]) -> None:
    lock_file.unlink(missing_ok=True)
    for folder in folders:
        with suppress(OSError):  # something else is in it
            folder.rmdir()


@contextmanager
def released_after() -> Iterator[None]:
    """Release the locks taken in the block, however the block ends."""
    held = set(_descriptors)
    try:
        yield
    finally:
        for key in set(_descriptors) - held:
            _release(key)


@atexit.register
def _release_all() -> None:
    for key in list(_descriptors):
        with suppress(OSError):
            _release(key)


def _read_owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(owner['pid'])} on {str(owner['host'])[:100]}"
    except (ValueError, KeyError, TypeError):  # it holds the lock, and has not written its name yet
        return "a process that has just started"
