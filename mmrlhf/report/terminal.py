"""Tables in the terminal at the end of a run: results, and the time of each stage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmrlhf.report.results import (
    MAIN_METRICS,
    METRICS_BY_KEY,
    Metric,
    format_duration,
    metric_interval,
    metric_value,
    model_style,
    models_on_split,
    same_kl_sentence,
)

SHORT_TITLES = {"cooccurrence_errors": "co-occ.\nerrors", "perception_errors": "percep.\nerrors", "claim_f1": "claim\nF1"}
"""Titles that fit a narrow column."""
TERMINAL_METRICS = (*MAIN_METRICS, METRICS_BY_KEY["mean_length"])


def print_whole(table: Table) -> None:
    """Print a table without cutting its cells, even if it is wider than the terminal."""
    console = Console(highlight=False)
    width = console.measure(table, options=console.options.update(max_width=1000)).maximum
    Console(highlight=False, width=max(console.width, width)).print(table, crop=False)


def print_results_table(summary: Mapping[str, Any]) -> None:
    """Print held-out results, one row per model with intervals below the values, in 80 columns."""
    table = Table(title="Held-out images, with 95% intervals", title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for metric in TERMINAL_METRICS:
        arrow = {"lower": "↓", "higher": "↑"}.get(metric.better, "")
        heading = SHORT_TITLES.get(metric.key, metric.title)
        table.add_column(f"{heading}\n{arrow}", justify="right", no_wrap=True)
    for name, row in models_on_split(summary, "held_out").items():
        cells = []
        for metric in TERMINAL_METRICS:
            value, interval = metric_value(row, metric.key), metric_interval(row, metric.key)
            cell = Text("" if value is None else metric.format_value(value))
            if interval:
                cell.append("\n" + "–".join(_format_bound(bound, metric) for bound in interval), "dim")
            cells.append(cell)
        style = "bold" if name == "ppo_fact" else ""
        table.add_row(Text(model_style(name).title, style), *cells)
    Console().print(table)
    if sentence := same_kl_sentence(summary):
        Console(highlight=False).print(sentence + "\n")


def print_stage_times(seconds: Mapping[str, float]) -> None:
    """Print the time of each stage and the total."""
    table = Table(title="Time of each stage", title_justify="left", box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for stage, duration in seconds.items():
        table.add_row(stage, format_duration(duration))
    table.add_row(Text("total", "bold"), Text(format_duration(sum(seconds.values())), "bold"))
    Console().print(table)


def _format_bound(bound: float, metric: Metric) -> str:
    """Return a bound of an interval for a narrow column: "12" (percent), ".31", "5.1"."""
    if metric.percent:
        return f"{100 * bound:.0f}"
    return re.sub(r"^(-?)0\.", r"\1.", f"{bound:.2f}") if abs(bound) < 0.995 else f"{bound:.1f}"
