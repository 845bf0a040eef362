"""HallusionBench: questions on charts, maps, illusions and the like, on the picture, on an edited one and without one (Guan et al. 2023).

    mmrlhf eval hallusionbench --model runs/sft/model --data HallusionBench.json --image_folder hallusion_bench --judge URL --out runs/hallusion
    mmrlhf eval hallusionbench --answers HallusionBench_result.json --data HallusionBench.json --judgments judge_log.jsonl --out runs/hallusion

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

from mmrlhf.answers import yes_no
from mmrlhf.benchmark import Ask, Counted, Task, first
from mmrlhf.config import STRICT
from mmrlhf.records import Example, ImageSource, Message
from mmrlhf.rows import Row, objects

VERSION, LICENSE = "1", "BSD-3-Clause"
HEADLINE, DIRECTION, CLUSTER = "a_acc", "higher", "set"
ID = ("category", "subcategory", "set_id", "figure_id", "question_id")
ANSWER = ("figure_id", "model_prediction")
KNOWN = {"ca6e0fb677dd56e5fb0e2700d06c58d01f8a6ae66e0f1773b2ac48c0a095d051": "HallusionBench of 2023, 1129"}
CORRECT = """A model was asked about a picture. Compare its answer with the reference.

Question: {question}
Reference: {reference}
Answer: {answer}

Reply with one word: correct if the answer agrees with the reference, incorrect if it contradicts it, unclear if it cannot be told what it claims."""
SAME = """Two answers were given to one question. Could both be true at once?

First: {answer}
Second: {other}

Reply with one word: same if they agree, different if they contradict each other."""
RIGHT, WRONG, UNCLEAR = 1, 0, 2


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """How questions are put."""

    suffix: str | None = None
    """A line after each question, such as `Answer yes or no.`."""


# ---- questions -------------------------------------------------------------------------------------------------------


def load(task: Task) -> list[Example]:
    """Questions, 178 of them without a picture, with ids such as VD/illusion/0/1/2."""
    found = []
    for row in objects(task.path)[: task.limit]:
        for name in (*ID, "visual_input", "question", "gt_answer", "gt_answer_details"):
            row.need(name)
        if str(row.fields["gt_answer"]) not in ("0", "1"):
            row.fail(f"`gt_answer` must be 0 or 1, not {row.fields['gt_answer']!r}")
        meta = {name: str(row.fields[name]) for name in (*ID, "visual_input", "question", "gt_answer", "gt_answer_details")}
        name = row.fields.get("filename")
        images = (ImageSource(path=str(task.pictures / str(name).removeprefix("./"))),) if name else ()
        asked = f"{meta['question']}\n{task.options.suffix}" if task.options.suffix else meta["question"]
        found.append(Example("/".join(meta[n] for n in ID), images, (Message("user", asked),), meta=meta))
    return found


def identify(fields: Mapping[str, Any], task: Task) -> str | None:
    """By the five parts of an id, of which VLMEvalKit calls the subcategory `category` and the category `l2-category`; a row without them by its
    question and picture."""
    kind, sub = fields.get("category"), fields.get("subcategory")
    if all(fields.get(name) is not None for name in ID):
        return "/".join(str(fields[name]) for name in ID)
    if all(fields.get(name) is not None for name in ("l2-category", "category", *ID[2:])):
        pair, numbers = (str(fields["l2-category"]), str(kind)), [str(fields[name]) for name in ID[2:]]
        for id_ in ("/".join([*pair, *numbers]), "/".join([*pair[::-1], *numbers])):
            if id_ in task.examples:
                return id_
    asked, picture = str(fields.get("question") or ""), Path(str(fields.get("image_path") or fields.get("filename") or "")).name
    for e in task.examples.values():
        at = Path(e.images[0].path or "").name if e.images else ""
        place = (e.meta["category"], e.meta["subcategory"])
        if asked == e.meta["question"] and at == picture and (kind in (None, *place) or sub in place):
            return e.id
    return None if fields.get("id") is None else str(fields["id"])


# ---- the judge -------------------------------------------------------------------------------------------------------


def _original(example: Example) -> str:
    """The id of the same question on the figure 0 of its set."""
    return "/".join([*(example.meta[n] for n in ID[:3]), "0", example.meta["question_id"]])


def ask(said: Mapping[str, list[str]], task: Task) -> Iterable[Ask]:
    """Of each answer whether it is right, and whether it agrees with the one on the original."""
    for id_, answers in said.items():
        e = task.examples[id_]
        prompt = CORRECT.format(question=e.meta["question"], reference=e.meta["gt_answer_details"], answer=answers[0])
        yield Ask(f"{id_}/correct", prompt, CORRECT)
        if e.meta["figure_id"] != "0" and _original(e) in said:
            yield Ask(f"{id_}/same", SAME.format(answer=answers[0], other=said[_original(e)][0]), SAME)


_CORRECT = re.compile(r"\n *Question:(.*)\nReference answer: (.*)\nPrediction answer:(.*)\nOutput:$", re.DOTALL)
_SAME = re.compile(r"\n *response1:(.*)\nresponse2: (.*)\nOutput:$", re.DOTALL)


def recorded(rows: Iterable[Row], said: Mapping[str, list[str]], task: Task) -> dict[str, str]:
    """Replies by key, out of records of the official script: its own output, or what it sent to its judge and got back."""
    asked: dict[tuple[str, ...], list[str]] = {}
    for id_, answers in said.items():
        e = task.examples[id_]
        asked.setdefault((e.meta["question"], e.meta["gt_answer_details"], answers[0]), []).append(f"{id_}/correct")
        if _original(e) in said:
            asked.setdefault((answers[0], said[_original(e)][0]), []).append(f"{id_}/same")
    found: dict[str, str] = {}
    for row in rows:
        if "prompt" in row.fields:
            text = str(row.need("reply"))
            parts = _CORRECT.search(str(row.fields["prompt"])) or _SAME.search(str(row.fields["prompt"]))
            found |= dict.fromkeys(asked.get(parts.groups(), []) if parts else [], text)
        else:
            id_ = "/".join(str(row.need(name)) for name in ID)
            check = {"0": "incorrect", "1": "correct", "2": "unclear"}.get(str(row.need("gpt4v_output_gpt_check")))
            if check is None:
                row.fail("`gpt4v_output_gpt_check` must be 0, 1 or 2")
            found[f"{id_}/correct"] = check
            if "same" in row.fields:
                found[f"{id_}/same"] = "same" if str(row.fields["same"]) == "1" else "different"
    return found


def rule(key: str, said: Mapping[str, list[str]], task: Task) -> str:
    """A judge without a model: by yes and no."""
    id_, _, what = key.rpartition("/")
    e = task.examples[id_]
    read = yes_no(said[id_][0], e.meta["question"])
    if what == "correct":
        return "unclear" if read is None else "correct" if read == _truth(e) else "incorrect"
    return "same" if read == yes_no(said[_original(e)][0], e.meta["question"]) else "different"


def _verdict(text: str | None) -> int | None:
    """How the script reads a reply: `incorrect` anywhere is wrong, else `correct` anywhere is right, all else is unclear."""
    if text is None:
        return None
    return WRONG if "incorrect" in text.lower() else RIGHT if "correct" in text.lower() else UNCLEAR


# ---- scores ----------------------------------------------------------------------------------------------------------


def score(example: Example, answers: list[str], task: Task) -> dict[str, Any]:
    """The judge's verdict (None where there is none), whether it found the answer to agree with that on the original, and what it says."""
    replies = [task.replies.get(f"{example.id}/{what}", {}).get("text") for what in ("correct", "same")]
    said = yes_no(answers[0], example.meta["question"])
    same = None if replies[1] is None else "same" in replies[1].lower()
    verdict = _verdict(replies[0])
    judged = _right(example, verdict) if verdict is not None else said == _truth(example)
    return {"verdict": verdict, "same": same, "said": said, "unparsed": said is None, "right": judged}


