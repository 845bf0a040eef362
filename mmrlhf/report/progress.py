"""A progress bar with the time gone and left; without a terminal, a line for each tenth of the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from mmrlhf.files.jsonl import to_jsonable


class ProgressBar:
    """What `Run.progress` hands out."""

    def __init__(self, done: int, update: Callable[[int, str], None]) -> None:
        self.done = done
        self._update = update

    def advance(self, n: int = 1, **fields: Any) -> None:
        """`n` steps on; fields are said beside the bar (`advance(loss=0.3)`)."""
        self.done += n
        self._update(self.done, "  ".join(_format_numbers(to_jsonable(fields))))


@contextmanager
def progress(
    total: int, description: str, *, start: int = 0, console: Console | None = None, visible: bool = True
) -> Iterator[ProgressBar]:
    """A progress bar; without a terminal it is a line for each tenth of the way."""
    console = console or Console(highlight=False, quiet=not visible)
    if visible and console.is_terminal:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("[dim]{task.fields[status]}"),
        )  # fmt: skip
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(description, total=total, completed=start, status="")
            yield ProgressBar(start, lambda completed, status: bar.update(task, completed=completed, status=status))
    else:
        yield ProgressBar(start, _print_every_tenth(console, total, start, description))


def _print_every_tenth(console: Console, total: int, start: int, description: str) -> Callable[[int, str], None]:
    start_time, tenth = time.monotonic(), 10 * start // max(total, 1)

    def print_progress(done: int, fields_text: str) -> None:
        nonlocal tenth
        if 10 * done // max(total, 1) > tenth:
            tenth = 10 * done // max(total, 1)
            elapsed = time.monotonic() - start_time
            remaining = elapsed / max(done - start, 1) * max(total - done, 0)
            line = f"{description} {done}/{total}  {_format_duration(elapsed)} gone, {_format_duration(remaining)} left  {fields_text}"
            console.print(Text(line.rstrip()), soft_wrap=True)

    return print_progress


def _format_numbers(row: Mapping[str, Any]) -> list[str]:
    """ "name 0.123" for each number of a row and of the mappings in it."""
    parts = []
    for name, value in row.items():
        if isinstance(value, Mapping):
            parts += _format_numbers({f"{name}.{inner}": v for inner, v in value.items()})
        elif not isinstance(value, str | list):
            parts.append(f"{name} {_format_number(value)}")
    return parts


def _format_number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)


def _format_duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
