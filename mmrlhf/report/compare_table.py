"""Print the tables of `mmrlhf compare`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmrlhf.report.differences import (
    Difference,
    categories_of,
    headline_sentence,
    interval_note,
    mcnemar_sentence,
    tables_of,
)
from mmrlhf.report.terminal import print_whole
from mmrlhf.text.printable import printable

WORD_STYLES = {"better": "green", "worse": "red"}


def print_comparison(name: str, comparison: Mapping[str, Any]) -> None:
    """Print a benchmark's comparison: a sentence for each pair, and the metrics as tables."""
    console = Console(highlight=False, soft_wrap=True)
    headline, direction = comparison["headline"], comparison["direction"]
    for pair in comparison["pairs"]:
        console.print(Text(printable(headline_sentence(name, pair, headline, direction, comparison["n"])), "bold"))
        for mode, differences in tables_of(pair, headline, direction):
            print_whole(_table(mode, pair, differences))
        if sentence := mcnemar_sentence(pair):
            console.print(Text(printable(sentence)))
        if categories := categories_of(pair):
            named = [Difference(f"{row.name} ({count})", row.comparison, row.percent, row.word) for count, row in categories]
            print_whole(_table("accuracy by category (n)", pair, named))
    console.print(Text(interval_note(comparison["cluster"]), "dim"))


def _table(title: str, pair: Mapping[str, Any], differences: list[Difference]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(Text(title), no_wrap=True)
    for column in (pair["a"], pair["b"], "difference", "95% interval", "p", "MDE"):
        table.add_column(Text(printable(str(column))), justify="right", no_wrap=True)
    table.add_column("")
    for row in differences:
        style = "bold" if row.is_clear else ""
        table.add_row(Text(printable(row.name), style), *map(Text, row.cells), Text(row.word, WORD_STYLES.get(row.word, "dim")))
    return table
