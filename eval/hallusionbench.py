"""HallusionBench: questions on charts, maps, illusions and the like, on the picture, on an edited one and without one (Guan et al. 2023).

    mmrlhf eval hallusionbench --model runs/sft/model --data HallusionBench.json --image_folder hallusion_bench --judge URL --out runs/hallusion
    mmrlhf eval hallusionbench --answers HallusionBench_result.json --data HallusionBench.json --recorded_judgments judge_log.jsonl --out runs/hallusion

A judge compares each answer with a reference (`official` reads its reply as HallusionBench's script does: `incorrect`, else `correct`, else
unclear; "not correct" is correct), and is asked of answers to one question whether they agree, for the diagnosis of errors. `robust` needs no judge:
it reads yes or no out of an answer; what cannot be read is wrong, except that without a picture it is right, as there. Recorded judgments are
judgments.jsonl of a run, the script's own output (`gpt4v_output_gpt_check`, `same`), or a log of `prompt` and `reply` in the script's wording.

In percent: `a_acc` of questions; `q_acc` of questions right on all their pictures; `f_acc` of pictures with all questions right; `easy_acc` and
`hard_acc` of questions right wherever no picture, or the original, or wherever an edited one is shown. `pct_diff` (fraction): how much oftener yes is said than true; `fp_ratio`
(fraction): wrong answers whose truth is no. `consistency_*`: pictures; `lh`, `vi`, `mixed`: errors put down to language, vision, and either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic.dataclasses import dataclass

from mmrlhf.config import STRICT
from mmrlhf.evaluation.benchmark import Benchmark, JudgeRequest, Task, first_valid
from mmrlhf.files.rows import Row, read_json_objects
from mmrlhf.metrics.intervals import SufficientStats
from mmrlhf.records import Example, ImageSource, Message
from mmrlhf.text.answer_parsing import parse_yes_no

ID_FIELDS = ("category", "subcategory", "set_id", "figure_id", "question_id")

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

KNOWN_VERSIONS = {"ca6e0fb677dd56e5fb0e2700d06c58d01f8a6ae66e0f1773b2ac48c0a095d051": "HallusionBench of 2023, 1129"}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """How questions are put."""

    suffix: str | None = None
    """A line after each question, such as `Answer yes or no.`."""


class HallusionBench(Benchmark):
    """TODO."""

    version = "1"
    license = "BSD-3-Clause"
    headline = "a_acc"
    direction = "higher"
    cluster = "set"
    answer_fields = ("figure_id", "model_prediction")
    known_versions = KNOWN_VERSIONS
    options_type = Options

    def load(self, task: Task) -> list[Example]:
        """Questions, 178 of them without a picture, with ids such as VD/illusion/0/1/2."""
        examples = []
        for row in read_json_objects(task.path)[: task.limit]:
            for name in (*ID_FIELDS, "visual_input", "question", "gt_answer", "gt_answer_details"):
                row.require(name)
            if str(row.fields["gt_answer"]) not in ("0", "1"):
                row.fail(f"`gt_answer` must be 0 or 1, not {row.fields['gt_answer']!r}")
            meta = {
                name: str(row.fields[name]) for name in (*ID_FIELDS, "visual_input", "question", "gt_answer", "gt_answer_details")
            }
            name = row.fields.get("filename")
            images = (ImageSource(path=str(task.image_root / str(name).removeprefix("./"))),) if name else ()
            question = f"{meta['question']}\n{task.options.suffix}" if task.options.suffix else meta["question"]
            examples.append(Example("/".join(meta[n] for n in ID_FIELDS), images, (Message("user", question),), meta=meta))
        return examples

    def match_id(self, fields: Mapping[str, Any], task: Task) -> str | None:
        """By the five parts of an id, of which VLMEvalKit calls the subcategory `category` and the category `l2-category`; a row without them by its
        question and picture."""
        category, subcategory = fields.get("category"), fields.get("subcategory")
        if all(fields.get(name) is not None for name in ID_FIELDS):
            return "/".join(str(fields[name]) for name in ID_FIELDS)
        if all(fields.get(name) is not None for name in ("l2-category", "category", *ID_FIELDS[2:])):
            pair, numbers = (str(fields["l2-category"]), str(category)), [str(fields[name]) for name in ID_FIELDS[2:]]
            for id_ in ("/".join([*pair, *numbers]), "/".join([*pair[::-1], *numbers])):
                if id_ in task.examples:
                    return id_
        question, image = (
            str(fields.get("question") or ""),
            Path(str(fields.get("image_path") or fields.get("filename") or "")).name,
        )
        for example in task.examples.values():
            example_image = Path(example.images[0].path or "").name if example.images else ""
            example_categories = (example.meta["category"], example.meta["subcategory"])
            if (
                question == example.meta["question"]
                and example_image == image
                and (category in (None, *example_categories) or subcategory in example_categories)
            ):
                return example.id
        return None if fields.get("id") is None else str(fields["id"])

    def judge_requests(self, answers_by_id: Mapping[str, list[str]], task: Task) -> Iterable[JudgeRequest]:
        """Of each answer whether it is right, and whether it agrees with the one on the original."""
        for id_, answers in answers_by_id.items():
            example = task.examples[id_]
            prompt = CORRECT_TEMPLATE.format(
                question=example.meta["question"], reference=example.meta["gt_answer_details"], answer=answers[0]
            )
            yield JudgeRequest(f"{id_}/correct", prompt, CORRECT_TEMPLATE)
            if example.meta["figure_id"] != "0" and _original_id(example) in answers_by_id:
                yield JudgeRequest(
                    f"{id_}/same",
                    SAME_TEMPLATE.format(answer=answers[0], other=answers_by_id[_original_id(example)][0]),
                    SAME_TEMPLATE,
                )

    def rule(self, key: str, answers_by_id: Mapping[str, list[str]], task: Task) -> str:
        """A judge without a model: by yes and no."""
        id_, _, question_type = key.rpartition("/")
        example = task.examples[id_]
        parsed = parse_yes_no(answers_by_id[id_][0], example.meta["question"])
        if question_type == "correct":
            return "unclear" if parsed is None else "correct" if parsed == _truth(example) else "incorrect"
        return (
            "same" if parsed == parse_yes_no(answers_by_id[_original_id(example)][0], example.meta["question"]) else "different"
        )

    def read_judgments(self, rows: Iterable[Row], answers_by_id: Mapping[str, list[str]], task: Task) -> dict[str, str]:
        """Replies by key, out of records of the official script: its own output, or what it sent to its judge and got back."""
        keys_by_content: dict[tuple[str, ...], list[str]] = {}
        for id_, answers in answers_by_id.items():
            example = task.examples[id_]
            keys_by_content.setdefault((example.meta["question"], example.meta["gt_answer_details"], answers[0]), []).append(
                f"{id_}/correct"
            )
            if _original_id(example) in answers_by_id:
                keys_by_content.setdefault((answers[0], answers_by_id[_original_id(example)][0]), []).append(f"{id_}/same")
        replies: dict[str, str] = {}
        for row in rows:
            if "prompt" in row.fields:
                text = str(row.require("reply"))
                match = _OFFICIAL_CORRECT_PROMPT.search(str(row.fields["prompt"])) or _OFFICIAL_SAME_PROMPT.search(
                    str(row.fields["prompt"])
                )
                replies |= dict.fromkeys(keys_by_content.get(match.groups(), []) if match else [], text)
            else:
                id_ = "/".join(str(row.require(name)) for name in ID_FIELDS)
                verdict = {"0": "incorrect", "1": "correct", "2": "unclear"}.get(str(row.require("gpt4v_output_gpt_check")))
                if verdict is None:
                    row.fail("`gpt4v_output_gpt_check` must be 0, 1 or 2")
                replies[f"{id_}/correct"] = verdict
                if "same" in row.fields:
                    replies[f"{id_}/same"] = "same" if str(row.fields["same"]) == "1" else "different"
        return replies

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """The judge's verdict (None where there is none), whether it found the answer to agree with that on the original, and what it says."""
        replies = [task.replies.get(f"{example.id}/{question_type}", {}).get("text") for question_type in ("correct", "same")]
        parsed = parse_yes_no(answers[0], example.meta["question"])
        same = None if replies[1] is None else "same" in replies[1].lower()
        verdict = _parse_verdict(replies[0])
        is_right = _is_right(example, verdict) if verdict is not None else parsed == _truth(example)
        return {"verdict": verdict, "same": same, "said": parsed, "unparsed": parsed is None, "right": is_right}

    def aggregate(self, rows: list[dict[str, Any]], task: Task) -> dict[str, SufficientStats]:
        """Figures by the judge's verdicts, and by yes and no."""
        first_rows = first_valid(rows)
        verdicts = {r["id"]: (r["verdict"], r["same"]) for r in first_rows}
        reason = ""
        if any(r["status"] == "null" for r in rows):
            reason = "the official script raises TypeError on an answer that is null"
        elif len(first_rows) < sum(r["status"] in ("ok", "duplicate") for r in rows):
            reason = "the official script raises AssertionError on a question that is answered twice"
        elif num_unjudged := sum(v is None for v, _ in verdicts.values()):
            reason = f"{num_unjudged} answers have no judgment: add them to the judgments, or ask a judge"
        elif unpaired_ids := [i for i in verdicts if _original_id(task.examples[i]) not in verdicts]:
            reason = f"the official script raises KeyError where the original of a question is not answered ({unpaired_ids[0]})"
        robust_verdicts = {
            r["id"]: (UNCLEAR if r["said"] is None else int(r["said"] == _truth(task.examples[r["id"]])), None)
            for r in first_rows
        }
        official = _sufficient_stats(task, {} if reason else verdicts, reason or "there are no answers", with_causes=True)
        return {
            "official": official,
            "robust": _sufficient_stats(task, robust_verdicts, "there are no answers", with_causes=False),
        }

    def categories(self, example: Example) -> list[str]:
        """Category and subcategory."""
        return [example.meta["category"], example.meta["subcategory"]]


