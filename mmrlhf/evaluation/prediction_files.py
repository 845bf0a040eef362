"""Existing answers, in the files of this and other projects: official formats, LLaVA's, lmms-eval's
and VLMEvalKit's.

A file is JSON, JSON lines, TSV, CSV or XLSX; a folder stands for all such files in it. The fields
of the first row determine the format. No torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmrlhf.evaluation.answer_rows import (
    ID_FIELDS,
    IMAGE_FIELDS,
    QUESTION_FIELDS,
    first_present,
    image_key,
    lmms_eval_answer,
    lmms_eval_fields,
    read_facts,
    splits_in,
    with_image_name,
)
from mmrlhf.evaluation.benchmark import Benchmark, Fields, Prediction, Task
from mmrlhf.evaluation.join import Joined, join_rows
from mmrlhf.evaluation.json_rows import answer_text, rows_of_object
from mmrlhf.evaluation.row_matching import Target
from mmrlhf.files.rows import open_binary, parse_json, preview, read_lines, type_name
from mmrlhf.files.sheets import read_sheet
from mmrlhf.records import InputError

FORMATS = ("predictions", "official", "llava", "lmms-eval", "vlmevalkit", "plain")
HARNESS_FORMATS = ("lmms-eval", "vlmevalkit")
"""Formats of programs with their own data files, whose order is not the authors'."""
DERIVED_FILE = re.compile(r"_(auxmatch|score|acc|results?|detailed_results|extract|tmp)$")
"""Suffixes of the files that VLMEvalKit derives from its predictions. lmms-eval's answers are in
files with `_samples_` in their names."""
SUFFIXES = (".jsonl", ".json", ".tsv", ".csv", ".xlsx")
DEFAULT_ANSWER_FIELDS = ("id", "answer")
"""Expected content of an answer file for a benchmark without an official format."""
PLAIN_FIELDS = (
    "prediction", "predict", "pred", "response", "model_answer", "model_response", "model_prediction", "output", "outputs", "generated_text", "completion",
    "generation", "generations", "generated_caption", "pred_caption", "predicted_caption", "description", "caption", "answer", "text", "messages",
    "conversations", "choices",
)  # fmt: skip
"""Usual names of an answer. `answer` and `text` come late, because they may be the reference or the
question, and conversations last."""
ROW_FIELDS = frozenset((*ID_FIELDS, *QUESTION_FIELDS, *IMAGE_FIELDS, "images"))
"""Fields by which a row says which question it answers."""
BINARY_STARTS = (b"PK\x03\x04", b"\x1f\x8b", b"PAR1")
"""How ZIP archives (XLSM, NumPy's), gzip files and parquet files begin."""
MAX_ANSWER_CHARS = 10_000_000
NO_ANSWER = "Failed to obtain answer"
"""The start of the text that VLMEvalKit writes in place of a missing answer."""
Located = tuple[str, Fields]
"""A row with its location for messages."""


class AnswerFile(NamedTuple):
    """Answers in the order in which they are scored, the format of their file, and notes on its
    oddities."""

    predictions: list[Prediction]
    format: str
    notes: list[str]


def read_predictions(path: str, benchmark: Benchmark, task: Task, format_: str | None = None) -> AnswerFile:
    """Return the answers of a file, each with the id of its example.

    They are in the file's order; those of other harnesses are in the data's order, with unknown
    ones at the end. The benchmark's own `read` is tried first. In all other formats except
    `predictions`, rows are joined to examples by id, question, image and order.

    Raises InputError if the file cannot be read, or a row does not identify its question.
    """
    answers_path = Path(path)
    if not answers_path.exists():
        raise InputError(f"--answers {path} does not exist: correct the path")
    if format_ is not None and format_ not in FORMATS:
        raise InputError(f"--format must be one of {', '.join(FORMATS)}, not {format_!r}")
    if format_ in (None, "official"):
        own_predictions = benchmark.read(answers_path, task)
        if own_predictions is not None:
            return AnswerFile(own_predictions, "official", [])
    notes: list[str] = []
    rows = [(location, _rename_fields(location, row, benchmark, task)) for location, row in _read_rows(answers_path, notes)]
    if not rows:
        raise InputError(f"--answers {path} holds no answers")
    format_ = format_ or _require_format(*rows[0], benchmark)
    if format_ == "lmms-eval":
        rows = _in_doc_order(rows)
    parsed_rows = [_parse_answer_row(location, row, format_, benchmark) for location, row in rows]
    match_fields = [fields for fields, _ in parsed_rows]
    if format_ == "predictions":
        named = (first_present(fields, _answer_fields(benchmark)[:1] + ID_FIELDS) for fields in match_fields)
        joined = Joined([() if id_ is None else (id_,) for id_ in named], {})
    else:
        joined = _join(benchmark, match_fields, task)
    predictions = []
    for (location, _), ids, (_, answers) in zip(rows, joined.ids, parsed_rows, strict=True):
        if not ids:
            raise InputError(f"{location}: nothing says which question is answered: add {_answer_fields(benchmark)[0]}")
        predictions += [Prediction(_check_id(location, id_), answers) for id_ in ids]
    _refuse_questions(path, predictions, benchmark, task)
    is_harness = format_ in HARNESS_FORMATS
    notes += [note for kind, note in joined.notes.items() if not (is_harness and kind == "backwards")]
    if format_ == "vlmevalkit":
        predictions = _without_failures(predictions, notes)
    if is_harness:
        position = {id_: number for number, id_ in enumerate(task.examples)}
        predictions.sort(key=lambda prediction: position.get(prediction.id, len(position)))
        if "backwards" in joined.notes:
            notes.append("the rows are in another order than --data, and are scored in its order")
    return AnswerFile(predictions, format_, notes)


