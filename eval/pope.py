"""POPE: is there an X in the image?

Six questions per image, three of them on absent objects (Li et al. 2023).

    mmrlhf eval pope --model runs/sft/model --data POPE/coco_pope_adversarial.json
        --image_folder val2014 --out runs/pope
    mmrlhf eval pope --answers answers.jsonl --data POPE/coco_pope_adversarial.json --out runs/pope

--data is a file of questions, or a folder with a file for each of random, popular and adversarial;
for a folder, all metrics are given by split and as the mean of the splits. RePOPE's labels, SEEM's
questions on A-OKVQA and GQA, and POPEv2's annotations have the same format.

`official` is what evaluate.py of AoiDragon/POPE prints: it pairs answers with labels line by line,
until the shorter file ends, and reads a yes unless the first sentence has the word no or not.
`robust` joins by id and reads answers with `mmrlhf.text.answer_parsing.parse_yes_no`; an unreadable
answer counts as wrong, and as neither yes nor no. Metrics are fractions.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from mmrlhf.config import STRICT
from mmrlhf.evaluation.benchmark import Benchmark, ScoreRow, Task, contains_yes_no, first_valid
from mmrlhf.evaluation.join import OTHER_SPLIT
from mmrlhf.files.rows import read_json_objects
from mmrlhf.metrics.intervals import Proportion, SufficientStats, wilson
from mmrlhf.records import Example, InputError, Message
from mmrlhf.text.answer_parsing import parse_yes_no, pope_official

SPLITS = ("random", "popular", "adversarial")
SPELLINGS = {"an": "a", "imange": "image"}
"""Words that differ between the two versions of POPE, and the spelling for comparisons."""
METRICS = ("accuracy", "precision", "recall", "f1", "yes_ratio")
COLUMN_OF: dict[tuple[str, str | None], int] = {
    ("yes", "yes"): 0,  # true positive: label and answer are yes
    ("no", "yes"): 1,  # false positive
    ("no", "no"): 2,  # true negative
    ("yes", "no"): 3,  # false negative
}
"""Column of a part's counts, by label and answer."""
NUM_COLUMNS = 6
"""Columns of a part: these four, and two more that depend on the mode."""
NO_ANSWERS = "there are no answers to this split"
KNOWN_VERSIONS = {
    "420b3407db1fa9f1187a805dca41cb7b97fd91504e6c2179706188c107fb8ef8": "POPE adversarial, 3000",
    "72c1a8ad45d0c13514f5f22598261df41d3b533854d29682e924db50ed8aa753": "POPE popular, 3000",
    "ac25245170b975a5bdf9080b23fd431dfe6be458bc038259c1f4f09a6bef7994": "POPE random, 3000",
    "c16b65d2df6d70bb0814c8a4375833d39cdb09928fd936d3fc546491efa37f35": "POPE random of 2023, 2910, with 144 times `imange`",
    "321d8dd41a7bd9be5f863c88f40bf50965b6e5f3345db42fe04fcb4c6ba9570e": "POPEv2, 1000",
    "2ddd3bdfa0df7a77a2cb1765ed06ac5ed190b5a093aa405b96986e862e8cdac1": "SEEM A-OKVQA adversarial, 3000",
    "2ae5bedee3450cda52f9b033942c7b04a3917a86a110e859a66c1e41934c6ffd": "SEEM A-OKVQA popular, 3000",
    "f06eecde6d6ef4a00b95a7bbb510490708a09a6a67d952b59b8bdd33ac2c7200": "SEEM A-OKVQA random, 3000",
    "74e01b41d8308e2392e3b8d961167496ff3901c01100265d931a7a392f138a7a": "SEEM GQA adversarial, 3000",
    "dd03f06a458dd216e83233160fbf6628af9c63c84b11e99599f4fc0304b3361d": "SEEM GQA popular, 3000",
    "6ce488eade3770185034939fabfe742fa32ed369011c8d9c3ac77bc0c85abd94": "SEEM GQA random, 3000",
    "8c346dbb060bf422ff92e769fa68e5ab3e8a777cb28a26e973387441e05c9ccf": "RePOPE adversarial, 2684",
    "57832b055bae5fd6176278a4f104c98ddd84811f7d26dfcb93d481f6c9da09a5": "RePOPE popular, 2727",
    "f464fcaf60b24ce2f280cf33f122e000dbdd35c8e88f77c4141c9c2cba864611": "RePOPE random, 2774",
}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """How POPE is asked and scored."""

    suffix: str | None = "Answer the question using a single word or phrase."
    """A line to add to each question; `none` adds nothing."""
    rule: Literal["pope", "repope"] = "pope"
    """Whose script `official` is: POPE's, or RePOPE's, which joins by id, looks for the letters yes
    and no, and drops answers without either."""


