"""HaloQuest: questions with a false premise, on hard-to-see details, or beyond what the image shows
(Wang et al. 2024).

    mmrlhf eval haloquest --model runs/sft/model --data haloquest-eval.csv --image_folder images
        --judge http://127.0.0.1:8000/v1 --out runs/haloquest

A judge compares each answer with the reference answers. The authors' judge (Gemini, asked for a yes
or no through their own library) leaves no text to read: their metric is the share of answers it
calls correct. `official` is that share for the judge in use, and null while a judgment is missing.
`robust` is the share among judged answers; a reply that is neither correct nor incorrect is
unparsed and counts as wrong. In percent: `accuracy`, also by type of question and of image.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

from pydantic.dataclasses import dataclass

from mmrlhf.config import STRICT
from mmrlhf.evaluation.benchmark import (
    DUPLICATES_REASON,
    AnswersById,
    Benchmark,
    Fields,
    JudgeRequest,
    ScoreRow,
    Task,
    first_present,
    first_valid,
    has_duplicates,
)
from mmrlhf.evaluation.judge_prompts import fill_template, load_template
from mmrlhf.files.rows import read_text
from mmrlhf.metrics.intervals import SufficientStats, accuracy_by_group
from mmrlhf.records import Example, InputError, Message
from mmrlhf.text.judge_parsing import parse_verdict

KNOWN_VERSIONS = {"6c88c8d6eb6d0a98881ec3e50ae52b5919247b53a47b7c723819603621b838b4": "HaloQuest evaluation, 608"}
TYPE_FIELDS = ("hallucination type", "image type")
FIELDS = ("image_name", *TYPE_FIELDS, "question", "groundtruth responses")
TEMPLATE = """Is this answer to a question about a picture right? The references, divided by semicolons, are all right.

Question: {question}
References: {references}
Answer: {answer}

Where the references say that something is not in the picture or cannot be seen, an answer is right only if it says so; a bare yes, no or nothing
takes it for granted, and is wrong. An answer that declines to answer is wrong. A count must be the same.
Reply with one word: correct or incorrect."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """How answers are judged."""

    judge_prompt: str | None = None
    """File with another prompt template for the judge: {question}, {references}, {answer}."""


class HaloQuest(Benchmark):
    """HaloQuest."""

    version = "2"
    license = "CC-BY-4.0"
    headline = "accuracy"
    direction = "higher"
    cluster = "image"
    known_versions = KNOWN_VERSIONS
    options_type = Options

    def load(self, task: Task) -> list[Example]:
        """Return the questions, with the number in the file's first column as id."""
        rows = csv.DictReader(io.StringIO(read_text(task.path), newline=""))
        missing = [name for name in FIELDS if name not in (rows.fieldnames or ())]
        if missing:
            raise InputError(f"{task.path} lacks the columns {', '.join(missing)}: give HaloQuest's CSV")
        examples = []
        for number, row in enumerate(rows):
            location = f"{task.path} row {number + 1}"
            meta = {name: row[name] or "" for name in FIELDS}
            source = task.image_source(meta["image_name"], location=location, name="image_name")
            id_ = row.get("") or str(number)  # the first column has no name
            examples.append(Example(id_, (source,), (Message("user", meta["question"]),), meta=meta))
        return examples[: task.limit]

    def match_id(self, fields: Fields, task: Task) -> str | None:
        """Return a question's number. The first column of the authors' file has no name."""
        return first_present(fields, ("id", "question_id", "", "index", "doc_id"))

    def identity(self, example: Example) -> tuple[str, str]:
        """Return question and image name."""
        return example.meta["question"], example.meta["image_name"]

    def judge_requests(self, answers_by_id: AnswersById, task: Task) -> Iterable[JudgeRequest]:
        """Ask whether each answer is right."""
        template = load_template(task.options.judge_prompt, TEMPLATE)
        for id_, answers in answers_by_id.items():
            meta = task.examples[id_].meta
            references = meta["groundtruth responses"]
            prompt = fill_template(template, question=meta["question"], references=references, answer=answers[0])
            yield JudgeRequest(id_, prompt, template)

    def rule(self, key: str, answers_by_id: AnswersById, task: Task) -> str:
        """Return a verdict without a model: correct if the answer contains a reference, or vice
        versa.
        """
        answer = _normalise(answers_by_id[key][0])
        references = map(_normalise, task.examples[key].meta["groundtruth responses"].split(";"))
        # A single word is not right merely because a reference contains it.
        is_long = len(answer.split()) > 1
        is_right = any(text and (text in answer or (is_long and answer in text)) for text in references)
        return "correct" if is_right else "incorrect"

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """Return the judge's verdict, or None if it failed or its reply cannot be parsed."""
        reply = task.replies.get(example.id, {}).get("text")
        is_right = None if reply is None else parse_verdict(reply)
        return {"right": is_right, "judged": reply is not None, "unparsed": reply is not None and is_right is None}

    def categories(self, example: Example) -> list[str]:
        """Return the types of question and image."""
        return [example.meta[name] for name in TYPE_FIELDS]

    def aggregate(self, rows: list[ScoreRow], task: Task) -> dict[str, SufficientStats]:
        """Return accuracy, also by type of question and of image."""
        valid_rows = first_valid(rows)
        judged_rows = [row for row in valid_rows if row["judged"]]
        num_unjudged = len(valid_rows) - len(judged_rows)
        reason = "there are no answers"
        if num_unjudged:
            reason = f"{num_unjudged} answers have no judgment"
        elif has_duplicates(rows):
            reason = DUPLICATES_REASON
        is_official = not num_unjudged and not has_duplicates(rows)
        return {
            "official": _sufficient_stats(judged_rows if is_official else [], task, reason),
            "robust": _sufficient_stats(judged_rows, task, reason),
        }


def _normalise(text: str) -> str:
    return " ".join(text.lower().split()).strip(". ")


def _sufficient_stats(rows: list[ScoreRow], task: Task, reason: str) -> SufficientStats:
    metas = [task.examples[row["id"]].meta for row in rows]
    all_types = sorted({example.meta[name] for example in task.examples.values() for name in TYPE_FIELDS})
    return accuracy_by_group(
        [meta["image_name"] for meta in metas],
        [row["right"] is True for row in rows],
        [[_metric_part(meta[name]) for name in TYPE_FIELDS] for meta in metas],
        list(map(_metric_part, all_types)),
        reason,
        scale=100,
    )


def _metric_part(type_: str) -> str:
    return type_.replace(" ", "_")
