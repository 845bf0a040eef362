"""Write files atomically, and refuse output paths that cannot be written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmrlhf.records import InputError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` if the block succeeds and is removed if it fails.

    Creates the folder. Raises OSError (disk full, no permission).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temp_path = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temp_path
        fsync(temp_path)
        os.replace(temp_path, path)
        fsync(path.parent)  # makes the rename durable as well
    finally:
        temp_path.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file, or leave it unchanged if writing fails. Raises OSError, like `atomic`."""
    with atomic(path) as temp_path:
        temp_path.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `path` if the block succeeds; it is removed otherwise.

    A process killed at any time leaves the old folder or the new one whole: under its name, or the
    old one set aside, until the next call or `recover_folders` puts it back. Raises OSError.
    """
    path = path.resolve()
    unfinished, replaced = _temporary_names(path)
    _recover(path)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        for written in (*unfinished.rglob("*"), unfinished):
            fsync(written)
        if path.is_dir():
            path.rename(replaced)
        unfinished.rename(path)
        fsync(path.parent)  # makes the renames durable, before the old folder goes
    finally:
        _recover(path)


def remove_folder(path: Path) -> None:
    """Remove a folder, which a killed process leaves whole or not at all under its name.

    Raises OSError.
    """
    path = path.resolve()
    unfinished, _ = _temporary_names(path)
    shutil.rmtree(unfinished, ignore_errors=True)
    path.rename(unfinished)
    shutil.rmtree(unfinished)


def recover_folders(parent: Path) -> None:
    """Put back or remove what killed calls of `atomic_folder` and `remove_folder` left in a folder.

    No other process may be writing there. Raises OSError.
    """
    for suffix in (".replaced", ".unfinished"):
        for leftover in list(parent.glob(f".*{suffix}")):
            _recover(leftover.with_name(leftover.name[1:].removesuffix(suffix)))


def _temporary_names(path: Path) -> tuple[Path, Path]:
    """Return the names of a folder that is being written or removed, and of one set aside."""
    return path.with_name(f".{path.name}.unfinished"), path.with_name(f".{path.name}.replaced")


def _recover(path: Path) -> None:
    """Undo a replacement that did not get as far as the new folder's name; remove what is left of
    one that did.

    The folder set aside is always whole, because it is renamed before any file in it is removed.
    """
    unfinished, replaced = _temporary_names(path)
    if replaced.is_dir() and not path.exists():
        replaced.rename(path)
    shutil.rmtree(unfinished, ignore_errors=True)
    if replaced.is_dir():
        replaced.rename(unfinished)
        shutil.rmtree(unfinished, ignore_errors=True)


def refuse_unwritable(folder: Path, setting: str) -> None:
    """Check that a file can be written in a folder, before any work; leave nothing there.

    Raises InputError that names the setting with the folder.
    """
    missing_folders = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"{setting} {folder} cannot be written ({error.strerror}): give another --{setting}") from None
    finally:
        for path in missing_folders:
            with suppress(OSError):  # it was never created, or another process has written to it
                path.rmdir()


def refuse_output_file(path: Path, setting: str = "output_file", inputs: Iterable[str | Path | None] = ()) -> None:
    """Check that the file named by a setting can be written and is none of the inputs.

    Raises InputError if not.
    """
    if os.path.isdir(path):
        raise InputError(f"{setting} {path} is a directory: name a file in it")
    if os.path.exists(path) and any(file and os.path.exists(file) and os.path.samefile(path, file) for file in inputs):
        raise InputError(f"{setting} {path} is an input file: name another")
    refuse_unwritable(path.parent, setting)


def fsync(path: Path) -> None:
    """Wait until a file's content, or a directory's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
