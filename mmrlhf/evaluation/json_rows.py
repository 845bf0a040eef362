"""Read the rows of a JSON object, and the text of an answer in the form of a chat.

Programs write an object in place of a list: columns, a map from ids, or the rows inside a field.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

WRAPPERS = (
    "imgToEval", "logs", "answers", "sentences", "predictions", "responses", "results", "outputs", "samples", "data", "annotations",
)  # fmt: skip
"""Fields of a JSON object that may contain the rows."""
LIST_FIELDS = {"images", "messages", "conversations"}
"""Fields that are lists in a row, so that a list there is no sign of a column."""
MESSAGE_FIELDS = ("content", "value", "text", "message", "choices", "body")
"""Fields of a message, and of an OpenAI-compatible server's reply, that lead to its text."""


def rows_of_object(value: dict[str, Any], row_fields: Collection[str], key_fields: Collection[str]) -> list[Any]:
    """Return the rows of a JSON object: its columns, those inside a field, or those of a map from
    ids to rows or texts. An object of another form is a single row.

    row_fields: the names by which a row is recognised. key_fields: the names of an id; a map's keys
    become the first of them in rows without any.
    """
    while not (rows := _rows_of_columns(value, row_fields)):
        inner = _wrapped(value, row_fields) if value.keys().isdisjoint(row_fields) else None
        if isinstance(inner, list):
            return inner
        if inner is None:
            return _rows_of_map(value, row_fields, key_fields)
        value = inner
    return rows


def _rows_of_columns(value: dict[str, Any], row_fields: Collection[str]) -> list[Any]:
    """Return the rows of columns, in the forms of pandas and `datasets`; an empty list if the
    object has another form."""
    columns = list(value.values())
    if value.keys() == {"columns", "index", "data"} and all(isinstance(column, list) for column in columns):
        return [dict(zip(map(str, value["columns"]), cells, strict=False)) for cells in value["data"] if isinstance(cells, list)]
    if len(columns) < 2 or (value.keys() - LIST_FIELDS).isdisjoint(row_fields):
        return []
    if all(isinstance(column, dict) for column in columns) and len({tuple(column) for column in columns}) == 1:
        columns = [list(column.values()) for column in columns]
    # The lists of a single row may have one entry each.
    if all(isinstance(column, list) and len(column) == len(columns[0]) > 1 for column in columns):
        return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
    return []


def _wrapped(value: dict[str, Any], row_fields: Collection[str]) -> list[Any] | dict[str, Any] | None:
    """Return the content of the field with the rows: one of `WRAPPERS`, else the only list of
    rows."""
    for name in WRAPPERS:
        if isinstance(value.get(name), list | dict):
            content: list[Any] | dict[str, Any] = value[name]
            return content
    lists = [
        inner for inner in value.values() if isinstance(inner, list) and inner and all(_is_row(row, row_fields) for row in inner)
    ]
    return lists[0] if len(lists) == 1 else None


def _is_row(value: Any, row_fields: Collection[str]) -> bool:
    return isinstance(value, dict) and not value.keys().isdisjoint(row_fields)


def _rows_of_map(value: dict[str, Any], row_fields: Collection[str], key_fields: Collection[str]) -> list[Any]:
    key_field = next(iter(key_fields))
    if value and value.keys().isdisjoint(row_fields):
        if all(_is_text(inner) for inner in value.values()):
            return [{key_field: key, "answer": text} for key, text in value.items()]
        if all(isinstance(inner, dict) for inner in value.values()):
            return [row if not row.keys().isdisjoint(key_fields) else {key_field: key, **row} for key, row in value.items()]
    return [value]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and len(value) == 1 and isinstance(value[0], str))


def answer_text(value: Any) -> Any:
    """Return the text of an answer: the only entry of a list, a message's or a server's reply, or
    the assistant's last turn of a conversation. Other values stay as they are."""
    text = value
    while not isinstance(text, str | None):
        name = next((name for name in MESSAGE_FIELDS if name in text), None) if isinstance(text, dict) else None
        if name is not None:
            text = text[name]
        elif _is_conversation(text) or (isinstance(text, list) and len(text) == 1):
            text = text[-1]
        else:
            return value
    return text


def _is_conversation(value: Any) -> bool:
    """Return whether a value is a list of turns that ends with the assistant's."""
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        return False
    return value[-1].get("role", value[-1].get("from")) in ("assistant", "gpt")
