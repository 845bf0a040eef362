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

from mmrlhf.answers import yes_no
from mmrlhf.benchmark import Counted, Given, Task, first
from mmrlhf.config import STRICT
from mmrlhf.records import Example, ImageSource, InputError, Message
from mmrlhf.rows import opened

VERSION, LICENSE = "1", "research only"
HEADLINE, DIRECTION, CLUSTER = "score", "higher", "image"
PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
HALLUCINATION = PERCEPTION[:4]
GROUPS = {"perception": PERCEPTION, "cognition": COGNITION, "hallucination": HALLUCINATION}
ENDINGS = (".jpg", ".png", ".jpeg")
_BREAKS = re.compile(r"\r\n|[\t\r\n]")
Chunk = tuple[str, list[bool]]
"""A picture, and which of its questions were answered right."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """Which part of MME."""

    subset: Literal["all", "hallucination"] = "all"
    """All fourteen tasks, or the four on hallucination."""


def _tasks(task: Task) -> tuple[str, ...]:
    return HALLUCINATION if task.options.subset == "hallucination" else PERCEPTION + COGNITION


# ---- questions -------------------------------------------------------------------------------------------------------


def load(task: Task) -> list[Example]:
    """Questions with ids TASK/PICTURE/NUMBER, of each task that the folder has."""
    root = task.path if task.data is not None or task.answers is None else Path(task.answers)
    if not root.is_dir():
        raise InputError(f"{root} is no folder: MME's questions are files TASK.txt, or folders TASK, in one")
    found = []
    for name in _tasks(task):
        rows, numbers = _questions(root, name), Counter[str]()
        for where, picture, question, label in rows[: task.limit]:
            if label.strip().lower() not in ("yes", "no"):
                raise InputError(f"{where}: the answer must be Yes or No, not {label[:40]!r}")
            meta = {"part": name, "image": picture, "label": label.strip().lower(), "question": question}
            id_ = f"{name}/{picture}/{numbers[picture]}"
            numbers[picture] += 1
            place = Path(task.image_folder) if task.image_folder else root
            inside = [place / name / picture, place / name / "images" / picture]
            source = next((p for p in inside if p.is_file()), inside[0])
            found.append(Example(id_, (ImageSource(path=str(source)),), (Message("user", question),), meta=meta))
    if not found:
        raise InputError(f"{root} holds none of MME's tasks: it should hold existence.txt, or a folder existence, and so on")
    return found


def files(task: Task) -> list[Path]:
    """The texts that questions are read from."""
    return [p for name in _tasks(task) for p in _texts(task.path, name)]


def _texts(root: Path, name: str) -> list[Path]:
    if (root / f"{name}.txt").is_file():
        return [root / f"{name}.txt"]
    return sorted({*(root / name).glob("*.txt"), *(root / name / "questions_answers_YN").glob("*.txt")})


def _questions(root: Path, name: str) -> list[tuple[str, str, str, str]]:
    """Place, picture, question and answer of each row of a task."""
    found = []
    for path in _texts(root, name):
        whole = path.parent == root  # else a text for each picture, without its name
        for number, line in enumerate(_lines(path), 1):
            cells = line.rstrip("\r\n").split("\t")
            if not whole:
                folder = path.parent.parent / "images" if path.parent.name == "questions_answers_YN" else path.parent
                picture = next((path.stem + e for e in ENDINGS if (folder / (path.stem + e)).is_file()), path.stem + ENDINGS[0])
                cells = [picture, *cells]
            if len(cells) >= 3:
                found.append((f"{path} line {number}", *cells[:3]))
            elif any(cells) and not found:
                raise InputError(f"{path} line {number}: it must hold picture, question and answer with tabs between")
    return found


def _lines(path: Path) -> list[str]:
    """Lines as Python's text files have them."""
    with opened(path) as file:
        content = file.read()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): write it as UTF-8") from None
    return list(io.StringIO(text, newline=None))


# ---- answers ---------------------------------------------------------------------------------------------------------


def read(place: Path, task: Task) -> list[Given] | None:
    """The official layout: TASK.txt with the response in a fourth column, which may run over several lines."""
    if not place.is_dir() or not any((place / f"{name}.txt").is_file() for name in _tasks(task)):
        return None
    found: list[tuple[str, str]] = []
    for name in _tasks(task):
        numbers = Counter[str]()
        for line in _lines(place / f"{name}.txt") if (place / f"{name}.txt").is_file() else ():
            cells = line.split("\t", 3)
            if len(cells) == 4 and cells[2].strip().lower() in ("yes", "no"):
                found.append((f"{name}/{cells[0]}/{numbers[cells[0]]}", cells[3]))
                numbers[cells[0]] += 1
            elif numbers:
                found[-1] = (found[-1][0], found[-1][1] + line)
    return [Given(id_, [said.removesuffix("\n")]) for id_, said in found]


