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

from mmrlhf.evaluation.benchmark import (
    DUPLICATES_REASON,
    Benchmark,
    JudgeRequest,
    Prediction,
    Task,
    first_valid,
    has_duplicates,
    is_self_describing,
)
from mmrlhf.files.rows import Row, read_json, read_json_objects
from mmrlhf.metrics.intervals import SufficientStats
from mmrlhf.records import Example, ImageSource, InputError, Message

FILES = {
    "questions": ("qa90_questions.jsonl", "questions.jsonl"),
    "context": ("caps_boxes_coco2014_val_80.jsonl", "context.jsonl"),
    "reference": ("qa90_gpt4_answer.jsonl", "answers_gpt4.jsonl"),
    "rules": ("rule.json",),
}


class LlavaBench(Benchmark):
    """TODO."""

    version = "1"
    license = "Apache-2.0"
    headline = "score"
    direction = "higher"
    cluster = "image"
    answer_fields = ("question_id", "text")

    def load(self, task: Task) -> list[Example]:
        """Questions by number. Without --data, those that reviews are of."""
        if _has_reviews(task):
            rows = read_json_objects(Path(str(task.answers)))
            kinds = {str(row.require("question_id")): str(row.fields.get("category", "")) for row in rows}
            return [Example(id_, (), (), meta={"part": kind, "image": id_, "review": True}) for id_, kind in kinds.items()]
        references = {
            str(row.require("question_id")): row.require("text") for row in read_json_objects(_find_file(task, "reference"))
        }
        contexts = {str(row.require("image")): row.fields for row in read_json_objects(_find_file(task, "context"))}
        examples = []
        for row in read_json_objects(_find_file(task, "questions"))[: task.limit]:
            id_, image, question, kind = (str(row.require(name)) for name in ("question_id", "image", "text", "category"))
            if image not in contexts or id_ not in references:
                row.fail(f"question {id_} has no context or no reference answer: give the files of one set")
            meta = {
                "part": kind,
                "image": image,
                "question": question,
                "reference": references[id_],
                "context": _context(contexts[image]),
            }
            examples.append(
                Example(id_, (ImageSource(path=str(task.image_root / image)),), (Message("user", question),), meta=meta)
            )
        return examples

    def files(self, task: Task) -> list[Path]:
        """Questions, context, reference answers and rules."""
        return [_find_file(task, kind) for kind in FILES]

    def read(self, path: Path, task: Task) -> list[Prediction] | None:
        """Reviews take the place of answers."""
        if not _has_reviews(task):
            return None
        return [
            Prediction(str(row.require("question_id")), ["{} {}".format(*_rating_pair(row))]) for row in read_json_objects(path)
        ]

    def judge_requests(self, answers_by_id: Mapping[str, list[str]], task: Task) -> Iterable[JudgeRequest]:
        """Of each answer how it compares with the reference, by the rule of its category."""
        if _has_reviews(task):
            return
        rules = read_json(_find_file(task, "rules"))
        for id_, answers in answers_by_id.items():
            meta = task.examples[id_].meta
            rule = rules.get(meta["part"]) or rules.get("default")
            if not isinstance(rule, dict):
                raise InputError(f"{_find_file(task, 'rules')} has no rule for {meta['part']}")
            role = rule["role"]
            sides = "".join(
                f"[{role} {n}]\n{text}\n\n[End of {role} {n}]\n\n" for n, text in ((1, meta["reference"]), (2, answers[0]))
            )
            prompt = f"[Context]\n{meta['context']}\n\n[Question]\n{meta['question']}\n\n{sides}[System]\n{rule['prompt']}\n\n"
            yield JudgeRequest(id_, prompt, rule["prompt"])

    def read_judgments(self, rows: Iterable[Row], said: Mapping[str, list[str]], task: Task) -> dict[str, str]:
        """Reviews as the authors' script saves them."""
        reviews = {}
        for row in rows:
            text = row.fields.get("content")
            reviews[str(row.require("question_id"))] = (
                str(text) if text is not None else " ".join(f"{v:g}" for v in _rating_pair(row))
            )
        return reviews

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """The pair of ratings, the reference's first; None where there is no review."""
        if "review" in example.meta:
            pair = official_ratings(answers[0])
            return {"official": pair, "pair": None if pair == [-1, -1] else pair, "unparsed": pair == [-1, -1]}
        reply = task.replies.get(example.id, {}).get("text")
        pair = None if reply is None else robust_ratings(reply)
        return {
            "official": None if reply is None else official_ratings(reply),
            "pair": pair,
            "unparsed": reply is not None and pair is None,
        }

    def aggregate(self, rows: list[dict[str, Any]], task: Task) -> dict[str, SufficientStats]:
        """Scores in all and by category."""
        answered_rows = [r for r in rows if r["status"] in ("ok", "duplicate")]
        num_unjudged = sum(r["official"] is None for r in answered_rows)
        if not _has_reviews(task) and has_duplicates(rows):
            answered_rows, num_unjudged = [], 0
        reason = (
            f"{num_unjudged} answers have no judgment"
            if num_unjudged
            else DUPLICATES_REASON
            if not answered_rows and rows
            else "the reference's mean is 0, or there are no answers"
        )
        official = [] if num_unjudged else [(r["id"], r["official"]) for r in answered_rows]
        robust = [(r["id"], r["pair"]) for r in first_valid(rows) if r["pair"] is not None]
        return {
            "official": _sufficient_stats(official, task, reason),
            "robust": _sufficient_stats(robust, task, "no answer has a rating"),
        }


