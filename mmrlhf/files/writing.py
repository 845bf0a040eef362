"""Long-running writes: release the output's lock at the end, and explain a full disk."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from mmrlhf.files import lock
from mmrlhf.records import InputError

Command = TypeVar("Command", bound=Callable[..., Any])


@contextmanager
def writing(output: Path, kept: str | None = "what is written") -> Iterator[None]:
    """Write to `output` in the block: release it at the end, and explain a full disk.

    kept: the output from which the same command continues, None if it starts over. Raises
    InputError if the disk is full.
    """
    with lock.released_after():
        try:
            yield
        except Exception as error:
            if is_disk_full(error):
                raise InputError(full_disk_message(output, kept)) from None
            raise


def writes(setting: str) -> Callable[[Command], Command]:
    """Run a command in `writing`. `setting` of its first argument, `config`, names the output."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(*args: Any, **kwargs: Any) -> Any:
            config = args[0] if args else kwargs["config"]
            with writing(Path(getattr(config, setting))):
                return command(*args, **kwargs)

        return cast("Command", run)

    return decorate


def is_disk_full(error: Exception) -> bool:
    """Return whether writing failed because a disk or a quota is full.

    safetensors reports the system's error only as text.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(f"os error {number})" in str(error) for number in (errno.ENOSPC, errno.EDQUOT))


def full_disk_message(output: Path, kept: str | None = "what is written") -> str:
    """Return a sentence about a full disk. `kept` is as for `writing`."""
    return f"{output} is on a full disk: make room" + (f"; the same command continues from {kept}" if kept else "")
