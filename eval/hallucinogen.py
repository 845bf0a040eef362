"""HALLUCINOGEN: questions that take an object for granted, about images that show it or lack it
(Seth et al. 2024).

    mmrlhf eval hallucinogen --model runs/sft/model --data hallucinogen/data --image_folder val2014
        --judge http://127.0.0.1:8000/v1 --out runs/hallucinogen
    mmrlhf eval hallucinogen --answers answers.jsonl --data hallucinogen/data/loc/loc_POPE_adv.json
        --judge rules --out runs/hallucinogen

--data is the folder with id, loc, vc and cf (identification, localization, visual context,
counterfactual), each with a file for POPE's random, popular and adversarial questions, or one of
these files. Five queries ask about each object; --queries 2 takes the first two, as the authors'
own scripts for models do. --image_folder holds COCO's val2014.

An answer counts as yes or no: whether it says, or takes for granted, that the object is there.
Answers to id are read as a yes or no. For the other tasks a judge is asked, or with --judge rules
an answer is a no if it explicitly denies the object ("there is no car"), else a yes. The authors do
the same with string matching and GPT-4o, but publish no script for it, so there is no `official`.
In percent: `accuracy`, and `hallucinated`, the share of absent objects that answers take for
present; over all, by task, and by task and split.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from mmrlhf.config import STRICT
from mmrlhf.evaluation.answer_rows import fold, image_key
from mmrlhf.evaluation.benchmark import (
    AnswersById,
    Benchmark,
    JudgeRequest,
    Prediction,
    ScoreRow,
    Task,
    first_valid,
    is_self_describing,
)
from mmrlhf.evaluation.judge_prompts import fill_template, load_template
from mmrlhf.files.rows import Row, read_json_objects
from mmrlhf.metrics.intervals import Proportion, SufficientStats
from mmrlhf.records import Example, InputError, Message
from mmrlhf.text.answer_parsing import leading_yes_no, normalise, parse_yes_no
from mmrlhf.text.plurals import pluralize

TASKS = ("id", "loc", "vc", "cf")
SPLITS = {"rand": "random", "pop": "popular", "adv": "adversarial"}
"""Names of POPE's splits in the release's files."""
NUM_QUERIES = 5
_FILE_NAME = re.compile(rf"(?P<task>{'|'.join(TASKS)})_POPE_(?P<split>{'|'.join(SPLITS)})")
_QUESTION = re.compile(r"Is there (?:an? |the )?(?P<object>.+?) in the ima?n?ge\?", re.IGNORECASE)
KNOWN_VERSIONS = {
    "a758741df4c35c2c22735b4182a83a8a627080006f2d6960c09c445741fb08b8": "cf adversarial, 3000",
    "74c57c4860fcc6be37bf63677497391987adf0b9d4afcdf445a14ac03457bda3": "cf popular, 3000",
    "5220b92fabb4b2c684d689037e0a649947323b50123bdf63e430fa6d1c23328b": "cf random, 3000",
    "c42266e997aad53c1561597173b028efc4e60d8892bab5bfc7f18a6a9acd94e2": "id adversarial, 3000",
    "22aee53331254078ade9ea04ec10c7e714b5e5705fec2a5b8ec7055d0c7bbbfb": "id popular, 3000",
    "e447b53e66fddd0be8e6b83f33ecb3d25852f40c2e01dcd81eff02010fcb7e8b": "id random, 3000",
    "4ece21d06b2822bc00dfc22853fce089b943200ccb9f2c0b72d890dc67260370": "loc adversarial, 3000",
    "b6f0f6de1eb52fb531fb63c25fdac01ea229baaec39aac31a765e00a104d35c2": "loc popular, 3000",
    "87258f0ad2575bf75ab79c7f70c5e53943ed7403d2dd865b171e2ffa0d423e26": "loc random, 3000",
    "00fdf6105395cbb918c650de7d415ad60a4b0fe5d08c6a66e0dfad51fbca1aa4": "vc adversarial, 3000",
    "9feb893248175660cf8fa755d6d9f9cd3c2059990aa356a590779b91541c186d": "vc popular, 3000",
    "597e5adf6fd072958a80742581d9e21e9cdc722b65a5bb4fe175b12454d45702": "vc random, 3000",
}
"""Files of the release of February 2025 by hash."""
TEMPLATE = """Somebody was asked about a picture, and answered. The question takes for granted that there is a {object} in the picture, which may be wrong.

