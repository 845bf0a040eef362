"""Files that appear whole or not at all, and places that cannot be written. No torch: a command on data starts at once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmrlhf.records import InputError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A place to write a file that takes the name `path` when the block ends well, and is gone when it does not. Makes its folder.

    Raises OSError (a full disk, no permission).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temp_path = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temp_path
        fsync(temp_path)
        os.replace(temp_path, path)
        fsync(path.parent)  # the name, too, is on the disk
    finally:
        temp_path.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file that is there whole or, whatever happens meanwhile, as it was before. Raises OSError, as `whole` does."""
    with atomic(path) as temp_path:
        temp_path.write_bytes(content.encode() if isinstance(content, str) else content)


def refuse_unwritable(folder: Path, setting: str) -> None:
    """Try whether a file can be written in a folder, before work is done for it; leaves no trace.

    Raises InputError, which names the setting that gave the folder.
    """
    missing_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"{setting} {folder} cannot be written ({error.strerror}): give another --{setting}") from None
    finally:
        for path in missing_folders:
            with suppress(OSError):  # it was not made, or another process has put something there
                path.rmdir()


def refuse_output_file(path: Path, setting: str = "output_file") -> None:
    """`refuse_unwritable` for the file that --output_file (or another setting) names. Raises InputError."""
    if path.is_dir():
        raise InputError(f"{setting} {path} is a directory: name a file in it")
    refuse_unwritable(path.parent, setting)


def fsync(path: Path) -> None:
    """Wait until a file's content, or a directory's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