class Pope(Benchmark):
    """POPE and the data sets in its format."""

    version = "3"
    license = "MIT"
    headline = "f1"
    direction = "higher"
    cluster = "image"
    answer_fields = ("question_id", "answer")
    splits = SPLITS
    known_versions = KNOWN_VERSIONS
    options_type = Options

    def load(self, task: Task) -> list[Example]:
        """Return the questions of a file (ids like `17`) or a folder (`adversarial/17`)."""
        if task.path.is_file():
            return _load_questions(task, task.path, "")
        return [example for split, path in _split_files(task.path).items() for example in _load_questions(task, path, split)]

    def files(self, task: Task) -> list[Path]:
        """Return the question files."""
        return [task.path] if task.path.is_file() else list(_split_files(task.path).values())

    def question_key(self, text: str) -> str:
        """Return the words of a prompt's question, in one spelling for both versions of POPE."""
        # The first sentence that ends in a question mark, without instructions before and after it.
        match = re.search(r"[^\n.:?!]{1,300}\?", text)
        words = re.findall(r"\w+", (match[0] if match else text.split("\n")[0]).lower())
        return " ".join(SPELLINGS.get(word, word) for word in words)

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """Return whether the first answer says yes or no, by the script's rule and by ours."""
        parsed = parse_yes_no(answers[0], example.meta["question"])
        return {
            "label": example.meta["label"],
            "official": pope_official(answers[0]),
            "said": parsed,
            "unparsed": parsed is None,
        }

    def aggregate(self, rows: list[ScoreRow], task: Task) -> dict[str, SufficientStats]:
        """Return metrics: flat for a file, or by split and their mean for a folder."""
        official = _official_stats(rows, task) if task.options.rule == "pope" else _repope_stats(rows, task)
        return {"official": official, "robust": _robust_stats(rows, task)}


# ---- questions -----------------------------------------------------------------------------------


def _split_files(folder: Path) -> dict[str, Path]:
    """Return the question file of each split in a folder.

    Raises InputError if a split has several files, or no split has any.
    """
    paths = {}
    for split in SPLITS:
        matching = sorted(folder.glob(f"*_{split}.json*"))
        if len(matching) > 1:
            names = ", ".join(path.name for path in matching)
            raise InputError(f"--data {folder} has several files for {split} ({names}): give a folder of one set")
        if matching:
            paths[split] = matching[0]
    if not paths:
        raise InputError(f"--data {folder} has no file of questions: it should hold NAME_{{{','.join(SPLITS)}}}.json")
    return paths


def _load_questions(task: Task, path: Path, split: str) -> list[Example]:
    examples = []
    for row in read_json_objects(path)[: task.limit]:
        fields, location = row.fields, row.location
        # POPEv2 has other names for the same fields.
        image, text = fields.get("image", fields.get("image_name")), fields.get("text", fields.get("query"))
        label = str(fields.get("label")).lower()
        if not (isinstance(image, str) and isinstance(text, str) and label in ("yes", "no")):
            raise InputError(f"{location}: a question needs image, text, and a label that is yes or no: correct the row")
        id_ = str(fields.get("question_id", row.number))
        prompt = f"{text}\n{task.options.suffix}" if task.options.suffix else text
        source = task.image_source(image.lstrip("/"), location=location, name="image" if "image" in fields else "image_name")
        meta = {"part": split, "label": label, "image": image, "question": text}
        examples.append(Example(f"{split}/{id_}" if split else id_, (source,), (Message("user", prompt),), meta=meta))
    return examples