def _join(benchmark: Benchmark, rows: list[Fields], task: Task) -> Joined:
    """Return the ids of the examples that each row answers, and notes about them."""
    splits = benchmark.splits
    facts = [read_facts(row, lambda fields: benchmark.match_id(fields, task), benchmark.question_key, splits) for row in rows]
    targets = []
    for example in task.examples.values():
        question, image = benchmark.identity(example)
        split = str(example.meta.get("part") or "") if splits else ""
        local_id = example.id.removeprefix(f"{split}/") if split else example.id
        key = benchmark.question_key(question) if question else ""
        targets.append(Target(example.id, local_id, key, image_key(image), split))
    of_file = splits_in(task.path.stem, splits) if splits and task.data is not None and task.path.is_file() else ()
    return join_rows(facts, targets, bool(splits), of_file[0] if of_file else None)


def _rename_fields(location: str, row: Fields, benchmark: Benchmark, task: Task) -> Fields:
    try:
        return benchmark.rename_fields(with_image_name(row), task)
    except InputError as error:
        raise InputError(f"--answers {location}: {error}") from None


def _refuse_questions(path: str, predictions: list[Prediction], benchmark: Benchmark, task: Task) -> None:
    """Raise InputError if the answers are the questions, as in a file whose `text` is the
    question."""
    key = benchmark.question_key
    pairs = [(benchmark.identity(task.examples[id_])[0], answers[0]) for id_, answers in predictions if id_ in task.examples]
    if pairs and all(question and key(question) == key(answer or "") for question, answer in pairs):
        raise InputError(f"--answers {path} holds the questions in place of answers: give the file with a model's answers")


# ---- formats -------------------------------------------------------------------------------------


def _answer_fields(benchmark: Benchmark) -> tuple[str, ...]:
    return benchmark.answer_fields or DEFAULT_ANSWER_FIELDS


def _require_format(location: str, row: Fields, benchmark: Benchmark) -> str:
    format_ = _detect_format(row, benchmark)
    if format_ is None:
        present = ", ".join(preview(name)[1:-1] for name in list(row)[:12]) or "none"
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
    if "prediction" in row:
        return "vlmevalkit"
    return "plain" if not ROW_FIELDS.isdisjoint(row) and not row.keys().isdisjoint(PLAIN_FIELDS) else None


def _parse_answer_row(location: str, row: Fields, format_: str, benchmark: Benchmark) -> tuple[Fields, list[str | None]]:
    """Return the fields that describe the question, and the answers."""
    if format_ == "predictions":
        answers = row.get("answers", row.get("answer"))
        texts = answers if isinstance(answers, list) else [answers]
        return row, [_check_text(location, text) for text in texts or [None]]
    if format_ == "lmms-eval":
        return lmms_eval_fields(row), [_check_text(location, lmms_eval_answer(row))]
    names = {"llava": ("text",), "vlmevalkit": ("prediction",), "plain": PLAIN_FIELDS}.get(format_, _answer_fields(benchmark)[1:])
    text_field = next((name for name in names if name in row), names[0])
    if text_field not in row:
        raise InputError(f"{location}: `{text_field}` is missing, which {format_} answers have: add it, or give --format")
    answer = row[text_field]
    if format_ == "vlmevalkit" and isinstance(answer, int | float):  # as in JSON that pandas wrote
        answer = None if answer != answer else str(answer)
    return row, [_check_text(location, answer)]


