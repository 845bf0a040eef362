"""A resumable file that all processes fill: the main one writes, all know where to continue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrlhf.files.jsonl import json_line, read_jsonl
from mmrlhf.files.resumable import ResumableWriter
from mmrlhf.models.processes import broadcast_object_list
from mmrlhf.training.run import Run


class SharedWriter:
    """A `ResumableWriter` of a run. Every process calls every method; the main one writes.

    `is_finished` and `num_done` are those of the writer, on every process.
    """

    def __init__(self, run: Run, path: Path, inputs: Callable[[], Mapping[str, Any]], group_size: int = 1) -> None:
        """Raise InputError like ResumableWriter. Only the main process calls `inputs`."""
        self.path = path
        self._run = run
        self._writer = ResumableWriter(path, inputs(), group_size, "output_dir") if run.main_process else None
        state = [False, 0] if self._writer is None else [self._writer.is_finished, self._writer.num_done]
        self.is_finished, self.num_done = broadcast_object_list(state)

    def read_done(self) -> list[dict[str, Any]]:
        """Return the `num_done` rows of an earlier, killed run; on other processes none."""
        return read_jsonl(self._writer.partial_path)[: self.num_done] if self._writer is not None and self.num_done else []

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows of JSON."""
        if self._writer is not None:
            self._run.begin()
            self._writer.append([json_line(row) for row in rows])

    def finish(self) -> None:
        """Give the complete file its name."""
        if self._writer is not None:
            self._writer.finish()
