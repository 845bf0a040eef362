"""What a connection to a file of labels promises, whoever uses it."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from mmrlhf.labeling.database import Database, NotOnDiskError, StorageError


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "votes.sqlite"
    path.touch()
    with closing(Database(path)) as opened:
        opened.execute("CREATE TABLE votes (id INTEGER PRIMARY KEY, text TEXT)")
        yield opened


def test_database_must_exist(tmp_path):
    with pytest.raises(sqlite3.Error):
        Database(tmp_path / "absent.sqlite")
    assert not list(tmp_path.iterdir())


def test_writing_keeps_all_of_a_block_or_nothing(database):
    with database.writing() as connection:
        connection.execute("INSERT INTO votes VALUES (1, 'first')")
    with pytest.raises(ZeroDivisionError), database.writing() as connection:
        connection.execute("INSERT INTO votes VALUES (2, 'second')")
        raise ZeroDivisionError
    assert database.read("SELECT * FROM votes WHERE id < ?", (9,)) == [(1, "first")]


def test_a_second_row_with_a_key_is_an_integrity_error(database):
    with pytest.raises(sqlite3.IntegrityError), database.writing() as connection:
        connection.executemany("INSERT INTO votes VALUES (?, '')", [(1,), (1,)])
    assert database.read("SELECT * FROM votes") == []


@pytest.mark.parametrize("statement", ["INSERT INTO absent VALUES (?)", "INSERT INTO votes (text) VALUES (?)"])
def test_what_cannot_be_written_is_a_storage_error_and_leaves_nothing(database, statement):
    with pytest.raises(StorageError, match=r"votes\.sqlite could not be written"), database.writing() as connection:
        connection.execute("INSERT INTO votes VALUES (1, 'before')")
        connection.execute(statement, ("\ud800",))  # half a character, which SQLite's text cannot hold
    assert database.read("SELECT * FROM votes") == []


def test_what_cannot_be_read_is_a_storage_error(database):
    with pytest.raises(StorageError, match=r"votes\.sqlite could not be read"):
        database.read("SELECT * FROM absent")


# ---- on disk -------------------------------------------------------------------------------------


@pytest.fixture
def logged(database):
    """A database in the mode of a file of labels: commits are in SQLite's log."""
    database.execute("PRAGMA journal_mode = WAL")
    return database


def add_vote(database):
    with database.committing() as connection:
        connection.execute("INSERT INTO votes (text) VALUES ('a')")


@pytest.fixture
def synced(monkeypatch):
    """The files that were written to disk, by name."""
    names = []
    monkeypatch.setattr(
        "mmrlhf.labeling.database.os.fsync", lambda file: names.append(Path(f"/proc/self/fd/{file}").resolve().name)
    )
    return names


def test_what_is_written_is_on_disk(logged, synced, tmp_path):
    with logged.writing() as connection:
        connection.execute("INSERT INTO votes (text) VALUES ('a')")
    assert synced == [tmp_path.name, "votes.sqlite-wal"]  # the log's name, too
    add_vote(logged)
    assert len(synced) == 2
    logged.flush()
    logged.flush()  # nothing new
    assert synced[2:] == ["votes.sqlite-wal"]


def test_what_is_written_through_a_link_is_on_disk(logged, synced, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "link.sqlite").symlink_to(tmp_path / "votes.sqlite")
    with closing(Database(tmp_path / "links" / "link.sqlite")) as linked:
        add_vote(linked)
        linked.flush()
        assert synced == [tmp_path.name, "votes.sqlite-wal"]


def test_a_log_that_is_missing_is_not_called_written(logged, tmp_path):
    """One that was deleted before the first commit was never seen under its name."""
    logged.read("SELECT * FROM votes")
    (tmp_path / "votes.sqlite-wal").unlink()
    add_vote(logged)
    with pytest.raises(StorageError, match=r"written to disk \(No such file or directory\)"):
        logged.flush()


def test_the_first_flush_writes_what_a_killed_process_left(logged, synced, tmp_path):
    add_vote(logged)  # and is killed
    with closing(Database(tmp_path / "votes.sqlite")) as restarted:
        assert restarted.read("SELECT count(*) FROM votes") == [(1,)]
        restarted.flush()
        assert synced == [tmp_path.name, "votes.sqlite-wal"]
        restarted.flush()
        assert len(synced) == 2


def test_one_flush_serves_all_that_wait(logged, monkeypatch):
    """Of eight commits, the first is being written while seven come, which share the second."""
    is_writing, may_end, num_syncs = threading.Event(), threading.Event(), []

    def sync(_):
        num_syncs.append(logged.read("SELECT count(*) FROM votes"))
        is_writing.set()
        assert may_end.wait(timeout=60)

    add_vote(logged)
    logged.flush()  # opens the log
    monkeypatch.setattr("mmrlhf.labeling.database.os.fsync", sync)
    with ThreadPoolExecutor(8) as pool:
        add_vote(logged)
        waiting = [pool.submit(logged.flush)]
        assert is_writing.wait(timeout=60)
        for _ in range(7):
            add_vote(logged)
            waiting.append(pool.submit(logged.flush))
        assert not any(future.done() for future in waiting)
        may_end.set()
        assert [future.result(timeout=60) for future in waiting] == [None] * 8
    assert num_syncs == [[(2,)], [(9,)]]


def test_what_may_not_be_on_disk_is_never_called_written(logged, monkeypatch):
    """A system that could not write a file's pages says so once, and drops them."""

    def fail(_):
        raise OSError(28, "No space left on device")

    add_vote(logged)
    with (
        monkeypatch.context() as patch,
        pytest.raises(NotOnDiskError, match=r"written to disk \(No space left on device\), and is not"),
    ):
        patch.setattr("mmrlhf.labeling.database.os.fsync", fail)
        logged.flush()
    with pytest.raises(NotOnDiskError, match="until the server starts again"):
        logged.flush()
    with pytest.raises(NotOnDiskError, match="until the server starts again"):
        add_vote(logged)
    assert logged.read("SELECT count(*) FROM votes") == [(1,)]
