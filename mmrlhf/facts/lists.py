"""Facts as the rows of a data file give them: typed ones, and lists with a field for each kind."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from mmrlhf.nouns import plural_of
from mmrlhf.records import Fact, FactKind
from mmrlhf.rows import Row, kind, shown

Box = tuple[float, float, float, float]


def typed(row: Row) -> tuple[Fact, ...]:
    """A row's own `facts`: a list of {kind, text} with optional source, confidence and box. Raises InputError."""
    found = []
    for number, fact in enumerate(as_list(row, "facts"), 1):
        name = f"facts[{number}]"
        if not isinstance(fact, dict):
            row.fail(f"`{name}` must be an object with kind and text, not {kind(fact)}")
        if fact.get("kind") not in get_args(FactKind):
            row.fail(f"`{name}.kind` must be one of {', '.join(get_args(FactKind))}, not {shown(fact.get('kind'))}")
        confidence = fact.get("confidence", 1.0)
        if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0 <= confidence <= 1:
            row.fail(f"`{name}.confidence` must be a number from 0 to 1, not {shown(confidence)}")
        source = row.text(fact.get("source", ""), f"{name}.source")
        box = None if fact.get("box") is None else box_of(row, fact["box"], f"{name}.box")
        found.append(Fact(fact["kind"], line(row, fact.get("text"), f"{name}.text"), source, float(confidence), box))
    return tuple(found)


# ---- facts as lists, one field for each kind -------------------------------------------------------------------------

LISTS: dict[str, FactKind] = {
    "captions": "caption",  # text
    "objects": "object",  # [name, count or null, colour or null, box or null]
    "attributes": "attribute",  # [name, value]
    "relations": "relation",  # [name, relation, name]
    "ocr": "ocr",  # text in the picture
    "qa": "qa",  # [question, answer]
    "rationales": "rationale",  # text
    "absent": "absent",  # name of what is not there
}


def listed(row: Row, source: str) -> tuple[Fact, ...]:
    """A row's facts in the fields of `LISTS`, and its typed ones. Raises InputError."""
    for field in row.fields:
        if field not in LISTS and (slip := difflib.get_close_matches(field, LISTS, n=1, cutoff=0.75)):
            row.fail(f"`{shown(field)[1:-1]}` is not a field of facts: rename it to {slip[0]}")
    found: list[Fact] = []
    for field, of in LISTS.items():
        for number, value in enumerate(as_list(row, field), 1):
            name = f"{field}[{number}]"
            if field == "objects":
                found += _object(row, value, name, source)
            elif field in ("attributes", "relations", "qa"):
                words = [line(row, word, name) for word in _sized(row, value, 3 if field == "relations" else 2, name)]
                found.append(Fact(of, " ".join(reversed(words) if field == "attributes" else words), source))
            else:
                found.append(Fact(of, line(row, value, name), source))
    return tuple(found) + typed(row)


def _object(row: Row, value: Any, name: str, source: str) -> list[Fact]:
    """An object and its count are two facts, so that a claim on one of them meets the fact on it."""
    if isinstance(value, list) and 0 < len(value) < 4:
        value = [*value, None, None, None][:4]
    noun, count, colour, box = _sized(row, value, 4, name)
    noun = line(row, noun, name)
    where = None if box is None else box_of(row, box, name)
    found = [Fact("object", noun if colour is None else f"{line(row, colour, name)} {noun}", source, box=where)]
    if count is not None:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            row.fail(f"`{name}` must have a count of at least 1, or null where it is unknown, not {shown(count)}")
        found.append(counted(count, noun, source))
    return found


def counted(count: int, noun: str, source: str) -> Fact:
    """`two dogs`, for a noun in the singular."""
    number = NUMBERS[count] if count < len(NUMBERS) else str(count)
    return Fact("count", f"{number} {noun if count == 1 else plural_of(noun)}", source)


def box_of(row: Row, value: Any, name: str) -> Box:
    """Four shares of width and height: x0, y0, x1, y1. Raises InputError."""
    numbers = isinstance(value, list) and len(value) == 4
    if not numbers or any(isinstance(v, bool) or not isinstance(v, int | float) or not 0 <= v <= 1 for v in value):
        row.fail(f"`{name}` must have a box of four shares from 0 to 1, x0, y0, x1, y1, not {shown(value)}")
    x0, y0, x1, y1 = map(float, value)
    if x0 >= x1 or y0 >= y1:
        row.fail(f"`{name}` must have a box whose x0 is left of x1 and y0 above y1, not {shown(value)}")
    return x0, y0, x1, y1


NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def as_list(row: Row, field: str) -> list[Any]:
    """A field that must be a list; an empty one where there is none. Raises InputError."""
    value = row.fields.get(field, [])
    if not isinstance(value, list):
        row.fail(f"`{field}` must be a list, not {kind(value)}")
    return value


def _sized(row: Row, value: Any, size: int, name: str) -> list[Any]:
    if not isinstance(value, list) or len(value) != size:
        row.fail(f"`{name}` must be a list of {size}, not {shown(value)}")
    return value


def line(row: Row, value: Any, name: str) -> str:
    """A text on one line. Raises InputError where it is none, or empty."""
    text = " ".join(row.text(value, name).split())
    if not text:
        row.fail(f"`{name}` is empty: fill it in or remove it")
    return text
