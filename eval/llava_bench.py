"""LLaVA-Bench: answers rated beside those of GPT-4, by a judge that reads captions and boxes (Liu et al. 2023).

    mmrlhf eval llava_bench --model runs/sft/model --data LLaVA-Bench-COCO --image_folder val2014 --judge http://127.0.0.1:8000/v1 --out runs/llava_bench
    mmrlhf eval llava_bench --answers reviews.jsonl --out runs/llava_bench

--data is a folder with questions, context, reference answers and rules: qa90_* of COCO, or questions.jsonl, context.jsonl, answers_gpt4.jsonl and
rule.json in the wild. The judge is asked as there, `rule.json` being its instructions. Reviews as the authors' script saves them (`tuple` of two
ratings, `category`) say all there is to say, and need no --data. `score` is the mean rating over the reference's, in percent, as the authors' table
has it: means rounded to three decimals first. `official` takes two numbers with one blank or comma between for the first line of a review, and -1 and -1
for all else, which go into the means; `robust` takes any two numbers of that line, and leaves out what has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.benchmark import TWICE, Ask, Counted, Given, Task, first, says_it_all, twice
from mmrlhf.records import Example, ImageSource, InputError, Message
from mmrlhf.rows import Row, contents, objects

VERSION, LICENSE = "1", "Apache-2.0"
HEADLINE, DIRECTION, CLUSTER = "score", "higher", "image"
ANSWER = ("question_id", "text")
FILES = {
    "questions": ("qa90_questions.jsonl", "questions.jsonl"),
    "context": ("caps_boxes_coco2014_val_80.jsonl", "context.jsonl"),
    "reference": ("qa90_gpt4_answer.jsonl", "answers_gpt4.jsonl"),
    "rules": ("rule.json",),
}


# ---- questions -------------------------------------------------------------------------------------------------------


def load(task: Task) -> list[Example]:
    """Questions by number. Without --data, those that reviews are of."""
    if _reviews(task):
        rows = objects(Path(str(task.answers)))
        kinds = {str(row.need("question_id")): str(row.fields.get("category", "")) for row in rows}
        return [Example(id_, (), (), meta={"part": kind, "image": id_, "review": True}) for id_, kind in kinds.items()]
    texts = {str(row.need("question_id")): row.need("text") for row in objects(_file(task, "reference"))}
    seen = {str(row.need("image")): row.fields for row in objects(_file(task, "context"))}
    found = []
    for row in objects(_file(task, "questions"))[: task.limit]:
        id_, image, asked, kind = (str(row.need(name)) for name in ("question_id", "image", "text", "category"))
        if image not in seen or id_ not in texts:
            row.fail(f"question {id_} has no context or no reference answer: give the files of one set")
        meta = {"part": kind, "image": image, "question": asked, "reference": texts[id_], "context": _context(seen[image])}
        found.append(Example(id_, (ImageSource(path=str(task.pictures / image)),), (Message("user", asked),), meta=meta))
    return found


def files(task: Task) -> list[Path]:
    """Questions, context, reference answers and rules."""
    return [_file(task, kind) for kind in FILES]


def _file(task: Task, kind: str) -> Path:
    there = [task.path / name for name in FILES[kind] if (task.path / name).is_file()]
    if not there:
        raise InputError(f"--data {task.path} has no {' or '.join(FILES[kind])}: give the folder of LLaVA-Bench")
    return there[0]


def _context(fields: Mapping[str, Any]) -> str:
    """Captions, and boxes with their names, as the judge is shown them."""
    said = fields.get("captions") or ([fields["caption"]] if "caption" in fields else [])
    boxes = [f"{thing['category']}: {thing['bbox']}" for thing in fields.get("instances", ())]
    return "\n\n".join("\n".join(map(str, lines)) for lines in (said, boxes) if lines)


def _pair(row: Row) -> list[float]:
    pair = row.need("tuple")
    if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(v, int | float) for v in pair)):
        row.fail("`tuple` must be two numbers")
    return [float(v) for v in pair]


def read(place: Path, task: Task) -> list[Given] | None:
    """Reviews take the place of answers."""
    if not _reviews(task):
        return None
    return [Given(str(row.need("question_id")), ["{} {}".format(*_pair(row))]) for row in objects(place)]


def _reviews(task: Task) -> bool:
    return says_it_all(task, "question_id", "tuple")


# ---- the judge -------------------------------------------------------------------------------------------------------


def ask(said: Mapping[str, list[str]], task: Task) -> Iterable[Ask]:
    """Of each answer how it compares with the reference, by the rule of its category."""
    if _reviews(task):
        return
    rules = contents(_file(task, "rules"))
    for id_, answers in said.items():
        meta = task.examples[id_].meta
        rule = rules.get(meta["part"]) or rules.get("default")
        if not isinstance(rule, dict):
            raise InputError(f"{_file(task, 'rules')} has no rule for {meta['part']}")
        role = rule["role"]
        sides = "".join(
            f"[{role} {n}]\n{text}\n\n[End of {role} {n}]\n\n" for n, text in ((1, meta["reference"]), (2, answers[0]))
        )
        prompt = f"[Context]\n{meta['context']}\n\n[Question]\n{meta['question']}\n\n{sides}[System]\n{rule['prompt']}\n\n"
        yield Ask(id_, prompt, rule["prompt"])


def recorded(rows: Iterable[Row], said: Mapping[str, list[str]], task: Task) -> dict[str, str]:
    """Reviews as the authors' script saves them."""
    found = {}
    for row in rows:
        text = row.fields.get("content")
        found[str(row.need("question_id"))] = str(text) if text is not None else " ".join(f"{v:g}" for v in _pair(row))
    return found