Question: {question}
Answer: {answer}

Does the answer say, or take for granted, that the picture shows a {object}? If it says that there is none, that it cannot be seen, or that the question
does not fit the picture, the reply is no. Reply with yes or no alone."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """Settings of the questions and of the judge."""

    task: Literal["all", "id", "loc", "vc", "cf"] = "all"
    """One task, or all four: identification, localization, visual context, counterfactual."""
    queries: Annotated[int, Field(ge=1, le=NUM_QUERIES)] = NUM_QUERIES
    """Number of queries about each object, at most five."""
    suffix: str = ""
    """Text after each query, such as `Provide a concise answer`."""
    judge_prompt: str | None = None
    """File with another prompt template for the judge: {object}, {question}, {answer}."""


class Hallucinogen(Benchmark):
    """HALLUCINOGEN, on POPE's images and objects."""

    version = "2"
    license = "MIT (questions), CC-BY-4.0 (COCO's images)"
    headline = "accuracy"
    direction = "higher"
    cluster = "image"
    answer_fields = ("id", "answer", "output", "response", "text")
    known_versions = KNOWN_VERSIONS
    options_type = Options

    def load(self, task: Task) -> list[Example]:
        """Return each query about each object, with ids TASK/SPLIT/QUESTION/QUERY."""
        examples = []
        for path in self.files(task):
            match = _FILE_NAME.search(path.stem)
            assert match is not None
            part = f"{match['task']}/{SPLITS[match['split']]}"
            for row in read_json_objects(path)[: task.limit]:
                examples += _make_examples(row, match["task"], part, task)
        return examples

    def files(self, task: Task) -> list[Path]:
        """Return the files of the chosen task. Raises InputError if there are none."""
        chosen = TASKS if task.options.task == "all" else (task.options.task,)
        paths = [task.path] if task.path.is_file() else sorted({*task.path.glob("*.json"), *task.path.glob("*/*.json")})
        chosen_paths = {
            (TASKS.index(match["task"]), list(SPLITS).index(match["split"])): path
            for path in paths
            if (match := _FILE_NAME.search(path.stem)) and match["task"] in chosen
        }
        if not chosen_paths:
            raise InputError(
                f"--data {task.path} has no {'_POPE_*.json, '.join(chosen)}_POPE_*.json: give the release's folder `data`, "
                "or one of its files under its own name"
            )
        return [chosen_paths[place] for place in sorted(chosen_paths)]

    def read(self, path: Path, task: Task) -> list[Prediction] | None:
        """Read what the authors' scripts write: the rows of the data with `output_1`, ...

        An answer belongs to the query that its own begins with, about the same image.
        """
        if not is_self_describing(task, "query_1", "output_1"):
            return None
        ids_by_image: dict[str, list[tuple[str, str]]] = {}
        for example in task.examples.values():
            ids_by_image.setdefault(image_key(example.meta["image"]), []).append((fold(example.meta["question"]), example.id))
        predictions = []
        used: set[str] = set()
        for row in read_json_objects(path):
            candidates = ids_by_image.get(image_key(str(row.require("image"))), [])
            for number in range(1, NUM_QUERIES + 1):
                if f"output_{number}" not in row.fields:
                    continue
                query, answer = fold(str(row.require(f"query_{number}"))), row.fields[f"output_{number}"]
                if answer is not None:
                    row.require_text(answer, f"output_{number}")
                # Present objects are in every split, with the same query.
                matches = [id_ for question, id_ in candidates if query.startswith(question)]
                id_ = next((id_ for id_ in matches if id_ not in used), matches[0] if matches else f"{row.number}/{query}")
                used.add(id_)
                predictions.append(Prediction(id_, [answer]))
        num_unknown = sum(prediction.id not in task.examples for prediction in predictions)
        if num_unknown:
            print(f"note: {num_unknown} answers of {path} are to queries that --data does not have", file=sys.stderr)
        return predictions

    def judge_requests(self, answers_by_id: AnswersById, task: Task) -> Iterable[JudgeRequest]:
        """Ask whether an answer takes the object for present, but for answers to id."""
        template = load_template(task.options.judge_prompt, TEMPLATE)
        for id_, answers in answers_by_id.items():
            meta = task.examples[id_].meta
            if meta["kind"] != "id":
                fields = {"object": meta["object"], "question": meta["question"], "answer": answers[0]}
                yield JudgeRequest(id_, fill_template(template, **fields), template)

    def rule(self, key: str, answers_by_id: AnswersById, task: Task) -> str:
        """Return no for an answer that explicitly denies the object, else yes."""
        return "no" if denies(answers_by_id[key][0], task.examples[key].meta["object"]) else "yes"

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """Return whether the first answer takes the object for present, None if that is unknown."""
        meta = example.meta
        if meta["kind"] == "id":
            said = parse_yes_no(answers[0], f"Is there a {meta['object']} in the image?")
            return {"label": meta["label"], "said": said, "judged": True, "unparsed": said is None}
        reply = task.replies.get(example.id, {}).get("text")
        said = None if reply is None else leading_yes_no(normalise(reply))
        return {"label": meta["label"], "said": said, "judged": reply is not None, "unparsed": reply is not None and said is None}

    def aggregate(self, rows: list[ScoreRow], task: Task) -> dict[str, SufficientStats]:
        """Return metrics over all judged answers, by task, and by task and split.

        A verdict that cannot be read is wrong.
        """
        judged = [row for row in first_valid(rows) if row["judged"]]
        groups = ["", *dict.fromkeys(kind for e in task.examples.values() for kind in (e.meta["kind"], e.meta["part"]))]
        columns = np.zeros((len(judged), len(groups), 4))  # right, all, hallucinated, objects that are absent
        for row_columns, row in zip(columns, judged, strict=True):
            meta = task.examples[row["id"]].meta
            is_absent = row["label"] == "no"
            for group in ("", meta["kind"], meta["part"]):
                row_columns[groups.index(group)] = row["said"] == row["label"], 1, is_absent and row["said"] == "yes", is_absent

        def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
            by_group = sums.reshape(*sums.shape[:-1], len(groups), 4)
            values: dict[str, np.ndarray] = {}
            for i, group in enumerate(groups):
                right, n, hallucinated, absent = np.moveaxis(by_group[..., i, :], -1, 0)
                prefix = f"{group}/" if group else ""
                values[f"{prefix}accuracy"] = 100 * right / n
                values[f"{prefix}hallucinated"] = 100 * hallucinated / absent
            return values

        shares = {}
        for i, group in enumerate(groups):
            prefix = f"{group}/" if group else ""
            shares[f"{prefix}accuracy"] = Proportion(4 * i, 4 * i + 1, 100)
            shares[f"{prefix}hallucinated"] = Proportion(4 * i + 2, 4 * i + 3, 100)
        clusters = [task.examples[row["id"]].meta["image"] for row in judged]
        reason = "there are no judged answers, or no object of theirs is absent"
        table = columns.reshape(len(judged), 4 * len(groups))
        return {"robust": SufficientStats(clusters, table, metrics, {"": reason}, shares)}


