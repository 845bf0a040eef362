"""Data sets as sequences of records, each made when it is asked for, so that a file may be larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, overload

from mmrlhf.formats.examples import example_of
from mmrlhf.formats.pictures import Facts, beside_of
from mmrlhf.formats.preferences import is_preference, preference_of
from mmrlhf.records import Example, InputError, Preference
from mmrlhf.rows import Row, shown
from mmrlhf.tables import Table, read, table, through

Record = TypeVar("Record", Example, Preference)


class Records(Sequence[Record]):
    """The records of a table. A slice is of the same kind and reads nothing.

    Every row is judged once, when this is made, so that a bad one is found before hours of training. After that a record is
    made from its row each time it is asked for, and two from one row are equal. Raises InputError when the file has changed.
    """

    def __init__(self, name: str, rows: Table, make: Callable[[Row], Record]) -> None:
        self._rows = rows
        self._make: Callable[[Row], Record] = make
        self._places: Sequence[int] = range(sum(make(unread.row()) is not None for unread in through(name, rows)))

    @overload
    def __getitem__(self, place: int) -> Record: ...

    @overload
    def __getitem__(self, place: slice) -> Records[Record]: ...

    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return self._at(self._places[place])
        return self._make(self._rows[self._places[place]].row())

    def only(self, places: Sequence[int]) -> Records[Record]:
        """The records at these places, such as those that `balance_lengths` keeps."""
        return self._at([self._places[place] for place in places])

    def _at(self, places: Sequence[int]) -> Records[Record]:
        part: Records[Record] = object.__new__(type(self))
        part._rows, part._make, part._places = self._rows, self._make, places
        return part

    def __iter__(self) -> Iterator[Record]:
        return (self[place] for place in range(len(self)))

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"<{len(self)} records>"


def read_examples(
    dataset_name: str,
    split: str = "train",
    image_folder: str | None = None,
    facts: Facts | None = None,
    need_answer: bool = False,
) -> Records[Example]:
    """The prompts of a dataset, with their answers where it has them; of pairs and rankings the prompts alone.

    Raises InputError on the first row that cannot be used; with `need_answer` also on one without an answer.
    """
    beside = beside_of(dataset_name, image_folder, facts)
    found = Records(dataset_name, table(dataset_name, split), lambda row: example_of(row, beside, need_answer))
    return _told(found, dataset_name, facts)


def read_preferences(
    dataset_name: str, split: str = "train", image_folder: str | None = None, facts: Facts | None = None
) -> Records[Preference]:
    """The preferences of a dataset. Raises InputError on the first row that cannot be used."""
    beside = beside_of(dataset_name, image_folder, facts)
    return _told(Records(dataset_name, table(dataset_name, split), lambda row: preference_of(row, beside)), dataset_name, facts)


LOOKED_AT = 1000
"""Rows of which one at least must have facts where a file of them was given."""


def _told(records: Records[Record], dataset_name: str, facts: Facts | None) -> Records[Record]:
    """The records. Raises InputError for facts that are of other pictures: everything would run, without facts."""
    some = records[:LOOKED_AT]
    if facts is not None and len(some) and not any(record.facts for record in some):
        names = ", ".join(map(shown, list(facts)[:3]))
        raise InputError(
            f"{dataset_name}: the facts file says nothing of the pictures in its first {len(some)} rows (it speaks of {names or 'none'}): "
            "name pictures there as the rows do, or leave the facts file out"
        )
    return records


def holds_preferences(dataset_name: str, split: str = "train") -> bool:
    """Whether the first row compares answers. Raises InputError when it cannot be read."""
    return is_preference(next(read(dataset_name, split)).row())
