"""Data sets as sequences of records, each made when it is asked for, so that a file may be larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, overload

from mmrlhf.datasets.examples import parse_example
from mmrlhf.datasets.image_fields import FactsByName, row_context
from mmrlhf.datasets.preferences import is_preference, parse_preference
from mmrlhf.files.rows import Row, preview
from mmrlhf.files.tables import Table, checked_rows, open_table, read_rows
from mmrlhf.records import Example, InputError, Preference

Record = TypeVar("Record", Example, Preference)


class Records(Sequence[Record]):
    """The records of a table. A slice is of the same kind and reads nothing.

    Every row is judged once, when this is made, so that a bad one is found before hours of training. After that a record is
    made from its row each time it is asked for, and two from one row are equal. Raises InputError when the file has changed.
    """

    def __init__(self, name: str, rows: Table, parse_row: Callable[[Row], Record]) -> None:
        self._rows = rows
        self._parse_row: Callable[[Row], Record] = parse_row
        self._indices: Sequence[int] = range(sum(parse_row(raw_row.parse()) is not None for raw_row in checked_rows(name, rows)))

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, place: slice) -> Records[Record]: ...

    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return self._view(self._indices[place])
        return self._parse_row(self._rows[self._indices[place]].parse())

    def subset(self, indices: Sequence[int]) -> Records[Record]:
        """The records at these places, such as those that `balance_lengths` keeps."""
        return self._view([self._indices[index] for index in indices])

    def _view(self, indices: Sequence[int]) -> Records[Record]:
        view: Records[Record] = object.__new__(type(self))
        view._rows, view._parse_row, view._indices = self._rows, self._parse_row, indices
        return view

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def __len__(self) -> int:
        return len(self._indices)

    def __repr__(self) -> str:
        return f"<{len(self)} records>"


def read_examples(
    dataset_name: str,
    split: str = "train",
    image_folder: str | None = None,
    facts: FactsByName | None = None,
    require_answer: bool = False,
) -> Records[Example]:
    """The prompts of a dataset, with their answers where it has them; of pairs and rankings the prompts alone.

    Raises InputError on the first row that cannot be used; with `need_answer` also on one without an answer.
    """
    context = row_context(dataset_name, image_folder, facts)
    records = Records(dataset_name, open_table(dataset_name, split), lambda row: parse_example(row, context, require_answer))
    return _check_facts_match(records, dataset_name, facts)


def read_preferences(
    dataset_name: str, split: str = "train", image_folder: str | None = None, facts: FactsByName | None = None
) -> Records[Preference]:
    """The preferences of a dataset. Raises InputError on the first row that cannot be used."""
    context = row_context(dataset_name, image_folder, facts)
    return _check_facts_match(
        Records(dataset_name, open_table(dataset_name, split), lambda row: parse_preference(row, context)), dataset_name, facts
    )


FACTS_CHECK_ROWS = 1000
"""Rows of which one at least must have facts where a file of them was given."""


def _check_facts_match(records: Records[Record], dataset_name: str, facts: FactsByName | None) -> Records[Record]:
    """The records. Raises InputError for facts that are of other pictures: everything would run, without facts."""
    first_records = records[:FACTS_CHECK_ROWS]
    if facts is not None and len(first_records) and not any(record.facts for record in first_records):
        fact_names = ", ".join(map(preview, list(facts)[:3]))
        raise InputError(
            f"{dataset_name}: the facts file says nothing of the pictures in its first {len(first_records)} rows (it speaks of {fact_names or 'none'}): "
            "name pictures there as the rows do, or leave the facts file out"
        )
    return records


def has_preferences(dataset_name: str, split: str = "train") -> bool:
    """Whether the first row compares answers. Raises InputError when it cannot be read."""
    return is_preference(next(read_rows(dataset_name, split)).parse())
