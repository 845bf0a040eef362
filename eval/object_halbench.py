"""Object HalBench: how often detailed descriptions name objects that the image lacks (Yu et al.
2024, RLHF-V).

    mmrlhf eval object_halbench --model runs/sft/model --data halbench --image_folder val2014
        --judge http://127.0.0.1:8000/v1 --out runs/halbench
    mmrlhf eval object_halbench --answers answers.jsonl --data coco/annotations --extract words
        --out runs/halbench

--data is COCO's annotation folder or a JSON map of image id to the objects in the image, as for
CHAIR. With a file of prompts (--prompts: `image_id` or `image`, `question`) only its images are
used.

--extract judge: a judge lists the objects of each description of more than three words, in JSON.
--extract words: objects are found in the text, as by the authors' script without --use_gpt. --judge
rules: the judge's list is the words that are found in the text. With a judge, `official` needs
spaCy's en_core_web_trf to split the listed phrases into words, and is null if that is not
installed; `robust` finds the objects in the phrases itself.

In percent: `response_rate`, descriptions with an absent object among those that name any of COCO's
objects; `mention_rate`, mentions of absent objects among all mentions (each word counts once if a
judge lists them); `recall`; `chair_s`, descriptions with an absent object among all. `length` is in
words.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
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
    answered,
    first_valid,
    has_duplicates,
    load_benchmark,
    parse_options,
)
from mmrlhf.evaluation.judge_prompts import fill_template, load_template
from mmrlhf.files.rows import Row, read_json_objects
from mmrlhf.metrics.intervals import Proportion, SufficientStats
from mmrlhf.records import Example, Message
from mmrlhf.text import coco_objects, lemmatize
from mmrlhf.text.answer_parsing import normalise
from mmrlhf.text.judge_parsing import parse_json_list

Mention = tuple[str, str]
"""A word and the object that it names."""
EXTRA_WORDS = {"brother": "person", "pedestrian": "person", "coffee table": "dining table", "remote control": "remote"}
"""Words that RLHF-V's list has in addition to CHAIR's, and their objects."""
UNBLOCKED_WORDS = ("motor bike", "cheesecake")
"""Words that CHAIR's list cannot match because of a leading blank, which RLHF-V's list lacks."""
MAX_UNJUDGED_WORDS = 3
"""Descriptions of at most this length are not judged, and count as naming no object."""
TEMPLATE = """Someone described a picture. List every visible object that the description names: things only, without colour, material or other properties, and
nothing that it does not name. Reply with a JSON list of strings on one line, such as ["dog", "wine glass"], or [] if there are none.

