"""Load datasets as lazy sequences of records, so that a file may be larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar, overload

from mmrlhf.datasets.conversations import is_blank
from mmrlhf.datasets.examples import parse_example
from mmrlhf.datasets.image_fields import FactsByName, row_context
from mmrlhf.datasets.preferences import is_preference, parse_preference
from mmrlhf.files.row_errors import RowErrors
from mmrlhf.files.rows import Row, preview
from mmrlhf.files.tables import Table, checked_rows, open_table, read_rows
from mmrlhf.records import Example, InputError, Preference

Record = TypeVar("Record", Example, Preference)


class Records(Sequence[Record]):
    """The records of a table. A slice is a view and reads nothing.

    The constructor parses every row once, to find all bad rows before hours of training. After
    that, each access parses the row again and returns an equal record. Access raises InputError if
    the file has changed.

    has_facts: whether any row of the table has facts about its images.
    """

    def __init__(self, name: str, rows: Table, parse_row: Callable[[Row], Record]) -> None:
        self._rows = rows
        self._parse_row: Callable[[Row], Record] = parse_row
        num_rows, self.has_facts = _parse_all(name, rows, parse_row)
        self._indices: Sequence[int] = range(num_rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Records[Record]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self._view(self._indices[index])
        return self._parse_row(self._rows[self._indices[index]].parse())

    def name_row(self, index: int) -> str:
        """Return a record's place in its file, such as `line 3`."""
        return self._rows[self._indices[index]].location.rpartition(", ")[2]

    def subset(self, indices: Sequence[int]) -> Records[Record]:
        """Return a view of the records at these indices, such as those of `balance_lengths`."""
        return self._view([self._indices[index] for index in indices])

    def _view(self, indices: Sequence[int]) -> Records[Record]:
        view: Records[Record] = object.__new__(type(self))  # not __init__, which would parse every row again
        view._rows, view._parse_row, view._indices, view.has_facts = self._rows, self._parse_row, indices, self.has_facts
        return view

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def __len__(self) -> int:
        return len(self._indices)

    def __repr__(self) -> str:
        return f"<{len(self)} records>"


def have_facts(rows: Sequence[Example] | Sequence[Preference]) -> bool:
    """Return whether any row has facts. Those of a table were read once, and are not read again."""
    return rows.has_facts if isinstance(rows, Records) else any(row.facts for row in rows)


def subset(rows: Sequence[Record], indices: Sequence[int]) -> Sequence[Record]:
    """Return the rows at these indices; rows of a file are still read only when they are needed."""
    if list(indices) == list(range(len(rows))):
        return rows
    return rows.subset(indices) if isinstance(rows, Records) else [rows[index] for index in indices]


def _parse_all(name: str, rows: Table, parse_row: Callable[[Row], Example | Preference]) -> tuple[int, bool]:
    """Parse every row; return their number, and whether any of them has facts.

    Raises InputError with the message of a single bad row, or the causes of all with counts.
    """
    errors, num_rows, has_facts, first_message = RowErrors(), 0, False, ""
    for raw_row in checked_rows(name, rows):
        num_rows += 1
        try:
            has_facts |= bool(parse_row(raw_row.parse()).facts)
        except InputError as error:
            first_message = first_message or str(error)
            errors.add(raw_row.location.rpartition(", ")[2], str(error), raw_row.location)
    if errors.count == 1:
        raise InputError(first_message)
    if errors.count:
        raise InputError(
            f"{name}: {errors.count} of {num_rows} rows cannot be used (`mmrlhf data check` writes them to a file): "
            f"{errors.summary()}"
        )
    return num_rows, has_facts


def read_examples(
    dataset_name: str,
    split: str = "train",
    image_folder: str | None = None,
    facts: FactsByName | None = None,
    require_answer: bool = False,
) -> Records[Example]:
    """Load a dataset's prompts, and their answers if it has any. Preferences give only prompts.

    Raises InputError if rows cannot be used or lack a required answer.
    """
    context = row_context(dataset_name, image_folder, facts)
    records = Records(dataset_name, open_table(dataset_name, split), lambda row: parse_example(row, context, require_answer))
    return _check_facts_match(records, dataset_name, facts)


def read_answers(
    dataset_name: str, split: str = "train", image_folder: str | None = None, facts: FactsByName | None = None
) -> Records[Example]:
    """Load prompts with a policy's answers, as `generate` writes them: a sampled `answer` may be
    empty.

    Raises InputError as `read_examples` does.
    """
    context = row_context(dataset_name, image_folder, facts)

    def parse(row: Row) -> Example:
        text = row.fields.get("answer")
        if not isinstance(text, str) or not is_blank(text):
            return parse_example(row, context, require_answer=False)
        prompt = replace(row, fields={name: value for name, value in row.fields.items() if name != "answer"})
        return replace(parse_example(prompt, context, require_answer=False), answer="")

    return _check_facts_match(Records(dataset_name, open_table(dataset_name, split), parse), dataset_name, facts)


def read_preferences(
    dataset_name: str,
    split: str = "train",
    image_folder: str | None = None,
    facts: FactsByName | None = None,
    answer_images: bool = False,
) -> Records[Preference]:
    """Load a dataset's preferences. Raises InputError if rows cannot be used.

    Without `answer_images`, rows with images inside their answers are refused.
    """
    context = row_context(dataset_name, image_folder, facts)

    def parse(row: Row) -> Preference:
        preference = parse_preference(row, context)
        if preference.answer_images and not answer_images:
            row.fail("its answers contain images, which only dpo and reward read: drop the row")
        return preference

    records = Records(dataset_name, open_table(dataset_name, split), parse)
    return _check_facts_match(records, dataset_name, facts)


def read_records(
    dataset_name: str,
    split: str = "train",
    image_folder: str | None = None,
    facts: FactsByName | None = None,
    answer_images: bool = False,
    require_answer: bool = False,
) -> Records[Example] | Records[Preference]:
    """Load a dataset's preferences, or its prompts and answers if its first row has no comparison.

    Raises InputError as `read_preferences` and `read_examples` do.
    """
    if has_preferences(dataset_name, split):
        return read_preferences(dataset_name, split, image_folder, facts, answer_images)
    return read_examples(dataset_name, split, image_folder, facts, require_answer)


def _check_facts_match(records: Records[Record], dataset_name: str, facts: FactsByName | None) -> Records[Record]:
    """Return the records. Raises InputError if facts are given and no row has any."""
    if facts is not None and not records.has_facts:
        plural = "" if len(records) == 1 else "s"
        fact_names = ", ".join(map(preview, list(facts)[:3]))
        raise InputError(
            f"{dataset_name}: the facts file has no facts about the images of the {len(records)} row{plural} "
            f"(it has {fact_names or 'none'}): name images in it as the rows do, or omit the facts file"
        )
    return records


def has_preferences(dataset_name: str, split: str = "train") -> bool:
    """Return whether the first row compares answers. Raises InputError if it cannot be read."""
    return is_preference(next(read_rows(dataset_name, split)).parse())
