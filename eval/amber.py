"""AMBER: descriptions and yes/no questions on 1,004 pictures, without a judge (Wang et al. 2023).

    mmrlhf eval amber --model runs/sft/model --data AMBER/data --image_folder AMBER/image --out runs/amber
    mmrlhf eval amber --answers answers.json --data AMBER/data --similarity table.json --out runs/amber

--data is a folder with annotations.json, relation.json, safe_words.txt, and query_all.json (also in query/) where a model is asked. Answers are a JSON
list of {"id", "response"}. `official` is inference.py: nouns by NLTK with their case, words alike at a similarity above 0.8, replies that are
exactly Yes or No, 0.001 in every denominator, F1 of rounded figures, `no` the positive class; a part without answers is null. `robust` reads replies
with `mmrlhf.text.answer_parsing.yes_no` and nouns in lower case. Percent; `amber_score` is (100 - chair + f1) / 2, which is in the paper alone.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic.dataclasses import dataclass

from mmrlhf.config import STRICT
from mmrlhf.evaluation.benchmark import Benchmark, Task, first_valid
from mmrlhf.files.rows import read_json
from mmrlhf.metrics.intervals import SufficientStats
from mmrlhf.records import Example, ImageSource, InputError, Message
from mmrlhf.text import lemmatize
from mmrlhf.text.answer_parsing import parse_yes_no

KNOWN_VERSIONS = {
    "db22a436c4836fbb295e60b4e80d519573077579fb7032f01b193c1bd022b797": "AMBER's annotations, 15220",
    "c4c1491e9bbc3209abc1888c12a1bf8413bdbab8a0d8be04b990a2e7680cf23e": "AMBER's relations",
    "f92cf1123f4578a2630832fac3e6ac4de36212ea55859d3bed4fd233723f4043": "AMBER's safe words",
    "127680ae61f7d4a92d2f7f07a8deaec07f0689b194d2c7c0f41ead7bd2c5bcf5": "AMBER's queries",
}

PART_OF_TYPE = {
    "generative": "generative", "discriminative-attribute-state": "state", "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action", "discriminative-hallucination": "existence",
}  # fmt: skip

"""Parts by the annotations' type; any other is a relation."""

METRIC_GROUPS = {
    "": ("existence", "state", "number", "action", "relation"), "existence_": ("existence",), "attribute_": ("state", "number", "action"),
    "state_": ("state",), "number_": ("number",), "action_": ("action",), "relation_": ("relation",),
}  # fmt: skip

"""Figures of yes/no questions by the beginning of their names, and the parts that each is over."""

YES_NO_PARTS = METRIC_GROUPS[""]

SIMILARITY_THRESHOLD = 0.8

"""Words whose similarity is greater are one thing."""

EPSILON = 0.001

"""With which each of the script's denominators begins."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """Which words are alike, and how questions are asked."""

    similarity: str | None = None
    """JSON file of word similarities, "A|B" in alphabetical order to a number; pairs that it lacks are 0.3. Without it, spaCy's en_core_web_lg."""
    suffix: str | None = "Answer the question using a single word or phrase."
    """A line after each yes/no question; `none` asks it as it stands."""