def identify(fields: Mapping[str, Any], task: Task) -> str | None:
    """The example with this picture and question, of the task that the row names, if it names one."""
    said = str(fields.get("question_id") or fields.get("image_path") or fields.get("image") or fields.get("id") or "")
    if said in task.examples:
        return said
    asked = str(fields.get("question") or fields.get("prompt") or "").strip()
    kind = str(fields.get("category") or fields.get("file") or said.partition("/")[0])
    for e in task.examples.values():
        kinds = {e.meta["part"]} if kind in PERCEPTION + COGNITION else {kind}
        same = asked == e.meta["question"] or asked.startswith(e.meta["question"].partition(" Please answer")[0])
        if same and Path(said).stem == Path(e.meta["image"]).stem and kind in kinds:
            return e.id
    return said or None


# ---- scores ----------------------------------------------------------------------------------------------------------


def says(answer: str) -> Literal["yes", "no", "other"]:
    """What the official script reads: yes, then no, within the first four characters, blanks included."""
    start = answer.lower() if answer.lower() in ("yes", "no") else answer.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def score(example: Example, answers: list[str], task: Task) -> dict[str, Any]:
    """What the first answer says, by the script's rule and by ours."""
    said = yes_no(answers[0], example.meta["question"])
    return {"label": example.meta["label"], "official": says(answers[0]), "said": said, "unparsed": said is None}


def aggregate(rows: list[dict[str, Any]], task: Task) -> dict[str, Counted]:
    """Scores by task and by group of tasks."""
    official, reasons = _official(rows, task)
    robust: dict[str, list[Chunk]] = {}
    for name in _tasks(task):
        pictures: dict[str, list[bool]] = {}
        for row in first(rows):
            if (e := task.examples[row["id"]]).meta["part"] == name:
                pictures.setdefault(e.meta["image"], []).append(row["said"] == row["label"])
        robust[name] = list(pictures.items())
    return {"official": _counted(official, reasons), "robust": _counted(robust, {})}


def _official(rows: list[dict[str, Any]], task: Task) -> tuple[dict[str, list[Chunk]], dict[str, str]]:
    """What the script makes of each task's file of answers: the user's own, or the one that these answers would make in the data's order, each on
    a line of four columns: tabs and ends of lines within an answer become blanks."""
    chunks: dict[str, list[Chunk]] = {}
    reasons: dict[str, str] = {}
    own = Path(task.answers) if task.answers and any((Path(task.answers) / f"{n}.txt").is_file() for n in _tasks(task)) else None
    place = {id_: number for number, id_ in enumerate(task.examples)}
    in_order = sorted((r for r in rows if r["status"] in ("ok", "duplicate")), key=lambda r: place[r["id"]])
    for name in _tasks(task):
        if own is not None:
            path = own / f"{name}.txt"
            lines = _lines(path) if path.is_file() else []
        else:
            lines = [
                f"{e.meta['image']}\t{e.meta['question']}\t{e.meta['label']}\t{_BREAKS.sub(' ', r['answers'][0])}\n"
                for r in in_order for e in [task.examples[r["id"]]] if e.meta["part"] == name
            ]  # fmt: skip
        chunks[name], why = _script(lines)
        if why:
            chunks[name], reasons[name] = [], why
    return chunks, reasons


def _script(lines: Sequence[str]) -> tuple[list[Chunk], str]:
    """Pictures as the script sees them: two consecutive lines each, whatever their names. With the reason why it stops, if it does."""
    found = []
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
        found.append((pair[0][0], [says(cells[3]) == cells[2].lower() for cells in pair]))
    return found, ""


def _counted(chunks: Mapping[str, list[Chunk]], reasons: Mapping[str, str]) -> Counted:
    """Columns for each task: right, asked, pictures all right, pictures."""
    names = list(chunks)
    clusters, columns = [], []
    for number, name in enumerate(names):
        for picture, right in chunks[name]:
            row = np.zeros((len(names), 4))
            row[number] = sum(right), len(right), all(right), 1
            clusters.append(f"{name}/{picture}")
            columns.append(row.reshape(-1))

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        by_task = sums.reshape(*sums.shape[:-1], len(names), 4)
        right, asked, both, pictures = np.moveaxis(by_task, -1, 0)
        accuracy, plus = right / asked * 100, both / pictures * 100
        score = accuracy + plus
        each = {
            n: {"score": score[..., i], "accuracy": accuracy[..., i], "accuracy_plus": plus[..., i]} for i, n in enumerate(names)
        }
        found = {"score": sum(values["score"] for values in each.values())}
        groups = {g: [each[n]["score"] for n in of] for g, of in GROUPS.items() if all(n in each for n in of)}
        found |= {f"{group}/score": sum(scores) for group, scores in groups.items()}
        return found | {f"{name}/{metric}": v for name, values in each.items() for metric, v in values.items()}

    lacking = [n for n in names if not chunks[n]]
    whys = {n: reasons.get(n, "there are no answers to this task") for n in lacking}
    whys |= {g: f"{', '.join(n for n in of if n in lacking)} has no score" for g, of in GROUPS.items() if {*of} & {*lacking}}
    whys[""] = f"{', '.join(lacking)} has no score"
    return Counted(clusters, np.array(columns).reshape(len(columns), 4 * len(names)), metrics, whys)