They were asked: {question}
They said: {answer}"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """How objects are found, and what is asked."""

    extract: Literal["judge", "words"] = "judge"
    """What lists the objects of a description: a judge, or the words of the text."""
    prompts: str | None = None
    """File of prompts, JSON lines with `image_id` or `image`, and `question`.

    Default: every image of --data, with one prompt.
    """
    judge_prompt: str | None = None
    """File with another prompt template for the judge: {question}, {answer}."""


class ObjectHalBench(Benchmark):
    """Object HalBench, on the images and objects of CHAIR."""

    version = "2"
    license = "CC-BY-NC-4.0 (prompts), CC-BY-4.0 (COCO's annotations)"
    headline = "response_rate"
    direction = "lower"
    cluster = "image"
    answer_fields = ("image_id", "answer", "caption")
    requires_all_answers = False  # the 300 images are a file of the user's
    options_type = Options

    def load(self, task: Task) -> list[Example]:
        """Return an example for each image, with its objects and captions."""
        chair_task = Task(task.data, task.image_folder, options=parse_options(_chair(), {}))
        examples_by_id = {example.id: example for example in _chair().load(chair_task)}
        if task.options.prompts is None:
            return list(examples_by_id.values())[: task.limit]
        examples = []
        loaded = replace(task, examples=examples_by_id)
        for row in read_json_objects(Path(task.options.prompts))[: task.limit]:
            has_image = not {"image_id", "image"}.isdisjoint(row.fields)
            id_ = _chair().match_id(row.fields, loaded) if has_image else None
            if id_ not in examples_by_id:
                row.fail(f"image {id_} is not in --data: give the annotations that it belongs to")
            source = examples_by_id[id_]
            question = str(row.require(row.require_any("question", "prompt")))
            examples.append(Example(source.id, source.images, (Message("user", question),), meta=source.meta))
        return examples

    def files(self, task: Task) -> list[Path]:
        """Return the annotation files, and the file of prompts."""
        prompt_files = [Path(task.options.prompts)] if task.options.prompts else []
        return [*_chair().files(task), *prompt_files]

    def match_id(self, fields: Fields, task: Task) -> str | None:
        """Return the image id of a row, as CHAIR does."""
        return _chair().match_id(fields, task)

    def judge_requests(self, answers_by_id: AnswersById, task: Task) -> Iterable[JudgeRequest]:
        """Ask for the objects of each description, unless it is very short."""
        if task.options.extract == "words":
            return
        template = load_template(task.options.judge_prompt, TEMPLATE)
        for id_, answers in answers_by_id.items():
            if _is_judged(answers[0]):
                question = task.examples[id_].prompt[-1].content
                yield JudgeRequest(id_, fill_template(template, question=question, answer=answers[0]), template)

    def rule(self, key: str, answers_by_id: AnswersById, task: Task) -> str:
        """Return the words for objects that are found in the text, without a model."""
        words = [word for word, _ in coco_objects.find_objects(answers_by_id[key][0])]
        return json.dumps(list(dict.fromkeys(words)))

    def read_judgments(self, rows: Sequence[Row], answers_by_id: AnswersById, task: Task) -> dict[str, str]:
        """Return the lists that the authors' script saves: `image_id` and `extract_objs`."""
        return {str(self.match_id(row.fields, task)): json.dumps(row.require("extract_objs")) for row in rows}

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """Compare the objects of the first answer and the image, by the script's rules and ours.

        A comparison is None if the objects were not listed.
        """
        text = answers[0]
        if task.options.extract == "words":
            return {
                "official": _compare_objects(text_mentions(text), example, text),
                "robust": _compare_objects(coco_objects.find_objects(text), example, text),
                "judged": True,
            }
        reply = task.replies.get(example.id, {}).get("text") if _is_judged(text) else "[]"
        phrases = None if reply is None else parse_object_list(reply)
        row: dict[str, Any] = {
            "judged": reply is not None,
            "unparsed": reply is not None and phrases is None,
            "official": None,
            "robust": None,
        }
        if phrases is None:
            return row
        mentions = [mention for phrase in phrases for mention in coco_objects.find_objects(phrase)]
        row["robust"] = _compare_objects(list(dict.fromkeys(mentions)), example, text)
        if _load_spacy() is not None:
            words = dict.fromkeys(word for phrase in phrases for word in spacy_phrase_words(phrase))
            row["official"] = _compare_objects(_mentions(list(words)), example, text)
        return row

    def aggregate(self, rows: list[ScoreRow], task: Task) -> dict[str, SufficientStats]:
        """Return rates over all descriptions."""
        scored = answered(rows)
        num_unlisted = sum(row["robust"] is None for row in scored)
        reason = ""
        if task.options.extract == "judge" and has_duplicates(rows):
            reason = DUPLICATES_REASON
        elif num_unlisted:
            reason = f"the objects of {num_unlisted} descriptions were not listed: ask a judge, or add --recorded_judgments"
        elif any(row["official"] is None for row in scored):
            reason = "the official script splits phrases with spaCy's en_core_web_trf, which is not installed"
        robust = [row for row in first_valid(rows) if row["robust"] is not None]
        return {
            "official": _sufficient_stats([] if reason else scored, "official", reason),
            "robust": _sufficient_stats(robust, "robust", "no description was judged"),
        }


@functools.cache
def _chair() -> Benchmark:
    """Return the CHAIR benchmark, which provides images, objects and ids."""
    return load_benchmark("chair")


def _is_judged(text: str) -> bool:
    return len(text.split()) > MAX_UNJUDGED_WORDS


# ---- words ---------------------------------------------------------------------------------------


@functools.cache
def _object_of_word() -> dict[str, str]:
    return {**coco_objects.object_by_synonym(), **EXTRA_WORDS}


@functools.cache
def _compounds() -> dict[str, str]:
    """Return the name that replaces each pair of words."""
    two_word_names = [word for word in _object_of_word() if word.count(" ") == 1]
    return {**{word: word for word in two_word_names}, **coco_objects.compound_names(), "dining table": "dining table"}


