"""Let one process encode an image while the others that share a feature folder wait for it.

Each image is one byte of a file, and a process locks the bytes of the images that it encodes. The
system releases the locks of a process that dies, on network file systems too. A process releases
its own before it waits for those of others, so none waits in a circle. In a folder without locks,
two processes may encode an image at the same moment.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

_descriptors: dict[Path, int] = {}
"""Open files of locks. They stay open: closing one would release all locks of the process on it."""


class EncodingClaims:
    """Claims on images, by their keys, among the processes that share a folder."""

    def __init__(self, folder: Path):
        self._path = folder.resolve() / ".encoding"

    @contextmanager
    def claim(self, keys: Iterable[str]) -> Iterator[set[str]]:
        """Yield the keys of images that no other process encodes, and claim them in the block."""
        claimed = {key for key in keys if self._lock(key, fcntl.LOCK_EX | fcntl.LOCK_NB)}
        try:
            yield claimed
        finally:
            for key in claimed:
                self._lock(key, fcntl.LOCK_UN)

    def wait(self, key: str) -> None:
        """Wait until no other process is encoding an image."""
        self._lock(key, fcntl.LOCK_EX)
        self._lock(key, fcntl.LOCK_UN)

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
            _descriptors[self._path] = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        return _descriptors[self._path]
