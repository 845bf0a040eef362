"""`mmrlhf data check FILE`: how many rows are good, and what is wrong with the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.console import Console
from rich.table import Table

from mmrlhf.facts import read_facts
from mmrlhf.formats import beside_of, example_of, layout_of, preference_of
from mmrlhf.images import open_image
from mmrlhf.records import Example, InputError, Preference
from mmrlhf.tables import read

MOST_SHOWN = 20


def check(path: str, image_folder: str | None = None, facts_file: str | None = None) -> int:
    """Read every row and picture, print what is wrong and what there is; 0 if all rows are good, else 1.

    Raises InputError when the dataset, the image folder or the facts file cannot be used at all.
    """
    beside = beside_of(path, image_folder, read_facts(facts_file) if facts_file is not None else None)
    console = Console(soft_wrap=True, highlight=False)
    seen: set[str] = set()
    sound: set[str] = set()
    good: list[_Counted] = []
    bad = 0
    layout = ""
    for unread in read(path):
        try:
            row = unread.row()
            if not layout:
                layout = layout_of(row)
                console.print(f"{path}: {layout}", markup=False)
            record = preference_of(row, beside) if layout.endswith("pairs") else example_of(row, beside, need_answer=False)
            for source in record.images:
                name = source.path or source.key
                seen.add(name)
                if name not in sound:
                    open_image(source)
                    sound.add(name)
            good.append(_Counted.of(record))
        except InputError as error:
            bad += 1
            if bad <= MOST_SHOWN:
                console.print(f"  {error}", markup=False)
    if bad > MOST_SHOWN:
        console.print(f"  ... and {bad - MOST_SHOWN} more")

    table = Table(show_header=False)
    for name, number in _summary(good, bad, len(seen)).items():
        table.add_row(name, number)
    console.print(table)
    return 1 if bad else 0


@dataclass(frozen=True)
class _Counted:
    """What the summary needs of a record, so that no picture is kept."""

    texts: dict[str, int]
    facts: int

    @classmethod
    def of(cls, record: Example | Preference) -> _Counted:
        if isinstance(record, Preference):
            texts = {"chosen": record.chosen, "rejected": record.rejected}
        else:
            texts = {} if record.answer is None else {"answer": record.answer}
        return cls({name: len(text.split()) for name, text in texts.items()}, len(record.facts))


def _summary(good: Sequence[_Counted], bad: int, pictures: int) -> dict[str, str]:
    found = {"good rows": str(len(good)), "bad rows": str(bad), "distinct pictures": str(pictures)}
    for name in ("chosen", "rejected", "answer"):
        if lengths := [row.texts[name] for row in good if name in row.texts]:
            found[f"{name}, mean words"] = f"{fmean(lengths):.1f}"
    if rows := [row.facts for row in good if row.facts]:
        found["rows with facts"] = f"{len(rows)} of {len(good)}, {fmean(rows):.1f} each"
    else:
        found["rows with facts"] = "none"
    return found
