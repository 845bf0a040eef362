"""DeCapBench: detailed descriptions, cut into their smallest statements by a judge (Ye et al.
2025).

    mmrlhf eval decapbench --model runs/sft/model --data human_annotated_oracle_facts.jsonl
        --image_folder images --judge http://127.0.0.1:8000/v1 --out runs/decapbench
    mmrlhf eval decapbench --answers captions.jsonl --data human_annotated_oracle_facts.jsonl
        --verify caption --judge http://127.0.0.1:8000/v1 --out runs/decapbench

--data holds a line for each of 400 images: `image_name`, `oracle_caption`, and `oracle_facts`, the
statements that people cut their caption into. Captions are joined by `image_path`.

A judge answers three questions about each description: its statements, and whether each is about
the image; which of the people's statements each matches; and whether each is true, by the image and
the people's caption (--verify caption: by the caption alone, without images). The prompts are the
project's own; `--trials N` repeats the last two questions, as the authors' script does three times,
for a judge that samples. Records of that script (a line for each of its files) can be given as
--recorded_judgments; they need --trials 3.

Precision is the share of true statements. Recall is the share of people's statements that a true
one matches; a true statement without a match counts as one that people forgot. DCScore, in percent,
is the mean of F1 over all statements and over those about the image. `official` follows the
authors' script: descriptions without such statements, or with replies that cannot be read, are left
out. In `robust`, matches of remarks do not dilute those of statements about the image, a
description without statements scores 0, and unread replies are left out and counted.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from mmrlhf.config import STRICT
from mmrlhf.evaluation.benchmark import (
    DUPLICATES_REASON,
    AnswersById,
    Benchmark,
    JudgeRequest,
    ScoreRow,
    Task,
    answered,
    first_valid,
    has_duplicates,
)
from mmrlhf.evaluation.judge_prompts import fill_template
from mmrlhf.files.rows import Row, read_json_objects
from mmrlhf.metrics.intervals import SufficientStats
from mmrlhf.records import Example, Message
from mmrlhf.text.judge_parsing import parse_json_list

EPSILON = 1e-8
"""The script's term in the denominator of F1."""
METRICS = ("score", "precision", "recall", "f1", "precision_relevant", "recall_relevant", "f1_relevant")
KNOWN_VERSIONS = {"1bd4b638b09832fde246bf01622ce8d787f1793f408a3b8c1d04120b7d8a72dd": "DeCapBench of March 2025, 400"}
SPLIT_TEMPLATE = """Cut this description of a picture into its smallest statements: each says one thing, in a sentence that can be understood alone, and together they say all that
the description says. Where several things are of one kind, give them names such as dog_1 and dog_2.

Reply with a JSON list, an object for each statement: {{"fact": "...", "relevance": 1}}. Write relevance 0 for what is not about what the picture shows: a guess, an
effect on the viewer, a general remark.

Description: {caption}"""
MATCH_TEMPLATE = """Two lists of statements about one picture follow. For each statement of the first list, find the one of the second that says the same about the same thing; the
wording may differ, and so may a detail, if nothing else fits better. Names such as dog_1 may be others in the other list.

Reply with a JSON list, an object for each statement of the first list, in its order: {{"fact": the number of the statement, "matched_oracle_id": the number of the one that it
matches, or null}}.

First list:
{facts}

Second list:
{oracle_facts}"""
VERIFY_TEMPLATE = """Is each of these statements about the picture true? Go by the picture, if you see it, and by this description, which a person wrote: {oracle_caption}

Reply with a JSON list, an object for each statement, in its order: {{"fact": the number of the statement, "verification": 1 if it is true, else 0}}.

Statements:
{facts}"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """Settings of the prompt and of the judge."""

    prompt: str = "Please describe this image in detail."
    """The prompt that asks for a description."""
    verify: Literal["image", "caption"] = "image"
    """Evidence for the judge's verdicts: the image and the people's caption, or the caption
    alone."""
    trials: Annotated[int, Field(ge=1, le=10)] = 1
    """Number of times to ask for matches and for verdicts; each trial of one is combined with each
    of the other."""


class Unit(NamedTuple):
    """A statement of a description, and whether it is about the image."""

    fact: str
    is_relevant: bool


class DeCapBench(Benchmark):
    """DeCapBench, scored by DCScore."""

    version = "1"
    license = "not stated"
    headline = "score"
    direction = "higher"
    cluster = "image"
    answer_fields = ("image_path", "caption")
    requires_all_answers = False  # users may choose some of the images
    judge_rounds = 2
    known_versions = KNOWN_VERSIONS
    options_type = Options

    def load(self, task: Task) -> list[Example]:
        """Return an example for each image, with people's caption and statements."""
        examples = []
        for row in read_json_objects(task.path)[: task.limit]:
            image, caption, facts = (
                str(row.require("image_name")),
                str(row.require("oracle_caption")),
                row.require("oracle_facts"),
            )
            if not isinstance(facts, list) or not facts or not all(isinstance(fact, str) for fact in facts):
                row.fail("`oracle_facts` must be a list of texts, with at least one")
            source = task.image_source(image, location=row.location, name="image_name")
            meta = {"image": image, "caption": caption, "facts": facts}
            examples.append(Example(image, (source,), (Message("user", task.options.prompt),), meta=meta))
        return examples

    def judge_requests(self, answers_by_id: AnswersById, task: Task) -> Iterable[JudgeRequest]:
        """Ask for the statements of each description, then for their matches and verdicts."""
        for id_, answers in answers_by_id.items():
            key, example = f"{id_}/units", task.examples[id_]
            yield JudgeRequest(key, fill_template(SPLIT_TEMPLATE, caption=answers[0]), SPLIT_TEMPLATE)
            units = parse_units(task.replies.get(key, {}).get("text"))
            if not units:
                continue
            facts = _numbered(unit.fact for unit in units)
            match = fill_template(MATCH_TEMPLATE, facts=facts, oracle_facts=_numbered(example.meta["facts"]))
            verify = fill_template(VERIFY_TEMPLATE, oracle_caption=example.meta["caption"], facts=facts)
            images = example.images if task.options.verify == "image" else ()
            for trial in range(task.options.trials):
                yield JudgeRequest(f"{id_}/match/{trial}", match, MATCH_TEMPLATE)
                yield JudgeRequest(f"{id_}/verify/{trial}", verify, VERIFY_TEMPLATE, images)

    def read_judgments(self, rows: Sequence[Row], answers_by_id: AnswersById, task: Task) -> dict[str, str]:
        """Return the replies that the authors' script recorded, from a row for each description."""
        replies = {}
        for row in rows:
            id_, details = str(row.require("image_path")), row.require("eval_details")
            if not isinstance(details, dict):
                row.fail("`eval_details` must be an object")
            replies[f"{id_}/units"] = json.dumps(details.get("pred_atomic_facts"))
            for trial, mapping in enumerate(details.get("mappings_with_human") or ()):
                pairs = mapping.items() if isinstance(mapping, dict) else ()
                reply = [{"fact": fact, "matched_oracle_id": oracle_id} for fact, oracle_id in pairs]
                replies[f"{id_}/match/{trial}"] = json.dumps(reply)
            for trial, verdicts in enumerate(details.get("verified_results") or ()):
                replies[f"{id_}/verify/{trial}"] = json.dumps(verdicts)
        return replies

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """Return the figures of a description by the script's rules and by ours, None if the judge
        did not reply, or not in a form that can be read."""
        texts = {kind: self._texts(example.id, kind, task) for kind in ("units", "match", "verify")}
        units = parse_units(texts["units"][0])
        is_judged = texts["units"][0] is not None and (not units or None not in texts["match"] + texts["verify"])
        row: dict[str, Any] = {
            "judged": is_judged,
            "official": None,
            "robust": None,
            "unparsed": False,
            "units": len(units or ()),
        }
        if not is_judged:
            return row
        num_facts = len(example.meta["facts"])
        if units == []:
            row["robust"] = dict.fromkeys(METRICS, 0.0)
            return row
        if units is not None:
            matches = [parse_numbers(text, units, "matched_oracle_id") for text in texts["match"]]
            verdicts = [parse_numbers(text, units, "verification") for text in texts["verify"]]
            trials = [(match, verdict) for verdict in verdicts for match in matches if match is not None and verdict is not None]
            if len(trials) == len(matches) * len(verdicts):
                row["official"] = _mean_figures([official_figures(units, *trial, num_facts) for trial in trials])
            if trials:
                row["robust"] = _mean_figures([robust_figures(units, *trial, num_facts) for trial in trials])
        row["unparsed"] = row["robust"] is None
        return row

    def _texts(self, id_: str, kind: str, task: Task) -> list[str | None]:
        keys = [f"{id_}/units"] if kind == "units" else [f"{id_}/{kind}/{trial}" for trial in range(task.options.trials)]
        return [task.replies.get(key, {}).get("text") for key in keys]

    def aggregate(self, rows: list[ScoreRow], task: Task) -> dict[str, SufficientStats]:
        """Return mean figures over descriptions."""
        scored = answered(rows)
        num_unjudged = sum(not row["judged"] for row in scored)
        valid = [row for row in scored if row["official"] is not None]
        reason = "no description has replies that can be read"
        if has_duplicates(rows):
            reason = DUPLICATES_REASON
        elif num_unjudged:
            reason = f"{num_unjudged} descriptions have no judgment"
        elif len(valid) < len(scored):
            print(f"note: official leaves out {len(scored) - len(valid)} descriptions, as the script does", file=sys.stderr)
        is_official = not num_unjudged and not has_duplicates(rows)
        robust = [row for row in first_valid(rows) if row["robust"] is not None]
        return {
            "official": _sufficient_stats(valid if is_official else [], "official", reason),
            "robust": _sufficient_stats(robust, "robust", "no description has replies that can be read"),
        }


