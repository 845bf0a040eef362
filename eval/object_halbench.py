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

from mmrlhf.config import STRICT
from mmrlhf.evaluation.benchmark import (
    DUPLICATES_REASON,
    Benchmark,
    JudgeRequest,
    Task,
    fill_template,
    first_valid,
    has_duplicates,
    load_benchmark,
    load_template,
    parse_options,
)
from mmrlhf.files.rows import Row, read_json_objects
from mmrlhf.metrics.intervals import SufficientStats
from mmrlhf.records import Example, Message
from mmrlhf.text import coco_objects
from mmrlhf.text import lemmatize as lemmatize
from mmrlhf.text.answer_parsing import normalise

EXTRA_WORDS = {"brother": "person", "pedestrian": "person", "coffee table": "dining table", "remote control": "remote"}

UNBLOCKED_WORDS = ("motor bike", "cheesecake")

"""Words that RLHF-V's list has beside CHAIR's, and those that it has cleared of a leading blank."""

MAX_UNJUDGED_WORDS = 3

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


class ObjectHalBench(Benchmark):
    """TODO."""

    version = "1"
    license = "CC-BY-NC-4.0 (prompts), CC-BY-4.0 (COCO's annotations)"
    headline = "response_rate"
    direction = "lower"
    cluster = "image"
    answer_fields = ("image_id", "answer", "caption")
    requires_all_answers = False
    options_type = Options

    def load(self, task: Task) -> list[Example]:
        """A picture an example, with its objects and captions."""
        chair_task = Task(task.data, task.image_folder, options=parse_options(_chair(), {}))
        examples_by_id = {e.id: e for e in _chair().load(chair_task)}
        if task.options.prompts is None:
            return list(examples_by_id.values())[: task.limit]
        examples = []
        for row in read_json_objects(Path(task.options.prompts))[: task.limit]:
            id_ = _chair().match_id(row.fields, task) if not {"image_id", "image"}.isdisjoint(row.fields) else None
            if id_ not in examples_by_id:
                row.fail(f"picture {id_} is not in --data: give the annotations that it belongs to")
            source = examples_by_id[id_]
            question = str(row.require(row.require_any("question", "prompt")))
            examples.append(Example(source.id, source.images, (Message("user", question),), meta=source.meta))
        return examples

    def files(self, task: Task) -> list[Path]:
        """The annotations, and the prompts."""
        prompt_files = [Path(task.options.prompts)] if task.options.prompts else []
        return [*_chair().files(task), *prompt_files]

    def match_id(self, fields: Mapping[str, Any], task: Task) -> str | None:
        """The image id of a row: a number, or what a file's name ends in."""
        return _chair().match_id(fields, task)

    def judge_requests(self, answers_by_id: Mapping[str, list[str]], task: Task) -> Iterable[JudgeRequest]:
        """The objects of each description that is longer than three words."""
        if task.options.extract == "words":
            return
        template_text = load_template(task.options.judge_prompt, TEMPLATE)
        for id_, answers in answers_by_id.items():
            if len(answers[0].split()) > MAX_UNJUDGED_WORDS:
                yield JudgeRequest(
                    id_,
                    fill_template(template_text, question=task.examples[id_].prompt[-1].content, answer=answers[0]),
                    template_text,
                )

    def rule(self, key: str, answers_by_id: Mapping[str, list[str]], task: Task) -> str:
        """A judge without a model: the words that are found in the text."""
        return json.dumps(list(dict.fromkeys(word for word, _ in coco_objects.find_objects(answers_by_id[key][0]))))

    def read_judgments(self, rows: Iterable[Row], answers_by_id: Mapping[str, list[str]], task: Task) -> dict[str, str]:
        """Lists that the authors' script has kept: `image_id` and `extract_objs`."""
        return {str(self.match_id(row.fields, task)): json.dumps(row.require("extract_objs")) for row in rows}

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """What the first answer names, by both readings; None where its objects were not listed."""
        text = answers[0]
        if task.options.extract == "words":
            robust = coco_objects.find_objects(text)
            return {
                "official": _compare_objects(text_mentions(text), example, text),
                "robust": _compare_objects(robust, example, text),
                "judged": True,
            }
        reply = "[]" if len(text.split()) <= MAX_UNJUDGED_WORDS else task.replies.get(example.id, {}).get("text")
        names = None if reply is None else parse_object_list(reply)
        row: dict[str, Any] = {
            "judged": reply is not None,
            "unparsed": reply is not None and names is None,
            "official": None,
            "robust": None,
        }
        if names is not None:
            robust_mentions = dict.fromkeys(pair for name in names for pair in coco_objects.find_objects(name))
            row["robust"] = _compare_objects(list(robust_mentions), example, text)
            if _load_spacy() is not None:
                official_words = dict.fromkeys(word for name in names for word in spacy_phrase_words(name))
                row["official"] = _compare_objects(_mentions(list(official_words)), example, text)
        return row

    def aggregate(self, rows: list[dict[str, Any]], task: Task) -> dict[str, SufficientStats]:
        """Rates over all descriptions."""
        answered_rows = [r for r in rows if r["status"] in ("ok", "duplicate")]
        num_unparsed = sum(r["official"] is None for r in answered_rows)
        reason = ""
        if task.options.extract == "judge" and has_duplicates(rows):
            reason = DUPLICATES_REASON
        elif any(r["robust"] is None for r in answered_rows):
            reason = f"the objects of {sum(r['robust'] is None for r in answered_rows)} descriptions were not listed: ask a judge, or add --recorded_judgments"
        elif num_unparsed:
            reason = "the official script takes phrases apart with spaCy's en_core_web_trf, which is not installed"
        official = [] if reason else answered_rows
        robust = [r for r in first_valid(rows) if r["robust"] is not None]
        return {
            "official": _sufficient_stats(official, "official", reason),
            "robust": _sufficient_stats(robust, "robust", "no description was judged"),
        }


