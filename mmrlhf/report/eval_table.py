"""Print the table of `mmrlhf eval`: a row per metric, with the modes side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmrlhf.report.terminal import print_whole
from mmrlhf.text.printable import printable

COUNT_LABELS = {
    "missing": "missing",
    "unknown_ids": "of unknown ids",
    "duplicate": "repeated",
    "null": "empty (null)",
    "unparsed": "not understood",
    "judge_errors": "not judged",
}
"""Counts of result.json, and their names in the line under the table."""


def print_eval_result(result: Mapping[str, Any]) -> None:
    """Print a result's metrics, why some are undefined, and the problems of its answers.

    Modes share a column if their common figures are the same. An interval without width is left
    out: it comes from a single fold or from values that are all equal.
    """
    modes = {mode: dict(_leaves(metrics)) for mode, metrics in result["metrics"].items() if metrics}
    columns: dict[str, dict[tuple[str, str], Any]] = {}
    for mode, leaves in modes.items():
        twin = next((title for title, other in columns.items() if _same_values(leaves, other)), None)
        if twin is not None:
            columns[f"{twin} = {mode}"] = leaves | columns.pop(twin)
        else:
            columns[mode] = leaves
    title = f"{result['benchmark']}: {result['n']} of {result['examples']} answered"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for mode in columns:
        table.add_column(mode, justify="right", no_wrap=True)
        table.add_column("95% interval", justify="right", no_wrap=True, style="dim")
    last_part = ""
    for part, name in dict.fromkeys(key for leaves in columns.values() for key in leaves):
        if part != last_part:
            table.add_row(Text(printable(part), "bold"))
            last_part = part
        cells = [
            cell for leaves in columns.values() for cell in (_cells(leaves[part, name]) if (part, name) in leaves else ("", ""))
        ]
        table.add_row(Text("  " * bool(part) + printable(name), "bold" if name == result.get("headline") else ""), *cells)
    print_whole(table)
    console = Console(highlight=False, soft_wrap=True)
    for mode, reasons in result["reasons"].items():
        for reason in dict.fromkeys(_iter_reasons(reasons)):
            console.print(f"{mode}: undefined, because {printable(reason)}", markup=False)
    problems = [f"{count} {COUNT_LABELS.get(name, name)}" for name, count in result["counts"].items() if count]
    if problems:
        console.print(f"answers: {', '.join(problems)}", markup=False)


def _leaves(metrics: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Any]]:
    """Yield (part, name) and leaf of nested metrics, those without a part first."""
    for name, leaf in metrics.items():
        if is_leaf(leaf):
            yield ("", name), leaf
    for part, values in metrics.items():
        if not is_leaf(values):
            for (inner, name), leaf in _leaves(values):
                yield (f"{part} {inner}".rstrip(), name), leaf


def is_leaf(value: Any) -> bool:
    """Return whether a node of nested metrics is a metric (None if undefined), not a part."""
    return value is None or "value" in value


def _same_values(leaves: Mapping[Any, Any], others: Mapping[Any, Any]) -> bool:
    """Return whether both have common metrics, and these are printed alike."""
    shared = leaves.keys() & others.keys()
    return bool(shared) and all(_cells(leaves[key]) == _cells(others[key]) for key in shared)


def _cells(leaf: Any) -> tuple[str, str]:
    """Return a metric's value and interval as text."""
    if leaf is None:
        return "none", ""
    low, high = leaf.get("low"), leaf.get("high")
    return f"{leaf['value']:.4g}", "" if low is None or low == high else f"{low:.4g} to {high:.4g}"


def _iter_reasons(reasons: Any) -> Iterator[str]:
    if isinstance(reasons, Mapping):
        for inner in reasons.values():
            yield from _iter_reasons(inner)
    else:
        yield str(reasons)
