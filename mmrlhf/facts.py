"""Facts: typed evidence on a picture, read from files and written into a reward model's prompt."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from mmrlhf.nouns import plural_of
from mmrlhf.records import Fact, FactKind
from mmrlhf.rows import Row, contents, kind, shown
from mmrlhf.tables import read


def read_facts(path: str | Path) -> dict[str, tuple[Fact, ...]]:
    """Facts by image name (or row id), from LLaVA-RLHF's JSON map to captions or from JSONL with the fields of `LISTS`.

    Raises InputError with the line and field that cannot be used.
    """
    path = Path(path)
    rows: list[tuple[str, Row]] = []
    captions = contents(path) if path.suffix == ".json" else None
    if isinstance(captions, dict):
        rows = [(name, Row(f"{path}, {shown(name)}", 0, {"captions": lines})) for name, lines in captions.items()]
    else:
        for unread in read(str(path)):
            row = unread.row()
            name = row.fields.get("image", row.fields.get("id"))
            rows.append((str(row.need("image") if name is None else name), row))
    found: dict[str, tuple[Fact, ...]] = {}
    for name, row in rows:
        found[name] = found.get(name, ()) + _listed(row, path.name)
    return found


def render(
    facts: Sequence[Fact], order_seed: int | None = None, template: str = "typed", budget: int | None = None, count: Any = None
) -> str:
    """One line of typed evidence, or "" without facts: `Facts: object red circle; count two objects.`

    The order is seeded, so that both answers of a pair (all answers of a prompt) read the same text; None keeps the
    given order. Runs of white space become one space: a fact stays on its line whatever its file says.
    """
    if not facts:
        return ""
    order = np.arange(len(facts)) if order_seed is None else np.random.default_rng(order_seed).permutation(len(facts))
    return "Facts: " + "; ".join(f"{facts[i].kind} {' '.join(facts[i].text.split())}" for i in order) + "."


def typed(row: Row) -> tuple[Fact, ...]:
    """A row's own `facts`: a list of {kind, text} with optional source and confidence. Raises InputError."""
    found = []
    for number, fact in enumerate(_list(row, "facts"), 1):
        name = f"facts[{number}]"
        if not isinstance(fact, dict):
            row.fail(f"`{name}` must be an object with kind and text, not {kind(fact)}")
        if fact.get("kind") not in get_args(FactKind):
            row.fail(f"`{name}.kind` must be one of {', '.join(get_args(FactKind))}, not {shown(fact.get('kind'))}")
        confidence = fact.get("confidence", 1.0)
        if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0 <= confidence <= 1:
            row.fail(f"`{name}.confidence` must be a number from 0 to 1, not {shown(confidence)}")
        source = row.text(fact.get("source", ""), f"{name}.source")
        found.append(Fact(fact["kind"], _line(row, fact.get("text"), f"{name}.text"), source, float(confidence)))
    return tuple(found)


# ---- facts as lists, one field for each kind -------------------------------------------------------------------------

LISTS: dict[str, FactKind] = {
    "captions": "caption",  # text
    "objects": "object",  # [name, count or null, colour or null]
    "attributes": "attribute",  # [name, value]
    "relations": "relation",  # [name, relation, name]
    "ocr": "ocr",  # text in the picture
    "qa": "qa",  # [question, answer]
    "rationales": "rationale",  # text
    "absent": "absent",  # name of what is not there
}


def _listed(row: Row, source: str) -> tuple[Fact, ...]:
    for field in row.fields:
        if field not in LISTS and (slip := difflib.get_close_matches(field, LISTS, n=1, cutoff=0.75)):
            row.fail(f"`{shown(field)[1:-1]}` is not a field of facts: rename it to {slip[0]}")
    pairs: list[tuple[FactKind, str]] = []
    for field, of in LISTS.items():
        for number, value in enumerate(_list(row, field), 1):
            name = f"{field}[{number}]"
            if field == "objects":
                pairs += _object(row, value, name)
            elif field in ("attributes", "relations", "qa"):
                words = [_line(row, word, name) for word in _sized(row, value, 3 if field == "relations" else 2, name)]
                pairs.append((of, " ".join(reversed(words) if field == "attributes" else words)))
            else:
                pairs.append((of, _line(row, value, name)))
    return tuple(Fact(of, text, source) for of, text in pairs) + typed(row)


def _object(row: Row, value: Any, name: str) -> list[tuple[FactKind, str]]:
    """An object and its count are two facts, so that a claim on one of them meets the fact on it."""
    if isinstance(value, list) and 0 < len(value) < 3:
        value = [*value, None, None][:3]
    noun, count, colour = _sized(row, value, 3, name)
    noun = _line(row, noun, name)
    pairs: list[tuple[FactKind, str]] = [("object", noun if colour is None else f"{_line(row, colour, name)} {noun}")]
    if count is not None:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            row.fail(f"`{name}` must have a count of at least 1, or null where it is unknown, not {shown(count)}")
        number = NUMBERS[count] if count < len(NUMBERS) else str(count)
        pairs.append(("count", f"{number} {noun if count == 1 else plural_of(noun)}"))
    return pairs


NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def _list(row: Row, field: str) -> list[Any]:
    value = row.fields.get(field, [])
    if not isinstance(value, list):
        row.fail(f"`{field}` must be a list, not {kind(value)}")
    return value


def _sized(row: Row, value: Any, size: int, name: str) -> list[Any]:
    if not isinstance(value, list) or len(value) != size:
        row.fail(f"`{name}` must be a list of {size}, not {shown(value)}")
    return value


def _line(row: Row, value: Any, name: str) -> str:
    text = " ".join(row.text(value, name).split())
    if not text:
        row.fail(f"`{name}` is empty: fill it in or remove it")
    return text
