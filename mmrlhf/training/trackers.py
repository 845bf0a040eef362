"""The trackers of `report_to`, through accelerate: TensorBoard, Weights & Biases and trackio.

They receive every row of metrics.jsonl, with the names of TRL's runs (`train/objective/kl`,
`eval/pope/f1`), and the samples as tables with pictures, claims and values of reward functions.
TensorBoard writes to `tensorboard` in the run directory; the others have a project, `mmrlhf` unless
WANDB_PROJECT or TRACKIO_PROJECT names it, and a run with the directory's name. A resumed run does
not duplicate points: TensorBoard drops those after the checkpoint, the others keep their existing
ones.
"""

from __future__ import annotations

import importlib.util
import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from PIL import Image

from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.models.images import open_image
from mmrlhf.records import ImageSource, InputError
from mmrlhf.report.thumbnails import SIZE

TRACKERS = ("tensorboard", "wandb", "trackio")
PROJECT = "mmrlhf"
COLUMNS = ("images", "prompt", "answer", "reference", "score", "terms", "claims")
"""Columns of the table of samples; a stage may lack some."""


def parse_report_to(value: str | None) -> tuple[str, ...]:
    """Return the trackers in `report_to`; `none` is none.

    Raises InputError for one that is unknown, or whose package is not installed.
    """
    names = tuple(dict.fromkeys(name.strip() for name in (value or "none").split(",")))
    if names == ("none",):
        return ()
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"report_to {name!r} is no tracker: the choices are {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"report_to {name} needs the package {name}, which is not installed: `pip install {name}`, or leave it out "
                "(metrics.jsonl and report.html have everything)"
            )
    return names


