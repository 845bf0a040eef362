"""The known label of a gold question without a comparison, from its row.

Rows have the fields of a label, so the output of `mmrlhf label export --to labels` can be used as
gold questions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmrlhf.files.rows import Row, preview, type_name
from mmrlhf.records import Fact

FACT_KINDS = ("object", "count", "attribute", "relation", "ocr", "absent")
"""Kinds of facts that two people are likely to state in the same words, unlike captions."""


def known_label(row: Row, mode: str | None, answers: Sequence[str], facts: Sequence[Fact]) -> dict[str, Any]:
    """Return the known label of claims or of facts, in the form of `Task.gold`.

    Raises InputError if the row has none.
    """
    if mode == "claims" or (mode is None and "spans" in row.fields):
        if len(answers) != 1 or not isinstance(row.fields.get("spans"), list):
            row.fail("a gold question of claims needs one answer, and `spans`: the passages that are wrong in it, [] if none is")
        return {"spans": [_place_of(row, value, number, answers[0]) for number, value in enumerate(row.fields["spans"], 1)]}
    if mode == "facts" or (mode is None and facts and not answers):
        known = [[fact.kind, fact.text] for fact in facts if fact.kind in FACT_KINDS]
        if not known:
            row.fail(f"a gold question of facts needs `facts` to state: give some of kind {', '.join(FACT_KINDS)}")
        return {"facts": known}
    row.fail(
        "a gold question needs its right answer: give `chosen` and `rejected`, or `answers` with `ranks`; of claims, an answer with "
        "`spans`; of facts, `facts`"
    )


def comparable(answers: Sequence[str], gold: Mapping[str, Any]) -> Any:
    """Return a known label in a form that is equal for two labels that say the same.

    The answers, and the passages or facts, may come in another order, and ranks with other gaps.
    """
    if "ranks" in gold:
        levels = sorted(set(gold["ranks"]))
        return {answer: levels.index(rank) for answer, rank in zip(answers, gold["ranks"], strict=True)}
    return {name: sorted(values) for name, values in gold.items()}


def _place_of(row: Row, value: Any, number: int, answer: str) -> list[int]:
    """Return where a passage starts and ends in an answer: at its `start`, or where it is alone."""
    name = f"spans[{number}]"
    text, start = (value.get("text"), value.get("start")) if isinstance(value, dict) else (value, None)
    if not isinstance(text, str) or not text.strip():
        row.fail(f"`{name}` must be words of the answer, not {preview(text) if isinstance(text, str) else type_name(text)}")
    if start is not None:
        if type(start) is not int or start < 0 or not answer.startswith(text, start):
            row.fail(f"`{name}` {preview(text)} does not start at character {preview(start)} of the answer: correct `start`")
        return [start, start + len(text)]
    starts = [match.start() for match in re.finditer(f"(?={re.escape(text)})", answer)]  # they may overlap
    if len(starts) != 1:
        found = f"is {len(starts)} times in the answer: add the words around it" if starts else "is not in the answer: copy it"
        row.fail(f"`{name}` {preview(text)} {found}")
    return [starts[0], starts[0] + len(text)]