# ---- replies -------------------------------------------------------------------------------------


def _numbered(facts: Iterable[str]) -> str:
    return "\n".join(f"{number}. {fact}" for number, fact in enumerate(facts))


def parse_objects(reply: str | None) -> list[dict[str, Any]] | None:
    """Return the JSON objects that a reply lists, or None without such a list."""
    values = None if reply is None else parse_json_list(reply)
    return values if values is not None and all(isinstance(value, dict) for value in values) else None


def parse_units(reply: str | None) -> list[Unit] | None:
    """Return the statements that a reply lists, or None if it lists none in a form that can be
    read."""
    values = parse_objects(reply)
    if values is None or not all(isinstance(value.get("fact"), str) for value in values):
        return None
    return [Unit(value["fact"], value.get("relevance", 1) in (1, "1", True)) for value in values]


def parse_numbers(reply: str | None, units: Sequence[Unit], field: str) -> list[int | None] | None:
    """Return a number, or None, for each statement, as a reply gives them.

    A statement is named by its number, or by its text. Returns None if one is left out.
    """
    values = parse_objects(reply)
    if values is None:
        return None
    numbers: dict[int, int | None] = {}
    positions: dict[str, list[int]] = {}
    for number, unit in enumerate(units):
        positions.setdefault(unit.fact, []).append(number)
    for value in values:
        name, number = value.get("fact"), value.get(field)
        number = int(number) if isinstance(number, bool) else number
        named = positions.get(name, []) if isinstance(name, str) else []
        if not named and str(name).strip(". ").isdecimal():
            named = [int(str(name).strip(". "))]
        is_number = str(number).isdecimal() and len(str(number)) < 10
        numbers |= dict.fromkeys(named, int(str(number)) if is_number else None)
    return [numbers[number] for number in range(len(units))] if numbers.keys() >= {*range(len(units))} else None