class Trackers:
    """The trackers of a run. They start at its first step; earlier rows wait until then."""

    def __init__(self, names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> None:
        self.names, self.folder, self.settings = names, folder, settings
        self.resumed_step: int | None = None
        """The step of the checkpoint that the run continues from."""
        self._trackers: list[GeneralTracker] = []
        self._next_steps: dict[str, int] = {}  # the first step that a tracker does not have yet
        self._waiting: list[tuple[int, Callable[[GeneralTracker], None]]] = []

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Send a step's metrics, those without a value left out."""
        values = _named(metrics)
        self._send(step, lambda tracker: tracker.log(values, step=step))

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Send samples as a table: fixed prompts apart from others."""
        for title, chosen in (("fixed_prompts", True), ("samples", False)):
            if table := [row for row in rows if bool(row.get("fixed")) == chosen]:
                columns = [name for name in COLUMNS if any(name in row for row in table)]
                self._send(step, partial(_log_table, step=step, folder=self.folder, title=title, columns=columns, rows=table))

    def finish(self) -> None:
        """Send the remaining rows, and close the trackers."""
        for tracker in self._trackers:
            tracker.finish()
        self._trackers = []

    def _send(self, step: int, send: Callable[[GeneralTracker], None]) -> None:
        if not self.names:
            return
        self._waiting.append((step, send))
        if step > 0 and not self._trackers:
            self._start()
        if self._trackers:
            for sent_step, send_to in self._waiting:
                for tracker in self._trackers:
                    if sent_step >= self._next_steps[tracker.name]:
                        send_to(tracker)
            self._waiting = []

    def _start(self) -> None:
        PartialState()  # accelerate's trackers ask it which process they are in
        run_id = _run_id(self.folder)
        name = f"{self.folder.resolve().name}-{run_id[:6]}"
        for kind in self.names:
            tracker: GeneralTracker
            if kind == "tensorboard":
                # Points of steps from purge_step on are dropped: they are sent again.
                purge_step = None
                if self.resumed_step is not None and (self.folder / "tensorboard").is_dir():
                    purge_step = self.resumed_step + 1
                tracker = TensorBoardTracker("tensorboard", str(self.folder), purge_step=purge_step)
            elif kind == "wandb":
                project = os.environ.get("WANDB_PROJECT", PROJECT)
                tracker = WandBTracker(project, name=name, id=run_id, resume="allow", config=dict(self.settings))
            else:
                project = os.environ.get("TRACKIO_PROJECT", PROJECT)
                tracker = TrackioTracker(
                    project,
                    name=name,
                    resume="allow",
                    config=dict(self.settings),
                    embed=False,
                    auto_log_gpu=False,
                    auto_log_cpu=False,
                )
            tracker.start()
            self._next_steps[kind] = _next_step(tracker)
            self._trackers.append(tracker)
            self._fill(tracker)

    def _fill(self, tracker: GeneralTracker) -> None:
        """Send the metrics of steps before the checkpoint that a killed run had not sent yet."""
        next_step = self._next_steps[tracker.name]
        if tracker.name != "trackio" or next_step == 0 or self.resumed_step is None:
            return  # the others write a point at once
        for row in read_jsonl(self.folder / "metrics.jsonl"):
            if next_step <= row["step"] <= self.resumed_step:
                tracker.log(_named(row), step=row["step"])


def _named(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a row under the names that transformers' trainers use."""
    numbers = {name: value for name, value in metrics.items() if _is_number(value) and name not in ("step", "time")}
    return {name if name.startswith("eval/") else f"train/{name}": value for name, value in numbers.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _next_step(tracker: GeneralTracker) -> int:
    """Return the first step that a resumed run of a tracker does not have yet."""
    if tracker.name == "trackio":
        return int(getattr(tracker.tracker, "_next_step", 0))
    return 0  # wandb drops steps that it has


def _run_id(folder: Path) -> str:
    """Return the id of a directory's run in the trackers, and save it there."""
    file = folder / "trackers.json"
    if file.is_file():
        return str(json.loads(file.read_text(encoding="utf-8"))["id"])
    run_id = uuid.uuid4().hex[:12]
    write_atomic(file, json.dumps({"id": run_id}) + "\n")
    return run_id


# ---- tables of samples ---------------------------------------------------------------------------


def _text_of(row: Mapping[str, Any], column: str) -> Any:
    """Return a cell of the table; claims are one a line, with their verdicts."""
    value = row.get(column)
    if column == "terms" and isinstance(value, dict):
        return ", ".join(f"{name} {number:.3g}" if _is_number(number) else f"{name} –" for name, number in value.items())
    if column == "claims" and isinstance(value, list):
        return "\n".join(f"{claim.get('verdict')}: {claim.get('claim')}" for claim in value)
    return value if _is_number(value) else str(value or "")


def _pictures(row: Mapping[str, Any], folder: Path) -> list[Image.Image]:
    """Return thumbnails of a row's images. A missing path is relative to the run directory."""
    pictures = []
    for path in row.get("images") or ():
        source = ImageSource(path=str(path if Path(path).is_file() else folder / path))
        try:
            picture = open_image(source).convert("RGB")
        except InputError:
            continue
        picture.thumbnail((SIZE, SIZE))
        pictures.append(picture)
    return pictures


Rows = Sequence[Mapping[str, Any]]


def _log_table(tracker: GeneralTracker, *, step: int, folder: Path, title: str, columns: Sequence[str], rows: Rows) -> None:
    LOG_TABLE[tracker.name](tracker, step, folder, title, columns, rows)


def _log_to_tensorboard(tracker: GeneralTracker, step: int, folder: Path, title: str, columns: Sequence[str], rows: Rows) -> None:
    """Log a Markdown table, and the images by row."""
    shown = [name for name in columns if name != "images"]
    lines = ["| " + " | ".join(shown) + " |", "|" + " --- |" * len(shown)]
    for row in rows:
        cells = (str(_text_of(row, name)).replace("|", "\\|").replace("\n", "<br>") for name in shown)
        lines.append("| " + " | ".join(cells) + " |")
    tracker.log({title: "\n".join(lines)}, step=step)
    for row in rows:
        for number, picture in enumerate(_pictures(row, folder)):
            tag = f"{title}/{row.get('id')}" + (f"/{number}" if number else "")
            tracker.log_images({tag: np.asarray(picture)[None]}, step=step, dataformats="NHWC")


def _log_to_wandb(tracker: GeneralTracker, step: int, folder: Path, title: str, columns: Sequence[str], rows: Rows) -> None:
    import wandb

    data = [
        [[wandb.Image(p) for p in _pictures(row, folder)] if name == "images" else _text_of(row, name) for name in columns]
        for row in rows
    ]
    tracker.log_table(title, columns=list(columns), data=data, step=step)


def _log_to_trackio(tracker: GeneralTracker, step: int, folder: Path, title: str, columns: Sequence[str], rows: Rows) -> None:
    import pandas as pd
    import trackio

    cells = {
        name: [[trackio.Image(p) for p in _pictures(row, folder)] if name == "images" else _text_of(row, name) for row in rows]
        for name in columns
    }
    tracker.log({title: trackio.Table(dataframe=pd.DataFrame(cells))}, step=step)


LOG_TABLE: dict[str, Callable[..., None]] = {
    "tensorboard": _log_to_tensorboard,
    "wandb": _log_to_wandb,
    "trackio": _log_to_trackio,
}
"""How each tracker takes a table of samples."""
