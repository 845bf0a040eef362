"""A connection to a SQLite file shared by threads, with explicit flushing to disk."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

BUSY_SECONDS = 20.0
"""How long a write waits for another process, such as one that adds tasks."""


class StorageError(Exception):
    """Nothing was read or written, or not for certain: the disk is full, or the file cannot be
    used."""

    advice = "make room"


class FileGoneError(StorageError):
    """Nothing was written: the open file is no longer the one at its path, so it would be lost with
    the process."""

    advice = "put it back, or start the server again"


class NotOnDiskError(StorageError):
    """What was written may not be on disk: it is in the file as long as the machine runs, and
    perhaps no longer."""

    advice = "check the disk, and start the server again"


class Database:
    """An open file, whose commits `flush` puts on disk.

    `synchronous=FULL` would do so for each commit in turn, while all other threads wait; one
    `flush` serves all of them.
    """

    def __init__(self, path: Path) -> None:
        """Open a file, which must exist. Raises sqlite3.Error."""
        self._path, self._lock = path, threading.RLock()
        # SQLite's log is open, too. It lies beside the file itself, not beside a link to it.
        self._names = [str(path.absolute()), f"{os.path.realpath(path)}-wal"]
        self._identities: dict[str, tuple[int, int]] = {}
        self._flush_lock, self._log, self._flush_error = threading.Lock(), -1, ""
        # One commit to start with: a process that was killed may have left commits in the log that
        # it had not flushed.
        self._num_commits, self._num_flushed = 1, 0
        uri = f"{path.absolute().as_uri()}?mode=rw"
        self._connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self.execute("PRAGMA trusted_schema = OFF")
        self.execute("PRAGMA synchronous = NORMAL")
        self._check_name(self._names[0])  # the log may still be one that SQLite replaces

    def close(self) -> None:
        """Close the file, after moving the content of SQLite's log into it."""
        with self._flush_lock, self._lock:
            self._connection.close()
            if self._log >= 0:
                os.close(self._log)
                self._log = -1

    def execute(self, statement: str) -> list[Any]:
        """Return the rows of a statement outside of `writing`. Raises sqlite3.Error."""
        with self._lock:
            return self._connection.execute(statement).fetchall()

    def read(self, query: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of a query. Raises StorageError."""
        with self._lock:
            try:
                return self._connection.execute(query, parameters).fetchall()
            except sqlite3.Error as error:
                raise StorageError(f"{self._path} could not be read ({error})") from None

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Write in the block, all of it or nothing, and to disk. Raises like `committing` and
        `flush`."""
        with self.committing() as connection:
            yield connection
        self.flush()

    @contextmanager
    def committing(self) -> Iterator[sqlite3.Connection]:
        """Write in the block, all of it or nothing. The data survives the process and, once `flush`
        has returned, a crash of the machine.

        Raises StorageError if nothing was written (FileGoneError if the file was deleted or
        replaced, NotOnDiskError after a `flush` that failed), and sqlite3.IntegrityError for a
        second row if an index allows only one.
        """
        with self._lock:
            self._check_disk()
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                for name in self._names:
                    self._check_name(name)
                self._connection.execute("COMMIT")
                self._num_commits += 1
            except BaseException as error:
                if self._connection.in_transaction:
                    with suppress(sqlite3.Error):
                        self._connection.execute("ROLLBACK")
                if isinstance(error, (sqlite3.Error, UnicodeError)) and not isinstance(error, sqlite3.IntegrityError):
                    raise StorageError(f"{self._path} could not be written ({error})") from None
                raise

    def flush(self) -> None:
        """Return once all previous commits are on disk. Raises NotOnDiskError if this fails, and
        from then on always: the system forgets data that it could not write."""
        number = self._num_commits
        with self._flush_lock:
            if self._num_flushed >= number:  # by another thread, while this one waited
                return
            number = self._num_commits
            try:
                if not self._flush_error:
                    self._sync_log()
            except (OSError, sqlite3.Error) as error:
                self._flush_error = getattr(error, "strerror", None) or str(error)
            self._check_disk()
            self._num_flushed = number

    def _check_disk(self) -> None:
        if self._flush_error:
            raise NotOnDiskError(
                f"{self._path} could not be written to disk ({self._flush_error}), and is not used until the server starts again"
            )

    def _sync_log(self) -> None:
        """Write SQLite's log, with the commits, to disk. In other modes SQLite has done so."""
        if self._log < 0:
            if not os.path.exists(self._names[1]) and self.execute("PRAGMA journal_mode") != [("wal",)]:
                return
            self._log = os.open(self._names[1], os.O_RDONLY)
            folder = os.open(os.path.dirname(self._names[1]), os.O_RDONLY)
            try:
                os.fsync(folder)  # the log's name
            finally:
                os.close(folder)
        os.fsync(self._log)

    def _check_name(self, name: str) -> None:
        """Raise FileGoneError if a name no longer refers to the original file.

        SQLite itself would continue to write to a deleted file.
        """
        identity: tuple[int, int] | None = None
        try:
            status = os.stat(name)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError(f"{name} could not be found ({error.strerror})") from None
        else:
            identity = status.st_dev, status.st_ino
            self._identities.setdefault(name, identity)
        if identity != self._identities.get(name):
            raise FileGoneError(f"{name} was deleted or replaced while it was open")
