"""LLaVA-Bench: answers rated against GPT-4's, by a judge that reads captions and boxes (Liu et al.
2023).

    mmrlhf eval llava_bench --model runs/sft/model --data LLaVA-Bench-COCO --image_folder val2014
        --judge http://127.0.0.1:8000/v1 --out runs/llava_bench
    mmrlhf eval llava_bench --answers reviews.jsonl --out runs/llava_bench

--data is a folder with questions, context, reference answers and rules: qa90_* of COCO, or
questions.jsonl, context.jsonl, answers_gpt4.jsonl and rule.json of LLaVA-Bench (In-the-Wild). The
judge gets the authors' prompt, with the instructions of `rule.json`. Reviews as the authors' script
saves them (`tuple` of two ratings, also named `score`; `category`) need no --data.

`score` is the mean rating in percent of the reference's mean rating, as in the authors' table: both
means are rounded to three decimals first. `official` reads a review that begins with a line of two
numbers with one blank or comma between them; for all other reviews it reads -1 and -1, which count
in the means (a note says how many). `robust` reads two numbers anywhere on the first line with
digits, and leaves out reviews without them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.evaluation.benchmark import (
    DUPLICATES_REASON,
    AnswersById,
    Benchmark,
    JudgeRequest,
    Prediction,
    ScoreRow,
    Task,
    answered,
    first_valid,
    has_duplicates,
    is_self_describing,
)
from mmrlhf.files.rows import Row, read_json, read_json_objects
from mmrlhf.metrics.intervals import SufficientStats
from mmrlhf.records import Example, InputError, Message

FILES = {
    "questions": ("qa90_questions.jsonl", "questions.jsonl"),
    "context": ("caps_boxes_coco2014_val_80.jsonl", "context.jsonl"),
    "reference": ("qa90_gpt4_answer.jsonl", "answers_gpt4.jsonl"),
    "rules": ("rule.json",),
}
"""Names of the data files for COCO, and for In-the-Wild."""
UNREAD_RATINGS = [-1.0, -1.0]
"""Ratings of an unreadable review in the authors' script."""


