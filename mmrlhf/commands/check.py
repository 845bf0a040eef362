"""`mmrlhf data check FILE`: count the good rows, and report the errors of the others."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from mmrlhf.datasets import detect_format, is_preference, parse_example, parse_preference, row_context
from mmrlhf.datasets.summary import DatasetSummary
from mmrlhf.facts import read_facts
from mmrlhf.files.tables import read_rows
from mmrlhf.models.images import open_image
from mmrlhf.records import InputError

MAX_ERRORS_SHOWN = 20


def check(path: str, image_folder: str | None = None, facts_file: str | None = None, split: str = "train") -> int:
    """Read every row and image, print errors and counts; return 0 if all rows are good, else 1.

    Raises InputError if the dataset, the image folder or the facts file cannot be used at all.
    """
    context = row_context(path, image_folder, read_facts(facts_file) if facts_file is not None else None)
    console = Console(soft_wrap=True, highlight=False)
    opened_images: set[str] = set()
    summary, num_bad = DatasetSummary(), 0
    has_preferences = None
    for raw_row in read_rows(path, split):
        try:
            row = raw_row.parse()
            if has_preferences is None:  # the first readable row decides for the whole file
                has_preferences = is_preference(row)
                console.print(f"{path}: {detect_format(row)}", markup=False)
            record = parse_preference(row, context) if has_preferences else parse_example(row, context, require_answer=False)
            for source in record.images:
                key = summary.register_image(source)
                if key not in opened_images:
                    open_image(source)
                    opened_images.add(key)
            summary.add(record)
        except InputError as error:
            num_bad += 1
            if num_bad <= MAX_ERRORS_SHOWN:
                console.print(f"  {error}", markup=False)
    if num_bad > MAX_ERRORS_SHOWN:
        console.print(f"  ... and {num_bad - MAX_ERRORS_SHOWN} more")

    table = Table(show_header=False)
    counts = {"good rows": str(summary.num_rows), "bad rows": str(num_bad), **summary.table_rows()}
    for name, count in counts.items():
        table.add_row(name, count)
    console.print(table)
    return 1 if num_bad else 0
