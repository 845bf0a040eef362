"""MME: two questions per image in fourteen tasks, one with the answer yes and one with the answer
no (Fu et al. 2023).

    mmrlhf eval mme --model runs/sft/model --data MME --subset hallucination --out runs/mme
    mmrlhf eval mme --answers my_final_results --out runs/mme

--data is a folder with TASK.txt (`image TAB question TAB answer`), or with the release's TASK
folders of images and texts. Answers in the official layout, TASK.txt with the response in a fourth
column, contain the questions and need no --data.

A task's `score` is its accuracy plus the share of images with both questions right, in percent (at
most 200). `perception`, `cognition` and `hallucination` (existence, count, position, color) are
sums over their tasks, and `score` is the sum over all tasks of the subset. `official` looks for
yes, then no, in the first four characters of an answer; `robust` reads it with
`mmrlhf.text.answer_parsing.parse_yes_no`.
"""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from mmrlhf.config import STRICT
from mmrlhf.evaluation.answer_rows import fold
from mmrlhf.evaluation.benchmark import Benchmark, Fields, Prediction, ScoreRow, Task, answered, first_present, first_valid
from mmrlhf.files.rows import read_text
from mmrlhf.metrics.intervals import SufficientStats
from mmrlhf.records import Example, ImageSource, InputError, Message
from mmrlhf.text.answer_parsing import parse_yes_no

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
HALLUCINATION = PERCEPTION[:4]
GROUPS = {"perception": PERCEPTION, "cognition": COGNITION, "hallucination": HALLUCINATION}
IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg")
_LINE_BREAKS = re.compile(r"\r\n|[\t\r\n]")
Question = tuple[str, str, str, str]
"""Location, image, question and answer of a row of a task."""
ImageResult = tuple[str, list[bool]]
"""An image, and which of its questions were answered right."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """Which part of MME to run."""

    subset: Literal["all", "hallucination"] = "all"
    """All fourteen tasks, or the four on hallucination."""


class MME(Benchmark):
    """MME."""

    version = "3"
    license = "research only"
    headline = "score"
    direction = "higher"
    cluster = "image"
    options_type = Options

    def load(self, task: Task) -> list[Example]:
        """Return the questions of each task in the folder, with ids TASK/IMAGE/NUMBER."""
        root = task.path if task.data is not None or task.answers is None else Path(task.answers)
        if not root.is_dir():
            raise InputError(f"{root} is not a folder: MME's questions are files TASK.txt, or folders TASK, in one folder")
        examples = []
        for name in _task_names(task):
            num_questions = Counter[str]()
            for location, image, question, answer in _questions(root, name)[: task.limit]:
                label = answer.strip().lower()
                if label not in ("yes", "no"):
                    raise InputError(f"{location}: the answer must be Yes or No, not {answer[:40]!r}")
                id_ = f"{name}/{image}/{num_questions[image]}"
                num_questions[image] += 1
                source = _image_source(replace(task, data=str(root)), name, image, location)
                meta = {"part": name, "image": image, "label": label, "question": question}
                examples.append(Example(id_, (source,), (Message("user", question),), meta=meta))
        if not examples:
            raise InputError(f"{root} holds none of MME's tasks: it should hold existence.txt, or a folder existence, and so on")
        return examples

    def files(self, task: Task) -> list[Path]:
        """Return the text files of questions."""
        return [path for name in _task_names(task) for path in _question_files(task.path, name)]

    def read(self, path: Path, task: Task) -> list[Prediction] | None:
        """Read the official layout: TASK.txt with the response in a fourth column.

        A response may have several lines.
        """
        files = {name: path / f"{name}.txt" for name in _task_names(task)}
        if not path.is_dir() or not any(file.is_file() for file in files.values()):
            return None
        responses: list[tuple[str, str]] = []
        for name, file in files.items():
            num_questions = Counter[str]()
            for line in _read_lines(file) if file.is_file() else ():
                cells = line.split("\t", 3)
                if len(cells) == 4 and cells[2].strip().lower() in ("yes", "no"):
                    responses.append((f"{name}/{cells[0]}/{num_questions[cells[0]]}", cells[3]))
                    num_questions[cells[0]] += 1
                elif num_questions:  # continues the previous response
                    id_, response = responses[-1]
                    responses[-1] = id_, response + line
        return [Prediction(id_, [response.removesuffix("\n")]) for id_, response in responses]

    def question_key(self, text: str) -> str:
        """Return a question without the instruction at its end, which some harnesses replace."""
        return fold(text).partition(" please answer")[0]

    def match_id(self, fields: Fields, task: Task) -> str | None:
        """Return a row's id. Other programs have the task and the image there (color/0001.png)."""
        return first_present(fields, ("id", "question_id"))

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """Return whether the first answer says yes or no, by the script's rule and by ours."""
        parsed = parse_yes_no(answers[0], example.meta["question"])
        return {
            "label": example.meta["label"],
            "official": parse_official(answers[0]),
            "said": parsed,
            "unparsed": parsed is None,
        }

    def aggregate(self, rows: list[ScoreRow], task: Task) -> dict[str, SufficientStats]:
        """Return scores by task and by group of tasks."""
        official, reasons = _official_results(rows, task)
        right_by_image: dict[str, dict[str, list[bool]]] = {name: {} for name in _task_names(task)}
        for row in first_valid(rows):
            meta = task.examples[row["id"]].meta
            right_by_image[meta["part"]].setdefault(meta["image"], []).append(row["said"] == row["label"])
        robust = {name: list(images.items()) for name, images in right_by_image.items()}
        return {"official": _sufficient_stats(official, reasons), "robust": _sufficient_stats(robust, {})}


