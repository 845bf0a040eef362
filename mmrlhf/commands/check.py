"""`mmrlhf data check FILE`: count the good rows, and report the errors of the others by cause."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mmrlhf.datasets import detect_format, is_preference, parse_example, parse_preference, row_context
from mmrlhf.datasets.examples import LABEL_FIELDS, label_to_avoid
from mmrlhf.datasets.image_fields import RowContext
from mmrlhf.datasets.summary import DatasetSummary
from mmrlhf.facts import read_facts
from mmrlhf.files.atomic import refuse_output_file, write_atomic
from mmrlhf.files.row_errors import RowErrors
from mmrlhf.files.rows import RawRow, Row, parse_json
from mmrlhf.files.tables import read_rows
from mmrlhf.files.writing import writing
from mmrlhf.models.images import open_image
from mmrlhf.records import InputError

MAX_CAUSES_SHOWN = 20
MAX_SIDES_RATIO = 200
"""Largest ratio of an image's sides that Qwen-VL's processors accept."""
ROWS_PER_STATUS = 200
"""Number of rows between two updates of the status line."""


def check(
    path: str,
    image_folder: str | None = None,
    facts_file: str | None = None,
    split: str = "train",
    bad_rows_file: str | None = None,
) -> int:
    """Read every row and image, print errors and counts; return 0 if all rows are good, else 1.

    `bad_rows_file` receives a line for each bad row, with its location, its error and its content.
    Raises InputError if the dataset, the image folder or the facts file cannot be used at all.
    """
    if bad_rows_file is not None:
        refuse_output_file(Path(bad_rows_file), "bad_rows_file", [path, facts_file])
    context = row_context(path, image_folder, read_facts(facts_file) if facts_file is not None else None)
    console = Console(soft_wrap=True, highlight=False)
    opened_images: set[str] = set()
    summary, errors, notes, bad_lines = DatasetSummary(), RowErrors(), RowErrors(), []
    has_preferences = None
    with console.status(f"reading {path}") as status:
        for index, raw_row in enumerate(read_rows(path, split)):
            if index % ROWS_PER_STATUS == 0:
                status.update(f"reading {path}: {index:,} rows, {errors.count:,} of them bad")
            try:
                row = raw_row.parse()
                if has_preferences is None:  # the first readable row decides for the whole file
                    has_preferences = is_preference(row)
                    console.print(f"{path}: {detect_format(row)}", markup=False)
                record = parse_preference(row, context) if has_preferences else parse_example(row, context, require_answer=False)
                for source in record.all_images:
                    key = summary.register_image(source)
                    if key not in opened_images:
                        size = open_image(source).size
                        opened_images.add(key)
                        if max(size) > MAX_SIDES_RATIO * min(size):
                            notes.add(raw_row.location.rpartition(", ")[2], _narrow_note(*size))
                summary.add(record)
                if not has_preferences and (note := _unread_answers(row, context)):
                    notes.add(raw_row.location.rpartition(", ")[2], note)
            except InputError as error:
                errors.add(raw_row.location.rpartition(", ")[2], str(error), raw_row.location)
                if bad_rows_file is not None:
                    bad_lines.append(_bad_line(raw_row, str(error)))
    _print_errors(console, errors)
    for group in notes.groups:
        console.print(f"  note: {group.count} row{'s' * (group.count > 1)} ({group.rows_text}): {group.message}", markup=False)
    table = Table(show_header=False)
    counts = {"good rows": str(summary.num_rows), "bad rows": str(errors.count), **summary.table_rows()}
    for name, count in counts.items():
        table.add_row(name, count)
    console.print(table)
    if bad_rows_file is not None:
        with writing(Path(bad_rows_file), kept=None):
            write_atomic(Path(bad_rows_file), "".join(bad_lines))
        console.print(f"{bad_rows_file}: {errors.count} bad rows", markup=False)
    return 1 if errors.count else 0


def _narrow_note(width: int, height: int) -> str:
    """Say that some models refuse an image. Stages try it on theirs before the first step."""
    return f"an image has {width} x {height} pixels, and processors such as Qwen-VL's refuse images this narrow: crop it"


def _unread_answers(row: Row, context: RowContext) -> str:
    """Return why the answers of a row that is read as a prompt are ignored, "" if none are."""
    if is_preference(row):
        return "answers are compared but read as prompts, as the first row compares none: put such rows into a file of their own"
    if label := label_to_avoid(row):
        unlabelled = replace(row, fields={name: value for name, value in row.fields.items() if name not in LABEL_FIELDS})
        if parse_example(unlabelled, context, require_answer=False).answer is not None:
            return f"`{label}` is false, so the answer is one to avoid (KTO): no stage learns from it, and sft refuses the row"
    return ""


def _print_errors(console: Console, errors: RowErrors) -> None:
    """Print each cause with the number of its rows and the first of them."""
    groups = errors.groups
    for group in groups[:MAX_CAUSES_SHOWN]:
        if group.count == 1:
            console.print(f"  {group.first_error}", markup=False)
        else:
            console.print(f"  {group.count} rows ({group.rows_text}), first {group.first_error}", markup=False)
    if num_more := sum(group.count for group in groups[MAX_CAUSES_SHOWN:]):
        console.print(f"  ... and {num_more} rows for other reasons")


def _bad_line(raw_row: RawRow, error: str) -> str:
    """Return a bad row's line: its content, or its text if it is not JSON or nested too deeply."""
    content, line = raw_row.content, {"location": raw_row.location, "error": error}
    text = content.decode(errors="replace") if isinstance(content, bytes) else ""
    try:
        value = parse_json(content, raw_row.location) if isinstance(content, bytes) else content
        return json.dumps({**line, "row": value}, default=_without_bytes) + "\n"
    except (ValueError, RecursionError):  # InputError is a ValueError
        return json.dumps({**line, "row": text}) + "\n"


def _without_bytes(value: Any) -> str:
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)
