"""The arena's tables in the file of votes, in addition to those of `mmrlhf label`.

Tasks, voters and votes are those of the labelling page (`labeling.store`). These tables add the
models of each pair, void votes (a model did not answer), and a judge's replies.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from mmrlhf.files.rows import preview
from mmrlhf.labeling.database import Database, StorageError
from mmrlhf.labeling.store import Store
from mmrlhf.labeling.tasks import Task
from mmrlhf.records import Example, ImageSource, InputError, Message

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS arena_pairs (
        digest TEXT NOT NULL, question TEXT NOT NULL, category TEXT NOT NULL, lower TEXT NOT NULL, upper TEXT NOT NULL,
        PRIMARY KEY (digest, lower, upper)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS arena_voids (
        id INTEGER PRIMARY KEY AUTOINCREMENT, question TEXT NOT NULL, first TEXT NOT NULL, second TEXT NOT NULL, failed TEXT NOT NULL,
        reason TEXT NOT NULL, time REAL NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS arena_judgments (
        judge TEXT NOT NULL, template TEXT NOT NULL, digest TEXT NOT NULL, turned INTEGER NOT NULL, verdict TEXT NOT NULL,
        reply TEXT NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (judge, template, digest, turned)) WITHOUT ROWID""",
)


@dataclass(frozen=True)
class Pair:
    """Two models on a question. `digest` names the task that shows their answers.

    Models that give equal answers share a task, so that a vote on it counts for each of them.
    `lower` gave the answer that comes first in the order of texts, `upper` the other.
    """

    digest: str
    question: str
    category: str
    lower: str
    upper: str


@dataclass(frozen=True)
class Void:
    """A vote that did not take place: `failed` gave no answer."""

    question: str
    first: str
    second: str
    failed: str
    reason: str
    time: float


@dataclass(frozen=True)
class Judgment:
    """A judge's reply about a task. `turned`: whether the second answer was shown first.

    `verdict` refers to the task's own order, whichever was shown: first, second, tie, or "" for an
    unusable reply.
    """

    judge: str
    template: str
    """Hash of the prompt's template."""
    digest: str
    turned: bool
    verdict: str
    reply: str
    reason: str


def question_key(images: Sequence[ImageSource], prompt: Sequence[Message]) -> str:
    """Return a hash of a question's content. Ids may be row numbers, which two files share."""
    content = [[image.key for image in images], [turn.to_dict() for turn in prompt]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def pair_of(task: Task, category: str) -> Pair:
    """Return the pair that a task of two models shows."""
    (_, lower), (_, upper) = sorted(zip(task.answers, task.models, strict=True))
    return Pair(task.digest, question_key(task.images, task.prompt), category, lower, upper)


def changed_model(name: str, change: str) -> InputError:
    """Return the error for a name that refers to another model in existing votes."""
    return InputError(
        f"{name} {change} than in output_file, whose votes are counted by name: call the new one otherwise, NEW_NAME=SOURCE, or give "
        "another --output_file"
    )


class Ledger:
    """The arena's tables in a file of votes. Threads may share it; each call is one transaction."""

    def __init__(self, path: str | Path) -> None:
        """Open the tables, which are created if they are missing. Raises StorageError."""
        try:
            self._database = Database(Path(path))
            for statement in SCHEMA:
                self._database.execute(statement)
        except sqlite3.Error as error:
            raise StorageError(f"{path} could not be written ({error})") from None

    def close(self) -> None:
        self._database.close()

    def _write(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        with self._database.writing() as db:
            db.executemany(statement, rows)

    def check_same_answers(self, answers_by_model: Mapping[str, Mapping[str, Example]]) -> None:
        """Raise InputError if a model's answer to a question differs from that in existing pairs.

        Votes are counted by name, and must not be about two models.
        """
        contents = self._database.read("SELECT digest, content FROM tasks")
        texts = {digest: sorted(json.loads(content)["answers"]) for digest, content in contents}
        known: dict[tuple[str, str], set[str]] = defaultdict(set)
        for pair in (pair for group in self.pairs().values() for pair in group if pair.digest in texts):
            for model, text in zip((pair.lower, pair.upper), texts[pair.digest], strict=True):
                known[pair.question, model].add(text)
        for model, answers in answers_by_model.items():
            for id_, example in answers.items():
                text = example.answer or ""
                if text not in known.get((question_key(example.images, example.prompt), model), {text}):
                    raise changed_model(model, f"has another answer to row {preview(id_)}")

    def add_pairs(self, store: Store, tasks: Sequence[Task], pairs: Sequence[Pair]) -> int:
        """Add pairs and their tasks, and return how many tasks are new.

        The pairs are added first, so that no vote can precede its pair.
        """
        self._write(_ADD_PAIR, map(astuple, pairs))
        return store.add_tasks(tasks)

    def pairs(self) -> dict[str, list[Pair]]:
        """Return the pairs of each task, by its digest."""
        groups: dict[str, list[Pair]] = defaultdict(list)
        for row in self._database.read("SELECT digest, question, category, lower, upper FROM arena_pairs"):
            groups[row[0]].append(Pair(*row))
        return dict(groups)

    def add_void(self, void: Void) -> None:
        self._write(
            "INSERT INTO arena_voids (question, first, second, failed, reason, time) VALUES (?, ?, ?, ?, ?, ?)", [astuple(void)]
        )

    def voids(self) -> list[Void]:
        return [
            Void(*row)
            for row in self._database.read("SELECT question, first, second, failed, reason, time FROM arena_voids ORDER BY id")
        ]

    def add_judgment(self, judgment: Judgment) -> None:
        """Add a judgment, replacing an earlier unusable one."""
        self._write("INSERT OR REPLACE INTO arena_judgments VALUES (?, ?, ?, ?, ?, ?, ?)", [astuple(judgment)])

    def judgments(self) -> list[Judgment]:
        rows = self._database.read(
            "SELECT judge, template, digest, turned, verdict, reply, reason FROM arena_judgments ORDER BY judge, digest, turned"
        )
        return [Judgment(row[0], row[1], row[2], bool(row[3]), *row[4:]) for row in rows]

    def fewest_left(self, overlap: int) -> int:
        """Return the number of open tasks for the voter who has the fewest.

        One is subtracted for each other voter, who may have it on the page. Without voters, it is
        the number of open tasks.
        """
        return int(self._database.read(_FEWEST_LEFT, (overlap,))[0][0])


_ADD_PAIR = """
INSERT INTO arena_pairs VALUES (?, ?, ?, ?, ?)
ON CONFLICT (digest, lower, upper) DO UPDATE SET category = excluded.category WHERE excluded.category <> ''
"""
_FEWEST_LEFT = """
WITH standing AS MATERIALIZED (
    SELECT annotator, task, kind FROM events WHERE kind IN ('label', 'skip', 'flag')
    AND id NOT IN (SELECT target FROM events WHERE kind = 'undo')
), done AS MATERIALIZED (
    SELECT task FROM standing WHERE kind = 'label' GROUP BY task HAVING count(*) >= ?
), open_tasks AS MATERIALIZED (
    SELECT id FROM tasks WHERE NOT is_gold AND id NOT IN (SELECT task FROM done)
), answered AS (
    SELECT annotator, count(*) AS number FROM standing WHERE task IN (SELECT id FROM open_tasks) GROUP BY annotator
)
SELECT (SELECT count(*) FROM open_tasks) - coalesce(max(coalesce(answered.number, 0)) + count(*) - 1, 0)
FROM annotators LEFT JOIN answered ON answered.annotator = annotators.id
"""
