"""HallusionBench: questions on charts, maps, illusions and more, with an image, an edited image or
no image (Guan et al. 2023).

    mmrlhf eval hallusionbench --model runs/sft/model --data HallusionBench.json
        --image_folder hallusion_bench --judge URL --out runs/hallusion
    mmrlhf eval hallusionbench --answers HallusionBench_result.json --data HallusionBench.json
        --recorded_judgments judge_log.jsonl --out runs/hallusion

A judge compares each answer with a reference. To diagnose errors, it also decides whether answers
to the same question about two images agree. `official` reads its replies as HallusionBench's script
does: `incorrect`, else `correct`, else unclear ("not correct" is correct). `robust` needs no judge
and reads yes or no from an answer; unreadable answers are wrong, except that without an image they
are right, as in the script. Recorded judgments are a run's judgments.jsonl, the script's own output
(`gpt4v_output_gpt_check`, `same`), or a log of `prompt` and `reply` in the script's wording.

In percent: `a_acc`, right questions; `q_acc`, questions that are right on all their images;
`f_acc`, images with all questions right; `easy_acc`, questions that are right with the original and
without an image; `hard_acc`, questions that are right on all edited images. As fractions:
`pct_diff`, the rate of yes in answers minus that in the truth; `fp_ratio`, the share of wrong
answers to questions with the truth no. `consistency_*` are shares of images; `lh`, `vi` and `mixed`
are shares of errors attributed to language, to vision, and to either, in percent.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic.dataclasses import dataclass

from mmrlhf.config import STRICT
from mmrlhf.evaluation.benchmark import (
    AnswersById,
    Benchmark,
    Fields,
    JudgeRequest,
    ScoreRow,
    Task,
    answered,
    first_present,
    first_valid,
)
from mmrlhf.files.rows import Row, read_json_objects
from mmrlhf.metrics.intervals import SufficientStats
from mmrlhf.records import Example, Message
from mmrlhf.text.answer_parsing import parse_yes_no

ID_FIELDS = ("category", "subcategory", "set_id", "figure_id", "question_id")
REQUIRED_FIELDS = (*ID_FIELDS, "visual_input", "question", "gt_answer", "gt_answer_details")
INDEX = re.compile(r"(?:hb[_/-])?(v[ds])[_/-](\w+?)[_/-](\d+)[_/-](\d+)[_/-](\d+)", re.IGNORECASE)
KNOWN_VERSIONS = {"ca6e0fb677dd56e5fb0e2700d06c58d01f8a6ae66e0f1773b2ac48c0a095d051": "HallusionBench of 2023, 1129"}
CORRECT_TEMPLATE = """A model was asked about a picture. Compare its answer with the reference.

Question: {question}
Reference: {reference}
Answer: {answer}

Reply with one word: correct if the answer agrees with the reference, incorrect if it contradicts it, unclear if it cannot be told what it claims."""
SAME_TEMPLATE = """Two answers were given to one question. Could both be true at once?

First: {answer}
Second: {other}

Reply with one word: same if they agree, different if they contradict each other."""
RIGHT, WRONG, UNCLEAR = 1, 0, 2
"""The script's codes of a verdict."""
VERDICT_OF_CODE = {"0": "incorrect", "1": "correct", "2": "unclear"}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """How questions are asked."""

    suffix: str | None = None
    """A line to add to each question, such as `Answer yes or no.`."""


class Judgment(NamedTuple):
    """RIGHT, WRONG or UNCLEAR, and whether the answer agrees with the one on the original image.

    Either is None if there is no reply.
    """

    verdict: int | None
    is_same: bool | None