def _mentions(words: Sequence[str]) -> list[Mention]:
    """Return the words that name an object, with it. The seat of a toilet is left out."""
    if "toilet" in words and "seat" in words:
        words = [word for word in words if word != "seat"]
    blocked_words = coco_objects.UNMATCHED_SYNONYMS.difference(UNBLOCKED_WORDS)
    object_of_word = _object_of_word()
    return [(word, object_of_word[word]) for word in words if word in object_of_word and word not in blocked_words]


def _join_compounds(words: Sequence[str], compounds_only: bool) -> list[str]:
    """Return the compounds in a list of words, and, unless `compounds_only`, the words between."""
    joined, i = [], 0
    while i < len(words):
        compound = _compounds().get(" ".join(words[i : i + 2]))
        if compound is not None:
            joined.append(compound)
            i += 2
            continue
        if not compounds_only:
            joined.append(words[i])
        i += 1
    return joined


@functools.lru_cache(maxsize=1 << 16)
def text_mentions(text: str) -> list[Mention]:
    """Return mentions in a text as the script finds them without a judge, or in COCO's captions.

    It lemmatizes every token as a noun.
    """
    return _mentions(_join_compounds(lemmatize.noun_lemmas(text.lower()), compounds_only=False))


@functools.cache
def _load_spacy() -> Any:
    """Return the pipeline that the script uses to split phrases, or None if not installed."""
    try:
        import spacy

        return spacy.load("en_core_web_trf")
    except (ImportError, OSError):
        return None


def spacy_phrase_words(phrase: str) -> list[str]:
    """Return the words of a listed phrase: its compounds if it has any, else its runs of nouns."""
    tokens = _load_spacy()(f"a {phrase}")
    compounds = _join_compounds([token.lemma_ for token in tokens], compounds_only=True)
    if compounds:
        return compounds
    noun_runs: list[list[str]] = [[]]
    for token in tokens:
        if token.tag_ in ("NNP", "NNPS", "NN", "NNS"):
            noun_runs[-1].append(token.lemma_)
        else:
            noun_runs.append([])
    return [" ".join(run) for run in noun_runs if run]


def parse_object_list(reply: str) -> list[str] | None:
    """Return the JSON list in a judge's reply, or None.

    It may be in a fenced block, or take several lines; of several lists the last line with one
    counts.
    """
    text = reply.rpartition("</think>")[2]
    fenced = re.search(r"```(?:json)?\n(.*?)\n```", text, re.DOTALL)
    candidates = [fenced[1]] if fenced else []
    candidates += [text, *reversed(normalise(text).split("\n"))]
    for candidate in candidates:
        phrases = parse_json_list(candidate)
        if phrases is not None and all(isinstance(phrase, str) for phrase in phrases):
            return phrases
    return None


# ---- metrics -------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1 << 16)
def _caption_objects(captions: tuple[str, ...]) -> frozenset[str]:
    return frozenset(name for caption in captions for _, name in text_mentions(caption))


def _compare_objects(mentions: list[Mention], example: Example, text: str) -> dict[str, Any]:
    true_objects = set(example.meta["objects"])
    if example.meta["captions"]:
        true_objects |= _caption_objects(example.meta["captions"])
    comparison: dict[str, Any] = _chair().module.compare_mentions(mentions, true_objects, length=len(text.strip().split(" ")))
    return comparison


def _sufficient_stats(rows: list[ScoreRow], mode: str, reason: str) -> SufficientStats:
    comparisons = [row[mode] for row in rows]
    table = [
        [
            bool(c["false"]),
            1,
            c["said"] > 0,
            len(c["false"]),
            c["said"],
            len(c["hit"]),
            c["there"],
            c["length"],
        ]
        for c in comparisons
    ]
    columns = np.array(table, float).reshape(-1, 8)

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        num_hallucinated, n, num_naming, num_false, num_mentions, num_named, num_objects, length = np.moveaxis(sums, -1, 0)
        return {
            "response_rate": num_hallucinated / num_naming * 100,
            "mention_rate": num_false / num_mentions * 100,
            "recall": num_named / num_objects * 100,
            "chair_s": num_hallucinated / n * 100,
            "length": length / n,
        }

    shares = {
        "response_rate": Proportion(0, 2, 100),
        "mention_rate": Proportion(3, 4, 100),
        "recall": Proportion(5, 6, 100),
        "chair_s": Proportion(0, 1, 100),
    }
    empty_reason = "no description names an object, or the images hold none: the official script raises ZeroDivisionError"
    return SufficientStats([row["id"] for row in rows], columns, metrics, {"": reason or empty_reason}, shares)
