"""One SQLite file with tasks, images, annotators, and events that are only appended.

Events, in the order in which they were written:

    joined   an annotator accepted the consent line
    shown    an annotator was given a task; `token` identifies this event, `content` has the order
             in which the answers appear
    label    an answer to the event of `token`; so are
    skip     and
    flag
    undo     takes back the event `target`, which is one of these three

An index allows one answer for each token and one undo for each answer.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmrlhf.labeling.database import Database
from mmrlhf.labeling.tasks import Task, images_of
from mmrlhf.records import ImageSource, InputError

APPLICATION_ID = 0x6D6D4C62
"""Marks a SQLite file as one of labels."""
VERSION = 1
SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE images (sha256 TEXT PRIMARY KEY, path TEXT, data BLOB, name TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY AUTOINCREMENT, digest TEXT UNIQUE NOT NULL, mode TEXT NOT NULL, is_gold INTEGER NOT NULL,
    uncertainty REAL, content TEXT NOT NULL
);
CREATE TABLE annotators (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE NOT NULL, code TEXT NOT NULL);
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, annotator INTEGER NOT NULL REFERENCES annotators (id),
    task INTEGER REFERENCES tasks (id), token TEXT, target INTEGER REFERENCES events (id), time REAL NOT NULL, seconds REAL,
    content TEXT NOT NULL
);
CREATE UNIQUE INDEX shown_once ON events (token) WHERE kind = 'shown';
CREATE UNIQUE INDEX answered_once ON events (token) WHERE kind IN ('label', 'skip', 'flag');
CREATE UNIQUE INDEX undone_once ON events (target) WHERE kind = 'undo';
CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are only appended'); END;
CREATE TRIGGER events_remain BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are only appended'); END;
"""


class DuplicateError(Exception):
    """The token already has its answer, or the answer its undo."""


@dataclass(frozen=True)
class Event:
    """One appended event. `time` is in seconds since 1970, `seconds` the duration of an answer."""

    id: int
    kind: str
    annotator: int
    task: int | None
    token: str | None
    target: int | None
    time: float
    seconds: float | None
    content: Mapping[str, Any]


@dataclass(frozen=True)
class TaskEntry:
    """The properties of a task for scheduling."""

    id: int
    is_gold: bool
    uncertainty: float | None


