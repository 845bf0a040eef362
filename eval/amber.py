"""AMBER: descriptions and yes/no questions on 1,004 pictures, without a judge (Wang et al. 2023).

    mmrlhf eval amber --model runs/sft/model --data AMBER/data --image_folder AMBER/image --out runs/amber
    mmrlhf eval amber --answers answers.json --data AMBER/data --similarity table.json --out runs/amber

--data is a folder with annotations.json, relation.json, safe_words.txt, and query_all.json (also in query/) where a model is asked. Answers are a JSON
list of {"id", "response"}. `official` is inference.py: nouns by NLTK with their case, words alike at a similarity above 0.8, replies that are
exactly Yes or No, 0.001 in every denominator, F1 of rounded figures, `no` the positive class; a part without answers is null. `robust` reads replies
with `mmrlhf.answers.yes_no` and nouns in lower case. Percent; `amber_score` is (100 - chair + f1) / 2, which is in the paper alone.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic.dataclasses import dataclass

from mmrlhf import english
from mmrlhf.answers import yes_no
from mmrlhf.benchmark import Counted, Task, first
from mmrlhf.config import STRICT
from mmrlhf.records import Example, ImageSource, InputError, Message
from mmrlhf.rows import contents

VERSION, LICENSE = "1", "Apache-2.0"
HEADLINE, DIRECTION, CLUSTER = "amber_score", "higher", "image"
ANSWER = ("id", "response")
KNOWN = {
    "db22a436c4836fbb295e60b4e80d519573077579fb7032f01b193c1bd022b797": "AMBER's annotations, 15220",
    "c4c1491e9bbc3209abc1888c12a1bf8413bdbab8a0d8be04b990a2e7680cf23e": "AMBER's relations",
    "f92cf1123f4578a2630832fac3e6ac4de36212ea55859d3bed4fd233723f4043": "AMBER's safe words",
    "127680ae61f7d4a92d2f7f07a8deaec07f0689b194d2c7c0f41ead7bd2c5bcf5": "AMBER's queries",
}
KINDS = {
    "generative": "generative", "discriminative-attribute-state": "state", "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action", "discriminative-hallucination": "existence",
}  # fmt: skip
"""Parts by the annotations' type; any other is a relation."""
GROUPS = {
    "": ("existence", "state", "number", "action", "relation"), "existence_": ("existence",), "attribute_": ("state", "number", "action"),
    "state_": ("state",), "number_": ("number",), "action_": ("action",), "relation_": ("relation",),
}  # fmt: skip
"""Figures of yes/no questions by the beginning of their names, and the parts that each is over."""
ASKED = GROUPS[""]
ALIKE = 0.8
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


# ---- questions -------------------------------------------------------------------------------------------------------


def load(task: Task) -> list[Example]:
    """The annotations in their order, with the queries where they are there."""
    path = task.path / "annotations.json"
    queries = {str(q["id"]): q for q in contents(_queries(task))} if _queries(task).exists() else {}
    relation = _words(task.data or "")[0]
    found = []
    for number, row in enumerate(contents(path)[: task.limit], 1):
        try:
            id_, type_, truth = str(row["id"]), row["type"], row["truth"]
        except (KeyError, TypeError):
            raise InputError(f"{path} row {number}: an annotation needs id, type and truth: give AMBER's file") from None
        part = KINDS.get(type_, "relation")
        query = queries.get(id_, {})
        image = query.get("image", f"AMBER_{id_}.jpg" if part == "generative" else "")
        meta = {
            "part": part,
            "truth": truth,
            "hallu": row.get("hallu", []),
            "image": image or id_,
            "query": query.get("query", ""),
        }
        if part == "generative" and (strange := [w for w in [*truth, *meta["hallu"]] if w not in relation]):
            raise InputError(f"{path} row {number}: {strange[0]} is not in relation.json: give files of one version")
        asked = (
            f"{query['query']}\n{task.options.suffix}"
            if query and task.options.suffix and part != "generative"
            else meta["query"]
        )
        found.append(
            Example(id_, (ImageSource(path=str(task.pictures / image)),), (Message("user", asked),) if asked else (), meta=meta)
        )
    return found


