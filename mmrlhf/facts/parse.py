"""Parse the facts of a data file's row: typed facts, and lists with one field per kind."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from mmrlhf.facts.scope import Scope
from mmrlhf.files.rows import Row, preview, type_name
from mmrlhf.records import Fact, FactKind
from mmrlhf.text import words
from mmrlhf.text.plurals import pluralize

Box = tuple[float, float, float, float]


def parse_typed_facts(row: Row) -> tuple[Fact, ...]:
    """Return a row's `facts`, a list of {kind, text} with optional source, confidence and box.

    Raises InputError for a malformed fact.
    """
    facts = []
    for index, fact in enumerate(read_list(row, "facts"), 1):
        name = f"facts[{index}]"
        if not isinstance(fact, dict):
            row.fail(f"`{name}` must be an object with kind and text, not {type_name(fact)}")
        if fact.get("kind") not in get_args(FactKind):
            row.fail(f"`{name}.kind` must be one of {', '.join(get_args(FactKind))}, not {preview(fact.get('kind'))}")
        text = read_line(row, fact.get("text"), f"{name}.text")
        if fact["kind"] == "scope" and text not in get_args(Scope):
            row.fail(f"`{name}.text` of a scope must be complete or incomplete, not {preview(text)}")
        confidence = fact.get("confidence", 1.0)
        if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0 <= confidence <= 1:
            row.fail(f"`{name}.confidence` must be a number from 0 to 1, not {preview(confidence)}")
        source = row.require_text(fact.get("source", ""), f"{name}.source")
        box = None if fact.get("box") is None else parse_box(row, fact["box"], f"{name}.box")
        facts.append(Fact(fact["kind"], text, source, float(confidence), box))
    return tuple(facts)


# ---- facts as lists, one field per kind --------------------------------------------------------

FACT_FIELDS: dict[str, FactKind] = {
    "captions": "caption",  # text
    "objects": "object",  # name, or [name, count or null, colour or null, box or null]
    "attributes": "attribute",  # [name, value]
    "relations": "relation",  # [name, relation, name]
    "ocr": "ocr",  # text in the image
    "qa": "qa",  # [question, answer]
    "rationales": "rationale",  # text
    "absent": "absent",  # name of an object that is not there
}
"""The kind of each field's facts, and the form of an entry of its list."""
TUPLE_SIZES = {"attributes": 2, "relations": 3, "qa": 2}
"""Fields whose entries are lists. In other fields, a single entry needs no list."""

_LIST_MARKS = frozenset(",;[\n\r")
"""Characters of a text that lists several names, which would become one fact."""


def parse_fact_fields(row: Row, source: str) -> tuple[Fact, ...]:
    """Return a row's facts in `FACT_FIELDS`, then its typed facts.

    Raises InputError for a malformed fact or a misspelt field.
    """
    for field in row.fields:
        if field not in FACT_FIELDS and (suggestion := difflib.get_close_matches(field, FACT_FIELDS, n=1, cutoff=0.75)):
            row.fail(f"`{preview(field)[1:-1]}` is not a field of facts: rename it to {suggestion[0]}")  # without the quotes
    facts: list[Fact] = []
    for field, fact_kind in FACT_FIELDS.items():
        value = row.fields.get(field)
        if field in ("objects", "absent") and isinstance(value, str) and not _LIST_MARKS.isdisjoint(value):
            row.fail(
                f"`{field}` must be one name or a list of names, not a text that lists several ({preview(value)}): write a list"
            )
        values = [value] if isinstance(value, str) and field not in TUPLE_SIZES else read_list(row, field)
        for index, value in enumerate(values, 1):
            name = f"{field}[{index}]"
            if field == "objects":
                facts += _parse_object(row, value, name, source)
            elif field in TUPLE_SIZES:
                parts = [read_line(row, part, name) for part in _read_fixed_list(row, value, TUPLE_SIZES[field], name)]
                if field == "attributes":
                    parts.reverse()  # [name, value] reads "value name"
                facts.append(Fact(fact_kind, " ".join(parts), source))
            else:
                facts.append(Fact(fact_kind, read_line(row, value, name), source))
    return tuple(facts) + parse_typed_facts(row)


def _parse_object(row: Row, value: Any, name: str, source: str) -> list[Fact]:
    """Return an object and its count as two facts, since claims about them are separate."""
    items = value if isinstance(value, list) else [value]
    if not 0 < len(items) <= 4 or not isinstance(items[0], str):
        row.fail(f"`{name}` must be a name, or a list of a name and, if known, a count, a colour and a box, not {preview(value)}")
    noun, count, colour, box = [*items, None, None, None][:4]  # omitted items are null
    noun = read_line(row, noun, name)
    object_box = None if box is None else parse_box(row, box, name)
    facts = [Fact("object", noun if colour is None else f"{read_line(row, colour, name)} {noun}", source, box=object_box)]
    if count is not None:
        facts.append(count_fact(_parse_count(row, count, name), noun, source))
    return facts


def _parse_count(row: Row, value: Any, name: str) -> int:
    """Return a whole number above 0, also from a text of digits or a float of a table's column."""
    is_text = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10
    count = int(value) if is_text or (isinstance(value, float) and value.is_integer()) else value
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        row.fail(f"`{name}` must have a count of at least 1, or null where it is unknown, not {preview(value)}")
    return count


def count_fact(count: int, noun: str, source: str) -> Fact:
    """Return a count fact, such as `two dogs`, for a noun in the singular."""
    count_text = NUMBER_WORDS[count] if count < len(NUMBER_WORDS) else str(count)
    return Fact("count", f"{count_text} {noun if count == 1 else pluralize(noun)}", source)


def parse_box(row: Row, value: Any, name: str) -> Box:
    """Return a box x0, y0, x1, y1 as shares of width and height. Raises InputError."""
    has_four_items = isinstance(value, list) and len(value) == 4
    if not has_four_items or any(isinstance(v, bool) or not isinstance(v, int | float) or not 0 <= v <= 1 for v in value):
        row.fail(f"`{name}` must have a box of four numbers from 0 to 1 (x0, y0, x1, y1), not {preview(value)}")
    x0, y0, x1, y1 = map(float, value)
    if x0 >= x1 or y0 >= y1:
        row.fail(f"`{name}` must have a box with x0 < x1 and y0 < y1, not {preview(value)}")
    return x0, y0, x1, y1


NUMBER_WORDS = words.NUMBER_WORDS[:13]
"""Facts spell counts up to twelve and write larger ones in digits."""


def read_list(row: Row, field: str) -> list[Any]:
    """Return a field that must be a list, empty if it is missing. Raises InputError."""
    value = row.fields.get(field, [])
    if not isinstance(value, list):
        row.fail(f"`{field}` must be a list, not {type_name(value)}")
    return value


def _read_fixed_list(row: Row, value: Any, size: int, name: str) -> list[Any]:
    if not isinstance(value, list) or len(value) != size:
        row.fail(f"`{name}` must be a list of {size}, not {preview(value)}")
    return value


def read_line(row: Row, value: Any, name: str) -> str:
    """Return a text as one line. Raises InputError for an empty text or another type."""
    text = " ".join(row.require_text(value, name).split())
    if not text:
        row.fail(f"`{name}` is empty: fill it in or remove it")
    return text