class Amber(Benchmark):
    """TODO."""

    version = "1"
    license = "Apache-2.0"
    headline = "amber_score"
    direction = "higher"
    cluster = "image"
    answer_fields = ("id", "response")
    known_versions = KNOWN_VERSIONS
    options_type = Options

    def load(self, task: Task) -> list[Example]:
        """The annotations in their order, with the queries where they are there."""
        path = task.path / "annotations.json"
        queries = {str(q["id"]): q for q in read_json(_queries_path(task))} if _queries_path(task).exists() else {}
        relation = _load_vocabulary(task.data or "")[0]
        examples = []
        for number, row in enumerate(read_json(path)[: task.limit], 1):
            try:
                id_, type_, truth = str(row["id"]), row["type"], row["truth"]
            except (KeyError, TypeError):
                raise InputError(f"{path} row {number}: an annotation needs id, type and truth: give AMBER's file") from None
            part = PART_OF_TYPE.get(type_, "relation")
            query = queries.get(id_, {})
            image = query.get("image", f"AMBER_{id_}.jpg" if part == "generative" else "")
            meta = {
                "part": part,
                "truth": truth,
                "hallu": row.get("hallu", []),
                "image": image or id_,
                "query": query.get("query", ""),
            }
            if part == "generative" and (unknown_words := [w for w in [*truth, *meta["hallu"]] if w not in relation]):
                raise InputError(f"{path} row {number}: {unknown_words[0]} is not in relation.json: give files of one version")
            question = (
                f"{query['query']}\n{task.options.suffix}"
                if query and task.options.suffix and part != "generative"
                else meta["query"]
            )
            examples.append(
                Example(
                    id_,
                    (ImageSource(path=str(task.image_root / image)),),
                    (Message("user", question),) if question else (),
                    meta=meta,
                )
            )
        return examples

    def files(self, task: Task) -> list[Path]:
        """Annotations, relations, safe words, queries."""
        return [task.path / n for n in ("annotations.json", "relation.json", "safe_words.txt")] + [
            q for q in (_queries_path(task),) if q.exists()
        ]

    def match_rows(self, rows: Sequence[Mapping[str, Any]], task: Task) -> list[Mapping[str, Any]]:
        """Rows without an id (VLMEvalKit's) with that of the question on their picture; where one is asked twice, the k-th row takes the k-th id."""
        ids, num_seen, matched = _ids_by_query(_queries_path(task)), Counter[tuple[str, str]](), []
        for fields in rows:
            image = Path(str(fields.get("image_path") or fields.get("image") or "")).name
            key = image, str(fields.get("question") or fields.get("query") or "").split("\n")[0].strip()
            if fields.get("id") is None and key in ids:
                fields = {**fields, "id": ids[key][num_seen[key] % len(ids[key])]}
                num_seen[key] += 1
            matched.append(fields)
        return matched

    def match_id(self, fields: Mapping[str, Any], task: Task) -> str | None:
        """A row's id, which `match_rows` may have found."""
        return next((str(fields[k]) for k in ("id", "question_id", "index") if fields.get(k) is not None), None)

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """Of a reply what it says; of a description the sums that metrics are made of, by the script's way and by ours."""
        if example.meta["part"] != "generative":
            parsed = parse_yes_no(answers[0], example.meta["query"])
            return {"truth": example.meta["truth"], "said": parsed, "unparsed": parsed is None}
        is_similar = _similarity_test(task.options.similarity)
        official = _match_official(example, answers[0], task, is_similar) if is_similar else None
        robust = _match_robust(example, answers[0], task, is_similar or (lambda a, b: a == b))
        return {"official": official, "robust": robust, "right": not robust["false"]}

    def aggregate(self, rows: list[dict[str, Any]], task: Task) -> dict[str, SufficientStats]:
        """All figures in columns: descriptions, then replies of each part."""
        return {"official": _official_stats(rows, task), "robust": _robust_stats(rows, task)}


def _queries_path(task: Task) -> Path:
    nested_path = task.path / "query" / "query_all.json"
    return nested_path if nested_path.exists() else task.path / "query_all.json"


@functools.cache
def _load_vocabulary(data: str) -> tuple[dict[str, list[str]], frozenset[str], frozenset[str]]:
    """Words that go with a word; all words that are looked at; those that never count."""
    relation = read_json(Path(data) / "relation.json")
    path = Path(data) / "safe_words.txt"
    if not path.is_file():
        raise InputError(f"{path} does not exist: --data must be AMBER's data folder")
    safe = frozenset(line.split("\n")[0] for line in path.read_text(encoding="utf-8").splitlines())
    return relation, frozenset(relation) | {w for words in relation.values() for w in words}, safe


@functools.cache
def _ids_by_query(path: Path) -> dict[tuple[str, str], list[str]]:
    """Ids by picture and query."""
    ids: dict[tuple[str, str], list[str]] = {}
    for q in read_json(path) if path.exists() else ():
        ids.setdefault((q["image"], q["query"]), []).append(str(q["id"]))
    return ids


# ---- words that are alike --------------------------------------------------------------------------------------------


@functools.cache
def _similarity_test(table_path: str | None) -> Callable[[str, str], bool] | None:
    """Whether two words are one thing; None where nothing says so."""
    if table_path is not None:
        similarities = read_json(Path(table_path))
        if not isinstance(similarities, dict) or not all(isinstance(v, int | float) for v in similarities.values()):
            raise InputError(f'--similarity {table_path} must be a JSON object of "A|B": number')
        return lambda a, b: a == b or similarities.get("|".join(sorted((a, b))), 0.3) > SIMILARITY_THRESHOLD
    try:
        import spacy

        model = spacy.load("en_core_web_lg")
    except (ImportError, OSError):
        return None
    parse = functools.cache(model)
    return functools.cache(lambda a, b: bool(parse(a).similarity(parse(b)) > SIMILARITY_THRESHOLD))


NO_SIMILARITY = "the official script compares words by spaCy's en_core_web_lg, which is not installed: install it, or give --similarity TABLE.json"