def categories(example: Example) -> list[str]:
    """Category and subcategory."""
    return [example.meta["category"], example.meta["subcategory"]]


def aggregate(rows: list[dict[str, Any]], task: Task) -> dict[str, Counted]:
    """Figures by the judge's verdicts, and by yes and no."""
    sound = first(rows)
    verdicts = {r["id"]: (r["verdict"], r["same"]) for r in sound}
    reason = ""
    if any(r["status"] == "null" for r in rows):
        reason = "the official script raises TypeError on an answer that is null"
    elif len(sound) < sum(r["status"] in ("ok", "duplicate") for r in rows):
        reason = "the official script raises AssertionError on a question that is answered twice"
    elif unjudged := sum(v is None for v, _ in verdicts.values()):
        reason = f"{unjudged} answers have no judgment: add them to the judgments, or ask a judge"
    elif lost := [i for i in verdicts if _original(task.examples[i]) not in verdicts]:
        reason = f"the official script raises KeyError where the original of a question is not answered ({lost[0]})"
    read = {r["id"]: (UNCLEAR if r["said"] is None else int(r["said"] == _truth(task.examples[r["id"]])), None) for r in sound}
    official = _counted(task, {} if reason else verdicts, reason or "there are no answers", blame=True)
    return {"official": official, "robust": _counted(task, read, "there are no answers", blame=False)}


def _truth(example: Example) -> str:
    return "yes" if example.meta["gt_answer"] == "1" else "no"


def _right(example: Example, verdict: int | None) -> bool:
    """Not to know is right where there is no picture."""
    blind = example.meta["category"] == "VS" and example.meta["figure_id"] == "0"
    return verdict == RIGHT or (blind and verdict == UNCLEAR)