def files(task: Task) -> list[Path]:
    """Annotations, relations, safe words, queries."""
    return [task.path / n for n in ("annotations.json", "relation.json", "safe_words.txt")] + [
        q for q in (_queries(task),) if q.exists()
    ]


def _queries(task: Task) -> Path:
    inside = task.path / "query" / "query_all.json"
    return inside if inside.exists() else task.path / "query_all.json"


@functools.cache
def _words(data: str) -> tuple[dict[str, list[str]], frozenset[str], frozenset[str]]:
    """Words that go with a word; all words that are looked at; those that never count."""
    relation = contents(Path(data) / "relation.json")
    path = Path(data) / "safe_words.txt"
    if not path.is_file():
        raise InputError(f"{path} does not exist: --data must be AMBER's data folder")
    safe = frozenset(line.split("\n")[0] for line in path.read_text(encoding="utf-8").splitlines())
    return relation, frozenset(relation) | {w for words in relation.values() for w in words}, safe


def identify(fields: Mapping[str, Any], task: Task) -> str | None:
    """A row's id, which `sort_out` may have found."""
    return next((str(fields[k]) for k in ("id", "question_id", "index") if fields.get(k) is not None), None)


def sort_out(rows: Sequence[Mapping[str, Any]], task: Task) -> list[Mapping[str, Any]]:
    """Rows without an id (VLMEvalKit's) with that of the question on their picture; where one is asked twice, the k-th row takes the k-th id."""
    ids, seen, found = _asked(_queries(task)), Counter[tuple[str, str]](), []
    for fields in rows:
        picture = Path(str(fields.get("image_path") or fields.get("image") or "")).name
        key = picture, str(fields.get("question") or fields.get("query") or "").split("\n")[0].strip()
        if fields.get("id") is None and key in ids:
            fields = {**fields, "id": ids[key][seen[key] % len(ids[key])]}
            seen[key] += 1
        found.append(fields)
    return found


@functools.cache
def _asked(path: Path) -> dict[tuple[str, str], list[str]]:
    """Ids by picture and query."""
    found: dict[tuple[str, str], list[str]] = {}
    for q in contents(path) if path.exists() else ():
        found.setdefault((q["image"], q["query"]), []).append(str(q["id"]))
    return found


# ---- words that are alike --------------------------------------------------------------------------------------------


@functools.cache
def _alike(table: str | None) -> Callable[[str, str], bool] | None:
    """Whether two words are one thing; None where nothing says so."""
    if table is not None:
        given = contents(Path(table))
        if not isinstance(given, dict) or not all(isinstance(v, int | float) for v in given.values()):
            raise InputError(f'--similarity {table} must be a JSON object of "A|B": number')
        return lambda a, b: a == b or given.get("|".join(sorted((a, b))), 0.3) > ALIKE
    try:
        import spacy

        model = spacy.load("en_core_web_lg")
    except (ImportError, OSError):
        return None
    parsed = functools.cache(model)
    return functools.cache(lambda a, b: bool(parsed(a).similarity(parsed(b)) > ALIKE))


NO_SIMILARITY = "the official script compares words by spaCy's en_core_web_lg, which is not installed: install it, or give --similarity TABLE.json"


# ---- scores ----------------------------------------------------------------------------------------------------------


def score(example: Example, answers: list[str], task: Task) -> dict[str, Any]:
    """Of a reply what it says; of a description the sums that metrics are made of, by the script's way and by ours."""
    if example.meta["part"] != "generative":
        said = yes_no(answers[0], example.meta["query"])
        return {"truth": example.meta["truth"], "said": said, "unparsed": said is None}
    alike = _alike(task.options.similarity)
    official = _described(example, answers[0], task, alike) if alike else None
    robust = _ours(example, answers[0], task, alike or (lambda a, b: a == b))
    return {"official": official, "robust": robust, "right": not robust["false"]}


