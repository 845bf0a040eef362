"""What may go wrong beside the page: full disks, files that are gone, changed or not ours."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from mmrlhf.labeling.app import create_app
from mmrlhf.labeling.database import Database, StorageError
from mmrlhf.labeling.pages import Pages
from mmrlhf.labeling.sessions import Sessions, consent_key
from mmrlhf.labeling.store import Store
from mmrlhf.records import InputError
from tests.labeling.conftest import Person, assign, pairs, standing


@pytest.fixture
def store(make_store):
    return make_store(pairs(3))


def test_a_full_disk_acknowledges_nothing(store, make_app, capsys):
    person = Person(make_app(store))
    pages = store._database.execute("PRAGMA page_count")[0][0]
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    replies = [person.send(choice="left", strength="2", note="n" * 3900) for _ in range(3)]
    assert {reply.status_code for reply in replies} == {507}
    assert "nothing was saved" in replies[0].json()["error"] and standing(store) == []
    store._database.execute("PRAGMA max_page_count = 1000000")
    assert person.send(choice="left", strength="2").status_code == 200 and len(standing(store)) == 1


def test_a_file_that_cannot_be_read_is_a_page_with_the_servers_title(store, make_app, capsys):
    person = Person(make_app(store))
    store._database.execute("ALTER TABLE annotators RENAME TO lost")
    reply = person.client.get("/")
    assert reply.status_code == 507 and "the server cannot use its file" in reply.text
    assert "<title>A &lt;b&gt;title&lt;/b&gt;" in reply.text and "Be fair." not in reply.text
    assert "labels.db could not be read" in capsys.readouterr().out


def test_a_full_disk_gets_a_sentence_wherever_something_is_written(store, make_app, monkeypatch):
    """Pages note what they show; an undo, a newcomer and a new consent are events."""
    person = Person(make_app(store))
    person.label(kind="skip")
    person.send(kind="skip")  # the next page draws an order
    another_line = Sessions(store, None, "Another line.")
    changed = create_app(assign(store), another_line, Pages("t", "", "Another line."))
    stranger = TestClient(person.client.app, base_url="http://127.0.0.1:8010", raise_server_exceptions=False)
    asked_again = TestClient(changed, base_url="http://127.0.0.1:8010", cookies=person.client.cookies)
    consent = person.fields | {"consent": "yes", "consent_line": consent_key("Another line.")}
    join = {"name": "robin", "consent": "yes", "consent_line": consent_key("You may store my labels.")}

    @contextlib.contextmanager
    def full(_):
        raise StorageError(f"{store.path} could not be written (database or disk is full)")
        yield

    events = list(store.events())
    last_answer = str(events[-1].id)
    monkeypatch.setattr(Database, "committing", full)
    with open("/dev/full", "w") as output:  # what the server prints goes to the same disk
        monkeypatch.setattr("sys.stdout", output)
        replies = [
            person.client.get("/"),
            person.send("/undo", json_reply=False, answer=last_answer),
            stranger.post("/join", data=join),
            asked_again.post("/consent", data=consent),
        ]
        monkeypatch.undo()
        output.buffer.raw.close()
    for reply in replies:
        assert reply.status_code == 507 and "the server cannot use its file: tell the person who runs it" in reply.text
        assert "<h1>That did not work</h1>" in reply.text and "Traceback" not in reply.text
    assert [reply.text.count("nothing was saved, because") for reply in replies] == [0, 1, 1, 1]
    assert list(store.events()) == events and list(store.annotators().values()) == ["heron"]


def test_nothing_is_acknowledged_before_it_is_on_disk(store, make_app, monkeypatch):
    """Neither a label, nor its second form, nor an undo; a page needs not wait for the disk."""
    person = Person(make_app(store))
    old = person.fields
    with monkeypatch.context() as patch:
        patch.setattr("mmrlhf.labeling.database.os.fsync", lambda _: 1 / 0)
        assert person.send(choice="left", strength="2").status_code == 500
        assert person.send(choice="left", strength="2").status_code == 500
        assert "Question 1?" in person.look()
        assert person.send("/undo", answer=person.fields["answer"]).status_code == 500
    assert person.client.post("/answer", data=old | {"kind": "skip"}, headers={"Accept": "application/json"}).status_code == 200


def test_after_a_failed_sync_nothing_is_called_lost_or_saved_until_a_restart(store, make_app, monkeypatch, capsys):
    """The label is in the file, but perhaps only until the machine stops. What comes later is not
    written at all, so that a newcomer's name stays free."""

    def fail(_):
        raise OSError(5, "Input/output error")

    person = Person(make_app(store))
    with monkeypatch.context() as patch:
        patch.setattr("mmrlhf.labeling.database.os.fsync", fail)
        reply = person.send(choice="left", strength="2")
    again = person.send(choice="left", strength="2")
    for refused in (reply, again):
        assert refused.status_code == 507
        assert refused.json()["error"].startswith("this may not be saved, because the server could not write to its disk: tell")
    assert Person(make_app(store), name="robin").joined.status_code == 507
    assert "(Input/output error)" in (out := capsys.readouterr().out) and ": check the disk, and start the server again\n" in out
    store.close()
    with contextlib.closing(Store(store.path)) as restarted:
        cookies, fields = person.client.cookies, person.fields | {"choice": "left", "strength": "2"}
        client = TestClient(make_app(restarted), base_url="http://127.0.0.1:8010", cookies=cookies)
        same_form = client.post("/answer", data=fields, headers={"Accept": "application/json"})
        assert same_form.json() == {"next": "/", "note": "this task has your answer already"}
        assert [row for _, row, _ in standing(restarted)] == ["row 0"]
        assert Person(make_app(restarted), name="robin").joined.status_code == 200