# ---- official ------------------------------------------------------------------------------------


def _parts(task: Task) -> list[str]:
    """Return the splits of a folder; a file has a single part without a name."""
    return list(dict.fromkeys(example.meta["part"] for example in task.examples.values()))


def _official_stats(rows: list[ScoreRow], task: Task) -> SufficientStats:
    """Pair labels and answers line by line, as POPE's evaluate.py zips its two files.

    The last two columns of a part count the answers that say yes, and all answers: the script's yes
    ratio covers all answers, including those past the last label.
    """
    clusters: list[str] = []
    columns: list[np.ndarray] = []
    reasons: dict[str, str] = {}
    notes: dict[str, dict[str, Any]] = {}
    parts = _parts(task)
    for number, part in enumerate(parts):
        examples = [example for example in task.examples.values() if example.meta["part"] == part]
        part_rows = [row for row in rows if _belongs_to_part(row["id"], part, task)]
        if any(None in row["answers"] or not row["answers"] for row in part_rows):  # also of unknown ids
            reasons[part] = "the official script raises AttributeError on an answer that is null"
            continue
        verdicts = [pope_official(row["answers"][0]) for row in part_rows]
        counts = np.zeros((len(verdicts), NUM_COLUMNS))
        counts[:, 4] = [verdict == "yes" for verdict in verdicts]
        counts[:, 5] = 1
        for row_counts, example, verdict in zip(counts, examples, verdicts, strict=False):
            row_counts[COLUMN_OF[example.meta["label"], verdict]] = 1
        clusters += [example.meta["image"] for example in examples[: len(part_rows)]]
        for row in part_rows[len(examples) :]:
            clusters.append(task.examples[row["id"]].meta["image"] if row["id"] in task.examples else row["id"])
        columns.append(np.pad(counts, ((0, 0), (NUM_COLUMNS * number, NUM_COLUMNS * (len(parts) - number - 1)))))
        reasons[part] = _undefined_reason(counts.sum(0), bool(part_rows))
        pairs = zip(examples, part_rows, strict=False)
        num_misaligned = sum(example.id != row["id"] for example, row in pairs)
        if num_misaligned:
            notes[f"{part}/other_line" if part else "other_line"] = _misalignment(num_misaligned, len(part_rows), part)

    table = np.concatenate([np.zeros((0, NUM_COLUMNS * len(parts))), *columns])
    undefined = "; ".join(f"{part}: {reason}" for part, reason in reasons.items() if reason)
    reasons["mean"] = f"a split has no value ({undefined})"
    metrics = _metrics_by_part(parts, _official_metrics)
    return SufficientStats(clusters, table, metrics, reasons, _accuracies(parts, 4), extra=notes)


def _belongs_to_part(id_: str, part: str, task: Task) -> bool:
    """Return whether an answer is in the file that the script would pair with a part's labels."""
    split = id_.partition("/")[0]
    if part:
        return split == part
    # The data is a single file: all answers but those of other splits.
    return id_ in task.examples or split not in (*SPLITS, OTHER_SPLIT)


def _misalignment(num_misaligned: int, num_answers: int, part: str) -> dict[str, Any]:
    """Return the share of answers that the script pairs with other questions, and its interval."""
    note = f"official pairs by line; {num_misaligned} of {num_answers} answers are on another question's line"
    print(f"note: {f'{part}: ' if part else ''}{note}", file=sys.stderr)
    low, high = wilson(num_misaligned, num_answers)
    return {"value": num_misaligned / num_answers, "low": low, "high": high, "note": note}


