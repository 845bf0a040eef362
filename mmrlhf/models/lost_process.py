"""Report the death of another process in one sentence."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

from mmrlhf.records import InputError

LOST = re.compile(
    r"connection (closed|reset|refused)|broken pipe|remote process exited|ncclRemoteError|timed? ?out", re.IGNORECASE
)
"""Messages of gloo and NCCL when another process has died or does not answer."""


class LostProcessError(InputError):
    """Another process has stopped, so no further communication is possible."""


@contextlib.contextmanager
def naming_lost_process() -> Iterator[None]:
    """Communicate with other processes in the block.

    Raises LostProcessError if one of them has stopped.
    """
    try:
        yield
    except RuntimeError as error:
        if not LOST.search(str(error)):
            raise
        raise LostProcessError(
            f"process {os.environ.get('RANK', '0')} stops, because another one has stopped or does not answer: see its own "
            "message above or in the launcher's log; the same command resumes after the last checkpoint"
        ) from None
