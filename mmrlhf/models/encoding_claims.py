"""Let one process encode an image while the others that share a feature folder wait for it.

Each image is one byte of a file, and a process locks the bytes of the images that it encodes. The
system releases the locks of a process that dies, unless its whole machine does. A process releases
its own before it waits for those of others, so none waits in a circle. In a folder without locks,
two processes may encode an image at the same moment.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

NOTE_AFTER_SECONDS = 60.0
WAIT_SECONDS = 600.0
"""Longest wait for another process, which may hang, or whose machine may have failed."""

_descriptors: dict[Path, int] = {}
"""Open files of locks. They stay open: closing one would release all locks of the process on it."""


class EncodingClaims:
    """Claims on images, by their keys, among the processes that share a folder."""

    def __init__(self, folder: Path):
        self._path = folder.resolve() / ".encoding"

    def claim(self, keys: Iterable[str]) -> set[str]:
        """Claim the images that no other process has claimed, and return their keys."""
        return {key for key in keys if self._lock(key, fcntl.LOCK_EX | fcntl.LOCK_NB)}

    def release(self, keys: Iterable[str]) -> None:
        """Give up claims on images, with or without their features in the folder."""
        for key in keys:
            self._lock(key, fcntl.LOCK_UN)

    def wait(self, key: str) -> bool:
        """Wait until no other process claims an image. Return False if that takes too long."""
        start, has_noted = time.monotonic(), False
        while not self._lock(key, fcntl.LOCK_EX | fcntl.LOCK_NB):
            seconds = time.monotonic() - start
            if seconds > WAIT_SECONDS:
                return False
            if seconds > NOTE_AFTER_SECONDS and not has_noted:
                print(f"note: waiting for another process to encode images (locks in {self._path})", flush=True)
                has_noted = True
            time.sleep(0.05)
        self.release([key])
        return True

    def _lock(self, key: str, operation: int) -> bool:
        """Lock or unlock an image's byte. Return False only if another process holds it."""
        position = int.from_bytes(blake2b(key.encode(), digest_size=7).digest())
        with suppress(OSError):  # the folder cannot be written, or has no locks
            descriptor = self._descriptor()
            try:
                fcntl.lockf(descriptor, operation, 1, position)
            except (BlockingIOError, PermissionError):
                return False
        return True

    def _descriptor(self) -> int:
        if self._path not in _descriptors:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _descriptors[self._path] = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        return _descriptors[self._path]