def _make_examples(row: Row, kind: str, part: str, task: Task) -> list[Example]:
    id_, image, text, label = (str(row.require(name)) for name in ("question_id", "image", "text", "label"))
    question = _QUESTION.search(text)
    if question is None or label.lower() not in ("yes", "no"):
        row.fail("`text` must ask `Is there a ... in the image?`, and `label` be yes or no")
    source = task.image_source(image.lstrip("/"), location=row.location, name="image")
    examples = []
    for number in range(1, task.options.queries + 1):
        query = str(row.require(f"query_{number}"))
        prompt = f"{query} {task.options.suffix}".strip()
        meta = {
            "part": part,
            "kind": kind,
            "object": question["object"],
            "label": label.lower(),
            "image": image,
            "question": query,
        }
        examples.append(Example(f"{part}/{id_}/{number}", (source,), (Message("user", prompt),), meta=meta))
    return examples


# ---- rules ---------------------------------------------------------------------------------------

_SENTENCE = re.compile(r"[.!?;\n]+")
_HYPOTHETICAL = re.compile(r"\b(?:would|could|might|may|will|if)\b(?:(?!\b(?:since|because|as|but|for)\b)[^,])*")
"""Suppositions: "there would be no car", "if there were no car"."""


_PLACES = "(?:in|on|at|near|by|of|with|behind|next|inside|under|above|below|beside|from|around|to|the)"
"""Words after which another object's place follows: "no person in the car" denies no car."""