def _find_file(task: Task, kind: str) -> Path:
    paths = [task.path / name for name in FILES[kind] if (task.path / name).is_file()]
    if not paths:
        raise InputError(f"--data {task.path} has no {' or '.join(FILES[kind])}: give the folder of LLaVA-Bench")
    return paths[0]


def _context(fields: Mapping[str, Any]) -> str:
    """Captions, and boxes with their names, as the judge is shown them."""
    captions = fields.get("captions") or ([fields["caption"]] if "caption" in fields else [])
    boxes = [f"{instance['category']}: {instance['bbox']}" for instance in fields.get("instances", ())]
    return "\n\n".join("\n".join(map(str, lines)) for lines in (captions, boxes) if lines)


def _rating_pair(row: Row) -> list[float]:
    pair = row.require("tuple")
    if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(v, int | float) for v in pair)):
        row.fail("`tuple` must be two numbers")
    return [float(v) for v in pair]


def _has_reviews(task: Task) -> bool:
    return is_self_describing(task, "question_id", "tuple")


# ---- scores ----------------------------------------------------------------------------------------------------------


def official_ratings(review: str) -> list[float]:
    """What the authors' script reads: two numbers that one blank, or one comma, divides, and nothing else on the first line; else -1, -1."""
    cells = review.split("\n")[0].replace(",", " ").split(" ")
    try:
        return [float(cells[0]), float(cells[1])] if len(cells) == 2 else [-1.0, -1.0]
    except ValueError:
        return [-1.0, -1.0]


_NUMBER = re.compile(r"(?<![\w.])(?:10|\d)(?:\.\d+)?(?!\w)(?!\.\d)")


def robust_ratings(review: str) -> list[float] | None:
    """Two ratings on the first line that holds any; "8/10 7/10" and "Assistant 1: 8, Assistant 2: 7" are 8 and 7."""
    line = next((line for line in review.split("\n") if re.search(r"\d", line)), "")
    line = re.sub(r"(?i)\b(?:assistant|answer|response)\s*\d\b", " ", re.sub(r"/\s*10\b", " ", line))
    numbers = [float(n) for n in _NUMBER.findall(line)]
    return numbers if len(numbers) == 2 else None


def _sufficient_stats(ratings: list[tuple[str, list[float]]], task: Task, reason: str) -> SufficientStats:
    """Columns: both ratings and the count, in all and of each category."""
    kinds = ["", *sorted({e.meta["part"] for e in task.examples.values()} - {""})]
    columns = np.zeros((len(ratings), len(kinds), 3))
    for i, (id_, pair) in enumerate(ratings):
        for kind in {"", task.examples[id_].meta["part"]}:
            columns[i, kinds.index(kind)] = *pair, 1

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        flat_metrics = {}
        for i, kind in enumerate(kinds):
            reference, candidate, n = np.moveaxis(sums.reshape(*sums.shape[:-1], len(kinds), 3)[..., i, :], -1, 0)
            means = [_round_to_thousandth(reference / n), _round_to_thousandth(candidate / n)]
            values = {
                "score": np.where(means[0] == 0, np.nan, means[1] / means[0] * 100),
                "reference": means[0],
                "candidate": means[1],
            }
            flat_metrics |= {f"{kind}/{name}" if kind else name: v for name, v in values.items()}
        return flat_metrics

    image_names = [task.examples[id_].meta["image"] for id_, _ in ratings]
    return SufficientStats(image_names, columns.reshape(len(ratings), 3 * len(kinds)), metrics, {"": reason})


_round_to_thousandth = np.vectorize(lambda value: round(float(value), 3), otypes=[float])

"""To three decimals as Python does; NumPy multiplies first."""
