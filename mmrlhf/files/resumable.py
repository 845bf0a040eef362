"""Output files that take hours to write: they appear once complete, and a killed run resumes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrlhf.files.atomic import refuse_output_file


def file_signature(path: str | None) -> list[Any]:
    """Return a model's or dataset's name, and for a local one the sizes and times of its files.

    Retrained weights therefore get another signature.
    """
    if path is None or not Path(path).exists():
        return [path]
    files = [Path(path)] if Path(path).is_file() else sorted(f for f in Path(path).iterdir() if f.is_file())
    return [path, *([f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files)]


def digest_of(run_key: Sequence[Any]) -> str:
    """Return a short hash of everything that the lines depend on."""
    return hashlib.sha256(json.dumps(run_key, default=repr).encode()).hexdigest()[:12]


class ResumableWriter:
    """Collect lines in a hidden file next to `path`, and rename it on `finish`.

    `num_done` lines of an earlier, killed run were kept.

    run_key: everything that the lines depend on. Lines of another key are not resumed.
    group_size: how many lines belong together; an incomplete group of a killed run is dropped.
    setting: the flag that named the file, for messages.
    """

    def __init__(self, path: Path, run_key: Sequence[Any], group_size: int = 1, setting: str = "output_file"):
        refuse_output_file(path, setting)
        self.path = path
        self._partial_path = path.with_name(f".{path.name}.{digest_of(run_key)}.part")
        complete_lines = self._partial_path.read_bytes().split(b"\n")[:-1] if self._partial_path.exists() else []
        self.num_done = len(complete_lines) // group_size * group_size
        self._valid_bytes = sum(len(line) + 1 for line in complete_lines[: self.num_done])
        self._has_torn_tail = self._partial_path.exists()

    def append(self, lines: Sequence[str]) -> None:
        """Append lines that end with a newline. The first call creates the folder and the file."""
        self._partial_path.parent.mkdir(parents=True, exist_ok=True)
        if self._has_torn_tail:
            os.truncate(self._partial_path, self._valid_bytes)
            self._has_torn_tail = False
        with self._partial_path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))

    def finish(self) -> None:
        """Rename the complete file to `path`."""
        self.append([])
        with self._partial_path.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(self._partial_path, self.path)