def _described(example: Example, answer: str, task: Task, alike: Callable[[str, str], bool]) -> dict[str, Any]:
    """inference.py's loop over nouns. A word that goes with several true ones covers the first; associations come before the words themselves."""
    relation, vocabulary, safe = _words(task.data or "")
    kept = [n for n in english.nouns(answer) if n in vocabulary]

    def listed(words: Sequence[str]) -> list[tuple[str, int]]:
        """Words to compare with, each with the number of the annotated word that it stands for."""
        return [(w, i) for i, word in enumerate(words) for w in relation[word]] + [(w, i) for i, w in enumerate(words)]

    truth, hallu = listed(example.meta["truth"]), listed(example.meta["hallu"])
    covered, thought, false = set(), set(), []
    for noun in kept:
        if noun in safe:
            continue
        if (same := next((i for w, i in truth if w == noun), None)) is not None:
            covered.add(same)
            continue
        thought |= {
            i
            for i in (next((i for w, i in hallu if w == noun), None), next((i for w, i in hallu if alike(noun, w)), None))
            if i is not None
        }
        if (near := next((i for w, i in truth if alike(noun, w)), None)) is not None:
            covered.add(near)
        else:
            false.append(noun)
    return {"nouns": len(kept), "false": false, "covered": len(covered), "thought": len(thought)}


def _ours(example: Example, answer: str, task: Task, alike: Callable[[str, str], bool]) -> dict[str, Any]:
    """Nouns in lower case; safe words are not counted at all; a true word is covered by itself before by what goes with it."""
    relation, vocabulary, safe = _words(task.data or "")
    kept = [n for n in english.nouns(answer.lower()) if n in vocabulary and n not in safe]

    def match(noun: str, words: Sequence[str]) -> set[int]:
        same = {i for i, w in enumerate(words) if w == noun}
        return (
            same or {i for i, w in enumerate(words) if noun in relation[w]} or {i for i, w in enumerate(words) if alike(noun, w)}
        )

    truth, hallu = example.meta["truth"], example.meta["hallu"]
    found = [(noun, match(noun, truth)) for noun in kept]
    false = [noun for noun, hits in found if not hits]
    covered: set[int] = set().union(*(hits for _, hits in found))
    thought: set[int] = set().union(*(match(noun, hallu) for noun in false))
    return {"nouns": len(kept), "false": false, "covered": len(covered), "thought": len(thought)}


# ---- metrics ---------------------------------------------------------------------------------------------------------

DESCRIBED = 8  # hallucinated nouns, nouns, covered, true words, thought, words one may think of, clean descriptions, descriptions
REPLIES = 5  # right, questions, right no, said no, is no


def aggregate(rows: list[dict[str, Any]], task: Task) -> dict[str, Counted]:
    """All figures in columns: descriptions, then replies of each part."""
    return {"official": _official(rows, task), "robust": _robust(rows, task)}


def _official(rows: list[dict[str, Any]], task: Task) -> Counted:
    """Every row that the file has, repeated ones too. An id that is not there stops the script."""
    order = list(task.examples.values())
    clusters, columns, why = [], [], ""
    for row in rows:
        example, text = task.examples.get(row["id"]), row["answers"][0]
        if example is None:
            number = int(row["id"]) if row["id"].lstrip("-").isdecimal() else None
            if number is None or not -len(order) < number <= 0:
                why = f"the official script raises {'TypeError' if number is None else 'IndexError'} on id {row['id']}"
                break
            example = order[number - 1]  # Python counts from the end
        if example.meta["part"] == "generative":
            if text is None:
                why = f"the official script raises TypeError on the response of id {row['id']}, which is null"
                break
            alike = _alike(task.options.similarity)
            found = row.get("official") or (_described(example, text, task, alike) if alike else None)
            columns.append(_row(example, None if found is None else found, None, None))
        else:
            columns.append(_row(example, None, {"Yes": "yes", "No": "no"}.get(str(text)), example.meta["truth"]))
        clusters.append(example.meta["image"])
    return _counted(task, clusters, columns, EPSILON, why)


def _robust(rows: list[dict[str, Any]], task: Task) -> Counted:
    rows = first(rows)
    columns = [_row(task.examples[r["id"]], r.get("robust"), r.get("said"), r.get("truth")) for r in rows]
    return _counted(task, [task.examples[r["id"]].meta["image"] for r in rows], columns, 0.0, "")