class HallusionBench(Benchmark):
    """HallusionBench."""

    version = "3"
    license = "BSD-3-Clause"
    headline = "a_acc"
    direction = "higher"
    cluster = "set"
    answer_fields = ("figure_id", "model_prediction")
    known_versions = KNOWN_VERSIONS
    options_type = Options

    def load(self, task: Task) -> list[Example]:
        """Return the questions, some of them without an image, with ids like VD/illusion/0/1/2."""
        examples = []
        for row in read_json_objects(task.path)[: task.limit]:
            meta = {name: str(row.require(name)) for name in REQUIRED_FIELDS}
            if meta["gt_answer"] not in ("0", "1"):
                row.fail(f"`gt_answer` must be 0 or 1, not {row.fields['gt_answer']!r}")
            name = str(row.fields.get("filename") or "").removeprefix("./")
            images = [task.image_source(name, location=row.location, name="filename")] if name else []
            prompt = f"{meta['question']}\n{task.options.suffix}" if task.options.suffix else meta["question"]
            examples.append(Example(_join_id(meta), tuple(images), (Message("user", prompt),), meta=meta))
        return examples

    def match_id(self, fields: Fields, task: Task) -> str | None:
        """Return the id of a row's question by its five parts, which the files of LLaVA and
        VLMEvalKit have in one field (`hb_VS_chart_0_1_0`).

        VLMEvalKit's sheets may call the subcategory `category`, and the category `l2-category`, or
        the other way round.
        """
        if all(fields.get(name) is not None for name in ID_FIELDS):
            return _join_id(fields)
        if all(fields.get(name) is not None for name in ("l2-category", "category", *ID_FIELDS[2:])):
            category, subcategory = (str(fields[name]).rpartition("_")[2] for name in ("l2-category", "category"))
            numbers = [str(fields[name]) for name in ID_FIELDS[2:]]
            ids = ["/".join([*names, *numbers]) for names in ((category, subcategory), (subcategory, category))]
            return next((id_ for id_ in ids if id_ in task.examples), ids[0])
        id_ = first_present(fields, ("id", "question_id", "index"))
        parts = INDEX.fullmatch(id_) if id_ is not None else None
        return "/".join([parts[1].upper(), *parts.groups()[1:]]) if parts else id_

    def identity(self, example: Example) -> tuple[str, str]:
        """Return the question, and the name of the image, which repeats in every subcategory."""
        return example.meta["question"], example.images[0].path or "" if example.images else ""

    def judge_requests(self, answers_by_id: AnswersById, task: Task) -> Iterable[JudgeRequest]:
        """Ask whether each answer is right and agrees with the one on the original image."""
        for id_, answers in answers_by_id.items():
            meta, answer = task.examples[id_].meta, answers[0]
            prompt = CORRECT_TEMPLATE.format(question=meta["question"], reference=meta["gt_answer_details"], answer=answer)
            yield JudgeRequest(f"{id_}/correct", prompt, CORRECT_TEMPLATE)
            original_id = _original_id(task.examples[id_])
            if meta["figure_id"] != "0" and original_id in answers_by_id:
                prompt = SAME_TEMPLATE.format(answer=answer, other=answers_by_id[original_id][0])
                yield JudgeRequest(f"{id_}/same", prompt, SAME_TEMPLATE)

    def rule(self, key: str, answers_by_id: AnswersById, task: Task) -> str:
        """Return a verdict from the answers' yes or no, without a model."""
        id_, _, request_kind = key.rpartition("/")
        example = task.examples[id_]
        parsed = parse_yes_no(answers_by_id[id_][0], example.meta["question"])
        if request_kind == "correct":
            if parsed is None:
                return "unclear"
            return "correct" if parsed == _truth(example) else "incorrect"
        original = answers_by_id[_original_id(example)][0]
        return "same" if parsed == parse_yes_no(original, example.meta["question"]) else "different"

    def read_judgments(self, rows: Sequence[Row], answers_by_id: AnswersById, task: Task) -> dict[str, str]:
        """Return replies by key from the official script's output, or from a log of its judge."""
        replies: dict[str, str] = {}
        keys_by_content = _keys_by_content(answers_by_id, task)
        for row in rows:
            if "prompt" in row.fields:
                reply = str(row.require("reply"))
                for key in keys_by_content.get(_prompt_content(str(row.fields["prompt"])), []):
                    replies[key] = reply
                continue
            id_ = "/".join(str(row.require(name)) for name in ID_FIELDS)
            verdict = VERDICT_OF_CODE.get(str(row.require("gpt4v_output_gpt_check")))
            if verdict is None:
                row.fail("`gpt4v_output_gpt_check` must be 0, 1 or 2")
            replies[f"{id_}/correct"] = verdict
            if "same" in row.fields:
                replies[f"{id_}/same"] = "same" if str(row.fields["same"]) == "1" else "different"
        return replies

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """Return the judge's verdict, and the first answer's yes or no."""
        correct, same = (task.replies.get(f"{example.id}/{kind}", {}).get("text") for kind in ("correct", "same"))
        verdict, parsed = _parse_verdict(correct), parse_yes_no(answers[0], example.meta["question"])
        return {
            "verdict": verdict,
            "same": None if same is None else "same" in same.lower(),
            "said": parsed,
            "unparsed": parsed is None,
            "right": parsed == _truth(example) if verdict is None else _is_right(example, verdict),
        }

    def categories(self, example: Example) -> list[str]:
        """Return category and subcategory."""
        return [example.meta["category"], example.meta["subcategory"]]

    def aggregate(self, rows: list[ScoreRow], task: Task) -> dict[str, SufficientStats]:
        """Return metrics from the judge's verdicts, and from yes and no."""
        reason = _script_failure(rows, task)
        valid_rows = first_valid(rows)
        official: dict[str, Judgment] = {}
        if not reason:
            official = {row["id"]: Judgment(row["verdict"], row["same"]) for row in valid_rows}
        robust = {}
        for row in valid_rows:
            is_true = int(row["said"] == _truth(task.examples[row["id"]]))
            robust[row["id"]] = Judgment(UNCLEAR if row["said"] is None else is_true, None)
        reason = reason or "there are no answers"
        return {
            "official": _sufficient_stats(task, official, reason, with_causes=True),
            "robust": _sufficient_stats(task, robust, "there are no answers", with_causes=False),
        }


