"""Write output files that take hours: they appear once complete, and a killed run resumes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrlhf.files.atomic import refuse_output_file


def file_signature(path: str | None) -> list[Any]:
    """Return the name of a model or dataset and, if it is local, the sizes and times of its files.

    Retrained weights therefore have another signature.
    """
    if path is None or not Path(path).exists():
        return [path]
    files = [Path(path)] if Path(path).is_file() else sorted(file for file in Path(path).iterdir() if file.is_file())
    return [path, *([file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files)]


def digest_of(run_key: Sequence[Any]) -> str:
    """Return a short hash of everything that the lines depend on."""
    return hashlib.sha256(json.dumps(run_key, default=repr).encode()).hexdigest()[:12]


class ResumableWriter:
    """Collect lines in a hidden file next to `path`, and rename it on `finish`.

    `num_done` is the number of lines kept from an earlier, killed run.

    run_key: everything that the lines depend on. Lines written under another key are not kept.
    group_size: how many lines belong together; an incomplete group of a killed run is dropped.
    setting: the flag that names the file, for messages.
    """

    def __init__(self, path: Path, run_key: Sequence[Any], group_size: int = 1, setting: str = "output_file"):
        refuse_output_file(path, setting)
        self.path = path
        self._partial_path = path.with_name(f".{path.name}.{digest_of(run_key)}.part")
        complete_lines = self._partial_path.read_bytes().split(b"\n")[:-1] if self._partial_path.exists() else []
        self.num_done = len(complete_lines) // group_size * group_size
        self._valid_bytes = sum(len(line) + 1 for line in complete_lines[: self.num_done])
        self._needs_truncation = self._partial_path.exists()

    def append(self, lines: Sequence[str]) -> None:
        """Append lines that end with a newline. The first call creates the folder and the file."""
        self._partial_path.parent.mkdir(parents=True, exist_ok=True)
        if self._needs_truncation:  # a killed run may have left part of a line or group
            os.truncate(self._partial_path, self._valid_bytes)
            self._needs_truncation = False
        with self._partial_path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))

    def finish(self) -> None:
        """Rename the complete file to `path`."""
        self.append([])
        with self._partial_path.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(self._partial_path, self.path)