# ---- figures -------------------------------------------------------------------------------------


def official_figures(
    units: Sequence[Unit], matches: Sequence[int | None], verdicts: Sequence[int | None], num_facts: int
) -> dict[str, float] | None:
    """Return the script's figures for a trial, or None if it would stop: no statement is about the
    image.

    A statement's share of its match is divided by the number of all statements with this match,
    also where only those about the image count.
    """
    sharing = Counter(matches)
    relevant = [number for number, unit in enumerate(units) if unit.is_relevant]
    if not relevant:
        return None
    everything = _figures(range(len(units)), matches, verdicts, num_facts, sharing)
    return _both(everything, _figures(relevant, matches, verdicts, num_facts, sharing))


def robust_figures(
    units: Sequence[Unit], matches: Sequence[int | None], verdicts: Sequence[int | None], num_facts: int
) -> dict[str, float]:
    """Return figures for a trial. Only matches to people's statements count, shared by the
    statements that are scored."""
    known = [match if match is not None and match < num_facts else None for match in matches]
    relevant = [number for number, unit in enumerate(units) if unit.is_relevant]
    everything = _figures(range(len(units)), known, verdicts, num_facts, Counter(known))
    if not relevant:
        return _both(everything, (0.0, 0.0, 0.0))
    return _both(everything, _figures(relevant, known, verdicts, num_facts, Counter(known[number] for number in relevant)))


def _figures(
    numbers: Sequence[int],
    matches: Sequence[int | None],
    verdicts: Sequence[int | None],
    num_facts: int,
    sharing: Counter[int | None],
) -> tuple[float, float, float]:
    """Return precision, recall and F1 of the statements with these numbers."""
    true = [number for number in numbers if verdicts[number] == 1]
    num_extra = sum(matches[number] is None for number in true)
    num_found = num_extra + sum(1 / sharing[matches[number]] for number in true if matches[number] is not None)
    precision, recall = len(true) / len(numbers), num_found / (num_facts + num_extra)
    return precision, recall, 2 * precision * recall / (precision + recall + EPSILON)


def _both(everything: tuple[float, float, float], relevant: tuple[float, float, float]) -> dict[str, float]:
    score = 100 * (everything[2] + relevant[2]) / 2
    return dict(zip(METRICS, (score, *everything, *relevant), strict=True))


def _mean_figures(trials: Sequence[dict[str, float] | None]) -> dict[str, float] | None:
    """Return the mean over trials, or None if one has no figures."""
    figures = [trial for trial in trials if trial is not None]
    if not figures or len(figures) < len(trials):
        return None
    return {name: sum(trial[name] for trial in figures) / len(figures) for name in METRICS}


def _sufficient_stats(rows: Sequence[ScoreRow], mode: str, reason: str) -> SufficientStats:
    table = np.array([[*(row[mode][name] for name in METRICS), 1] for row in rows], float).reshape(-1, len(METRICS) + 1)

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        return {name: sums[..., i] / sums[..., -1] for i, name in enumerate(METRICS)}

    return SufficientStats([row["id"] for row in rows], table, metrics, {"": reason})