def _match_official(example: Example, answer: str, task: Task, is_similar: Callable[[str, str], bool]) -> dict[str, Any]:
    """inference.py's loop over nouns. A word that goes with several true ones covers the first; associations come before the words themselves."""
    relation, vocabulary, safe_words = _load_vocabulary(task.data or "")
    nouns = [n for n in lemmatize.nouns(answer) if n in vocabulary]

    def related_words(words: Sequence[str]) -> list[tuple[str, int]]:
        """Words to compare with, each with the number of the annotated word that it stands for."""
        return [(w, i) for i, word in enumerate(words) for w in relation[word]] + [(w, i) for i, w in enumerate(words)]

    truth, hallucinations = related_words(example.meta["truth"]), related_words(example.meta["hallu"])
    covered, cognition_hits, false_nouns = set(), set(), []
    for noun in nouns:
        if noun in safe_words:
            continue
        if (exact := next((i for w, i in truth if w == noun), None)) is not None:
            covered.add(exact)
            continue
        cognition_hits |= {
            i
            for i in (
                next((i for w, i in hallucinations if w == noun), None),
                next((i for w, i in hallucinations if is_similar(noun, w)), None),
            )
            if i is not None
        }
        if (similar := next((i for w, i in truth if is_similar(noun, w)), None)) is not None:
            covered.add(similar)
        else:
            false_nouns.append(noun)
    return {"nouns": len(nouns), "false": false_nouns, "covered": len(covered), "thought": len(cognition_hits)}


def _match_robust(example: Example, answer: str, task: Task, is_similar: Callable[[str, str], bool]) -> dict[str, Any]:
    """Nouns in lower case; safe words are not counted at all; a true word is covered by itself before by what goes with it."""
    relation, vocabulary, safe_words = _load_vocabulary(task.data or "")
    nouns = [n for n in lemmatize.nouns(answer.lower()) if n in vocabulary and n not in safe_words]

    def matches(noun: str, words: Sequence[str]) -> set[int]:
        exact = {i for i, w in enumerate(words) if w == noun}
        return (
            exact
            or {i for i, w in enumerate(words) if noun in relation[w]}
            or {i for i, w in enumerate(words) if is_similar(noun, w)}
        )

    truth, hallucinations = example.meta["truth"], example.meta["hallu"]
    matched = [(noun, matches(noun, truth)) for noun in nouns]
    false_nouns = [noun for noun, hits in matched if not hits]
    covered: set[int] = set().union(*(hits for _, hits in matched))
    cognition_hits: set[int] = set().union(*(matches(noun, hallucinations) for noun in false_nouns))
    return {"nouns": len(nouns), "false": false_nouns, "covered": len(covered), "thought": len(cognition_hits)}


# ---- metrics ---------------------------------------------------------------------------------------------------------

NUM_DESCRIPTION_COLUMNS = (
    8  # hallucinated nouns, nouns, covered, true words, thought, words one may think of, clean descriptions, descriptions
)

NUM_REPLY_COLUMNS = 5  # right, questions, right no, said no, is no


def _official_stats(rows: list[dict[str, Any]], task: Task) -> SufficientStats:
    """Every row that the file has, repeated ones too. An id that is not there stops the script."""
    examples = list(task.examples.values())
    clusters, columns, reason = [], [], ""
    for row in rows:
        example, text = task.examples.get(row["id"]), row["answers"][0]
        if example is None:
            index = int(row["id"]) if row["id"].lstrip("-").isdecimal() else None
            if index is None or not -len(examples) < index <= 0:
                reason = f"the official script raises {'TypeError' if index is None else 'IndexError'} on id {row['id']}"
                break
            example = examples[index - 1]  # Python counts from the end
        if example.meta["part"] == "generative":
            if text is None:
                reason = f"the official script raises TypeError on the response of id {row['id']}, which is null"
                break
            is_similar = _similarity_test(task.options.similarity)
            description = row.get("official") or (_match_official(example, text, task, is_similar) if is_similar else None)
            columns.append(_row_columns(example, None if description is None else description, None, None))
        else:
            columns.append(_row_columns(example, None, {"Yes": "yes", "No": "no"}.get(str(text)), example.meta["truth"]))
        clusters.append(example.meta["image"])
    return _sufficient_stats(task, clusters, columns, EPSILON, reason)


def _robust_stats(rows: list[dict[str, Any]], task: Task) -> SufficientStats:
    rows = first_valid(rows)
    columns = [_row_columns(task.examples[r["id"]], r.get("robust"), r.get("said"), r.get("truth")) for r in rows]
    return _sufficient_stats(task, [task.examples[r["id"]].meta["image"] for r in rows], columns, 0.0, "")


