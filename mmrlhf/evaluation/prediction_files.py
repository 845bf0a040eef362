"""Answers that exist, in the files of this and other projects: each benchmark's own, LLaVA's, lmms-eval's and VLMEvalKit's logs. No torch.

A file is JSON, JSON lines, TSV, CSV or XLSX; a folder is all such files in it. Its format is known by the fields of its first row.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mmrlhf.evaluation.benchmark import Prediction, Task
from mmrlhf.files.rows import open_binary, parse_json, type_name
from mmrlhf.records import InputError

FORMATS = ("predictions", "official", "llava", "lmms-eval", "vlmevalkit")
SUFFIXES = (".jsonl", ".json", ".tsv", ".csv", ".xlsx")
Fields = Mapping[str, Any]
ID_FIELDS = ("id", "question_id", "index", "doc_id")


def read_predictions(path: str, module: ModuleType, task: Task, format_: str | None = None) -> tuple[list[Prediction], str]:
    """Answers in the file's order, each under the id of the example it answers, and the format it was read as.

    A benchmark file's own `read(path, task)` is asked first and may give None; its ANSWER names the two fields of its official format
    (and other names of the second), and its `match_id(fields, task)` says which example a foreign row is about, after `sort_out(rows, task)` has
    seen all of them. Raises InputError.
    """
    answers_path = Path(path)
    if not answers_path.exists():
        raise InputError(f"--answers {path} does not exist: correct the path")
    if format_ is not None and format_ not in FORMATS:
        raise InputError(f"--format must be one of {', '.join(FORMATS)}, not {format_!r}")
    if (
        format_ in (None, "official")
        and hasattr(module, "read")
        and (own_predictions := module.read(answers_path, task)) is not None
    ):
        return own_predictions, "official"
    rows = list(_read_rows(answers_path))
    if not rows:
        raise InputError(f"--answers {path} holds no answers")
    detected_format = format_ or _detect_format(rows[0][1], module)
    if detected_format is None:
        field_names = ", ".join(list(rows[0][1])[:12]) or "none"
        expected_fields = " and ".join(getattr(module, "ANSWER", ("id", "answer"))[:2])
        raise InputError(
            f"--answers {rows[0][0]}: the format is none that is known (its fields are {field_names}): write {expected_fields}, or id and answers"
        )
    match_id = getattr(module, "match_id", None)
    parsed_rows = [_parse_answer_row(location, row, detected_format, module) for location, row in rows]
    match_fields = [fields for fields, _ in parsed_rows]
    if detected_format != "predictions" and hasattr(module, "match_rows"):
        match_fields = module.match_rows(match_fields, task)
    predictions = []
    for (location, _), fields, (_, answers) in zip(rows, match_fields, parsed_rows, strict=True):
        id_ = match_id(fields, task) if match_id and detected_format != "predictions" else _example_id(fields, module)
        if id_ is None:
            raise InputError(
                f"{location}: nothing says which question is answered: add {getattr(module, 'ANSWER', ID_FIELDS)[0]}"
            )
        predictions.append(Prediction(str(id_), answers))
    return predictions, detected_format


def _detect_format(row: Fields, module: ModuleType) -> str | None:
    if "id" in row and isinstance(row.get("answers"), list):
        return "predictions"
    if ("resps" in row or "filtered_resps" in row) and ("doc" in row or "doc_id" in row):
        return "lmms-eval"
    id_field, *text_fields = getattr(module, "ANSWER", (None,))
    if id_field in row and not row.keys().isdisjoint(text_fields):
        return "official"
    if {"question_id", "text"} <= row.keys():
        return "llava"
    return "vlmevalkit" if "prediction" in row else None


def _parse_answer_row(location: str, row: Fields, format_: str, module: ModuleType) -> tuple[Fields, list[str | None]]:
    """The fields that say what was asked, and what was answered."""
    if format_ == "predictions":
        answers = row.get("answers", row.get("answer"))
        return row, [_check_text(location, a) for a in (answers if isinstance(answers, list) else [answers])]
    if format_ == "lmms-eval":
        doc = row.get("doc") if isinstance(row.get("doc"), dict) else {}
        response: Any = row.get("resps", row.get("filtered_resps"))
        while isinstance(response, list):  # a list of generations, each perhaps a list of one
            response = response[0] if response else None
        return {"doc_id": row.get("doc_id"), **(doc or {})}, [_check_text(location, response)]
    text_fields = getattr(module, "ANSWER", ("id", "answer"))[1:]
    own_field = next((candidate for candidate in text_fields if candidate in row), text_fields[0])
    text_field = {"official": own_field, "llava": "text", "vlmevalkit": "prediction"}[format_]
    if text_field not in row:
        raise InputError(f"{location}: `{text_field}` is missing, which {format_} answers have: add it, or give --format")
    return row, [_check_text(location, row[text_field])]


def _check_text(location: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise InputError(f"{location}: an answer must be text, not {type_name(value)}")
    if value is not None and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can spell half a character, which no file takes
            raise InputError(f"{location}: the answer is not valid Unicode: remove the unpaired surrogate") from None
    return value


def _example_id(fields: Fields, module: ModuleType) -> Any:
    own_id_field = getattr(module, "ANSWER", ("id",))[0]
    return next((fields[name] for name in (own_id_field, *ID_FIELDS) if fields.get(name) is not None), None)


def _read_rows(path: Path) -> Iterator[tuple[str, Fields]]:
    """Rows with their places. A row from a folder also says its `file`."""
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
        if not files:
            raise InputError(f"--answers {path} holds no {', '.join(SUFFIXES)} file")
        for file in files:
            for location, row in _read_rows(file):
                yield location, {"file": file.stem, **row}
        return
    for number, content in enumerate(_read_contents(path), 1):
        location = f"{path} row {number}"
        if not isinstance(content, dict):
            raise InputError(f"{location}: an answer must be an object with fields, not {type_name(content)}")
        yield location, content


def _read_contents(path: Path) -> list[Any]:
    if path.suffix == ".xlsx":
        return _read_xlsx(path)
    with open_binary(path) as file:
        content = file.read()
    if path.suffix in (".tsv", ".csv"):
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): write it as UTF-8") from None
        csv.field_size_limit(1 << 30)  # an answer may be long, and tables of this kind hold pictures
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ","))
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):  # several values, one a line; or a fault, which its line names
        lines = (line for line in enumerate(content.split(b"\n"), 1) if line[1].strip())
        return [parse_json(line, f"{path} line {number}") for number, line in lines]
    if isinstance(value, dict) and "id" in value:  # a single answer, not a file's wrapping
        return [value]
    if isinstance(value, dict):
        for wrapper in ("imgToEval", "logs", "answers", "sentences"):
            if isinstance(inner := value.get(wrapper), dict | list):
                return list(inner.values()) if isinstance(inner, dict) else inner
        return [value]
    return value if isinstance(value, list) else [value]


def _read_xlsx(path: Path) -> list[dict[str, Any]]:
    """The first sheet of a workbook, cells as text."""
    from zipfile import BadZipFile

    from openpyxl import load_workbook
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        rows = load_workbook(path, read_only=True, data_only=True).worksheets[0].iter_rows(values_only=True)
        columns = [str(name) for name in next(rows, ())]
        return [{n: "" if v is None else str(v) for n, v in zip(columns, row, strict=False)} for row in rows]
    except (OSError, BadZipFile, InvalidFileException, KeyError, ValueError) as error:
        raise InputError(f"{path} cannot be read as XLSX ({error}): save it again, or as TSV") from None