class Store:
    """An open file of labels. Threads may share it; each call is one transaction, on disk before it
    returns, except for events, which wait for `flush`."""

    def __init__(self, path: str | Path, *, create: bool = False) -> None:
        """Open a file. Raises InputError if it is missing, or is not a file of labels."""
        self.path = Path(path)
        if not create and not self.path.is_file():
            raise InputError(f"{path} does not exist: give the file that `mmrlhf label serve` writes")
        try:
            if create and not self.path.exists():
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # labels are the annotators' own
            self._database = Database(self.path)
        except (OSError, sqlite3.Error) as error:
            raise self._cannot_open(error) from None
        try:
            is_new = create and self._is_empty()
            if not is_new:
                self._check_kind()  # before anything is changed in it
            self._database.execute("PRAGMA journal_mode = WAL")
            if is_new:
                self._create_tables()
        except BaseException as error:
            self._database.close()
            if isinstance(error, sqlite3.Error):
                raise self._cannot_open(error) from None
            raise

    def _cannot_open(self, error: Exception) -> InputError:
        return InputError(f"{self.path} cannot be opened as a file of labels ({error}): give another --output_file")

    def _check_kind(self) -> None:
        kind, version = (self._database.execute(f"PRAGMA {name}")[0][0] for name in ("application_id", "user_version"))
        if kind != APPLICATION_ID:
            raise InputError(f"{self.path} is a database of another program: give another --output_file")
        if version != VERSION:
            raise InputError(
                f"{self.path} was written by another version of mmrlhf ({version}, this one writes {VERSION}): use that one"
            )

    def _is_empty(self) -> bool:
        return not self._database.execute("SELECT count(*) FROM sqlite_master")[0][0]

    def _create_tables(self) -> None:
        with self._database.writing() as db:
            if self._is_empty():
                for statement in _statements(SCHEMA):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {VERSION}")
                db.execute("INSERT INTO settings VALUES ('secret', ?)", (secrets.token_hex(32),))

    def close(self) -> None:
        """Close the file; its content is then in it alone, not also in SQLite's log."""
        self._database.close()

    # ---- settings and tasks --------------------------------------------------------------------

    def setting(self, name: str, default: str = "") -> str:
        """Return a setting's value."""
        rows = self._database.read("SELECT value FROM settings WHERE name = ?", (name,))
        return rows[0][0] if rows else default

    def set_setting(self, name: str, value: str) -> None:
        """Write a setting."""
        with self._database.writing() as db:
            db.execute("INSERT INTO settings VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", (name, value))

    def add_tasks(self, tasks: Sequence[Task]) -> int:
        """Add new tasks with their images, and return their number.

        Existing ones are updated: paths of images, right answers of gold questions, and
        uncertainty.
        """
        with self._database.writing() as db:
            for key, image in images_of(tasks).items():
                path = None if image.path is None else os.path.abspath(image.path)
                name = image.recorded_name if path is None else os.path.basename(path)
                db.execute(
                    "INSERT INTO images VALUES (?, ?, ?, ?) ON CONFLICT (sha256) "
                    "DO UPDATE SET path = excluded.path, data = excluded.data, name = excluded.name",
                    (key, path, image.data, name),
                )
            num_new = 0
            for task in tasks:
                is_new = db.execute(
                    "INSERT OR IGNORE INTO tasks (digest, mode, is_gold, uncertainty, content) VALUES (?, ?, ?, ?, ?)",
                    (task.digest, task.mode, bool(task.gold), task.uncertainty, json.dumps(task.to_dict())),
                ).rowcount
                num_new += is_new
                if not is_new:
                    _update_task(db, task)
            return num_new

    def task_entries(self, after: int = 0) -> list[TaskEntry]:
        """Return the tasks whose id is larger than `after`, in the order of their addition."""
        rows = self._database.read("SELECT id, is_gold, uncertainty FROM tasks WHERE id > ? ORDER BY id", (after,))
        return [TaskEntry(id_, bool(is_gold), uncertainty) for id_, is_gold, uncertainty in rows]

    def modes(self) -> set[str]:
        """Return the modes that tasks have."""
        return {mode for (mode,) in self._database.read("SELECT DISTINCT mode FROM tasks")}

    def task(self, task_id: int) -> Task:
        """Return a task."""
        ((mode, uncertainty, content),) = self._database.read(
            "SELECT mode, uncertainty, content FROM tasks WHERE id = ?", (task_id,)
        )
        fields = json.loads(content)
        return Task.from_dict(mode, fields, [image for key in fields["images"] if (image := self.image(key))], uncertainty)

    def image(self, sha256: str) -> ImageSource | None:
        """Return an image of a task by its hash, None if there is no such image."""
        rows = self._database.read("SELECT path, data, name FROM images WHERE sha256 = ?", (sha256,))
        return ImageSource(rows[0][0], rows[0][1], expected_sha256=sha256, recorded_name=rows[0][2]) if rows else None

    def image_paths(self, mode: str) -> list[str]:
        """Return the paths of the images in the tasks of a mode, except gold questions."""
        query = (
            "SELECT DISTINCT images.path FROM tasks, json_each(tasks.content, '$.images') AS key "
            "JOIN images ON images.sha256 = key.value WHERE mode = ? AND NOT is_gold AND images.path IS NOT NULL"
        )
        return [path for (path,) in self._database.read(query, (mode,))]

    # ---- annotators and events -----------------------------------------------------------------

    def annotators(self) -> dict[int, str]:
        """Return the pseudonyms of all annotators by id."""
        return dict(self._database.read("SELECT id, name FROM annotators ORDER BY id"))

    def find_annotator(self, name: str) -> tuple[int, str] | None:
        """Return the id and the code of a pseudonym, None if nobody has it."""
        rows = self._database.read("SELECT id, code FROM annotators WHERE name = ?", (name,))
        return rows[0] if rows else None

    def code_of(self, annotator: int) -> str | None:
        """Return an annotator's code, None if there is no such annotator."""
        rows = self._database.read("SELECT code FROM annotators WHERE id = ?", (annotator,))
        return rows[0][0] if rows else None

    def add_annotator(self, name: str, code: str, time: float, consent: str) -> int:
        """Add an annotator who has accepted the consent line. Raises DuplicateError."""
        with self._database.writing() as db:
            try:
                id_ = db.execute("INSERT INTO annotators (name, code) VALUES (?, ?)", (name, code)).lastrowid
            except sqlite3.IntegrityError:
                raise DuplicateError(name) from None
            assert id_ is not None
            content = json.dumps({"consent": consent})
            db.execute("INSERT INTO events (kind, annotator, time, content) VALUES ('joined', ?, ?, ?)", (id_, time, content))
        return id_

    def append(
        self, kind: str, annotator: int, task: int, time: float, content: Mapping[str, Any],
        *, token: str | None = None, seconds: float | None = None,
    ) -> Event:  # fmt: skip
        """Append an event, and return it. Raises like `append_all`."""
        (event,) = self.append_all([Event(0, kind, annotator, task, token, None, time, seconds, content)])
        return event

    def append_all(self, events: Sequence[Event]) -> list[Event]:
        """Append events, all or none, and return them with their ids. Nothing about them may be
        acknowledged before `flush` has returned.

        Raises DuplicateError if a second one is not allowed, StorageError if none was written.
        """
        query = (
            "INSERT INTO events (kind, annotator, task, token, target, time, seconds, content) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        )
        appended = []
        with self._database.committing() as db:
            for e in events:
                text = json.dumps(e.content, ensure_ascii=False)
                try:
                    id_ = db.execute(query, (e.kind, e.annotator, e.task, e.token, e.target, e.time, e.seconds, text)).lastrowid
                except sqlite3.IntegrityError:
                    raise DuplicateError(e.token or str(e.target)) from None
                assert id_ is not None
                appended.append(replace(e, id=id_))
        return appended

    def flush(self) -> None:
        """Return once all events that were appended before are on disk. Raises NotOnDiskError."""
        self._database.flush()

    def events(self, kind: str | None = None, token: str | None = None) -> Iterator[Event]:
        """Yield the events in order: all, those of a kind, or those of a kind with a token."""
        where = " AND ".join(f"{name} = ?" for name, value in (("kind", kind), ("token", token)) if value is not None)
        parameters = [value for value in (kind, token) if value is not None]
        columns = "id, kind, annotator, task, token, target, time, seconds, content"
        for row in self._database.read(
            f"SELECT {columns} FROM events {'WHERE ' + where if where else ''} ORDER BY id", parameters
        ):
            id_, kind_, annotator, task, token_, target, time, seconds, content = row
            yield Event(id_, kind_, annotator, task, token_, target, time, seconds, json.loads(content))


def _update_task(db: sqlite3.Connection, task: Task) -> None:
    (id_, content) = db.execute("SELECT id, content FROM tasks WHERE digest = ?", (task.digest,)).fetchone()
    if task.uncertainty is not None:
        db.execute("UPDATE tasks SET uncertainty = ? WHERE id = ?", (task.uncertainty, id_))
    if task.gold:
        fields = json.loads(content)
        fields["gold"] = dict(task.gold)
        if "ranks" in task.gold:  # labels are in the order of these answers, whatever that of the row is now
            rank_of = dict(zip(task.answers, task.gold["ranks"], strict=True))
            fields["gold"] = {"ranks": [rank_of[answer] for answer in fields["answers"]]}
        db.execute("UPDATE tasks SET content = ? WHERE id = ?", (json.dumps(fields), id_))


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of a script; one that defines a trigger has semicolons inside."""
    pending = ""
    for line in script.splitlines():
        pending += line + "\n"
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