# ---- questions -----------------------------------------------------------------------------------


def _join_id(fields: Mapping[str, Any]) -> str:
    return "/".join(str(fields[name]) for name in ID_FIELDS)


def _original_id(example: Example) -> str:
    """Return the id of the same question on figure 0 of its set: the original image, or none."""
    return _join_id({**example.meta, "figure_id": "0"})


def _truth(example: Example) -> str:
    return "yes" if example.meta["gt_answer"] == "1" else "no"


# ---- judgments -----------------------------------------------------------------------------------

_OFFICIAL_CORRECT_PROMPT = re.compile(r"\n *Question:(.*)\nReference answer: (.*)\nPrediction answer:(.*)\nOutput:$", re.DOTALL)
_OFFICIAL_SAME_PROMPT = re.compile(r"\n *response1:(.*)\nresponse2: (.*)\nOutput:$", re.DOTALL)


def _prompt_content(prompt: str) -> tuple[str, ...]:
    """Return the texts that fill a prompt of the official script, or () for any other prompt."""
    match = _OFFICIAL_CORRECT_PROMPT.search(prompt) or _OFFICIAL_SAME_PROMPT.search(prompt)
    return match.groups() if match else ()


def _keys_by_content(answers_by_id: AnswersById, task: Task) -> dict[tuple[str, ...], list[str]]:
    """Return request keys by the texts in the script's prompts; several keys may share them."""
    keys: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for id_, answers in answers_by_id.items():
        meta, original_id = task.examples[id_].meta, _original_id(task.examples[id_])
        keys[meta["question"], meta["gt_answer_details"], answers[0]].append(f"{id_}/correct")
        if original_id in answers_by_id:
            keys[answers[0], answers_by_id[original_id][0]].append(f"{id_}/same")
    return keys


def _parse_verdict(text: str | None) -> int | None:
    """Read a reply as the script does: `incorrect` anywhere is wrong, else `correct` is right.

    All other replies are unclear.
    """
    if text is None:
        return None
    if "incorrect" in text.lower():
        return WRONG
    return RIGHT if "correct" in text.lower() else UNCLEAR


def _script_failure(rows: list[ScoreRow], task: Task) -> str:
    """Return why the official script would stop, or what it lacks; empty if it would run."""
    verdicts = {row["id"]: row["verdict"] for row in first_valid(rows)}
    if any(not row["answers"] or None in row["answers"] for row in rows):
        return "the official script raises TypeError on an answer that is null"
    if len(answered(rows)) > len(verdicts):
        return "the official script raises AssertionError on a question that is answered twice"
    num_unjudged = sum(verdict is None for verdict in verdicts.values())
    if num_unjudged:
        return f"{num_unjudged} answers have no judgment: add them to the judgments, or ask a judge"
    for id_ in verdicts:
        if _original_id(task.examples[id_]) not in verdicts:
            return f"the official script raises KeyError where the original of a question is not answered ({id_})"
    return ""


def _is_right(example: Example, verdict: int | None) -> bool:
    """Return whether a verdict counts as right. Without an image, an unclear answer does, too."""
    has_no_image = example.meta["category"] == "VS" and example.meta["figure_id"] == "0"
    return verdict == RIGHT or (has_no_image and verdict == UNCLEAR)


def _error_cause(
    example: Example, judgment: Judgment, original_verdict: int | None
) -> Literal["", "lh", "vi", "mixed", "unknown"]:
    """Attribute an error to language (`lh`), vision (`vi`) or either (`mixed`), as the script does.

    Returns "" if the answer is right, `unknown` if it was not compared with the answer on the
    original image.
    """
    verdict, is_same = judgment
    if _is_right(example, verdict):
        return ""
    is_original = example.meta["figure_id"] == "0"
    if not is_original and verdict == WRONG and is_same is None:
        return "unknown"
    # The same wrong answer as on the original: the model did not look at the edited image.
    repeats_itself = verdict == WRONG and bool(is_same)
    if example.meta["category"] == "VD":
        return "mixed" if not is_original and original_verdict == RIGHT and repeats_itself else "vi"
    if is_original:
        return "lh"
    if original_verdict == WRONG:
        return "lh" if repeats_itself else "mixed"
    is_edited = example.meta["visual_input"] == "2"
    return "lh" if original_verdict == RIGHT and is_edited and repeats_itself else "vi"


