"""Object HalBench: how many of the objects that a detailed description names are not in the picture (Yu et al. 2024, RLHF-V).

    mmrlhf eval object_halbench --model runs/sft/model --data halbench --image_folder val2014 --judge http://127.0.0.1:8000/v1 --out runs/halbench
    mmrlhf eval object_halbench --answers answers.jsonl --data coco/annotations --extract words --out runs/halbench

--data is COCO's annotation folder or a JSON map of image id to the objects that are in it, as for CHAIR; with a file of prompts (--prompts: `image_id` or
`image`, `question`) only their pictures are asked about. --extract judge: a judge lists the objects of each description of more than three words, in
JSON. --extract words: they are found in the text, which the authors' script does without --use_gpt. In percent: `response_rate`, descriptions with an
object that is not there, of those that name any of COCO's; `mention_rate`, such mentions of all, each word once where a judge lists them; `recall`,
`chair_s` of all descriptions; `length` in words. `official` with a judge needs spaCy's en_core_web_trf to take its words apart; where that is not
installed it is null. `robust` takes them apart as English has plurals. --judge rules lists the words that are found in the text.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from mmrlhf import coco_words, english
from mmrlhf.answers import plain
from mmrlhf.benchmark import TWICE, Ask, Counted, Task, fill, first, load_benchmark, template, twice
from mmrlhf.config import STRICT
from mmrlhf.records import Example, Message
from mmrlhf.rows import Row, objects

VERSION, LICENSE = "1", "CC-BY-NC-4.0 (prompts), CC-BY-4.0 (COCO's annotations)"
HEADLINE, DIRECTION, CLUSTER = "response_rate", "lower", "image"
ANSWER = ("image_id", "answer", "caption")
COMPLETE = False  # the 300 pictures are the user's file
MORE = {"brother": "person", "pedestrian": "person", "coffee table": "dining table", "remote control": "remote"}
FOUND_HERE = ("motor bike", "cheesecake")
"""Words that RLHF-V's list has beside CHAIR's, and those that it has cleared of a leading blank."""
SHORT = 3
"""Words up to which a description is not worth a judge."""
TEMPLATE = """Someone described a picture. List every visible object that the description names: things only, without colour, material or other properties, and
nothing that it does not name. Reply with a JSON list of strings on one line, such as ["dog", "wine glass"], or [] if there are none.

They were asked: {question}
They said: {answer}"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """How objects are found, and what is asked."""

    extract: Literal["judge", "words"] = "judge"
    """Who lists the objects of a description: a judge, or the words of the text."""
    prompts: str | None = None
    """File of prompts, JSON lines with `image_id` or `image`, and `question`; each picture of --data, with one prompt, if not given."""
    judge_prompt: str | None = None
    """File with another template for the judge: {question}, {answer}."""


def load(task: Task) -> list[Example]:
    """A picture an example, with its objects and captions."""
    chair = load_benchmark("chair")
    pictures = {e.id: e for e in chair.load(Task(task.data, task.image_folder, options=chair.Options()))}
    if task.options.prompts is None:
        return list(pictures.values())[: task.limit]
    found = []
    for row in objects(Path(task.options.prompts))[: task.limit]:
        id_ = chair.identify(row.fields, task) if not {"image_id", "image"}.isdisjoint(row.fields) else None
        if id_ not in pictures:
            row.fail(f"picture {id_} is not in --data: give the annotations that it belongs to")
        at = pictures[id_]
        question = str(row.need(row.either("question", "prompt")))
        found.append(Example(at.id, at.images, (Message("user", question),), meta=at.meta))
    return found


def files(task: Task) -> list[Path]:
    """The annotations, and the prompts."""
    more = [Path(task.options.prompts)] if task.options.prompts else []
    return [*load_benchmark("chair").files(task), *more]


def identify(fields: Mapping[str, Any], task: Task) -> str | None:
    """The image id of a row: a number, or what a file's name ends in."""
    found: str | None = load_benchmark("chair").identify(fields, task)
    return found


# ---- words -----------------------------------------------------------------------------------------------------------


@functools.cache
def _nodes() -> dict[str, str]:
    return {**coco_words.node_of(), **MORE}


@functools.cache
def _pairs() -> dict[str, str]:
    doubles = [word for word in _nodes() if word.count(" ") == 1]
    return {**{word: word for word in doubles}, **coco_words.pairs(), "dining table": "dining table"}


def _mentions(words: Sequence[str]) -> list[tuple[str, str]]:
    """Words that name an object, with it; pairs are one word, and a seat by a toilet is none."""
    if "toilet" in words and "seat" in words:
        words = [w for w in words if w != "seat"]
    never = coco_words.NEVER.difference(FOUND_HERE)
    return [(w, _nodes()[w]) for w in words if w in _nodes() and w not in never]


def _joined(words: Sequence[str], alone: bool) -> list[str]:
    """Pairs that are one word, and, unless `alone`, the words between."""
    found, i = [], 0
    while i < len(words):
        pair = _pairs().get(" ".join(words[i : i + 2]))
        found += [pair] if pair is not None else [] if alone else [words[i]]
        i += 2 if pair is not None else 1
    return found


@functools.lru_cache(maxsize=1 << 16)
def in_text(text: str) -> list[tuple[str, str]]:
    """Mentions in a text as the script finds them without its judge, and in COCO's captions always: every token as a noun's singular."""
    return _mentions(_joined(english.noun_lemmas(text.lower()), alone=False))


@functools.cache
def _spacy() -> Any:
    """The pipeline that the script takes phrases apart with, or None."""
    try:
        import spacy

        return spacy.load("en_core_web_trf")
    except (ImportError, OSError):
        return None