# ---- the judge -------------------------------------------------------------------------------------------------------


def _original_id(example: Example) -> str:
    """The id of the same question on the figure 0 of its set."""
    return "/".join([*(example.meta[n] for n in ID_FIELDS[:3]), "0", example.meta["question_id"]])


_OFFICIAL_CORRECT_PROMPT = re.compile(r"\n *Question:(.*)\nReference answer: (.*)\nPrediction answer:(.*)\nOutput:$", re.DOTALL)

_OFFICIAL_SAME_PROMPT = re.compile(r"\n *response1:(.*)\nresponse2: (.*)\nOutput:$", re.DOTALL)


def _parse_verdict(text: str | None) -> int | None:
    """How the script reads a reply: `incorrect` anywhere is wrong, else `correct` anywhere is right, all else is unclear."""
    if text is None:
        return None
    return WRONG if "incorrect" in text.lower() else RIGHT if "correct" in text.lower() else UNCLEAR


def _truth(example: Example) -> str:
    return "yes" if example.meta["gt_answer"] == "1" else "no"


def _is_right(example: Example, verdict: int | None) -> bool:
    """Not to know is right where there is no picture."""
    has_no_image = example.meta["category"] == "VS" and example.meta["figure_id"] == "0"
    return verdict == RIGHT or (has_no_image and verdict == UNCLEAR)