@pytest.mark.parametrize("name", ["labels.db", "labels.db-wal"])
@pytest.mark.parametrize("is_replaced", [False, True])
@pytest.mark.parametrize("is_linked", [False, True])
def test_a_file_that_is_gone_acknowledges_nothing(make_store, make_app, capsys, tmp_path, name, is_replaced, is_linked):
    """SQLite goes on writing into a file without a name, whose content ends with the process. A
    link's log lies beside the file to which it points."""
    if is_linked:
        (tmp_path / "links").mkdir()
        (tmp_path / "links" / "link.db").symlink_to(tmp_path / "labels.db")
        (tmp_path / "labels.db").touch()
    store = make_store(pairs(3), name="links/link.db" if is_linked else "labels.db")
    person = Person(make_app(store))
    person.label()
    (tmp_path / name).rename(tmp_path / "moved")
    if is_replaced:
        shutil.copy(tmp_path / "moved", tmp_path / name)
    for path in ("/answer", "/undo"):
        reply = person.send(path, choice="left", strength="2", answer=person.fields["answer"])
        assert reply.status_code == 503
        assert reply.json()["error"].startswith("nothing was saved, because the server's file was deleted or replaced: tell")
    printed = capsys.readouterr().out
    known_as = "link.db" if is_linked and name == "labels.db" else name
    assert f"{known_as} was deleted or replaced while it was open: put it back, or start the server again\n" in printed
    assert [row for _, row, _ in standing(store)] == ["row 0"]
    (tmp_path / "moved").replace(tmp_path / name)  # where it was: the same form is saved
    assert person.label().json() == {"next": "/", "note": ""} and len(standing(store)) == 2


def test_a_log_that_is_deleted_loses_nothing_that_was_acknowledged(store, make_app):
    person = Person(make_app(store))
    person.label()
    Path(f"{store.path}-wal").unlink()
    assert person.label().status_code == 503
    store.close()
    with contextlib.closing(Store(store.path)) as again:
        assert [row for _, row, _ in standing(again)] == ["row 0"]


def test_a_changed_task_file_changes_no_task(store, make_app, tmp_path):
    person = Person(make_app(store))
    (tmp_path / "rows.jsonl").write_text('{"id": "other"}\n')
    person.label()
    assert "Question 1?" in person.page and standing(store)[0][1] == "row 0"


def test_files_of_others_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        Store(tmp_path / "none.db")
    (tmp_path / "text.db").write_text("not a database, but a text that is long enough" * 100)
    with pytest.raises(InputError, match="cannot be opened as a file of labels"):
        Store(tmp_path / "text.db", create=True)
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE t (x)")
    before = (tmp_path / "other.db").read_bytes()
    with pytest.raises(InputError, match="a database of another program"):
        Store(tmp_path / "other.db", create=True)
    assert (tmp_path / "other.db").read_bytes() == before  # not even its journal mode
    assert {path.name for path in tmp_path.iterdir()} == {"text.db", "other.db"}


def test_a_failure_inside_says_nothing(store, make_app, monkeypatch):
    person = Person(make_app(store))
    monkeypatch.setattr("mmrlhf.labeling.store.Store.task", lambda *_: 1 / 0)
    reply = person.client.get("/")
    assert reply.status_code == 500 and "ZeroDivision" not in reply.text
