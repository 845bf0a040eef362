"""A training run's output about a step: a line of metrics, a row of a table, a sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.panel import Panel
from rich.text import Text

from mmrlhf.report.progress import format_number, format_numbers
from mmrlhf.text.printable import printable

ROWS_PER_HEADER = 20
"""Number of rows of the table of metrics after which its header is repeated."""
MAX_PRINTED_CHARACTERS = 300
"""Characters of a sample's text that are printed; samples.jsonl has the full text."""


def metrics_line(step: int, metrics: Mapping[str, Any], width: int) -> Text:
    """Return the metrics of a step that fit on a line."""
    line = Text.assemble((f"step {step}", "bold"))
    for name, value in metrics.items():
        entry = f"  {name} {format_number(value)}"
        if len(line) + len(entry) > max(width, 80):
            break
        line.append(f"  {name} ", "dim").append(format_number(value))
    return line


class StepTable:
    """A table that grows by a row at a time; columns without a value in the first row are left out.

    The header is printed again from time to time. A step without any value was skipped.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._columns: list[str] = []
        self._num_rows = 0

    def print_row(self, step: int, values: Mapping[str, float | None]) -> None:
        if not values:
            self._console.print(Text(f"{step:>6}  skipped"), soft_wrap=True)
            return
        if not self._columns:
            self._columns = [name for name, value in values.items() if value is not None]
        header = "  ".join([f"{'step':>6}", *(f"{name:>9}" for name in self._columns)])
        if self._num_rows % ROWS_PER_HEADER == 0:
            self._console.print(Text(header, "bold"), soft_wrap=True)
        self._num_rows += 1
        cells = (f"{format_number(values.get(name)):>{max(9, len(name))}}" for name in self._columns)
        self._console.print(Text("  ".join([f"{step:>6}", *cells])), soft_wrap=True)


def sample_lines(step: int, row: Mapping[str, Any], is_terminal: bool) -> RenderableType:
    """Return a sample: a shortened line per text, then its numbers."""
    text = Text()
    for name, value in row.items():
        if isinstance(value, str):
            text.append(f"{name}: ", "dim").append(f"{_printable_line(value)}\n")
    text.append("  ".join(format_numbers({name: value for name, value in row.items() if name != "step"})))
    text.rstrip()
    if is_terminal:
        return Panel(text, title=f"step {step}", title_align="left", border_style="dim")
    return Text(f"sample at step {step}\n").append_text(text)


def _printable_line(text: str) -> str:
    """Return a text on one line, shortened, without control codes that a model may have written."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= MAX_PRINTED_CHARACTERS else line[: MAX_PRINTED_CHARACTERS - 1] + "…"
