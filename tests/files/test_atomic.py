"""Files are replaced atomically, and unwritable paths are refused without a trace."""

import itertools
import os
import sys

import pytest

from mmrlhf.files.atomic import atomic_folder, recover_folders, refuse_output_file, remove_folder, write_atomic
from mmrlhf.records import InputError


def test_write_atomic_replaces_and_leaves_no_partial_file(tmp_path):
    write_atomic(tmp_path / "new" / "a.txt", "first")
    write_atomic(tmp_path / "new" / "a.txt", b"second")
    assert [(file.name, file.read_text()) for file in (tmp_path / "new").iterdir()] == [("a.txt", "second")]


def test_write_atomic_failure_keeps_the_old_file(tmp_path, monkeypatch):
    write_atomic(tmp_path / "a.txt", "old")

    def fail_with_full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail_with_full_disk)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "a.txt", "new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "old")]


def test_refuse_output_file_leaves_no_trace(tmp_path):
    (tmp_path / "existing").mkdir()
    for path in (tmp_path / "a" / "b" / "file.jsonl", tmp_path / "existing" / "file.jsonl"):
        refuse_output_file(path)
    assert [path.name for path in tmp_path.rglob("*")] == ["existing"]
    with pytest.raises(InputError, match=r"output_file .*existing is a directory: name a file in it"):
        refuse_output_file(tmp_path / "existing")
    (tmp_path / "existing" / "file").touch()
    with pytest.raises(InputError, match=r"output_file .* cannot be written .*: give another --output_file"):
        refuse_output_file(tmp_path / "existing" / "file" / "b" / "c.jsonl")
    assert not (tmp_path / "existing" / "file" / "b").exists()


def test_atomic_folder_replaces_a_folder_once_it_is_whole(tmp_path):
    path = tmp_path / "out"
    (tmp_path / ".out").mkdir()  # somebody else's
    (tmp_path / ".out.unfinished").mkdir()  # of a killed process
    (tmp_path / ".out.unfinished" / "old").touch()
    with atomic_folder(path) as folder:
        (folder / "deeper").mkdir()
        write_atomic(folder / "deeper" / "a", "1")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), atomic_folder(path) as folder:
        write_atomic(folder / "b", str(1 / 0))
    assert [file.relative_to(path).as_posix() for file in sorted(path.rglob("*"))] == ["deeper", "deeper/a"]
    with atomic_folder(path) as folder:
        write_atomic(folder / "b", "2")
    assert [file.name for file in path.iterdir()] == ["b"] and sorted(p.name for p in tmp_path.iterdir()) == [".out", "out"]


def make_folder(path, *contents):
    path.mkdir()
    for number, content in enumerate(contents):
        (path / f"{number}.txt").write_text(content)


def contents(path):
    return [file.read_text() for file in sorted(path.iterdir())] if path.exists() else []


def killed_before_change(number, change):
    """Call `change` in a process that is killed before its change `number` to the disk.

    Return whether it got that far.
    """
    if not (child := os.fork()):
        changes = itertools.count()

        def kill(event, _):
            is_change = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
            if is_change and next(changes) == number:
                os._exit(9)

        sys.addaudithook(kill)
        change()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def replace_folder(path):
    with atomic_folder(path) as folder:
        for number in range(2):
            (folder / f"{number}.txt").write_text("new")


@pytest.mark.parametrize("start", ["old", "set aside", "new"])
def test_a_kill_at_any_time_leaves_the_old_or_the_new_folder_whole(tmp_path, start):
    """Also in a call after an earlier kill: before the new folder has its name, or after."""
    for number in itertools.count():
        parent = tmp_path / str(number)
        parent.mkdir()
        make_folder(parent / (".out.replaced" if start == "set aside" else "out"), start, start)
        if start != "old":
            make_folder(parent / ".out.unfinished", "half")
        if start == "new":
            make_folder(parent / ".out.replaced", "old", "old")
        was_killed = killed_before_change(number, lambda parent=parent: replace_folder(parent / "out"))
        recover_folders(parent)
        assert [path.name for path in parent.iterdir()] == ["out"]
        assert contents(parent / "out") in ([start, start], ["new", "new"])
        if not was_killed:
            break
    assert number > 4 and contents(parent / "out") == ["new", "new"]


def test_a_kill_leaves_a_removed_folder_whole_or_gone(tmp_path):
    for number in itertools.count():
        parent = tmp_path / str(number)
        parent.mkdir()
        make_folder(parent / "out", "a", "b")
        was_killed = killed_before_change(number, lambda parent=parent: remove_folder(parent / "out"))
        recover_folders(parent)
        assert contents(parent / "out") in (["a", "b"], []) and not list(parent.glob(".*"))
        if not was_killed:
            break
    assert number > 3 and not list(parent.iterdir())


def test_refuse_output_file_refuses_an_input_by_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "link.jsonl").symlink_to("rows.jsonl")
    refuse_output_file(tmp_path / "out.jsonl", inputs=["rows.jsonl", None, "owner/name"])
    for name in ("rows.jsonl", "link.jsonl"):
        with pytest.raises(InputError, match=f"train_file .*{name} is an input file: name another"):
            refuse_output_file(tmp_path / name, "train_file", [None, "rows.jsonl"])
