"""A file of lines that takes hours: it appears when it is whole, and a killed command continues where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrlhf.files.atomic import refuse_output_file


def file_signature(path: str | None) -> list[Any]:
    """A model's, adapter's or data set's name, and its files' sizes and times where it is on this disk: retrained weights are
    another model."""
    if path is None or not Path(path).exists():
        return [path]
    files = [Path(path)] if Path(path).is_file() else sorted(f for f in Path(path).iterdir() if f.is_file())
    return [path, *([f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files)]


def digest_of(run_key: Sequence[Any]) -> str:
    """A short name for everything that some lines depend on."""
    return hashlib.sha256(json.dumps(run_key, default=repr).encode()).hexdigest()[:12]


class ResumableWriter:
    """Lines that wait in a hidden file beside `path` until `finish`; `done` of them were there when it was opened.

    subject: everything that the lines depend on. Lines of another subject are not continued.
    each: lines that belong together; what a kill has left of such a group is dropped.
    setting: the flag that named the file, for messages.
    """

    def __init__(self, path: Path, run_key: Sequence[Any], group_size: int = 1, setting: str = "output_file"):
        refuse_output_file(path, setting)
        digest = digest_of(run_key)
        self.path, self._partial_path = path, path.with_name(f".{path.name}.{digest}.part")
        complete_lines = self._partial_path.read_bytes().split(b"\n")[:-1] if self._partial_path.exists() else []
        self.num_done = len(complete_lines) // group_size * group_size
        self._valid_bytes = sum(len(line) + 1 for line in complete_lines[: self.num_done])  # bytes
        self._has_torn_tail = self._partial_path.exists()

    def append(self, lines: Sequence[str]) -> None:
        """Append lines, each with its newline. Nothing is on the disk before the first, nor is the folder."""
        self._partial_path.parent.mkdir(parents=True, exist_ok=True)
        if self._has_torn_tail:
            os.truncate(self._partial_path, self._valid_bytes)
            self._has_torn_tail = False
        with self._partial_path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))

    def finish(self) -> None:
        """Give the file its name."""
        self.append([])
        with self._partial_path.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(self._partial_path, self.path)