_CLAUSE_STARTS = "(?:there|it|its|it's|he|she|i|the|this|that|these|they|you|we|not|nothing|such)"
"""Words after a No that answers the question."""


def denies(answer: str, name: str) -> bool:
    """Return whether an answer explicitly denies that the object is in the image."""
    *words, noun = name.lower().split()
    nouns = dict.fromkeys((noun, pluralize(noun), *(("people", "one", "body") if noun == "person" else ())))
    whole = " ".join([*map(re.escape, words), f"(?:{'|'.join(map(re.escape, nouns))})"])
    named = rf"(?:(?!{_PLACES}\b)[\w-]+ ){{0,3}}?{whole}\b"
    patterns = (
        rf"\bthere (?:is|are|was|appears? to be|seems? to be)(?: \w+ly)? (?:no|not (?:an?|any)) {named}",
        rf"\bthere (?:isn't|aren't|doesn't (?:appear|seem) to be|does not (?:appear|seem) to be)(?: \w+ly)? (?:(?:an?|any) )?{named}",
        rf"{named}(?: \w+){{0,2}}? (?:(?:is|are|was)(?: \w+ly)? not|isn't|aren't)(?: \w+ly)? "
        rf"(?:present|visible|there|shown|seen|depicted|included|found|part of|in (?:the|this) (?:image|picture|photo|scene))\b",
        rf"{named}(?: \w+){{0,2}}? (?:do|does) not (?:appear|exist)\b",
        rf"{named}(?: \w+){{0,2}}? (?:is|are) (?:absent|missing|nowhere)\b",
        rf"(?:\b(?:do|does|did|can|could) not|n't|\bcannot)(?: \w+ly)? "
        rf"(?:see|find|identify|locate|detect|spot|observe|contain|show|have|feature|include|depict|appear to (?:have|contain|show|include))"
        rf"(?: (?:an?|any|the))? {named}",
        rf"\b(?:see|sees|contains?|shows?|has|have|features?|includes?|depicts?) no {named}",
        rf"\bno {named} (?:is|are|was|can be|appears?|present|visible|in (?:the|this) (?:image|picture|photo|scene))\b",
    )
    # No one is inside it: another thing is denied.
    other = re.compile(
        rf"\W*no (?!{named}|(?:visible )?(?:signs?|traces?|evidence|hints?|indications?|images?) of|{_CLAUSE_STARTS}\b)\w"
    )
    for sentence in _SENTENCE.split(normalise(answer).lower()):
        stated = _HYPOTHETICAL.sub(" ", sentence)
        if (leading_yes_no(sentence) == "no" and not other.match(sentence)) or any(
            re.search(pattern, stated) for pattern in patterns
        ):
            return True
    return False