# ---- files ---------------------------------------------------------------------------------------


def _task_names(task: Task) -> tuple[str, ...]:
    return HALLUCINATION if task.options.subset == "hallucination" else PERCEPTION + COGNITION


def _question_files(root: Path, name: str) -> list[Path]:
    """Return the file of a task, or its files for each image."""
    if (root / f"{name}.txt").is_file():
        return [root / f"{name}.txt"]
    return sorted({*(root / name).glob("*.txt"), *(root / name / "questions_answers_YN").glob("*.txt")})


def _questions(root: Path, name: str) -> list[Question]:
    rows: list[Question] = []
    for path in _question_files(root, name):
        is_task_file = path.parent == root
        for number, line in enumerate(_read_lines(path), 1):
            cells = line.rstrip("\r\n").split("\t")
            if not is_task_file:  # a text file per image, which does not name the image
                cells = [_image_of_text(path), *cells]
            if len(cells) >= 3:
                rows.append((f"{path} line {number}", cells[0], cells[1], cells[2]))
            elif any(cells) and not rows:
                raise InputError(f"{path} line {number}: it must hold image, question and answer with tabs between")
    return rows


def _image_of_text(path: Path) -> str:
    """Return the name of the image that a file of questions is about."""
    folder = path.parent.parent / "images" if path.parent.name == "questions_answers_YN" else path.parent
    for suffix in IMAGE_SUFFIXES:
        if (folder / (path.stem + suffix)).is_file():
            return path.stem + suffix
    return path.stem + IMAGE_SUFFIXES[0]


