"""The report for the person who runs a labelling: a page and a table."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from mmrlhf.files.atomic import refuse_output_file, write_atomic
from mmrlhf.labeling.agreement import AnnotatorSummary, Interval, agreements, one_sided, summarise_annotators
from mmrlhf.labeling.results import Labels, read_labels
from mmrlhf.labeling.store import Store
from mmrlhf.records import InputError
from mmrlhf.report.templates import jinja_environment
from mmrlhf.report.terminal import print_whole

MAX_NOTES = 500
"""Number of notes on the page, the latest ones."""


def report_labels(
    labels_file: str, page_file: str | None = None, is_anonymous: bool = False, without: Collection[str] = ()
) -> None:
    """Print agreement and annotators, and write a page with them and the notes.

    Annotators whose pseudonyms are in `without` are left out. Raises InputError, before anything is
    printed, if nobody has such a pseudonym, or if the page cannot be written.
    """
    if page_file is not None:
        refuse_output_file(Path(page_file), "out", [labels_file])
    with contextlib.closing(Store(labels_file)) as store:
        labels = read_labels(store, is_anonymous=is_anonymous, without=without)
        entries = store.task_entries()
    results, summaries = agreements(labels), summarise_annotators(labels)
    num_tasks, num_labelled = sum(not entry.is_gold for entry in entries), len(labels.by_task())
    num_labels = sum(not label.task.gold for label in labels.labels)
    title = f"{num_labels} labels of {num_labelled} of {num_tasks} tasks by {len(summaries)} annotators"
    if len(labels.labels) > num_labels:
        title += f", and {len(labels.labels) - num_labels} of gold questions"
    print(title)
    for result in results:
        print(f"{result.name}: {_alpha_text(result.alpha, result.interval)} ({result.level}, {result.num_tasks} tasks)")
    columns, rows = _columns_and_rows(summaries)
    if rows:
        print_whole(_table(columns, rows))
    if page_file is None:
        return
    html = (
        jinja_environment()
        .get_template("labels.html.j2")
        .render(
            title=title,
            file=Path(labels_file).name,
            agreements=[(result, _alpha_text(result.alpha, result.interval)) for result in results],
            columns=columns,
            rows=rows,
            one_sided=[summary.name for summary in one_sided(summaries)],
            notes=_notes(labels),
        )
    )
    try:
        write_atomic(Path(page_file), html)
    except OSError as error:
        raise InputError(f"{page_file} cannot be written ({error.strerror}): give another --out") from None
    print(f"wrote {page_file}")


def _alpha_text(alpha: float | None, interval: Interval | None) -> str:
    if alpha is None:
        return "alpha is not defined: it needs two annotators of a task, and two different judgements"
    return f"alpha {alpha:.2f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")


COLUMNS = (
    "annotator", "labels", "skipped", "flagged", "median time", "per hour", "answer A", "ranked first", "gold questions"
)  # fmt: skip
Cell = tuple[str, str]
"""The text of a cell, whose lines are separated by newlines, and a smaller text."""


def _columns_and_rows(summaries: Sequence[AnnotatorSummary]) -> tuple[list[str], list[list[Cell]]]:
    """Return the columns that have a text for any annotator, and a row of them for each."""
    modes = {mode for summary in summaries for mode in summary.speeds}
    rows = [_cells(summary, names_modes=len(modes) > 1) for summary in summaries]
    used = [index for index in range(len(COLUMNS)) if any(row[index][0] for row in rows)]
    return [COLUMNS[index] for index in used], [[row[index] for index in used] for row in rows]


def _cells(summary: AnnotatorSummary, names_modes: bool) -> list[Cell]:
    prefixes = {mode: f"{mode} " if names_modes else "" for mode in summary.speeds}
    num_rankings = round(sum(summary.first_places))  # every ranking has one first place, if shared
    return [
        (summary.name, ""),
        (f"{summary.num_labels:,}", ""),
        (f"{summary.num_skips:,}", ""),
        (f"{summary.num_flags:,}", ""),
        ("\n".join(f"{prefixes[mode]}{speed.median_seconds:.1f} s" for mode, speed in summary.speeds.items()), ""),
        ("\n".join(f"{prefixes[mode]}{speed.per_hour:,.0f}" for mode, speed in summary.speeds.items()), ""),
        _share(summary.num_left, summary.num_decided, summary.left_interval),
        (
            ", ".join(f"{chr(65 + place)} {number / num_rankings:.0%}" for place, number in enumerate(summary.first_places)),
            f"of {num_rankings}" if num_rankings else "",
        ),
        _share(summary.num_gold_right, summary.num_gold, summary.gold_interval),
    ]


def _share(hits: int, trials: int, interval: Interval) -> Cell:
    if not trials:
        return "", ""
    return f"{hits / trials:.0%} of {trials}", f"{interval[0]:.0%} to {interval[1]:.0%}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column == COLUMNS[0] else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(f"{text}\n{small}" if small else text for text, small in row))
    return table


def _notes(labels: Labels) -> list[dict[str, Any]]:
    """Return annotators' notes, the latest first, and the tasks that they flagged."""
    noted = [(e.time, e.annotator, e.task, e.kind, e.content) for e in labels.others if e.kind == "flag" or "note" in e.content]
    noted += [
        (label.time, label.annotator, label.task_id, "label", label.content) for label in labels.labels if "note" in label.content
    ]
    return [
        {
            "kind": {"flag": "flagged", "skip": "skipped", "label": "labelled"}[kind],
            "task": labels.tasks[task].name[:200],
            "name": labels.names[annotator],
            "note": content.get("note", ""),
        }
        for _, annotator, task, kind, content in sorted(noted, key=lambda entry: entry[0], reverse=True)[:MAX_NOTES]
        if task is not None
    ]
