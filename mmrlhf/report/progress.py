"""A progress bar with elapsed and remaining time; without a terminal, one line per tenth."""

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
    """The handle that `progress` yields."""

    def __init__(self, done: int, update: Callable[[int, str], None]) -> None:
        self.done = done
        self._update = update

    def advance(self, n: int = 1, **fields: Any) -> None:
        """Advance by `n` steps and show fields beside the bar (`advance(loss=0.3)`)."""
        self.done += n
        self._update(self.done, "  ".join(format_numbers(to_jsonable(fields))))


@contextmanager
def progress(
    total: int, description: str, *, start: int = 0, console: Console | None = None, visible: bool = True
) -> Iterator[ProgressBar]:
    """Show a progress bar, or without a terminal print a line per tenth of the steps.

    start: steps already done, if the run resumes.
    """
    console = console or Console(highlight=False, quiet=not visible)
    if visible and console.is_terminal:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("ETA"), TimeRemainingColumn(), TextColumn("[dim]{task.fields[status]}"),
        )  # fmt: skip
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(description, total=total, completed=start, status="")
            yield ProgressBar(start, lambda completed, status: bar.update(task, completed=completed, status=status))
    else:
        yield ProgressBar(start, _print_every_tenth(console, total, start, description))


def _print_every_tenth(console: Console, total: int, start: int, description: str) -> Callable[[int, str], None]:
    """Return a callback that prints a line whenever another tenth of the steps is done."""
    start_time, last_tenth = time.monotonic(), 10 * start // max(total, 1)

    def print_progress(done: int, fields_text: str) -> None:
        nonlocal last_tenth
        tenth = 10 * done // max(total, 1)
        if tenth <= last_tenth:
            return
        last_tenth = tenth
        elapsed = time.monotonic() - start_time
        remaining = elapsed / max(done - start, 1) * max(total - done, 0)
        times = f"elapsed {_format_clock(elapsed)}, ETA {_format_clock(remaining)}"
        console.print(Text(f"{description} {done}/{total}  {times}  {fields_text}".rstrip()), soft_wrap=True)

    return print_progress


def format_numbers(row: Mapping[str, Any]) -> list[str]:
    """Return "name 0.123" for each number of a row, and "name.key 0.123" for nested mappings."""
    parts = []
    for name, value in row.items():
        if isinstance(value, Mapping):
            parts += format_numbers({f"{name}.{inner}": v for inner, v in value.items()})
        elif not isinstance(value, str | list):
            parts.append(f"{name} {format_number(value)}")
    return parts


def format_number(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _format_clock(seconds: float) -> str:
    """Return "2:03" or "1:02:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
