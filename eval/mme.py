"""MME: two questions a picture, one whose answer is yes and one whose answer is no, in fourteen tasks (Fu et al. 2023).

    mmrlhf eval mme --model runs/sft/model --data MME --subset hallucination --out runs/mme
    mmrlhf eval mme --answers my_final_results --out runs/mme

--data is a folder with TASK.txt (`picture TAB question TAB answer`), or with the release's TASK folders of pictures and texts. Answers in the
official layout, TASK.txt with the response in a fourth column, say themselves what was asked, and need no --data. A task's `score` is its accuracy
plus the share of pictures with both questions right, in percent (200 at most); `perception`, `cognition` and `hallucination` (existence, count,
position, color) are sums, and `score` of everything that was asked. `official` looks for yes, then no, in an answer's first four characters.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from mmrlhf.config import STRICT
from mmrlhf.evaluation.benchmark import Benchmark, Prediction, Task, first_valid
from mmrlhf.files.rows import open_binary
from mmrlhf.metrics.intervals import SufficientStats
from mmrlhf.records import Example, ImageSource, InputError, Message
from mmrlhf.text.answer_parsing import parse_yes_no

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")

COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

HALLUCINATION = PERCEPTION[:4]

GROUPS = {"perception": PERCEPTION, "cognition": COGNITION, "hallucination": HALLUCINATION}

ENDINGS = (".jpg", ".png", ".jpeg")

_LINE_BREAKS = re.compile(r"\r\n|[\t\r\n]")

ImageResult = tuple[str, list[bool]]

"""A picture, and which of its questions were answered right."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """Which part of MME."""

    subset: Literal["all", "hallucination"] = "all"
    """All fourteen tasks, or the four on hallucination."""


class MME(Benchmark):
    """TODO."""

    version = "1"
    license = "research only"
    headline = "score"
    direction = "higher"
    cluster = "image"
    options_type = Options

    def load(self, task: Task) -> list[Example]:
        """Questions with ids TASK/PICTURE/NUMBER, of each task that the folder has."""
        root = task.path if task.data is not None or task.answers is None else Path(task.answers)
        if not root.is_dir():
            raise InputError(f"{root} is no folder: MME's questions are files TASK.txt, or folders TASK, in one")
        examples = []
        for name in _task_names(task):
            rows, num_questions = _questions(root, name), Counter[str]()
            for location, image, question, label in rows[: task.limit]:
                if label.strip().lower() not in ("yes", "no"):
                    raise InputError(f"{location}: the answer must be Yes or No, not {label[:40]!r}")
                meta = {"part": name, "image": image, "label": label.strip().lower(), "question": question}
                id_ = f"{name}/{image}/{num_questions[image]}"
                num_questions[image] += 1
                image_root = Path(task.image_folder) if task.image_folder else root
                candidates = [image_root / name / image, image_root / name / "images" / image]
                image_path = next((p for p in candidates if p.is_file()), candidates[0])
                examples.append(Example(id_, (ImageSource(path=str(image_path)),), (Message("user", question),), meta=meta))
        if not examples:
            raise InputError(f"{root} holds none of MME's tasks: it should hold existence.txt, or a folder existence, and so on")
        return examples

    def files(self, task: Task) -> list[Path]:
        """The texts that questions are read from."""
        return [p for name in _task_names(task) for p in _question_files(task.path, name)]

    def read(self, path: Path, task: Task) -> list[Prediction] | None:
        """The official layout: TASK.txt with the response in a fourth column, which may run over several lines."""
        if not path.is_dir() or not any((path / f"{name}.txt").is_file() for name in _task_names(task)):
            return None
        responses: list[tuple[str, str]] = []
        for name in _task_names(task):
            num_questions = Counter[str]()
            for line in _read_lines(path / f"{name}.txt") if (path / f"{name}.txt").is_file() else ():
                cells = line.split("\t", 3)
                if len(cells) == 4 and cells[2].strip().lower() in ("yes", "no"):
                    responses.append((f"{name}/{cells[0]}/{num_questions[cells[0]]}", cells[3]))
                    num_questions[cells[0]] += 1
                elif num_questions:
                    responses[-1] = (responses[-1][0], responses[-1][1] + line)
        return [Prediction(id_, [response.removesuffix("\n")]) for id_, response in responses]

    def match_id(self, fields: Mapping[str, Any], task: Task) -> str | None:
        """The example with this picture and question, of the task that the row names, if it names one."""
        image = str(fields.get("question_id") or fields.get("image_path") or fields.get("image") or fields.get("id") or "")
        if image in task.examples:
            return image
        question = str(fields.get("question") or fields.get("prompt") or "").strip()
        kind = str(fields.get("category") or fields.get("file") or image.partition("/")[0])
        for example in task.examples.values():
            kinds = {example.meta["part"]} if kind in PERCEPTION + COGNITION else {kind}
            is_same_question = question == example.meta["question"] or question.startswith(
                example.meta["question"].partition(" Please answer")[0]
            )
            if is_same_question and Path(image).stem == Path(example.meta["image"]).stem and kind in kinds:
                return example.id
        return image or None

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """What the first answer says, by the script's rule and by ours."""
        parsed = parse_yes_no(answers[0], example.meta["question"])
        return {
            "label": example.meta["label"],
            "official": parse_official(answers[0]),
            "said": parsed,
            "unparsed": parsed is None,
        }

    def aggregate(self, rows: list[dict[str, Any]], task: Task) -> dict[str, SufficientStats]:
        """Scores by task and by group of tasks."""
        official, reasons = _official_results(rows, task)
        robust: dict[str, list[ImageResult]] = {}
        for name in _task_names(task):
            right_by_image: dict[str, list[bool]] = {}
            for row in first_valid(rows):
                if (example := task.examples[row["id"]]).meta["part"] == name:
                    right_by_image.setdefault(example.meta["image"], []).append(row["said"] == row["label"])
            robust[name] = list(right_by_image.items())
        return {"official": _sufficient_stats(official, reasons), "robust": _sufficient_stats(robust, {})}


