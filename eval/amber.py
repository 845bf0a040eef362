"""AMBER: descriptions and yes/no questions on 1,004 images, without a judge (Wang et al. 2023).

    mmrlhf eval amber --model runs/sft/model --data AMBER/data --image_folder AMBER/image
        --out runs/amber
    mmrlhf eval amber --answers answers.json --data AMBER/data --similarity table.json
        --out runs/amber

--data is a folder with annotations.json, relation.json and safe_words.txt, and with query_all.json
(here or in query/) to ask a model. Answers are a JSON list of {"id", "response"}.

`official` follows inference.py: nouns by NLTK without changing their case, words that count as
equal at a similarity above 0.8, replies that are exactly Yes or No, 0.001 in every denominator, F1
of rounded values, `no` as the positive class; a part without answers is null. `robust` reads
replies with `mmrlhf.text.answer_parsing.parse_yes_no`, and nouns in lower case. Metrics are in
percent. `amber_score` is (100 - chair + f1) / 2, which only the paper defines.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic.dataclasses import dataclass

from mmrlhf.config import STRICT
from mmrlhf.evaluation.answer_rows import fold
from mmrlhf.evaluation.benchmark import Benchmark, ScoreRow, Task, answered, first_valid
from mmrlhf.files.bundled import load_module
from mmrlhf.files.rows import preview, read_json
from mmrlhf.metrics.intervals import Proportion, SufficientStats
from mmrlhf.records import Example, InputError, Message
from mmrlhf.text.answer_parsing import parse_yes_no

amber_words = load_module(Path(__file__).with_name("_amber_words.py"))
KNOWN_VERSIONS = {
    "db22a436c4836fbb295e60b4e80d519573077579fb7032f01b193c1bd022b797": "AMBER's annotations, 15220",
    "c4c1491e9bbc3209abc1888c12a1bf8413bdbab8a0d8be04b990a2e7680cf23e": "AMBER's relations",
    "f92cf1123f4578a2630832fac3e6ac4de36212ea55859d3bed4fd233723f4043": "AMBER's safe words",
    "127680ae61f7d4a92d2f7f07a8deaec07f0689b194d2c7c0f41ead7bd2c5bcf5": "AMBER's queries",
}
PART_OF_TYPE = {
    "generative": "generative",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-hallucination": "existence",
}
"""Parts by the annotations' type. Any other type is a relation."""
METRIC_GROUPS = {
    "": ("existence", "state", "number", "action", "relation"),
    "existence_": ("existence",),
    "attribute_": ("state", "number", "action"),
    "state_": ("state",),
    "number_": ("number",),
    "action_": ("action",),
    "relation_": ("relation",),
}
"""Parts that yes/no metrics cover, by the prefix of the metrics' names."""
YES_NO_PARTS = METRIC_GROUPS[""]
EPSILON = 0.001
"""The official script adds this to each denominator."""
NO_SIMILARITY_REASON = (
    "the official script compares words by spaCy's en_core_web_lg, which is not installed: "
    "install it, or give --similarity TABLE.json"
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """Which words mean the same, and how questions are asked."""

    similarity: str | None = None
    """JSON file of word similarities: "A|B" in alphabetical order to a number.

    Pairs that it lacks have 0.3. Default: spaCy's en_core_web_lg.
    """
    suffix: str | None = "Answer the question using a single word or phrase."
    """A line to add to each yes/no question; `none` adds nothing."""


class Amber(Benchmark):
    """AMBER's generative and discriminative tasks."""

    version = "4"
    license = "Apache-2.0"
    headline = "amber_score"
    direction = "higher"
    cluster = "image"
    answer_fields = ("id", "response")
    known_versions = KNOWN_VERSIONS
    options_type = Options

    def load(self, task: Task) -> list[Example]:
        """Return the annotations in order, with their prompts if there is a file of queries.

        --limit is for all parts together; each keeps its share.
        """
        path, queries_path = task.path / "annotations.json", _queries_path(task)
        annotations, queries = read_json(path), _read_queries(queries_path) if queries_path.exists() else {}
        if not isinstance(annotations, list):
            raise InputError(f"{path} must hold a list of annotations: give AMBER's file")
        relation = _vocabulary(task).relation
        examples = []
        for number, row in enumerate(annotations, 1):
            try:
                id_, type_, truth = str(row["id"]), row["type"], row["truth"]
            except (KeyError, TypeError):
                raise InputError(f"{path} row {number}: an annotation needs id, type and truth: give AMBER's file") from None
            part, query = PART_OF_TYPE.get(type_, "relation"), queries.get(id_, {})
            is_description = part == "generative"
            image = query.get("image", f"AMBER_{id_}.jpg" if is_description else "")
            question = query.get("query", "")
            hallucinations = row.get("hallu", [])
            if is_description:
                unknown_words = [word for word in [*truth, *hallucinations] if word not in relation]
                if unknown_words:
                    raise InputError(
                        f"{path} row {number}: {unknown_words[0]} is not in relation.json: give files of one version"
                    )
            meta = {
                "part": part,
                "truth": truth,
                "hallu": hallucinations,
                "image": image or id_,
                "question": question,
            }
            prompt = f"{question}\n{task.options.suffix}" if query and task.options.suffix and not is_description else question
            location = f"{queries_path}, id {id_}" if query else f"{path} row {number}"
            source = task.image_source(image, location=location, name="image" if query else "id")
            examples.append(Example(id_, (source,), (Message("user", prompt),) if prompt else (), meta=meta))
        return _first_of_parts(examples, task.limit)

    def files(self, task: Task) -> list[Path]:
        """Return the files of annotations, relations, safe words and, if there is one, queries."""
        paths = [task.path / name for name in ("annotations.json", "relation.json", "safe_words.txt")]
        return [*paths, _queries_path(task)] if _queries_path(task).exists() else paths

    def question_key(self, text: str) -> str:
        """Return a question without regard to blanks and case; the same for all requests to
        describe, which every harness words in its own way."""
        folded = fold(text)
        return "describe" if "describe" in folded and "?" not in folded else folded

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """Return a reply's yes or no, or a description's word counts by both sets of rules."""
        if example.meta["part"] != "generative":
            parsed = parse_yes_no(answers[0], example.meta["question"])
            return {"truth": example.meta["truth"], "said": parsed, "unparsed": parsed is None}
        is_similar = amber_words.similarity_test(task.options.similarity)
        official = _score_official(example, answers[0], task)
        robust = amber_words.match_robust(example, answers[0], _vocabulary(task), is_similar or str.__eq__)
        return {"official": official, "robust": robust, "right": not robust["false"]}

    def aggregate(self, rows: list[ScoreRow], task: Task) -> dict[str, SufficientStats]:
        """Return the metrics of descriptions and of replies."""
        return {"official": _official_stats(rows, task), "robust": _robust_stats(rows, task)}


def _first_of_parts(examples: list[Example], limit: int | None) -> list[Example]:
    """Return `limit` examples in order: the first ones of each part, in proportion to its size.

    AMBER's file begins with all descriptions, and the main metric needs questions too. Each part
    has an example before any has a second one.
    """
    sizes, seen, shares = Counter(example.meta["part"] for example in examples), Counter[str](), []
    for example in examples:
        shares.append(seen[example.meta["part"]] / sizes[example.meta["part"]])
        seen[example.meta["part"]] += 1
    order = sorted(range(len(examples)), key=shares.__getitem__)
    return [examples[index] for index in sorted(order[:limit])]


# ---- files ---------------------------------------------------------------------------------------


def _queries_path(task: Task) -> Path:
    nested_path = task.path / "query" / "query_all.json"
    return nested_path if nested_path.exists() else task.path / "query_all.json"


def _read_queries(path: Path) -> dict[str, dict[str, Any]]:
    queries = read_json(path)
    if not isinstance(queries, list) or not all(isinstance(query, dict) and "id" in query for query in queries):
        raise InputError(f"{path} must hold a list of queries, each with an id: give AMBER's file")
    return {str(query["id"]): query for query in queries}


def _score_official(example: Example, answer: str, task: Task) -> dict[str, Any] | None:
    """Return the script's counts of a description, or None if words cannot be compared."""
    is_similar = amber_words.similarity_test(task.options.similarity)
    if is_similar is None:
        return None
    counts: dict[str, Any] = amber_words.match_official(example, answer, _vocabulary(task), is_similar)
    return counts


def _vocabulary(task: Task) -> Any:
    return amber_words.load_vocabulary(task.data or "")


# ---- metrics -------------------------------------------------------------------------------------

NUM_DESCRIPTION_COLUMNS = 8
"""False nouns, nouns, covered words, true words, cognition hits, words likely to be hallucinated,
descriptions with false nouns, descriptions.
"""
NUM_REPLY_COLUMNS = 5
"""For each part: right replies, questions, right replies of no, replies of no, questions with the
true answer no.
"""
NUM_COLUMNS = NUM_DESCRIPTION_COLUMNS + NUM_REPLY_COLUMNS * len(YES_NO_PARTS)


def _reply_start(part: str) -> int:
    """Return the index of the first column of a yes/no part."""
    return NUM_DESCRIPTION_COLUMNS + NUM_REPLY_COLUMNS * YES_NO_PARTS.index(part)


def _official_stats(rows: list[ScoreRow], task: Task) -> SufficientStats:
    """Count every row of the file, including repeated ones. An unknown id stops the script."""
    examples = list(task.examples.values())
    clusters, columns, reason = [], [], ""
    for row in rows:
        example, text = task.examples.get(row["id"]), row["answers"][0]
        if example is None:
            # The script uses the id as an index that starts at 1, and Python counts negative
            # indices from the end.
            index = int(row["id"]) if re.fullmatch(r"-?\d{1,18}", row["id"]) else None
            if index is None or not -len(examples) < index <= 0:
                error = "IndexError" if row["id"].lstrip("-").isdecimal() else "TypeError"
                reason = f"the official script raises {error} on id {preview(row['id'])[1:-1]}"
                break
            example = examples[index - 1]
        if example.meta["part"] == "generative":
            if text is None:
                reason = f"the official script raises TypeError on the response of id {row['id']}, which is null"
                break
            # A row with an unknown id that the script takes for a known one has not been scored.
            description = row.get("official") or _score_official(example, text, task)
            columns.append(_description_columns(example, description))
        else:
            reply = {"Yes": "yes", "No": "no"}.get(str(text))
            columns.append(_reply_columns(example, reply))
        clusters.append(example.meta["image"])
    num_inexact = sum(row.get("said") is not None and row["answers"][0] not in ("Yes", "No") for row in answered(rows))
    if num_inexact:
        print(
            f"note: {num_inexact} replies say yes or no, but not exactly `Yes` or `No`: the official script counts them as wrong",
            file=sys.stderr,
        )
    return _sufficient_stats(clusters, columns, EPSILON, reason)


def _robust_stats(rows: list[ScoreRow], task: Task) -> SufficientStats:
    clusters, columns = [], []
    for row in first_valid(rows):
        example = task.examples[row["id"]]
        if example.meta["part"] == "generative":
            columns.append(_description_columns(example, row["robust"]))
        else:
            columns.append(_reply_columns(example, row["said"]))
        clusters.append(example.meta["image"])
    return _sufficient_stats(clusters, columns, 0.0, "")


def _description_columns(example: Example, counts: Mapping[str, Any] | None) -> np.ndarray:
    columns = np.zeros(NUM_COLUMNS)
    if counts is None:
        columns[:NUM_DESCRIPTION_COLUMNS] = np.nan  # every sum with this row becomes unknown
        return columns
    columns[:NUM_DESCRIPTION_COLUMNS] = (
        len(counts["false"]),
        counts["nouns"],
        counts["covered"],
        len(example.meta["truth"]),
        counts["thought"],
        len(example.meta["hallu"]),
        bool(counts["false"]),
        1,
    )
    return columns


def _reply_columns(example: Example, reply: str | None) -> np.ndarray:
    columns, truth = np.zeros(NUM_COLUMNS), example.meta["truth"]
    start = _reply_start(example.meta["part"])
    columns[start : start + NUM_REPLY_COLUMNS] = (
        reply == truth,
        1,
        reply == "no" and truth == "no",
        reply == "no",
        truth == "no",
    )
    return columns


def _sufficient_stats(clusters: list[str], columns: list[np.ndarray], epsilon: float, reason: str) -> SufficientStats:
    """Return statistics of all parts.

    epsilon: what denominators start at; 0 for exact metrics. reason: why the script stops, if it
    does.
    """
    table = np.array(columns).reshape(len(columns), NUM_COLUMNS)
    is_unknown = bool(np.isnan(table).any())
    table = np.nan_to_num(table)

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        values = _description_metrics(sums, epsilon, is_unknown)
        for prefix, parts in METRIC_GROUPS.items():
            values |= _yes_no_metrics(sums, prefix, parts, epsilon)
        # Names without a prefix first.
        values = {name: values[name] for name in sorted(values, key=lambda name: "_" in name)}
        values["amber_score"] = (100 - values["chair"] + values["f1"]) / 2
        return {name: value * np.nan if reason else value for name, value in values.items()}

    shares = {"hal": Proportion(NUM_DESCRIPTION_COLUMNS - 2, NUM_DESCRIPTION_COLUMNS - 1, 100)}
    for prefix, parts in METRIC_GROUPS.items():
        starts = [_reply_start(part) for part in parts]
        shares[f"{prefix}accuracy"] = Proportion(starts, [start + 1 for start in starts], 100)
    return SufficientStats(clusters, table, metrics, _undefined_reasons(table, reason, is_unknown), shares)


def _description_metrics(sums: np.ndarray, epsilon: float, is_unknown: bool) -> dict[str, np.ndarray]:
    num_false, num_nouns, covered, num_truths, cognition_hits, num_hallucinations, with_false, n = np.moveaxis(
        sums[..., :NUM_DESCRIPTION_COLUMNS], -1, 0
    )
    percent = np.where((n > 0) & (not is_unknown), 100.0, np.nan)
    return {
        "chair": num_false / (num_nouns + epsilon) * percent,
        "cover": covered / (num_truths + epsilon) * percent,
        "hal": percent - (n - with_false) / (n + epsilon) * percent,
        "cog": cognition_hits / (num_hallucinations + epsilon) * percent,
    }


def _yes_no_metrics(sums: np.ndarray, prefix: str, parts: Sequence[str], epsilon: float) -> dict[str, np.ndarray]:
    """Return accuracy, and precision, recall and F1 of `no`, over several parts."""
    right, num_questions, right_no, answered_no, true_no = (
        sum(sums[..., _reply_start(part) + column] for part in parts) for column in range(NUM_REPLY_COLUMNS)
    )
    # For attributes, the script adds up the denominators of three parts.
    start = epsilon * (3 if prefix == "attribute_" else 1)
    percent = np.where(num_questions > 0, 100.0, np.nan)
    precision, recall = right_no / (answered_no + start) * percent, right_no / (true_no + start) * percent
    if epsilon == 0:
        f1 = 2 * right_no / (answered_no + true_no) * percent
    else:
        f1 = _rounded_f1(precision, recall, 0.001 if prefix == "existence_" else 0.0001)
    return {
        f"{prefix}accuracy": right / (num_questions + start) * percent,
        f"{prefix}precision": precision,
        f"{prefix}recall": recall,
        f"{prefix}f1": f1,
    }


@np.vectorize
def _round_to_tenth(value: float) -> float:
    """Round as Python does, which differs from NumPy."""
    return round(float(value), 1)


def _rounded_f1(precision: np.ndarray, recall: np.ndarray, epsilon: float) -> np.ndarray:
    """Return the script's F1, which it computes from rounded values."""
    p, r = _round_to_tenth(precision) / 100, _round_to_tenth(recall) / 100
    return 2 * p * r / (p + r + epsilon) * 100


def _undefined_reasons(table: np.ndarray, reason: str, is_unknown: bool) -> dict[str, str]:
    if reason:
        return {"": reason}
    description_reason = NO_SIMILARITY_REASON if is_unknown else "there are no answers to generative queries"
    reasons = dict.fromkeys(("chair", "cover", "hal", "cog", "amber_score"), description_reason)
    has_descriptions = table[:, NUM_DESCRIPTION_COLUMNS - 1].any()
    if has_descriptions and not is_unknown:
        reasons["amber_score"] = "there are no answers to discriminative queries"
    for prefix, parts in METRIC_GROUPS.items():
        if any(table[:, _reply_start(part) + 1].any() for part in parts):
            text = "no reply and no truth is no"
        else:
            text = f"there are no answers to {prefix.rstrip('_') or 'discriminative'} queries"
        reasons |= {f"{prefix}{metric}": text for metric in ("accuracy", "precision", "recall", "f1")}
    return reasons
