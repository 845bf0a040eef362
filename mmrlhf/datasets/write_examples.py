"""Take rows for sft and prompts for ppo from preferences or from other rows, and write them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmrlhf.datasets.summary import row_fingerprint
from mmrlhf.datasets.write import FACTS_COLUMN, TURNS_TYPE, RowDict, facts_field, message_dicts
from mmrlhf.records import Example, Message, Preference


@dataclass(frozen=True)
class ExampleFormat:
    """A form of rows: with the target answer (`messages`), or prompts without one."""

    with_answer: bool

    @property
    def column_types(self) -> RowDict:
        """For parquet, as `Format.column_types`."""
        turns = "messages" if self.with_answer else "prompt"
        return {"id": "string", "images": ["image"], turns: TURNS_TYPE, "source": "string", **FACTS_COLUMN}

    def to_row(self, example: Example, images: Sequence[Any]) -> RowDict:
        """Build a row without the fields that are None."""
        turns = example.prompt
        if self.with_answer:
            turns = (*turns, Message("assistant", example.answer or ""))
        name = "messages" if self.with_answer else "prompt"
        row: RowDict = {"id": example.id, "images": list(images), name: message_dicts(turns, len(images))}
        row |= {"source": example.meta.get("source"), "facts": facts_field(example.facts)}
        return {name: value for name, value in row.items() if value is not None}

    def select(self, records: Iterable[Example | Preference], skipped: Counter[str]) -> Iterator[Example]:
        """Yield the examples of records, each once; `skipped` counts records that are left out.

        A preference gives its best answer, or none if another is as good.
        """
        seen: set[bytes] = set()
        for record in records:
            example = _best_answered(record) if isinstance(record, Preference) else record
            if self.with_answer and example.answer is None:
                skipped[
                    "ties, which have no chosen answer, and chosen answers that show images"
                    if isinstance(record, Preference)
                    else "rows without an answer"
                ] += 1
                continue
            if not self.with_answer:
                example = replace(example, answer=None)
            answers = () if example.answer is None else (example.answer,)
            fingerprint = row_fingerprint(example.prompt, answers, [image.key for image in example.images])
            if fingerprint in seen:
                skipped["repeated rows" if self.with_answer else "repeated prompts"] += 1
                continue
            seen.add(fingerprint)
            yield example


EXAMPLE_FORMATS = {"sft": ExampleFormat(with_answer=True), "prompts": ExampleFormat(with_answer=False)}


def _best_answered(preference: Preference) -> Example:
    is_tied = preference.ranks[0] == preference.ranks[1]
    answer = None if is_tied or preference.images_of(0) else preference.chosen
    meta = {"source": preference.source} if preference.source else {}
    return Example(preference.id, preference.images, preference.prompt, answer, preference.facts, meta)