def _task_names(task: Task) -> tuple[str, ...]:
    return HALLUCINATION if task.options.subset == "hallucination" else PERCEPTION + COGNITION


def _question_files(root: Path, name: str) -> list[Path]:
    if (root / f"{name}.txt").is_file():
        return [root / f"{name}.txt"]
    return sorted({*(root / name).glob("*.txt"), *(root / name / "questions_answers_YN").glob("*.txt")})


def _questions(root: Path, name: str) -> list[tuple[str, str, str, str]]:
    """Place, picture, question and answer of each row of a task."""
    rows = []
    for path in _question_files(root, name):
        is_task_file = path.parent == root  # else a text for each picture, without its name
        for number, line in enumerate(_read_lines(path), 1):
            cells = line.rstrip("\r\n").split("\t")
            if not is_task_file:
                folder = path.parent.parent / "images" if path.parent.name == "questions_answers_YN" else path.parent
                image = next((path.stem + e for e in ENDINGS if (folder / (path.stem + e)).is_file()), path.stem + ENDINGS[0])
                cells = [image, *cells]
            if len(cells) >= 3:
                rows.append((f"{path} line {number}", *cells[:3]))
            elif any(cells) and not rows:
                raise InputError(f"{path} line {number}: it must hold picture, question and answer with tabs between")
    return rows


def _read_lines(path: Path) -> list[str]:
    """Lines as Python's text files have them."""
    with open_binary(path) as file:
        content = file.read()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): write it as UTF-8") from None
    return list(io.StringIO(text, newline=None))


# ---- scores ----------------------------------------------------------------------------------------------------------


def parse_official(answer: str) -> Literal["yes", "no", "other"]:
    """What the official script reads: yes, then no, within the first four characters, blanks included."""
    prefix = answer.lower() if answer.lower() in ("yes", "no") else answer.lower()[:4]
    return "yes" if "yes" in prefix else "no" if "no" in prefix else "other"


