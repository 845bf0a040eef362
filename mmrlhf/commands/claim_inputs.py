"""Read the answers from which `mmrlhf claims` extracts claims: text, rows, and their images."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrlhf.evaluation.answer_rows import ID_FIELDS, IMAGE_FIELDS, MAX_PATH_CHARS, lmms_eval_answer, lmms_eval_fields
from mmrlhf.evaluation.json_rows import WRAPPERS, answer_text, rows_of_object
from mmrlhf.evaluation.prediction_files import PLAIN_FIELDS, ROW_FIELDS
from mmrlhf.files.row_errors import RowErrors
from mmrlhf.files.rows import RawRow, Row, open_binary, parse_json, type_name
from mmrlhf.files.sheets import read_sheet
from mmrlhf.files.tables import read_rows
from mmrlhf.records import InputError

ANSWER_FIELDS = ("answers", *PLAIN_FIELDS)
"""Field names of an answer in files of this and other projects, in order of preference. `answers`
is a list."""
LOG_FIELDS = ("filtered_resps", "resps")
"""Fields of lmms-eval's samples that hold generations."""
OBJECT_FIELDS = (ROW_FIELDS | {*ANSWER_FIELDS, *LOG_FIELDS}) - {*WRAPPERS}
"""Fields by which a JSON object is a row, and no list of rows."""
PAIR_FIELDS = (
    ("chosen", "rejected"),
    ("preferred_output", "non_preferred_output"),
    ("response", "rejected_response"),
    ("messages", "rejected_response"),
    ("messages", "rejected_messages"),
)
"""Fields of a pair's two answers, in the files of TRL and LLaMA-Factory, OpenAI and ms-swift."""
TABLE_SUFFIXES = (".json", ".jsonl", ".parquet")
SHEET_SUFFIXES = (".tsv", ".csv", ".xlsx")
_JSON_START = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:\[\s*[\[{\"]|\{\s*\n\s*\")")
"""The start of a JSON list of rows or texts, or of an object of several lines.

Prose may begin with a bracket, but not like this.
"""
_OBJECT_START = re.compile(r"\s*\{\s*\"")
"""The start of a JSON object."""


@dataclass(frozen=True)
class Answer:
    """An answer with the fields of its row.

    location: its place, for messages. number: of its line or row, counted from 1. images: names.
    id: of its row, unchanged.
    """

    location: str
    number: int
    text: str
    images: tuple[str, ...] = ()
    id: Any = None


def read_located_answers(path: str, errors: RowErrors | None = None) -> Iterator[Answer]:
    """Yield the answers of a file, in order.

    errors: receives the errors of bad rows, which are skipped; without it, the first one is raised.

    A .json, .jsonl or .parquet file holds rows: objects, or texts; a .tsv, .csv or .xlsx file rows
    of cells. A pair has two answers. A .json file may also map image names to answers, or contain
    the list of rows in an object. Every other file contains an answer per line, as text or as an
    object; or one JSON value.

    Raises InputError for a file or row that cannot be read, with its place.
    """
    file, parse = Path(path), _answers_of_row
    if file.suffix in SHEET_SUFFIXES:
        rows = _located(path, read_sheet(file))
    elif file.suffix not in TABLE_SUFFIXES:
        rows, parse = _text_lines(path), _answers_of_text
    elif file.suffix == ".json" and isinstance(value := _json_object(file), dict):
        rows = _rows_of_object(value, path)
    else:
        rows = read_rows(path)
    for row in rows:
        try:
            yield from parse(row)
        except InputError as error:
            if errors is None:
                raise
            errors.add(row.location.rpartition(", ")[2], str(error), row.location)


def _json_object(path: Path) -> dict[str, Any] | None:
    """Return the object in a file, None if the file contains a list or lines."""
    with open_binary(path) as file:
        content = file.read()
    if content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"{":
        return None
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):  # lines, or broken: the reader of rows says where
        return None
    return value if isinstance(value, dict) else None


def _rows_of_object(value: dict[str, Any], path: str) -> Iterator[RawRow]:
    """Yield the rows of an object; the keys of a map are names of images."""
    rows = rows_of_object(value, OBJECT_FIELDS, ("image", "images", *IMAGE_FIELDS, *ID_FIELDS))
    if all(isinstance(row, dict) for row in rows):
        yield from _located(path, rows)
    else:
        yield RawRow(f"{path}, row 1", 1, value)


def _located(path: str, values: Sequence[Any]) -> Iterator[RawRow]:
    return (RawRow(f"{path}, row {number}", number, value) for number, value in enumerate(values, 1))


def _text_lines(path: str) -> Iterator[RawRow]:
    """Yield the rows of a JSON value, or lines as bytes."""
    with open_binary(Path(path)) as file:
        if _JSON_START.match(file.peek(4096)):
            value = parse_json(file.read(), path)
            yield from _rows_of_object(value, path) if isinstance(value, dict) else _located(path, value)
            return
        for number, line in enumerate(file, 1):
            yield RawRow(f"{path}, line {number}", number, line)


def _answers_of_text(raw_row: RawRow) -> Iterator[Answer]:
    """Yield the answers of a row, which may be a line of prose. Raises InputError as for rows."""
    location, number, content = raw_row.location, raw_row.number, raw_row.content
    if isinstance(content, bytes):
        try:
            content = content.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{location}: not UTF-8 (byte {error.start}): write it as UTF-8") from None
        if _OBJECT_START.match(content):  # prose may begin with a brace, but no quotation follows it
            content = parse_json(content.encode(), location)
    yield from _answers_of_row(RawRow(location, number, content))


def _answers_of_row(raw_row: RawRow) -> Iterator[Answer]:
    """Yield the answers of a row: a text, an object with one of `ANSWER_FIELDS`, or a pair."""
    location, number, content = raw_row.location, raw_row.number, raw_row.content
    if isinstance(content, bytes):
        content = parse_json(content, location)
    if isinstance(content, str):
        Row(location, number, {}).require_text(content, "the answer")
        yield Answer(location, number, content)
        return
    if isinstance(content, dict) and not content.keys().isdisjoint(LOG_FIELDS):
        content = {**lmms_eval_fields(content), "answer": lmms_eval_answer(content)}
    row = RawRow(location, number, content).parse()
    for names in PAIR_FIELDS:
        if row.fields.keys() >= {*names}:
            for name in names:
                text = row.require_text(answer_text(row.fields[name]), name)
                yield Answer(location, number, text, _image_names(row), row.fields.get("id"))
            return
    present = [field for field in ANSWER_FIELDS if field in row.fields]
    name = present[0] if present else row.require_any("text", *ANSWER_FIELDS, hint="put the answer of the row there")
    value = row.fields[name]
    if name == "answers" and not isinstance(value, list):
        row.fail(f"`answers` must be a list of texts, not {type_name(value)}")
    is_list = isinstance(value, list) and all(isinstance(text, str | None) for text in value)
    images = _image_names(row)
    id_ = next((row.fields[field] for field in ID_FIELDS if field in row.fields), None)
    for text in value if name == "answers" or is_list else [answer_text(value)]:
        if text is not None:
            row.require_text(text, name)
        yield Answer(location, number, text or "", images, id_)


def _image_names(row: Row) -> tuple[str, ...]:
    """Return the names in a row's `images`, or in one of `IMAGE_FIELDS`. Embedded images have
    none."""
    name = next((field for field in ("images", *IMAGE_FIELDS) if field in row.fields), "image")
    value = row.fields.get(name)
    images = value if isinstance(value, list) else [] if value is None else [value]
    names = [image.get("path") if isinstance(image, dict) else image for image in images]
    for image in names:
        is_number = isinstance(image, int) and not isinstance(image, bool) and name.endswith("_id")
        if image is not None and not isinstance(image, str) and not is_number:
            row.fail(f"`{name}` must be {'names of images' if name == 'images' else 'text'}, not {type_name(image)}")
    return tuple(str(image) for image in names if image is not None and 0 < len(str(image)) <= MAX_PATH_CHARS)