# ---- metrics -------------------------------------------------------------------------------------

COLUMNS = (
    "right", "asked", "q_right", "q", "f_right", "f_wrong", "f", "easy_right", "easy", "hard_right", "hard",
    "answered_yes", "true_yes", "wrong", "wrong_no", "lh", "vi", "mixed", "unknown",
)  # fmt: skip
"""Sums over each set of images.

`q`, `f`, `easy` and `hard` count groups of questions, `X_right` the groups with all questions
right.
"""
CAUSES = ("lh", "vi", "mixed")
CONSISTENCIES = ("consistency_correct", "consistency_inconsistent", "consistency_wrong")
DIAGNOSTIC_METRICS = ("pct_diff", "fp_ratio", *CONSISTENCIES, *CAUSES)
"""The second table of the script, which divides by the number of errors and stops without one."""


def _sufficient_stats(task: Task, judgments: Mapping[str, Judgment], reason: str, with_causes: bool) -> SufficientStats:
    """Return statistics with a row for each set of images, which contains whole groups."""
    sums: dict[str, dict[str, float]] = {}
    groups: dict[tuple[str, str, str], list[bool]] = defaultdict(list)
    for id_, judgment in judgments.items():
        example = task.examples[id_]
        meta, is_right = example.meta, _is_right(example, judgment.verdict)
        is_yes = meta["gt_answer"] == "1"
        set_id = "/".join(meta[name] for name in ID_FIELDS[:3])
        set_sums = sums.setdefault(set_id, dict.fromkeys(COLUMNS, 0.0))
        set_sums["right"] += is_right
        set_sums["asked"] += 1
        set_sums["answered_yes"] += is_right == is_yes
        set_sums["true_yes"] += is_yes
        set_sums["wrong"] += not is_right
        set_sums["wrong_no"] += not is_right and not is_yes
        if with_causes:
            cause = _error_cause(example, judgment, judgments[_original_id(example)].verdict)
            if cause:
                set_sums[cause] += 1
        figure, question = meta["figure_id"], meta["question_id"]
        groups[set_id, "q", question].append(is_right)
        groups[set_id, "hard" if meta["visual_input"] == "2" else "easy", question].append(is_right)
        if not (meta["category"] == "VS" and figure == "0"):  # this figure is no image
            groups[set_id, "f", figure].append(is_right)
    for (set_id, kind, _), outcomes in groups.items():
        sums[set_id][kind] += 1
        sums[set_id][f"{kind}_right"] += all(outcomes)
        if kind == "f":
            sums[set_id]["f_wrong"] += not any(outcomes)
    columns = np.array([[row[name] for name in COLUMNS] for row in sums.values()]).reshape(len(sums), len(COLUMNS))
    reasons = {"": "there is nothing to divide by" if judgments else reason}
    if judgments and with_causes:
        reasons |= dict.fromkeys(DIAGNOSTIC_METRICS, "no answer is wrong: the official script raises ZeroDivisionError")
        if columns[:, COLUMNS.index("unknown")].any():
            reasons |= dict.fromkeys(CAUSES, "some answers were not compared with those on the original")
    return SufficientStats(list(sums), columns, _official_metrics if with_causes else _robust_metrics, reasons)


def _official_metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
    metrics = _metrics(sums)
    has_errors = np.isfinite(metrics["fp_ratio"])
    for name in DIAGNOSTIC_METRICS:
        metrics[name] = np.where(has_errors, metrics[name], np.nan)
    return metrics


def _robust_metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
    return {name: value for name, value in _metrics(sums).items() if name not in CAUSES}


def _metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
    columns = dict(zip(COLUMNS, np.moveaxis(sums, -1, 0), strict=True))
    num_errors = np.where(columns["unknown"] > 0, np.nan, columns["lh"] + columns["vi"] + columns["mixed"])
    num_mixed_figures = columns["f"] - columns["f_right"] - columns["f_wrong"]
    return {
        "a_acc": 100 * columns["right"] / columns["asked"],
        "q_acc": 100 * columns["q_right"] / columns["q"],
        "f_acc": 100 * columns["f_right"] / columns["f"],
        "easy_acc": 100 * columns["easy_right"] / columns["easy"],
        "hard_acc": 100 * columns["hard_right"] / columns["hard"],
        "pct_diff": columns["answered_yes"] / columns["asked"] - columns["true_yes"] / columns["asked"],
        "fp_ratio": columns["wrong_no"] / columns["wrong"],
        "consistency_correct": 100 * columns["f_right"] / columns["f"],
        "consistency_inconsistent": 100 * num_mixed_figures / columns["f"],
        "consistency_wrong": 100 * columns["f_wrong"] / columns["f"],
        **{cause: 100 * columns[cause] / num_errors for cause in CAUSES},
    }
