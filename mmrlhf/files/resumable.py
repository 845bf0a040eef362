"""Write output files that take hours: they appear once complete, and a killed run resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrlhf.config.loader import current_names
from mmrlhf.files import lock
from mmrlhf.files.atomic import refuse_output_file, write_atomic
from mmrlhf.files.inputs import differences, join_differences
from mmrlhf.records import InputError


class ResumableWriter:
    """Collect lines in a hidden file next to `path`, and rename it on `finish`.

    A third hidden file is the lock, from the start until `finish` or the end of `files.writing`.

    A second hidden file records the inputs of the lines, also after `finish`. `num_done` is the
    number of lines kept from an earlier, killed run. `is_finished`: whether `path` is complete and
    made from the same inputs; then nothing is left to do. `partial_path`: the hidden file of lines.

    inputs: everything that the lines depend on, by name (`files.inputs.inputs_of`).
    group_size: how many lines belong together; an incomplete group of a killed run is dropped.
    setting: the flag that names the file, for messages.
    """

    def __init__(self, path: Path, inputs: Mapping[str, Any], group_size: int = 1, setting: str = "output_file"):
        """Raise InputError if the file has other inputs, or another command writes to it."""
        files = [value["path"] for value in inputs.values() if isinstance(value, dict) and "path" in value]
        refuse_output_file(path, setting, files)
        self.path, self._setting = path, setting
        self._inputs = json.loads(json.dumps(inputs, default=str))
        self.partial_path = path.with_name(f".{path.name}.part")
        self._inputs_path = path.with_name(f".{path.name}.inputs.json")
        self._lock_path = path.with_name(f".{path.name}.lock")
        saved = self._read_inputs()
        output_signature = _file_signature(path)
        is_known = output_signature is not None and saved.get("output") == output_signature
        if is_known or (saved and self.partial_path.exists()):
            self._refuse_other_inputs(saved["inputs"], path if is_known else self.partial_path)
        self.is_finished = is_known
        complete_lines: list[bytes] = []
        if not self.is_finished:
            lock.acquire(self._lock_path, path, setting)
            if self.partial_path.exists() and saved:
                complete_lines = self.partial_path.read_bytes().split(b"\n")[:-1]
            elif not saved:  # the inputs of the lines are unknown
                self.partial_path.unlink(missing_ok=True)
        self.num_done = len(complete_lines) // group_size * group_size
        self._valid_bytes = sum(len(line) + 1 for line in complete_lines[: self.num_done])
        self._needs_truncation = self.partial_path.exists()
        self._started = False

    def _read_inputs(self) -> dict[str, Any]:
        try:
            saved = json.loads(self._inputs_path.read_text(encoding="utf-8"))
            return {"inputs": current_names(dict(saved["inputs"])), "output": saved["output"]}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}

    def _write_inputs(self, output_signature: list[int] | None) -> None:
        write_atomic(self._inputs_path, json.dumps({"inputs": self._inputs, "output": output_signature}))

    def _refuse_other_inputs(self, saved_inputs: Mapping[str, Any], file: Path) -> None:
        if changes := differences(saved_inputs, self._inputs):
            raise InputError(
                f"{file} was made with other inputs, {join_differences(changes)}: give another --{self._setting} or remove the file"
            )

    def append(self, lines: Sequence[str]) -> None:
        """Append lines that end with a newline. The first call creates the hidden files.

        Raises InputError if the file was removed or replaced since the last call.
        """
        lock.check(self._lock_path, self.path, self._setting)
        if not self._started:
            if not self._needs_truncation:
                self.partial_path.unlink(missing_ok=True)
            self._write_inputs(None)
            self._started = True
        if self._needs_truncation:  # a killed run may have left part of a line or group
            os.truncate(self.partial_path, self._valid_bytes)
            self._needs_truncation = False
        content = "".join(lines).encode()
        with self.partial_path.open("ab") as file:
            if file.tell() != self._valid_bytes:
                raise InputError(
                    f"{self.partial_path} was removed or changed while this command was writing to it, so it stops: "
                    f"run it again, or give another --{self._setting}"
                )
            file.write(content)
        self._valid_bytes += len(content)

    def finish(self) -> None:
        """Rename the complete file to `path`."""
        self.append([])
        with self.partial_path.open("rb") as file:
            os.fsync(file.fileno())
        self._write_inputs(_file_signature(self.partial_path))  # renaming keeps size and time
        os.replace(self.partial_path, self.path)
        lock.release(self._lock_path)

    def print_finished(self) -> None:
        """Report that the file is finished, and where it is."""
        print(f"{self.path} is finished, nothing to do")


def discard(path: Path) -> None:
    """Remove a file, or a killed run's part of it, with the record of its inputs."""
    for file in (path.with_name(f".{path.name}.inputs.json"), path.with_name(f".{path.name}.part"), path):
        file.unlink(missing_ok=True)


def _file_signature(path: Path) -> list[int] | None:
    """Return a file's size and modification time, which reveal edits; None if it does not exist."""
    return [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else None
