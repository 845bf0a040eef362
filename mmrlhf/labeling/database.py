"""A connection to a SQLite file that threads share. What it has acknowledged is on disk."""

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
    """Nothing was read or written: the disk is full, or the file cannot be used."""

    advice = "make room"


class FileGoneError(StorageError):
    """Nothing was written: the open file is no longer the one at its path, so that it would be lost
    with the process."""

    advice = "put it back, or start the server again"


class Database:
    """An open file. `synchronous=FULL` writes every commit to disk before it returns."""

    def __init__(self, path: Path) -> None:
        """Open a file, which must exist. Raises sqlite3.Error."""
        self._path, self._lock = path, threading.RLock()
        self._names = [str(path.absolute()), f"{path.absolute()}-wal"]  # SQLite's log is open, too
        self._identities: dict[str, tuple[int, int]] = {}
        uri = f"{path.absolute().as_uri()}?mode=rw"
        self._connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self.execute("PRAGMA trusted_schema = OFF")
        self.execute("PRAGMA synchronous = FULL")
        self._check_name(self._names[0])  # the log may still be one that SQLite replaces

    def close(self) -> None:
        """Close the file; its content is then in it alone, not also in SQLite's log."""
        with self._lock:
            self._connection.close()

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
        """Write in the block, all of it or nothing.

        Raises StorageError if nothing was written (FileGoneError if the file was deleted or
        replaced), and sqlite3.IntegrityError for a second row where an index admits one.
        """
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                for name in self._names:
                    self._check_name(name)
                self._connection.execute("COMMIT")
            except BaseException as error:
                if self._connection.in_transaction:
                    with suppress(sqlite3.Error):
                        self._connection.execute("ROLLBACK")
                if isinstance(error, (sqlite3.Error, UnicodeError)) and not isinstance(error, sqlite3.IntegrityError):
                    raise StorageError(f"{self._path} could not be written ({error})") from None
                raise

    def _check_name(self, name: str) -> None:
        """Raise FileGoneError if a name no longer stands for the file that it did at first.

        SQLite itself would go on writing into a file that has no name any more.
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