def _row(example: Example, described: Mapping[str, Any] | None, said: str | None, truth: str | None) -> np.ndarray:
    row = np.zeros(DESCRIBED + REPLIES * len(ASKED))
    if example.meta["part"] == "generative":
        if described is None:
            row[:DESCRIBED] = np.nan  # what cannot be told: it makes every sum that it enters unknown
        else:
            truths, hallus = len(example.meta["truth"]), len(example.meta["hallu"])
            row[:DESCRIBED] = [len(described["false"]), described["nouns"], described["covered"], truths, described["thought"], hallus,
                               not described["false"], 1]  # fmt: skip
    else:
        at = DESCRIBED + REPLIES * ASKED.index(example.meta["part"])
        row[at : at + REPLIES] = [said == truth, 1, said == "no" == truth, said == "no", truth == "no"]
    return row


def _counted(task: Task, clusters: list[str], columns: list[np.ndarray], epsilon: float, why: str) -> Counted:
    table = np.array(columns).reshape(len(columns), DESCRIBED + REPLIES * len(ASKED))
    unknown = bool(np.isnan(table).any())
    table = np.nan_to_num(table)
    exact = epsilon == 0

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        false, said, covered, truths, thought, hallus, clean, n = np.moveaxis(sums[..., :DESCRIBED], -1, 0)
        there = np.where(n > 0, np.nan if unknown else 100.0, np.nan)
        found = {
            "chair": false / (said + epsilon) * there, "cover": covered / (truths + epsilon) * there,
            "hal": there - clean / (n + epsilon) * there, "cog": thought / (hallus + epsilon) * there,
        }  # fmt: skip
        for name, parts in GROUPS.items():
            at = [DESCRIBED + REPLIES * ASKED.index(part) for part in parts]
            right, asked, right_no, said_no, is_no = (sum(sums[..., i + k] for i in at) for k in range(REPLIES))
            start = epsilon * (3 if name == "attribute_" else 1)  # the script adds up three denominators
            there = np.where(asked > 0, 100.0, np.nan)
            precision, recall = right_no / (said_no + start) * there, right_no / (is_no + start) * there
            found |= {
                f"{name}accuracy": right / (asked + start) * there, f"{name}precision": precision, f"{name}recall": recall,
                f"{name}f1": 2 * right_no / (said_no + is_no) * there if exact else _rounded_f1(precision, recall, 0.001 if name == "existence_" else 0.0001),
            }  # fmt: skip
        found = {k: found[k] for k in sorted(found, key=lambda k: "_" in k)} | {
            "amber_score": (100 - found["chair"] + found["f1"]) / 2
        }
        return {k: np.where(np.isnan(v), np.nan, v) * (np.nan if why else 1) for k, v in found.items()}

    return Counted(clusters, table, metrics, _reasons(task, table, why, unknown))


@np.vectorize
def _one_digit(value: float) -> float:
    """As Python rounds, which is not as NumPy does."""
    return round(float(value), 1)


def _rounded_f1(precision: np.ndarray, recall: np.ndarray, epsilon: float) -> np.ndarray:
    """The script's F1, of figures already rounded."""
    p, r = _one_digit(precision) / 100, _one_digit(recall) / 100
    return 2 * p * r / (p + r + epsilon) * 100


def _reasons(task: Task, table: np.ndarray, why: str, unknown: bool) -> dict[str, str]:
    if why:
        return {"": why}
    described = NO_SIMILARITY if unknown else "there are no answers to generative queries"
    reasons = {name: described for name in ("chair", "cover", "hal", "cog")}
    reasons["amber_score"] = (
        described if unknown or not table[:, DESCRIBED - 1].any() else "there are no answers to discriminative queries"
    )
    for name, parts in GROUPS.items():
        empty = not any(table[:, DESCRIBED + REPLIES * ASKED.index(p) + 1].any() for p in parts)
        text = (
            f"there are no answers to {name.rstrip('_') or 'discriminative'} queries" if empty else "no reply and no truth is no"
        )
        reasons |= {f"{name}{m}": text for m in ("accuracy", "precision", "recall", "f1")}
    return reasons