@functools.cache
def _chair() -> Benchmark:
    """Return the CHAIR benchmark, whose images, objects and ids these are."""
    return load_benchmark("chair")


# ---- words -----------------------------------------------------------------------------------------------------------


@functools.cache
def _object_of_word() -> dict[str, str]:
    return {**coco_objects.object_by_synonym(), **EXTRA_WORDS}


@functools.cache
def _compounds() -> dict[str, str]:
    two_word_names = [word for word in _object_of_word() if word.count(" ") == 1]
    return {**{word: word for word in two_word_names}, **coco_objects.compound_names(), "dining table": "dining table"}


def _mentions(words: Sequence[str]) -> list[tuple[str, str]]:
    """Words that name an object, with it; pairs are one word, and a seat by a toilet is none."""
    if "toilet" in words and "seat" in words:
        words = [w for w in words if w != "seat"]
    blocked_words = coco_objects.UNMATCHED_SYNONYMS.difference(UNBLOCKED_WORDS)
    return [(w, _object_of_word()[w]) for w in words if w in _object_of_word() and w not in blocked_words]


def _join_compounds(words: Sequence[str], compounds_only: bool) -> list[str]:
    """Pairs that are one word, and, unless `alone`, the words between."""
    joined, i = [], 0
    while i < len(words):
        compound = _compounds().get(" ".join(words[i : i + 2]))
        joined += [compound] if compound is not None else [] if compounds_only else [words[i]]
        i += 2 if compound is not None else 1
    return joined


@functools.lru_cache(maxsize=1 << 16)
def text_mentions(text: str) -> list[tuple[str, str]]:
    """Mentions in a text as the script finds them without its judge, and in COCO's captions always: every token as a noun's singular."""
    return _mentions(_join_compounds(lemmatize.noun_lemmas(text.lower()), compounds_only=False))


@functools.cache
def _load_spacy() -> Any:
    """The pipeline that the script takes phrases apart with, or None."""
    try:
        import spacy

        return spacy.load("en_core_web_trf")
    except (ImportError, OSError):
        return None


def spacy_phrase_words(phrase: str) -> list[str]:
    """The words of one listed object: pairs alone if there are any, else its runs of nouns."""
    parsed = _load_spacy()(f"a {phrase}")
    if compounds := _join_compounds([token.lemma_ for token in parsed], compounds_only=True):
        return compounds
    noun_runs, run = [], []
    for token in [*parsed, None]:
        if token is not None and token.tag_ in ("NNP", "NNPS", "NN", "NNS"):
            run.append(token.lemma_)
        elif run:
            noun_runs.append(" ".join(run))
            run = []
    return noun_runs


def parse_object_list(reply: str) -> list[str] | None:
    """The JSON list in a judge's reply: in a fenced block, or the last line that is one; None if there is none."""
    fenced = re.search(r"```(?:json)?\n(.*?)\n```", reply, re.DOTALL)
    for text in [*([fenced[1]] if fenced else []), *reversed(normalise(reply).split("\n"))]:
        start, end = text.find("["), text.rfind("]")
        try:
            names = json.loads(text[start : end + 1])
        except ValueError:
            continue
        if isinstance(names, list) and all(isinstance(word, str) for word in names):
            return names
    return None


# ---- scores ----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1 << 16)
def _caption_objects(captions: tuple[str, ...]) -> frozenset[str]:
    return frozenset(node for caption in captions for _, node in text_mentions(caption))


def _compare_objects(mentions: list[tuple[str, str]], example: Example, text: str) -> dict[str, Any]:
    true_objects = set(example.meta["objects"]) | (
        _caption_objects(example.meta["captions"]) if example.meta["captions"] else frozenset()
    )
    false_mentions = [pair for pair in mentions if pair[1] not in true_objects]
    return {
        "said": len(mentions),
        "false": false_mentions,
        "hit": sorted({node for _, node in mentions} & true_objects),
        "there": len(true_objects),
        "length": len(text.strip().split(" ")),
    }


def _sufficient_stats(rows: list[dict[str, Any]], mode: str, undefined: str) -> SufficientStats:
    columns = np.array(
        [
            [bool(j["false"]), 1, j["said"] > 0, len(j["false"]), j["said"], len(j["hit"]), j["there"], j["length"]]
            for j in (r[mode] for r in rows)
        ],
        float,
    ).reshape(-1, 8)

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        num_hallucinated, n, num_naming, num_false, num_mentions, num_named, num_objects, length = np.moveaxis(sums, -1, 0)
        return {
            "response_rate": num_hallucinated / num_naming * 100, "mention_rate": num_false / num_mentions * 100, "recall": num_named / num_objects * 100,
            "chair_s": num_hallucinated / n * 100, "length": length / n,
        }  # fmt: skip

    reason = (
        undefined or "no description names an object, or the pictures hold none: the official script raises ZeroDivisionError"
    )
    return SufficientStats([r["id"] for r in rows], columns, metrics, {"": reason})