def _blame(example: Example, verdict: int | None, original: int | None, same: bool | None) -> str:
    """What an error is put down to: `lh` language, `vi` vision, `mixed` either; the script's decision table. `unknown` where the answers
    were not compared."""
    if _right(example, verdict):
        return ""
    first_figure = example.meta["figure_id"] == "0"
    if not first_figure and verdict == WRONG and same is None:
        return "unknown"
    if example.meta["category"] == "VD":
        return "mixed" if not first_figure and original == RIGHT and verdict == WRONG and same else "vi"
    if first_figure:
        return "lh"
    if original == WRONG:
        return "lh" if verdict == WRONG and same else "mixed"
    edited = example.meta["visual_input"] == "2"
    return "lh" if original == RIGHT and verdict == WRONG and edited and same else "vi"


COLUMNS = (
    "right", "asked", "q_right", "q", "f_right", "f_wrong", "f", "easy_right", "easy", "hard_right", "hard",
    "said_yes", "true_yes", "wrong", "wrong_no", "lh", "vi", "mixed", "unknown",
)  # fmt: skip


def _counted(task: Task, verdicts: Mapping[str, tuple[int | None, bool | None]], reason: str, blame: bool) -> Counted:
    """A row of sums for each set of pictures: what counts as right together stands in one set."""
    sums: dict[str, dict[str, float]] = {}
    groups: dict[tuple[str, ...], list[bool]] = {}
    for id_, (verdict, same) in verdicts.items():
        e = task.examples[id_]
        m, right = e.meta, _right(e, verdict)
        set_ = "/".join(m[n] for n in ID[:3])
        add = sums.setdefault(set_, dict.fromkeys(COLUMNS, 0.0))
        truth = m["gt_answer"] == "1"
        add["right"] += right
        add["asked"] += 1
        add["said_yes"] += right == truth
        add["true_yes"] += truth
        add["wrong"] += not right
        add["wrong_no"] += not right and not truth
        if blame and (why := _blame(e, verdict, verdicts[_original(e)][0], same)):
            add[why] += 1
        figure, question = m["figure_id"], m["question_id"]
        groups.setdefault((set_, "q", question), []).append(right)
        groups.setdefault((set_, "hard" if m["visual_input"] == "2" else "easy", question), []).append(right)
        if not (m["category"] == "VS" and figure == "0"):
            groups.setdefault((set_, "f", figure), []).append(right)
    for (set_, kind, _), right in groups.items():
        sums[set_][kind] += 1
        sums[set_][f"{kind}_right"] += all(right)
        if kind == "f":
            sums[set_]["f_wrong"] += not any(right)
    columns = np.array([[row[name] for name in COLUMNS] for row in sums.values()]).reshape(len(sums), len(COLUMNS))
    why = reason if not verdicts else "nothing to divide by"
    reasons = {"": why}
    if verdicts and blame:
        reasons |= dict.fromkeys(SECOND, "no answer is wrong: the official script raises ZeroDivisionError")
        if columns[:, COLUMNS.index("unknown")].any():
            reasons |= dict.fromkeys(SECOND[-3:], "some answers were not compared with those on the original")
    return Counted(list(sums), columns, _official if blame else _robust, reasons)


SECOND = ("pct_diff", "fp_ratio", "consistency_correct", "consistency_inconsistent", "consistency_wrong", "lh", "vi", "mixed")
"""The second table that the script prints; dividing by the number of errors, it stops where there is none."""


def _official(sums: np.ndarray) -> dict[str, np.ndarray]:
    found = _metrics(sums)
    return {k: np.where(np.isfinite(found["fp_ratio"]), v, np.nan) if k in SECOND else v for k, v in found.items()}


def _robust(sums: np.ndarray) -> dict[str, np.ndarray]:
    return {k: v for k, v in _metrics(sums).items() if k not in ("lh", "vi", "mixed")}


def _metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
    s = dict(zip(COLUMNS, np.moveaxis(sums, -1, 0), strict=True))
    errors = np.where(s["unknown"] > 0, np.nan, s["lh"] + s["vi"] + s["mixed"])
    return {
        "a_acc": 100 * s["right"] / s["asked"],
        "q_acc": 100 * s["q_right"] / s["q"],
        "f_acc": 100 * s["f_right"] / s["f"],
        "easy_acc": 100 * s["easy_right"] / s["easy"],
        "hard_acc": 100 * s["hard_right"] / s["hard"],
        "pct_diff": s["said_yes"] / s["asked"] - s["true_yes"] / s["asked"],
        "fp_ratio": s["wrong_no"] / s["wrong"],
        "consistency_correct": 100 * s["f_right"] / s["f"],
        "consistency_inconsistent": 100 * (s["f"] - s["f_right"] - s["f_wrong"]) / s["f"],
        "consistency_wrong": 100 * s["f_wrong"] / s["f"],
        "lh": 100 * s["lh"] / errors,
        "vi": 100 * s["vi"] / errors,
        "mixed": 100 * s["mixed"] / errors,
    }