def _official_results(rows: list[dict[str, Any]], task: Task) -> tuple[dict[str, list[ImageResult]], dict[str, str]]:
    """What the script makes of each task's file of answers: the user's own, or the one that these answers would make in the data's order, each on
    a line of four columns: tabs and ends of lines within an answer become blanks."""
    results: dict[str, list[ImageResult]] = {}
    reasons: dict[str, str] = {}
    own_folder = (
        Path(task.answers)
        if task.answers and any((Path(task.answers) / f"{n}.txt").is_file() for n in _task_names(task))
        else None
    )
    order = {id_: number for number, id_ in enumerate(task.examples)}
    ordered_rows = sorted((r for r in rows if r["status"] in ("ok", "duplicate")), key=lambda r: order[r["id"]])
    for name in _task_names(task):
        if own_folder is not None:
            path = own_folder / f"{name}.txt"
            lines = _read_lines(path) if path.is_file() else []
        else:
            lines = [
                f"{e.meta['image']}\t{e.meta['question']}\t{e.meta['label']}\t{_LINE_BREAKS.sub(' ', r['answers'][0])}\n"
                for r in ordered_rows for e in [task.examples[r["id"]]] if e.meta["part"] == name
            ]  # fmt: skip
        results[name], reason = _run_official_script(lines)
        if reason:
            results[name], reasons[name] = [], reason
    return results, reasons


def _run_official_script(lines: Sequence[str]) -> tuple[list[ImageResult], str]:
    """Pictures as the script sees them: two consecutive lines each, whatever their names. With the reason why it stops, if it does."""
    results = []
    if not lines:
        return [], "there are no answers to this task: the official script raises FileNotFoundError"
    for start in range(0, len(lines), 2):
        pair = [line.split("\t") for line in lines[start : start + 2]]
        if len(pair) != 2:
            return [], "the official script raises AssertionError on an odd number of lines"
        if any(len(cells) != 4 for cells in pair):
            return [], f"the official script raises ValueError at lines {start + 1} and {start + 2}: one has no four columns"
        if any(cells[2].lower() not in ("yes", "no") for cells in pair):
            return (
                [],
                f"the official script raises AssertionError at lines {start + 1} and {start + 2}: a label is neither yes nor no",
            )
        results.append((pair[0][0], [parse_official(cells[3]) == cells[2].lower() for cells in pair]))
    return results, ""


def _sufficient_stats(results: Mapping[str, list[ImageResult]], reasons: Mapping[str, str]) -> SufficientStats:
    """Columns for each task: right, asked, pictures all right, pictures."""
    names = list(results)
    clusters, columns = [], []
    for number, name in enumerate(names):
        for image, right in results[name]:
            row = np.zeros((len(names), 4))
            row[number] = sum(right), len(right), all(right), 1
            clusters.append(f"{name}/{image}")
            columns.append(row.reshape(-1))

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        by_task = sums.reshape(*sums.shape[:-1], len(names), 4)
        right, num_questions, both_right, num_images = np.moveaxis(by_task, -1, 0)
        accuracy, accuracy_plus = right / num_questions * 100, both_right / num_images * 100
        score = accuracy + accuracy_plus
        by_name = {
            n: {"score": score[..., i], "accuracy": accuracy[..., i], "accuracy_plus": accuracy_plus[..., i]}
            for i, n in enumerate(names)
        }
        flat_metrics = {"score": sum(values["score"] for values in by_name.values())}
        groups = {
            g: [by_name[n]["score"] for n in group_tasks]
            for g, group_tasks in GROUPS.items()
            if all(n in by_name for n in group_tasks)
        }
        flat_metrics |= {f"{group}/score": sum(scores) for group, scores in groups.items()}
        return flat_metrics | {f"{name}/{metric}": v for name, values in by_name.items() for metric, v in values.items()}

    missing = [n for n in names if not results[n]]
    undefined = {n: reasons.get(n, "there are no answers to this task") for n in missing}
    undefined |= {
        g: f"{', '.join(n for n in group_tasks if n in missing)} has no score"
        for g, group_tasks in GROUPS.items()
        if {*group_tasks} & {*missing}
    }
    undefined[""] = f"{', '.join(missing)} has no score"
    return SufficientStats(clusters, np.array(columns).reshape(len(columns), 4 * len(names)), metrics, undefined)