def _error_cause(example: Example, verdict: int | None, original: int | None, same: bool | None) -> str:
    """What an error is put down to: `lh` language, `vi` vision, `mixed` either; the script's decision table. `unknown` where the answers
    were not compared."""
    if _is_right(example, verdict):
        return ""
    is_original = example.meta["figure_id"] == "0"
    if not is_original and verdict == WRONG and same is None:
        return "unknown"
    if example.meta["category"] == "VD":
        return "mixed" if not is_original and original == RIGHT and verdict == WRONG and same else "vi"
    if is_original:
        return "lh"
    if original == WRONG:
        return "lh" if verdict == WRONG and same else "mixed"
    is_edited = example.meta["visual_input"] == "2"
    return "lh" if original == RIGHT and verdict == WRONG and is_edited and same else "vi"


COLUMNS = (
    "right", "asked", "q_right", "q", "f_right", "f_wrong", "f", "easy_right", "easy", "hard_right", "hard",
    "said_yes", "true_yes", "wrong", "wrong_no", "lh", "vi", "mixed", "unknown",
)  # fmt: skip


def _sufficient_stats(
    task: Task, verdicts: Mapping[str, tuple[int | None, bool | None]], reason: str, with_causes: bool
) -> SufficientStats:
    """A row of sums for each set of pictures: what counts as right together stands in one set."""
    sums: dict[str, dict[str, float]] = {}
    groups: dict[tuple[str, ...], list[bool]] = {}
    for id_, (verdict, same) in verdicts.items():
        example = task.examples[id_]
        meta, is_right = example.meta, _is_right(example, verdict)
        set_id = "/".join(meta[n] for n in ID_FIELDS[:3])
        set_sums = sums.setdefault(set_id, dict.fromkeys(COLUMNS, 0.0))
        truth = meta["gt_answer"] == "1"
        set_sums["right"] += is_right
        set_sums["asked"] += 1
        set_sums["said_yes"] += is_right == truth
        set_sums["true_yes"] += truth
        set_sums["wrong"] += not is_right
        set_sums["wrong_no"] += not is_right and not truth
        if with_causes and (cause := _error_cause(example, verdict, verdicts[_original_id(example)][0], same)):
            set_sums[cause] += 1
        figure, question = meta["figure_id"], meta["question_id"]
        groups.setdefault((set_id, "q", question), []).append(is_right)
        groups.setdefault((set_id, "hard" if meta["visual_input"] == "2" else "easy", question), []).append(is_right)
        if not (meta["category"] == "VS" and figure == "0"):
            groups.setdefault((set_id, "f", figure), []).append(is_right)
    for (set_id, kind, _), is_right in groups.items():
        sums[set_id][kind] += 1
        sums[set_id][f"{kind}_right"] += all(is_right)
        if kind == "f":
            sums[set_id]["f_wrong"] += not any(is_right)
    columns = np.array([[row[name] for name in COLUMNS] for row in sums.values()]).reshape(len(sums), len(COLUMNS))
    cause = reason if not verdicts else "nothing to divide by"
    reasons = {"": cause}
    if verdicts and with_causes:
        reasons |= dict.fromkeys(DIAGNOSTIC_METRICS, "no answer is wrong: the official script raises ZeroDivisionError")
        if columns[:, COLUMNS.index("unknown")].any():
            reasons |= dict.fromkeys(DIAGNOSTIC_METRICS[-3:], "some answers were not compared with those on the original")
    return SufficientStats(list(sums), columns, _official_metrics if with_causes else _robust_metrics, reasons)


