"""Existing answers, in the files of this and other projects: official formats, LLaVA's, lmms-eval's
and VLMEvalKit's.

A file is JSON, JSON lines, TSV, CSV or XLSX; a folder stands for all such files in it. The fields
of the first row tell the format. No torch.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmrlhf.evaluation.benchmark import ID_FIELDS, Benchmark, Fields, Prediction, Task, first_present
from mmrlhf.files.rows import decode_text, open_binary, parse_json, type_name
from mmrlhf.records import InputError

FORMATS = ("predictions", "official", "llava", "lmms-eval", "vlmevalkit")
SUFFIXES = (".jsonl", ".json", ".tsv", ".csv", ".xlsx")
DEFAULT_ANSWER_FIELDS = ("id", "answer")
"""What an answer file should hold for a benchmark without an official format."""


def read_predictions(path: str, benchmark: Benchmark, task: Task, format_: str | None = None) -> tuple[list[Prediction], str]:
    """Return the answers in the file's order, each with the id of the example it answers, and the
    format of the file.

    The benchmark's own `read` is tried first. In all other formats but `predictions`, its
    `match_id` tells which example a row is about, after `match_rows` has seen all rows. Raise
    InputError.
    """
    answers_path = Path(path)
    if not answers_path.exists():
        raise InputError(f"--answers {path} does not exist: correct the path")
    if format_ is not None and format_ not in FORMATS:
        raise InputError(f"--format must be one of {', '.join(FORMATS)}, not {format_!r}")
    if format_ in (None, "official"):
        own_predictions = benchmark.read(answers_path, task)
        if own_predictions is not None:
            return own_predictions, "official"
    rows = list(_read_rows(answers_path))
    if not rows:
        raise InputError(f"--answers {path} holds no answers")
    format_ = format_ or _require_format(*rows[0], benchmark)
    parsed_rows = [_parse_answer_row(location, row, format_, benchmark) for location, row in rows]
    match_fields = [fields for fields, _ in parsed_rows]
    if format_ == "predictions":
        ids = [first_present(fields, _answer_fields(benchmark)[:1] + ID_FIELDS) for fields in match_fields]
    else:
        ids = [benchmark.match_id(fields, task) for fields in benchmark.match_rows(match_fields, task)]
    predictions = []
    for (location, _), id_, (_, answers) in zip(rows, ids, parsed_rows, strict=True):
        if id_ is None:
            raise InputError(f"{location}: nothing says which question is answered: add {_answer_fields(benchmark)[0]}")
        predictions.append(Prediction(str(id_), answers))
    return predictions, format_


def _answer_fields(benchmark: Benchmark) -> tuple[str, ...]:
    return benchmark.answer_fields or DEFAULT_ANSWER_FIELDS


def _require_format(location: str, row: Fields, benchmark: Benchmark) -> str:
    format_ = _detect_format(row, benchmark)
    if format_ is None:
        present = ", ".join(list(row)[:12]) or "none"
        expected = " and ".join(_answer_fields(benchmark)[:2])
        raise InputError(
            f"--answers {location}: the format is not a known one (its fields are {present}): write {expected}, or id and answers"
        )
    return format_


def _detect_format(row: Fields, benchmark: Benchmark) -> str | None:
    if "id" in row and isinstance(row.get("answers"), list):
        return "predictions"
    if ("resps" in row or "filtered_resps" in row) and ("doc" in row or "doc_id" in row):
        return "lmms-eval"
    if benchmark.answer_fields:
        id_field, *text_fields = benchmark.answer_fields
        if id_field in row and not row.keys().isdisjoint(text_fields):
            return "official"
    if {"question_id", "text"} <= row.keys():
        return "llava"
    return "vlmevalkit" if "prediction" in row else None


def _parse_answer_row(location: str, row: Fields, format_: str, benchmark: Benchmark) -> tuple[Fields, list[str | None]]:
    """Return the fields that say what was asked, and the answers."""
    if format_ == "predictions":
        answers = row.get("answers", row.get("answer"))
        return row, [_check_text(location, answer) for answer in (answers if isinstance(answers, list) else [answers])]
    if format_ == "lmms-eval":
        doc = row.get("doc") if isinstance(row.get("doc"), dict) else {}
        response: Any = row.get("resps", row.get("filtered_resps"))
        # A list of generations, each of which may be a list of one.
        while isinstance(response, list):
            response = response[0] if response else None
        return {"doc_id": row.get("doc_id"), **(doc or {})}, [_check_text(location, response)]
    text_fields = _answer_fields(benchmark)[1:]
    own_field = next((name for name in text_fields if name in row), text_fields[0])
    text_field = {"official": own_field, "llava": "text", "vlmevalkit": "prediction"}[format_]
    if text_field not in row:
        raise InputError(f"{location}: `{text_field}` is missing, which {format_} answers have: add it, or give --format")
    return row, [_check_text(location, row[text_field])]


def _check_text(location: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise InputError(f"{location}: an answer must be text, not {type_name(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can escape an unpaired surrogate, which no file can hold
        raise InputError(f"{location}: the answer is not valid Unicode: remove the unpaired surrogate") from None
    return value


def _read_rows(path: Path) -> Iterator[tuple[str, Fields]]:
    """Yield rows with their locations.

    A row of a folder also has the name of its `file`, without the ending.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if not files:
            raise InputError(f"--answers {path} holds no {', '.join(SUFFIXES)} file")
        for file in files:
            for location, row in _read_rows(file):
                yield location, {"file": file.stem, **row}
        return
    for number, row in enumerate(_read_contents(path), 1):
        location = f"{path} row {number}"
        if not isinstance(row, dict):
            raise InputError(f"{location}: an answer must be an object with fields, not {type_name(row)}")
        yield location, row


def _read_contents(path: Path) -> list[Any]:
    """Return the values of a file: rows of a table, a JSON list, JSON lines, or the rows inside a
    JSON object."""
    if path.suffix == ".xlsx":
        return _read_xlsx(path)
    with open_binary(path) as file:
        content = file.read()
    if path.suffix in (".tsv", ".csv"):
        text = decode_text(content, path, "utf-8-sig")
        # Answers may be long, and tables of this kind hold images; csv refuses fields above 128 KiB
        # by default.
        csv.field_size_limit(1 << 30)
        delimiter = "\t" if path.suffix == ".tsv" else ","
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        # Several values, one a line; or a broken file, which parse_json reports with the line.
        lines = enumerate(content.split(b"\n"), 1)
        return [parse_json(line, f"{path} line {number}") for number, line in lines if line.strip()]
    if isinstance(value, list):
        return value
    if isinstance(value, dict) and "id" not in value:  # with an id it is a single answer, not a wrapper
        for wrapper in ("imgToEval", "logs", "answers", "sentences"):
            inner = value.get(wrapper)
            if isinstance(inner, dict):
                return list(inner.values())
            if isinstance(inner, list):
                return inner
    return [value]


def _read_xlsx(path: Path) -> list[dict[str, Any]]:
    """Return the rows of the first sheet of a workbook, with cells as text."""
    from zipfile import BadZipFile

    from openpyxl import load_workbook
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        rows = load_workbook(path, read_only=True, data_only=True).worksheets[0].iter_rows(values_only=True)
        columns = [str(name) for name in next(rows, ())]
        return [{name: "" if cell is None else str(cell) for name, cell in zip(columns, row, strict=False)} for row in rows]
    except (OSError, BadZipFile, InvalidFileException, KeyError, ValueError) as error:
        raise InputError(f"{path} cannot be read as XLSX ({error}): save it again, or as TSV") from None