def _row_columns(example: Example, description: Mapping[str, Any] | None, reply: str | None, truth: str | None) -> np.ndarray:
    columns = np.zeros(NUM_DESCRIPTION_COLUMNS + NUM_REPLY_COLUMNS * len(YES_NO_PARTS))
    if example.meta["part"] == "generative":
        if description is None:
            columns[:NUM_DESCRIPTION_COLUMNS] = np.nan  # what cannot be told: it makes every sum that it enters unknown
        else:
            num_truths, num_hallucinations = len(example.meta["truth"]), len(example.meta["hallu"])
            columns[:NUM_DESCRIPTION_COLUMNS] = [len(description["false"]), description["nouns"], description["covered"], num_truths, description["thought"], num_hallucinations,
                               not description["false"], 1]  # fmt: skip
    else:
        start = NUM_DESCRIPTION_COLUMNS + NUM_REPLY_COLUMNS * YES_NO_PARTS.index(example.meta["part"])
        columns[start : start + NUM_REPLY_COLUMNS] = [reply == truth, 1, reply == "no" == truth, reply == "no", truth == "no"]
    return columns


def _sufficient_stats(task: Task, clusters: list[str], columns: list[np.ndarray], epsilon: float, reason: str) -> SufficientStats:
    table = np.array(columns).reshape(len(columns), NUM_DESCRIPTION_COLUMNS + NUM_REPLY_COLUMNS * len(YES_NO_PARTS))
    is_undefined = bool(np.isnan(table).any())
    table = np.nan_to_num(table)
    exact = epsilon == 0

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        num_false, num_nouns, covered, num_truths, cognition_hits, num_hallucinations, clean, n = np.moveaxis(
            sums[..., :NUM_DESCRIPTION_COLUMNS], -1, 0
        )
        scale = np.where(n > 0, np.nan if is_undefined else 100.0, np.nan)
        values = {
            "chair": num_false / (num_nouns + epsilon) * scale, "cover": covered / (num_truths + epsilon) * scale,
            "hal": scale - clean / (n + epsilon) * scale, "cog": cognition_hits / (num_hallucinations + epsilon) * scale,
        }  # fmt: skip
        for name, parts in METRIC_GROUPS.items():
            starts = [NUM_DESCRIPTION_COLUMNS + NUM_REPLY_COLUMNS * YES_NO_PARTS.index(part) for part in parts]
            right, num_questions, right_no, said_no, true_no = (
                sum(sums[..., i + k] for i in starts) for k in range(NUM_REPLY_COLUMNS)
            )
            denominator_start = epsilon * (3 if name == "attribute_" else 1)  # the script adds up three denominators
            scale = np.where(num_questions > 0, 100.0, np.nan)
            precision, recall = right_no / (said_no + denominator_start) * scale, right_no / (true_no + denominator_start) * scale
            values |= {
                f"{name}accuracy": right / (num_questions + denominator_start) * scale, f"{name}precision": precision, f"{name}recall": recall,
                f"{name}f1": 2 * right_no / (said_no + true_no) * scale if exact else _rounded_f1(precision, recall, 0.001 if name == "existence_" else 0.0001),
            }  # fmt: skip
        values = {k: values[k] for k in sorted(values, key=lambda k: "_" in k)} | {
            "amber_score": (100 - values["chair"] + values["f1"]) / 2
        }
        return {k: np.where(np.isnan(v), np.nan, v) * (np.nan if reason else 1) for k, v in values.items()}

    return SufficientStats(clusters, table, metrics, _undefined_reasons(task, table, reason, is_undefined))


@np.vectorize
def _round_to_tenth(value: float) -> float:
    """As Python rounds, which is not as NumPy does."""
    return round(float(value), 1)


def _rounded_f1(precision: np.ndarray, recall: np.ndarray, epsilon: float) -> np.ndarray:
    """The script's F1, of figures already rounded."""
    p, r = _round_to_tenth(precision) / 100, _round_to_tenth(recall) / 100
    return 2 * p * r / (p + r + epsilon) * 100


def _undefined_reasons(task: Task, table: np.ndarray, reason: str, is_undefined: bool) -> dict[str, str]:
    if reason:
        return {"": reason}
    description_reason = NO_SIMILARITY if is_undefined else "there are no answers to generative queries"
    reasons = {name: description_reason for name in ("chair", "cover", "hal", "cog")}
    reasons["amber_score"] = (
        description_reason
        if is_undefined or not table[:, NUM_DESCRIPTION_COLUMNS - 1].any()
        else "there are no answers to discriminative queries"
    )
    for name, parts in METRIC_GROUPS.items():
        is_empty = not any(table[:, NUM_DESCRIPTION_COLUMNS + NUM_REPLY_COLUMNS * YES_NO_PARTS.index(p) + 1].any() for p in parts)
        text = (
            f"there are no answers to {name.rstrip('_') or 'discriminative'} queries"
            if is_empty
            else "no reply and no truth is no"
        )
        reasons |= {f"{name}{m}": text for m in ("accuracy", "precision", "recall", "f1")}
    return reasons