def _official_metrics(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return what the script prints for counts [..., 6]; NaN where it would divide by zero."""
    tp, fp, tn, fn, num_yes, num_answers = np.moveaxis(counts, -1, 0)
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    f1 = 2 * precision * recall / (precision + recall)
    metrics = {
        "accuracy": (tp + tn) / (tp + tn + fp + fn),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "yes_ratio": num_yes / num_answers,
    }
    return {name: np.where(np.isfinite(f1), value, np.nan) for name, value in metrics.items()}


def _undefined_reason(counts: np.ndarray, has_answers: bool) -> str:
    """Return why the script stops, or "" if it does not."""
    tp, fp, _, fn = counts[:4]
    if not has_answers:
        return NO_ANSWERS
    denominators = {
        "precision (no answer was read as yes)": tp + fp,
        "recall (no label is yes)": tp + fn,
        "f1 (no true positive)": tp,
    }
    for metric, denominator in denominators.items():
        if denominator == 0:
            return f"the official script raises ZeroDivisionError at {metric}"
    return ""


def _metrics_by_part(
    parts: list[str], compute: Callable[[np.ndarray], dict[str, np.ndarray]]
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return a metric function over all parts: flat for one part without a name, else by part and
    as their mean.
    """

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        by_part = {part: compute(sums[..., NUM_COLUMNS * i : NUM_COLUMNS * (i + 1)]) for i, part in enumerate(parts)}
        if parts == [""]:
            return dict(by_part[""])
        flat = {f"{part}/{name}": value for part, values in by_part.items() for name, value in values.items()}
        return flat | {f"mean/{name}": np.mean([values[name] for values in by_part.values()], 0) for name in METRICS}

    return metrics


# ---- by id ---------------------------------------------------------------------------------------


def _repope_stats(rows: list[ScoreRow], task: Task) -> SufficientStats:
    """Count as RePOPE's script does: by id, and by the letters yes or no anywhere in an answer.

    Other answers are left out.
    """
    verdicts = {row["id"]: contains_yes_no(row["answers"][0]) for row in first_valid(rows)}
    return _stats_by_id(task, {id_: verdict for id_, verdict in verdicts.items() if verdict is not None})


def _robust_stats(rows: list[ScoreRow], task: Task) -> SufficientStats:
    return _stats_by_id(task, {row["id"]: row["said"] for row in first_valid(rows)})


def _stats_by_id(task: Task, verdicts: Mapping[str, str | None]) -> SufficientStats:
    """Return statistics of yes, no or unread answers by id.

    An unread answer is wrong, and neither yes nor no. The last two columns of a part count unread
    answers to questions with the label yes, and with the label no.
    """
    parts = _parts(task)
    examples = [example for example in task.examples.values() if example.id in verdicts]
    column_of = COLUMN_OF | {("yes", None): 4, ("no", None): 5}
    columns = np.zeros((len(examples), NUM_COLUMNS * len(parts)))
    for row_counts, example in zip(columns, examples, strict=True):
        start = NUM_COLUMNS * parts.index(example.meta["part"])
        row_counts[start + column_of[example.meta["label"], verdicts[example.id]]] = 1
    answered_parts = {example.meta["part"] for example in examples}
    reasons = {"": "no answer was read as yes, or no label is yes"}
    reasons |= {part: NO_ANSWERS for part in parts if part not in answered_parts}
    reasons["mean"] = "a split has no value"
    clusters = [example.meta["image"] for example in examples]
    return SufficientStats(clusters, columns, _metrics_by_part(parts, _metrics_by_id), reasons, _accuracies(parts, NUM_COLUMNS))


def _accuracies(parts: list[str], num_outcomes: int) -> dict[str, Proportion]:
    """Return which columns each part's accuracy divides; its first `num_outcomes` count answers."""
    starts = {f"{part}/accuracy" if part else "accuracy": NUM_COLUMNS * i for i, part in enumerate(parts)}
    return {name: Proportion((start, start + 2), range(start, start + num_outcomes)) for name, start in starts.items()}


def _metrics_by_id(counts: np.ndarray) -> dict[str, np.ndarray]:
    tp, fp, tn, fn, unread_yes, unread_no = np.moveaxis(counts, -1, 0)
    n, positives = counts.sum(-1), tp + fn + unread_yes
    return {
        "accuracy": (tp + tn) / n,
        "precision": tp / (tp + fp),
        "recall": tp / positives,
        "f1": 2 * tp / (tp + fp + positives),
        "yes_ratio": (tp + fp) / (tp + fp + tn + fn),
        "unparsed": (unread_yes + unread_no) / n,
    }