def _image_source(task: Task, name: str, image: str, location: str) -> ImageSource:
    folders = [(name,), (name, "images")]
    sources = [task.image_source(*folder, image, location=location, name="image") for folder in folders]
    return next((source for source in sources if os.path.isfile(str(source.path))), sources[0])


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a file, with every kind of line break as `\\n`."""
    return list(io.StringIO(read_text(path), newline=None))


# ---- official ------------------------------------------------------------------------------------


def parse_official(answer: str) -> Literal["yes", "no", "other"]:
    """Read an answer as the official script does: yes, then no, in its first four characters.

    Leading blanks count as characters.
    """
    answer = answer.lower()
    prefix = answer if answer in ("yes", "no") else answer[:4]
    if "yes" in prefix:
        return "yes"
    return "no" if "no" in prefix else "other"


def _official_results(rows: list[ScoreRow], task: Task) -> tuple[dict[str, list[ImageResult]], dict[str, str]]:
    """Return the script's results for each task's file of answers, and the reasons why it stops.

    The files are the user's own. Without them, the answers are put on lines of four columns in the
    order of the data; tabs and line breaks within an answer become blanks.
    """
    names = _task_names(task)
    if task.answers and any((Path(task.answers) / f"{name}.txt").is_file() for name in names):
        paths = {name: Path(task.answers) / f"{name}.txt" for name in names}
        lines_by_task = {name: _read_lines(path) if path.is_file() else [] for name, path in paths.items()}
    else:
        lines_by_task = {name: [] for name in names}
        order = {id_: number for number, id_ in enumerate(task.examples)}
        for row in sorted(answered(rows), key=lambda row: order[row["id"]]):
            meta = task.examples[row["id"]].meta
            answer = _LINE_BREAKS.sub(" ", row["answers"][0])
            lines_by_task[meta["part"]].append(f"{meta['image']}\t{meta['question']}\t{meta['label']}\t{answer}\n")
    results: dict[str, list[ImageResult]] = {}
    reasons: dict[str, str] = {}
    for name, lines in lines_by_task.items():
        results[name], reason = _run_official_script(lines)
        if reason:
            reasons[name] = reason
    return results, reasons


def _run_official_script(lines: Sequence[str]) -> tuple[list[ImageResult], str]:
    """Return the result of each image, which is two consecutive lines, as the script does.

    If the script would stop, returns no results and the reason.
    """
    if not lines:
        return [], "there are no answers to this task: the official script raises FileNotFoundError"
    results = []
    for start in range(0, len(lines), 2):
        pair = [line.split("\t") for line in lines[start : start + 2]]
        location = f"lines {start + 1} and {start + 2}"
        if len(pair) != 2:
            return [], "the official script raises AssertionError on an odd number of lines"
        if any(len(cells) != 4 for cells in pair):
            return [], f"the official script raises ValueError at {location}: one does not have four columns"
        if any(cells[2].lower() not in ("yes", "no") for cells in pair):
            return [], f"the official script raises AssertionError at {location}: a label is neither yes nor no"
        results.append((pair[0][0], [parse_official(cells[3]) == cells[2].lower() for cells in pair]))
    return results, ""


# ---- metrics -------------------------------------------------------------------------------------


def _sufficient_stats(results: Mapping[str, list[ImageResult]], reasons: Mapping[str, str]) -> SufficientStats:
    """Return statistics of four columns per task: right answers, questions, images with both right,
    images. An image with one question answered has not both right.
    """
    names = list(results)
    clusters, columns = [], []
    for number, name in enumerate(names):
        for image, right in results[name]:
            row = np.zeros((len(names), 4))
            row[number] = sum(right), len(right), len(right) > 1 and all(right), 1
            clusters.append(f"{name}/{image}")
            columns.append(row.reshape(-1))

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        by_task = sums.reshape(*sums.shape[:-1], len(names), 4)
        right, num_questions, both_right, num_images = np.moveaxis(by_task, -1, 0)
        accuracy, accuracy_plus = right / num_questions * 100, both_right / num_images * 100
        scores = dict(zip(names, np.moveaxis(accuracy + accuracy_plus, -1, 0), strict=True))
        values: dict[str, Any] = {"score": sum(scores.values())}
        for group, members in _groups_of(names):
            values[f"{group}/score"] = sum(scores[name] for name in members)
        for i, name in enumerate(names):
            values[f"{name}/score"] = scores[name]
            values[f"{name}/accuracy"] = accuracy[..., i]
            values[f"{name}/accuracy_plus"] = accuracy_plus[..., i]
        return values

    table = np.array(columns).reshape(len(columns), 4 * len(names))
    return SufficientStats(clusters, table, metrics, _undefined_reasons(results, reasons))


def _groups_of(names: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the groups with all their tasks among `names`."""
    return ((group, members) for group, members in GROUPS.items() if set(members) <= set(names))


def _undefined_reasons(results: Mapping[str, list[ImageResult]], reasons: Mapping[str, str]) -> dict[str, str]:
    missing = [name for name in results if not results[name]]
    undefined = {name: reasons.get(name, "there are no answers to this task") for name in missing}
    for group, members in GROUPS.items():
        missing_members = [name for name in members if name in missing]
        if missing_members:
            undefined[group] = f"{', '.join(missing_members)} has no score"
    undefined[""] = f"{', '.join(missing)} has no score"
    return undefined