def _check_text(location: str, value: Any) -> str | None:
    value = answer_text(value)
    if value is None:
        return None
    if not isinstance(value, str):
        raise InputError(f"{location}: an answer must be text, not {type_name(value)}")
    if len(value) > MAX_ANSWER_CHARS:
        raise InputError(
            f"{location}: the answer has {len(value)} characters, and at most {MAX_ANSWER_CHARS} are read: correct or shorten it"
        )
    return _check_unicode(location, "answer", value)


def _check_id(location: str, value: str) -> str:
    return _check_unicode(location, "id", value)


def _check_unicode(location: str, what: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can escape an unpaired surrogate, which no file can hold
        raise InputError(f"{location}: the {what} is not valid Unicode: remove the unpaired surrogate") from None
    return text


def _in_doc_order(rows: list[Located]) -> list[Located]:
    """Return the samples of an lmms-eval log in its data's order: several GPUs write in turn."""
    numbers = [row.get("doc_id") for _, row in rows]
    if not all(isinstance(number, int) for number in numbers):
        return rows
    files = {row.get("file"): None for _, row in rows}
    order = {file: number for number, file in enumerate(files)}
    return sorted(rows, key=lambda row: (order[row[1].get("file")], row[1]["doc_id"]))


def _without_failures(predictions: list[Prediction], notes: list[str]) -> list[Prediction]:
    """Return VLMEvalKit's predictions, with null for missing answers."""
    kept = [
        Prediction(id_, [None if answer is not None and answer.startswith(NO_ANSWER) else answer for answer in answers])
        for id_, answers in predictions
    ]
    num_failed = sum(before != after for before, after in zip(predictions, kept, strict=True))
    if num_failed:
        notes.append(f'{num_failed} answers are "{NO_ANSWER}" in VLMEvalKit\'s words, and count as missing')
    return kept


# ---- files ---------------------------------------------------------------------------------------


def _read_rows(path: Path, notes: list[str]) -> Iterator[Located]:
    """Yield rows with their locations.

    A row of a folder also has the name of its `file`, without the ending.
    """
    if path.is_dir():
        files = _answer_files(path, notes)
        for file in files:
            for location, row in _read_rows(file, notes):
                yield location, {"file": file.stem, **row}
        return
    for number, row in enumerate(_read_contents(path, notes), 1):
        location = f"{path} row {number}"
        if not isinstance(row, dict):
            raise InputError(f"{location}: an answer must be an object with fields, not {type_name(row)}")
        yield location, row


def _answer_files(folder: Path, notes: list[str]) -> list[Path]:
    """Return a folder's files of answers, without files that harnesses derive from them."""
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    if not files:
        raise InputError(f"--answers {folder} holds no {', '.join(SUFFIXES)} file")
    samples = [file for file in files if "_samples_" in file.stem]
    kept = samples or [file for file in files if not DERIVED_FILE.search(file.stem)] or files
    if len(kept) < len(files):
        notes.append(
            f"{folder} has files that hold no answers, and are left out: {', '.join(preview(f.name)[1:-1] for f in files if f not in kept)}"
        )
    return kept


def _read_contents(path: Path, notes: list[str]) -> list[Any]:
    """Return the values of a file: rows of a sheet, a JSON list, JSON lines, or the rows inside a
    JSON object."""
    if path.suffix in (".tsv", ".csv", ".xlsx"):
        return read_sheet(path)
    if path.suffix in (".pkl", ".pickle"):
        raise InputError(f"{path} is a pickle, which could run anything and is never opened: save it as JSON lines or TSV")
    with open_binary(path) as file:
        if path.suffix == ".jsonl" and file.peek(1)[:1] != b"[":
            for _ in read_lines(file, path):  # refuses a line that would not fit into memory
                pass
            file.seek(0)
        content = file.read()
    if b"\0" in content[:4096] or content.startswith(BINARY_STARTS):
        raise InputError(f"{path} is a binary file: save it as JSON, JSON lines, TSV, CSV or XLSX")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return _read_lines(path, content, notes)
    if isinstance(value, list):
        return value
    return rows_of_object(value, ROW_FIELDS, ID_FIELDS) if isinstance(value, dict) else [value]


def _read_lines(path: Path, content: bytes, notes: list[str]) -> list[Any]:
    """Return JSON values, one per line, without an incomplete last line of a killed process."""
    lines = [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    values = []
    for position, (number, line) in enumerate(lines):
        try:
            values.append(parse_json(line, f"{path} line {number}"))
        except InputError:
            if not values or position < len(lines) - 1 or content.endswith(b"\n"):
                raise
            notes.append(f"{path} line {number} is torn, and is left out")
    return values
