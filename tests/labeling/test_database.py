"""What a connection to a file of labels promises, whoever uses it."""

import sqlite3
from contextlib import closing

import pytest

from mmrlhf.labeling.database import Database, StorageError


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