class LlavaBench(Benchmark):
    """LLaVA-Bench, on COCO's images or in the wild."""

    version = "3"
    license = "Apache-2.0"
    headline = "score"
    direction = "higher"
    cluster = "image"
    answer_fields = ("question_id", "text")

    def load(self, task: Task) -> list[Example]:
        """Return the questions by number; without --data, those of the reviews."""
        if _has_reviews(task):
            rows = read_json_objects(Path(str(task.answers)))
            categories = {str(row.require("question_id")): str(row.fields.get("category", "")) for row in rows}
            return [
                Example(id_, (), (), meta={"part": category, "image": id_, "review": True})
                for id_, category in categories.items()
            ]
        reference_rows = read_json_objects(_data_file(task, "reference"))
        references = {str(row.require("question_id")): row.require("text") for row in reference_rows}
        contexts = {str(row.require("image")): _format_context(row) for row in read_json_objects(_data_file(task, "context"))}
        examples = []
        for row in read_json_objects(_data_file(task, "questions"))[: task.limit]:
            id_, image, question, category = (str(row.require(name)) for name in ("question_id", "image", "text", "category"))
            if image not in contexts or id_ not in references:
                row.fail(f"question {id_} has no context or no reference answer: give the files of one set")
            meta = {
                "part": category,
                "image": image,
                "question": question,
                "reference": references[id_],
                "context": contexts[image],
            }
            source = task.image_source(image, location=row.location, name="image")
            examples.append(Example(id_, (source,), (Message("user", question),), meta=meta))
        return examples

    def files(self, task: Task) -> list[Path]:
        """Return the files of questions, context, reference answers and rules."""
        return [_data_file(task, kind) for kind in FILES]

    def read(self, path: Path, task: Task) -> list[Prediction] | None:
        """Read reviews in place of answers."""
        if not _has_reviews(task):
            return None
        predictions = []
        for row in read_json_objects(path):
            reference, candidate = _rating_pair(row)
            predictions.append(Prediction(str(row.require("question_id")), [f"{reference} {candidate}"]))
        return predictions

    def judge_requests(self, answers_by_id: AnswersById, task: Task) -> Iterable[JudgeRequest]:
        """Ask for a comparison of each answer with the reference, by the rule of its category."""
        if _has_reviews(task):
            return
        rules, prefix = read_json(_data_file(task, "rules")), _rule_prefix(task)
        for id_, answers in answers_by_id.items():
            meta = task.examples[id_].meta
            name = f"{prefix}{meta['part']}"
            rule = rules.get(name) if isinstance(rules, dict) else None
            if not isinstance(rule, dict) or not {"role", "prompt"} <= rule.keys():
                raise InputError(
                    f"{_data_file(task, 'rules')} has no rule {name} with role and prompt: give the file of this set"
                )
            role = rule["role"]
            sides = "".join(
                f"[{role} {number}]\n{text}\n\n[End of {role} {number}]\n\n"
                for number, text in ((1, meta["reference"]), (2, answers[0]))
            )
            prompt = f"[Context]\n{meta['context']}\n\n[Question]\n{meta['question']}\n\n{sides}[System]\n{rule['prompt']}\n\n"
            yield JudgeRequest(id_, prompt, rule["prompt"])

    def read_judgments(self, rows: Sequence[Row], answers_by_id: AnswersById, task: Task) -> dict[str, str]:
        """Return reviews as the authors' script saves them."""
        reviews = {}
        for row in rows:
            text = row.fields.get("content")
            if text is None:
                text = " ".join(f"{rating:g}" for rating in _rating_pair(row))
            reviews[str(row.require("question_id"))] = str(text)
        return reviews

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """Return the ratings of reference and answer, by the script's rule and by ours, or None."""
        if "review" in example.meta:
            pair = official_ratings(answers[0])
            is_unread = pair == UNREAD_RATINGS
            return {"official": pair, "pair": None if is_unread else pair, "unparsed": is_unread}
        reply = task.replies.get(example.id, {}).get("text")
        if reply is None:
            return {"official": None, "pair": None, "unparsed": False}
        ratings = robust_ratings(reply)
        return {"official": official_ratings(reply), "pair": ratings, "unparsed": ratings is None}

    def aggregate(self, rows: list[ScoreRow], task: Task) -> dict[str, SufficientStats]:
        """Return scores, also by category."""
        scored = answered(rows)
        num_unjudged = sum(row["official"] is None for row in scored)
        official: list[tuple[str, list[float]]] = []
        reason = "the reference's mean is 0, or there are no answers"
        if not _has_reviews(task) and has_duplicates(rows):
            reason = DUPLICATES_REASON
        elif num_unjudged:
            reason = f"{num_unjudged} answers have no judgment"
        else:
            official = [(row["id"], row["official"]) for row in scored]
            if num_unread := sum(pair == UNREAD_RATINGS for _, pair in official):
                print(
                    f"note: {num_unread} reviews give no ratings: official counts them as -1 and -1, as the script does, "
                    "and robust leaves them out",
                    file=sys.stderr,
                )
        robust = [(row["id"], row["pair"]) for row in first_valid(rows) if row["pair"] is not None]
        return {
            "official": _sufficient_stats(official, task, reason),
            "robust": _sufficient_stats(robust, task, "no answer has a rating"),
        }


# ---- files ---------------------------------------------------------------------------------------


def _data_file(task: Task, kind: str) -> Path:
    for name in FILES[kind]:
        if (task.path / name).is_file():
            return task.path / name
    raise InputError(f"--data {task.path} has no {' or '.join(FILES[kind])}: give the folder of LLaVA-Bench")


def _rule_prefix(task: Task) -> str:
    """Return how the names of an image set's rules begin: those for In-the-Wild have a prefix."""
    return "llava_bench_" if _data_file(task, "context").name == "context.jsonl" else ""