DIAGNOSTIC_METRICS = (
    "pct_diff",
    "fp_ratio",
    "consistency_correct",
    "consistency_inconsistent",
    "consistency_wrong",
    "lh",
    "vi",
    "mixed",
)

"""The second table that the script prints; dividing by the number of errors, it stops where there is none."""


def _official_metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
    metrics = _metrics(sums)
    return {
        k: np.where(np.isfinite(metrics["fp_ratio"]), v, np.nan) if k in DIAGNOSTIC_METRICS else v for k, v in metrics.items()
    }


def _robust_metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
    return {k: v for k, v in _metrics(sums).items() if k not in ("lh", "vi", "mixed")}


def _metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
    columns = dict(zip(COLUMNS, np.moveaxis(sums, -1, 0), strict=True))
    errors = np.where(columns["unknown"] > 0, np.nan, columns["lh"] + columns["vi"] + columns["mixed"])
    return {
        "a_acc": 100 * columns["right"] / columns["asked"],
        "q_acc": 100 * columns["q_right"] / columns["q"],
        "f_acc": 100 * columns["f_right"] / columns["f"],
        "easy_acc": 100 * columns["easy_right"] / columns["easy"],
        "hard_acc": 100 * columns["hard_right"] / columns["hard"],
        "pct_diff": columns["said_yes"] / columns["asked"] - columns["true_yes"] / columns["asked"],
        "fp_ratio": columns["wrong_no"] / columns["wrong"],
        "consistency_correct": 100 * columns["f_right"] / columns["f"],
        "consistency_inconsistent": 100 * (columns["f"] - columns["f_right"] - columns["f_wrong"]) / columns["f"],
        "consistency_wrong": 100 * columns["f_wrong"] / columns["f"],
        "lh": 100 * columns["lh"] / errors,
        "vi": 100 * columns["vi"] / errors,
        "mixed": 100 * columns["mixed"] / errors,
    }
