"""`mmrlhf data check FILE`: how many rows are good, and what is wrong with the others."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from mmrlhf.facts import read_facts
from mmrlhf.formats import beside_of, example_of, is_preference, layout_of, preference_of
from mmrlhf.images import open_image
from mmrlhf.records import InputError
from mmrlhf.summary import Summary
from mmrlhf.tables import read

MOST_SHOWN = 20


def check(path: str, image_folder: str | None = None, facts_file: str | None = None, split: str = "train") -> int:
    """Read every row and picture, print what is wrong and what there is; 0 if all rows are good, else 1.

    Raises InputError when the dataset, the image folder or the facts file cannot be used at all.
    """
    beside = beside_of(path, image_folder, read_facts(facts_file) if facts_file is not None else None)
    console = Console(soft_wrap=True, highlight=False)
    sound: set[str] = set()
    good, bad = Summary(), 0
    compares = None
    for unread in read(path, split):
        try:
            row = unread.row()
            if compares is None:
                compares = is_preference(row)
                console.print(f"{path}: {layout_of(row)}", markup=False)
            record = preference_of(row, beside) if compares else example_of(row, beside, need_answer=False)
            for source in record.images:
                key = good.picture(source)
                if key not in sound:
                    open_image(source)
                    sound.add(key)
            good.add(record)
        except InputError as error:
            bad += 1
            if bad <= MOST_SHOWN:
                console.print(f"  {error}", markup=False)
    if bad > MOST_SHOWN:
        console.print(f"  ... and {bad - MOST_SHOWN} more")

    table = Table(show_header=False)
    for name, number in {"good rows": str(good.rows), "bad rows": str(bad), **good.lines()}.items():
        table.add_row(name, number)
    console.print(table)
    return 1 if bad else 0
