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

from mmrlhf.benchmark import Given, Task
from mmrlhf.records import InputError
from mmrlhf.rows import kind, opened, parse

FORMATS = ("predictions", "official", "llava", "lmms-eval", "vlmevalkit")
ENDINGS = (".jsonl", ".json", ".tsv", ".csv", ".xlsx")
Fields = Mapping[str, Any]
IDS = ("id", "question_id", "index", "doc_id")


def read_answers(path: str, module: ModuleType, task: Task, format_: str | None = None) -> tuple[list[Given], str]:
    """Answers in the file's order, each under the id of the example it answers, and the format it was read as.

    A benchmark file's own `read(path, task)` is asked first and may give None; its ANSWER names the two fields of its official format
    (and other names of the second), and its `identify(fields, task)` says which example a foreign row is about, after `sort_out(rows, task)` has
    seen all of them. Raises InputError.
    """
    place = Path(path)
    if not place.exists():
        raise InputError(f"--answers {path} does not exist: correct the path")
    if format_ is not None and format_ not in FORMATS:
        raise InputError(f"--format must be one of {', '.join(FORMATS)}, not {format_!r}")
    if format_ in (None, "official") and hasattr(module, "read") and (own := module.read(place, task)) is not None:
        return own, "official"
    rows = list(_rows(place))
    if not rows:
        raise InputError(f"--answers {path} holds no answers")
    found = format_ or _format(rows[0][1], module)
    if found is None:
        there = ", ".join(list(rows[0][1])[:12]) or "none"
        wanted = " and ".join(getattr(module, "ANSWER", ("id", "answer"))[:2])
        raise InputError(
            f"--answers {rows[0][0]}: the format is none that is known (its fields are {there}): write {wanted}, or id and answers"
        )
    identify = getattr(module, "identify", None)
    parted = [_answer(where, row, found, module) for where, row in rows]
    about = [fields for fields, _ in parted]
    if found != "predictions" and hasattr(module, "sort_out"):
        about = module.sort_out(about, task)
    given = []
    for (where, _), fields, (_, said) in zip(rows, about, parted, strict=True):
        id_ = identify(fields, task) if identify and found != "predictions" else _id(fields, module)
        if id_ is None:
            raise InputError(f"{where}: nothing says which question is answered: add {getattr(module, 'ANSWER', IDS)[0]}")
        given.append(Given(str(id_), said))
    return given, found


def _format(row: Fields, module: ModuleType) -> str | None:
    if "id" in row and isinstance(row.get("answers"), list):
        return "predictions"
    if ("resps" in row or "filtered_resps" in row) and ("doc" in row or "doc_id" in row):
        return "lmms-eval"
    id_, *texts = getattr(module, "ANSWER", (None,))
    if id_ in row and not row.keys().isdisjoint(texts):
        return "official"
    if {"question_id", "text"} <= row.keys():
        return "llava"
    return "vlmevalkit" if "prediction" in row else None


def _answer(where: str, row: Fields, format_: str, module: ModuleType) -> tuple[Fields, list[str | None]]:
    """The fields that say what was asked, and what was answered."""
    if format_ == "predictions":
        answers = row.get("answers", row.get("answer"))
        return row, [_text(where, a) for a in (answers if isinstance(answers, list) else [answers])]
    if format_ == "lmms-eval":
        doc = row.get("doc") if isinstance(row.get("doc"), dict) else {}
        said: Any = row.get("resps", row.get("filtered_resps"))
        while isinstance(said, list):  # a list of generations, each perhaps a list of one
            said = said[0] if said else None
        return {"doc_id": row.get("doc_id"), **(doc or {})}, [_text(where, said)]
    texts = getattr(module, "ANSWER", ("id", "answer"))[1:]
    own = next((text for text in texts if text in row), texts[0])
    name = {"official": own, "llava": "text", "vlmevalkit": "prediction"}[format_]
    if name not in row:
        raise InputError(f"{where}: `{name}` is missing, which {format_} answers have: add it, or give --format")
    return row, [_text(where, row[name])]


def _text(where: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise InputError(f"{where}: an answer must be text, not {kind(value)}")
    if value is not None and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can spell half a character, which no file takes
            raise InputError(f"{where}: the answer is not valid Unicode: remove the unpaired surrogate") from None
    return value


def _id(fields: Fields, module: ModuleType) -> Any:
    own = getattr(module, "ANSWER", ("id",))[0]
    return next((fields[name] for name in (own, *IDS) if fields.get(name) is not None), None)


def _rows(path: Path) -> Iterator[tuple[str, Fields]]:
    """Rows with their places. A row from a folder also says its `file`."""
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in ENDINGS)
        if not files:
            raise InputError(f"--answers {path} holds no {', '.join(ENDINGS)} file")
        for file in files:
            for where, row in _rows(file):
                yield where, {"file": file.stem, **row}
        return
    for number, content in enumerate(_contents(path), 1):
        where = f"{path} row {number}"
        if not isinstance(content, dict):
            raise InputError(f"{where}: an answer must be an object with fields, not {kind(content)}")
        yield where, content


def _contents(path: Path) -> list[Any]:
    if path.suffix == ".xlsx":
        return _sheet(path)
    with opened(path) as file:
        content = file.read()
    if path.suffix in (".tsv", ".csv"):
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): write it as UTF-8") from None
        csv.field_size_limit(1 << 30)  # an answer may be long, and tables of this kind hold pictures
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ","))
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError):  # several values, one a line; or a fault, which its line names
        lines = (line for line in enumerate(content.split(b"\n"), 1) if line[1].strip())
        return [parse(line, f"{path} line {number}") for number, line in lines]
    if isinstance(whole, dict) and "id" in whole:  # a single answer, not a file's wrapping
        return [whole]
    if isinstance(whole, dict):
        for wrapper in ("imgToEval", "logs", "answers", "sentences"):
            if isinstance(inner := whole.get(wrapper), dict | list):
                return list(inner.values()) if isinstance(inner, dict) else inner
        return [whole]
    return whole if isinstance(whole, list) else [whole]


def _sheet(path: Path) -> list[dict[str, Any]]:
    """The first sheet of a workbook, cells as text."""
    from zipfile import BadZipFile

    from openpyxl import load_workbook
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        rows = load_workbook(path, read_only=True, data_only=True).worksheets[0].iter_rows(values_only=True)
        names = [str(name) for name in next(rows, ())]
        return [{n: "" if v is None else str(v) for n, v in zip(names, row, strict=False)} for row in rows]
    except (OSError, BadZipFile, InvalidFileException, KeyError, ValueError) as error:
        raise InputError(f"{path} cannot be read as XLSX ({error}): save it again, or as TSV") from None