# ---- scores ----------------------------------------------------------------------------------------------------------


def pair_of(review: str) -> list[float]:
    """What the authors' script reads: two numbers that one blank, or one comma, divides, and nothing else on the first line; else -1, -1."""
    cells = review.split("\n")[0].replace(",", " ").split(" ")
    try:
        return [float(cells[0]), float(cells[1])] if len(cells) == 2 else [-1.0, -1.0]
    except ValueError:
        return [-1.0, -1.0]


_NUMBER = re.compile(r"(?<![\w.])(?:10|\d)(?:\.\d+)?(?!\w)(?!\.\d)")


def numbers_of(review: str) -> list[float] | None:
    """Two ratings on the first line that holds any; "8/10 7/10" and "Assistant 1: 8, Assistant 2: 7" are 8 and 7."""
    line = next((line for line in review.split("\n") if re.search(r"\d", line)), "")
    line = re.sub(r"(?i)\b(?:assistant|answer|response)\s*\d\b", " ", re.sub(r"/\s*10\b", " ", line))
    found = [float(n) for n in _NUMBER.findall(line)]
    return found if len(found) == 2 else None


def score(example: Example, answers: list[str], task: Task) -> dict[str, Any]:
    """The pair of ratings, the reference's first; None where there is no review."""
    if "review" in example.meta:
        pair = pair_of(answers[0])
        return {"official": pair, "pair": None if pair == [-1, -1] else pair, "unparsed": pair == [-1, -1]}
    reply = task.replies.get(example.id, {}).get("text")
    pair = None if reply is None else numbers_of(reply)
    return {"official": None if reply is None else pair_of(reply), "pair": pair, "unparsed": reply is not None and pair is None}


def aggregate(rows: list[dict[str, Any]], task: Task) -> dict[str, Counted]:
    """Scores in all and by category."""
    mine = [r for r in rows if r["status"] in ("ok", "duplicate")]
    lost = sum(r["official"] is None for r in mine)
    if not _reviews(task) and twice(rows):
        mine, lost = [], 0
    reason = (
        f"{lost} answers have no judgment"
        if lost
        else TWICE
        if not mine and rows
        else "the reference's mean is 0, or there are no answers"
    )
    official = [] if lost else [(r["id"], r["official"]) for r in mine]
    robust = [(r["id"], r["pair"]) for r in first(rows) if r["pair"] is not None]
    return {"official": _counted(official, task, reason), "robust": _counted(robust, task, "no answer has a rating")}


def _counted(rated: list[tuple[str, list[float]]], task: Task, reason: str) -> Counted:
    """Columns: both ratings and the count, in all and of each category."""
    kinds = ["", *sorted({e.meta["part"] for e in task.examples.values()} - {""})]
    columns = np.zeros((len(rated), len(kinds), 3))
    for i, (id_, pair) in enumerate(rated):
        for kind in {"", task.examples[id_].meta["part"]}:
            columns[i, kinds.index(kind)] = *pair, 1

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        found = {}
        for i, kind in enumerate(kinds):
            reference, candidate, n = np.moveaxis(sums.reshape(*sums.shape[:-1], len(kinds), 3)[..., i, :], -1, 0)
            means = [_rounded(reference / n), _rounded(candidate / n)]
            values = {
                "score": np.where(means[0] == 0, np.nan, means[1] / means[0] * 100),
                "reference": means[0],
                "candidate": means[1],
            }
            found |= {f"{kind}/{name}" if kind else name: v for name, v in values.items()}
        return found

    pictures = [task.examples[id_].meta["image"] for id_, _ in rated]
    return Counted(pictures, columns.reshape(len(rated), 3 * len(kinds)), metrics, {"": reason})


_rounded = np.vectorize(lambda value: round(float(value), 3), otypes=[float])
"""To three decimals as Python does; NumPy multiplies first."""