def phrase_by_spacy(phrase: str) -> list[str]:
    """The words of one listed object: pairs alone if there are any, else its runs of nouns."""
    parsed = _spacy()(f"a {phrase}")
    if doubles := _joined([token.lemma_ for token in parsed], alone=True):
        return doubles
    runs, run = [], []
    for token in [*parsed, None]:
        if token is not None and token.tag_ in ("NNP", "NNPS", "NN", "NNS"):
            run.append(token.lemma_)
        elif run:
            runs.append(" ".join(run))
            run = []
    return runs


def listed(reply: str) -> list[str] | None:
    """The JSON list in a judge's reply: in a fenced block, or the last line that is one; None if there is none."""
    fenced = re.search(r"```(?:json)?\n(.*?)\n```", reply, re.DOTALL)
    for text in [*([fenced[1]] if fenced else []), *reversed(plain(reply).split("\n"))]:
        start, end = text.find("["), text.rfind("]")
        try:
            found = json.loads(text[start : end + 1])
        except ValueError:
            continue
        if isinstance(found, list) and all(isinstance(word, str) for word in found):
            return found
    return None


# ---- the judge -------------------------------------------------------------------------------------------------------


def ask(said: Mapping[str, list[str]], task: Task) -> Iterable[Ask]:
    """The objects of each description that is longer than three words."""
    if task.options.extract == "words":
        return
    text = template(task.options.judge_prompt, TEMPLATE)
    for id_, answers in said.items():
        if len(answers[0].split()) > SHORT:
            yield Ask(id_, fill(text, question=task.examples[id_].prompt[-1].content, answer=answers[0]), text)


def rule(key: str, said: Mapping[str, list[str]], task: Task) -> str:
    """A judge without a model: the words that are found in the text."""
    return json.dumps(list(dict.fromkeys(word for word, _ in coco_words.read(said[key][0]))))


def recorded(rows: Iterable[Row], said: Mapping[str, list[str]], task: Task) -> dict[str, str]:
    """Lists that the authors' script has kept: `image_id` and `extract_objs`."""
    return {str(identify(row.fields, task)): json.dumps(row.need("extract_objs")) for row in rows}


# ---- scores ----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1 << 16)
def _in_captions(captions: tuple[str, ...]) -> frozenset[str]:
    return frozenset(node for caption in captions for _, node in in_text(caption))


def _judged(said: list[tuple[str, str]], example: Example, text: str) -> dict[str, Any]:
    there = set(example.meta["objects"]) | (_in_captions(example.meta["captions"]) if example.meta["captions"] else frozenset())
    false = [pair for pair in said if pair[1] not in there]
    return {
        "said": len(said),
        "false": false,
        "hit": sorted({node for _, node in said} & there),
        "there": len(there),
        "length": len(text.strip().split(" ")),
    }


def score(example: Example, answers: list[str], task: Task) -> dict[str, Any]:
    """What the first answer names, by both readings; None where its objects were not listed."""
    text = answers[0]
    if task.options.extract == "words":
        robust = coco_words.read(text)
        return {"official": _judged(in_text(text), example, text), "robust": _judged(robust, example, text), "judged": True}
    reply = "[]" if len(text.split()) <= SHORT else task.replies.get(example.id, {}).get("text")
    names = None if reply is None else listed(reply)
    row: dict[str, Any] = {
        "judged": reply is not None,
        "unparsed": reply is not None and names is None,
        "official": None,
        "robust": None,
    }
    if names is not None:
        ours = dict.fromkeys(pair for name in names for pair in coco_words.read(name))
        row["robust"] = _judged(list(ours), example, text)
        if _spacy() is not None:
            theirs = dict.fromkeys(word for name in names for word in phrase_by_spacy(name))
            row["official"] = _judged(_mentions(list(theirs)), example, text)
    return row


def aggregate(rows: list[dict[str, Any]], task: Task) -> dict[str, Counted]:
    """Rates over all descriptions."""
    mine = [r for r in rows if r["status"] in ("ok", "duplicate")]
    lost = sum(r["official"] is None for r in mine)
    why = ""
    if task.options.extract == "judge" and twice(rows):
        why = TWICE
    elif any(r["robust"] is None for r in mine):
        why = f"the objects of {sum(r['robust'] is None for r in mine)} descriptions were not listed: ask a judge, or add --judgments"
    elif lost:
        why = "the official script takes phrases apart with spaCy's en_core_web_trf, which is not installed"
    official = [] if why else mine
    robust = [r for r in first(rows) if r["robust"] is not None]
    return {"official": _counted(official, "official", why), "robust": _counted(robust, "robust", "no description was judged")}


def _counted(rows: list[dict[str, Any]], mode: str, why: str) -> Counted:
    columns = np.array(
        [
            [bool(j["false"]), 1, j["said"] > 0, len(j["false"]), j["said"], len(j["hit"]), j["there"], j["length"]]
            for j in (r[mode] for r in rows)
        ],
        float,
    ).reshape(-1, 8)

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        wrong, n, naming, false, said, hit, there, length = np.moveaxis(sums, -1, 0)
        return {
            "response_rate": wrong / naming * 100, "mention_rate": false / said * 100, "recall": hit / there * 100,
            "chair_s": wrong / n * 100, "length": length / n,
        }  # fmt: skip

    reason = why or "no description names an object, or the pictures hold none: the official script raises ZeroDivisionError"
    return Counted([r["id"] for r in rows], columns, metrics, {"": reason})
