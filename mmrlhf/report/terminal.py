"""The table that closes a run in the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmrlhf.report.results import MAIN, METRIC, Metric, interval_of, model_named, models_on, value_of

TERMINAL = (*MAIN, METRIC["mean_length"])


def terminal_table(summary: Mapping[str, Any]) -> None:
    """Print the held-out results, a model a row, intervals beneath the values; fits 80 columns."""
    table = Table(title="Held-out pictures, with 95% intervals", title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for metric in TERMINAL:
        arrow = {"lower": "↓", "higher": "↑"}.get(metric.better, "")
        table.add_column(f"{metric.title}\n{arrow}", justify="right", no_wrap=True)
    for name, row in models_on(summary, "held_out").items():
        cells = []
        for metric in TERMINAL:
            value, interval = value_of(row, metric.key), interval_of(row, metric.key)
            cell = Text("" if value is None else metric.text(value))
            if interval:
                cell.append("\n" + "–".join(_short(end, metric) for end in interval), "dim")
            cells.append(cell)
        style = "bold" if name == "ppo_fact" else ""
        table.add_row(Text(model_named(name).title, style), *cells)
    Console().print(table)


def _short(end: float, metric: Metric) -> str:
    """An interval's end for a narrow column: 12 (percent), .31, 5.1."""
    if metric.percent:
        return f"{100 * end:.0f}"
    return re.sub(r"^(-?)0\.", r"\1.", f"{end:.2f}") if abs(end) < 0.995 else f"{end:.1f}"