def _format_context(row: Row) -> str:
    """Return captions and labelled boxes in the format of the judge's prompt. Raises InputError."""
    captions, instances = row.fields.get("captions") or row.fields.get("caption") or [], row.fields.get("instances") or []
    captions = captions if isinstance(captions, list) else [captions]
    try:
        boxes = [f"{instance['category']}: {instance['bbox']}" for instance in instances]
    except (KeyError, TypeError):
        row.fail("`instances` must be a list of objects with category and bbox: give the file of this set")
    return "\n\n".join("\n".join(map(str, lines)) for lines in (captions, boxes) if lines)


RATING_FIELDS = ("tuple", "score", "scores")
"""Names of the two ratings in a review."""


def _has_reviews(task: Task) -> bool:
    return any(is_self_describing(task, "question_id", name) for name in RATING_FIELDS)


def _rating_pair(row: Row) -> list[float]:
    name = row.require_any(*RATING_FIELDS)
    pair = row.fields[name]
    if isinstance(pair, list) and len(pair) == 2 and all(isinstance(rating, int | float) for rating in pair):
        return [float(rating) for rating in pair]
    row.fail(f"`{name}` must be two numbers: the reference's rating and the answer's")


# ---- ratings -------------------------------------------------------------------------------------

_RATING = re.compile(r"(?<![\w.])(?:10|\d)(?:\.\d+)?(?!\w)(?!\.\d)")
"""A number up to 10 that is not part of a word or of a longer number."""


def official_ratings(review: str) -> list[float]:
    """Read ratings as the authors' script does.

    The first line must be two numbers with one blank or comma between them.
    """
    cells = review.split("\n")[0].replace(",", " ").split(" ")
    try:
        return [float(cells[0]), float(cells[1])] if len(cells) == 2 else list(UNREAD_RATINGS)
    except ValueError:
        return list(UNREAD_RATINGS)


def robust_ratings(review: str) -> list[float] | None:
    """Return the two ratings on the first line with digits, or None if there are not two.

    "8/10 7/10" and "Assistant 1: 8, Assistant 2: 7" both give 8 and 7.
    """
    line = next((line for line in review.split("\n") if re.search(r"\d", line)), "")
    line = re.sub(r"/\s*10\b", " ", line)
    line = re.sub(r"(?i)\b(?:assistant|answer|response)\s*\d\b", " ", line)
    ratings = [float(number) for number in _RATING.findall(line)]
    return ratings if len(ratings) == 2 else None


# ---- metrics -------------------------------------------------------------------------------------


def _sufficient_stats(ratings: list[tuple[str, list[float]]], task: Task, reason: str) -> SufficientStats:
    """Return statistics of three columns, for all answers and each category: two ratings, count."""
    categories = ["", *sorted({example.meta["part"] for example in task.examples.values()} - {""})]
    columns = np.zeros((len(ratings), len(categories), 3))
    for row, (id_, pair) in zip(columns, ratings, strict=True):
        for category in {"", task.examples[id_].meta["part"]}:
            row[categories.index(category)] = *pair, 1

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        by_category = sums.reshape(*sums.shape[:-1], len(categories), 3)
        values: dict[str, np.ndarray] = {}
        for i, category in enumerate(categories):
            reference_sum, candidate_sum, n = np.moveaxis(by_category[..., i, :], -1, 0)
            reference, candidate = _round_to_thousandth(reference_sum / n), _round_to_thousandth(candidate_sum / n)
            prefix = f"{category}/" if category else ""
            values[f"{prefix}score"] = np.where(reference == 0, np.nan, candidate / reference * 100)
            values[f"{prefix}reference"] = reference
            values[f"{prefix}candidate"] = candidate
        return values

    clusters = [task.examples[id_].meta["image"] for id_, _ in ratings]
    return SufficientStats(clusters, columns.reshape(len(ratings), 3 * len(categories)), metrics, {"": reason})


_round_to_thousandth = np.vectorize(lambda value: round(float(value), 3), otypes=[float])
"""Rounds to three decimals as Python does. NumPy multiplies first, which may round differently."""
