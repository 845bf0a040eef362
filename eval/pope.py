"""POPE: is there an X in the image? Six questions a picture, three of them on things that are not there (Li et al. 2023).

    mmrlhf eval pope --model runs/sft/model --data POPE/coco_pope_adversarial.json --image_folder val2014 --out runs/pope
    mmrlhf eval pope --answers answers.jsonl --data POPE/coco_pope_adversarial.json --out runs/pope

--data is a file of questions, or a folder with one for each of random, popular and adversarial: then every figure is given per split, and as
their mean. RePOPE's labels and SEEM's questions on A-OKVQA and GQA are such files, POPEv2's annotations too. `official` is what AoiDragon/POPE's
evaluate.py prints: answers go with labels line by line, the shorter file ends both, and what says no in none of its words says yes. `robust` joins
by id and reads answers with `mmrlhf.answers.yes_no`: what cannot be read counts as wrong, and as neither yes nor no. Fractions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from mmrlhf.answers import pope_says, yes_no
from mmrlhf.benchmark import Counted, Task, first
from mmrlhf.config import STRICT
from mmrlhf.records import Example, ImageSource, InputError, Message
from mmrlhf.rows import contents, opened, parse

VERSION, LICENSE = "1", "MIT"
HEADLINE, DIRECTION, CLUSTER = "f1", "higher", "image"
ANSWER = ("question_id", "answer")
SPLITS = ("random", "popular", "adversarial")
METRICS = ("accuracy", "precision", "recall", "f1", "yes_ratio")
KNOWN = {
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
    """What POPE's question files can be told."""

    suffix: str | None = "Answer the question using a single word or phrase."
    """A line after each question; `none` asks it as it stands."""
    rule: Literal["pope", "repope"] = "pope"
    """Whose script `official` is: POPE's, or RePOPE's, which looks for the letters yes and no by question id and drops what has neither."""


# ---- questions -------------------------------------------------------------------------------------------------------


def load(task: Task) -> list[Example]:
    """Questions of a file, or of every split in a folder, with ids `17` or `adversarial/17`."""
    if task.path.is_file():
        return _questions(task, task.path, "")
    return [e for split, path in _splits(task.path).items() for e in _questions(task, path, split)]


def files(task: Task) -> list[Path]:
    """The question files."""
    return [task.path] if task.path.is_file() else list(_splits(task.path).values())


def _splits(folder: Path) -> dict[str, Path]:
    found = {}
    for split in SPLITS:
        there = sorted(folder.glob(f"*_{split}.json*"))
        if len(there) > 1:
            raise InputError(
                f"--data {folder} has several files for {split} ({', '.join(p.name for p in there)}): give a folder of one set"
            )
        if there:
            found[split] = there[0]
    if not found:
        raise InputError(f"--data {folder} has no file of questions: it should hold NAME_{{{','.join(SPLITS)}}}.json")
    return found


def _questions(task: Task, path: Path, split: str) -> list[Example]:
    rows = _rows(path)[: task.limit]
    found = []
    for number, row in enumerate(rows, 1):
        where = f"{path} row {number}"
        if not isinstance(row, dict):
            raise InputError(f"{where}: a question must be an object with image, text and label")
        image, text, label = row.get("image", row.get("image_name")), row.get("text", row.get("query")), row.get("label")
        if not (isinstance(image, str) and isinstance(text, str) and str(label).lower() in ("yes", "no")):
            raise InputError(f"{where}: a question needs image, text, and a label that is yes or no: correct the row")
        id_ = str(row.get("question_id", number))
        asked = f"{text}\n{task.options.suffix}" if task.options.suffix else text
        meta = {"part": split, "label": str(label).lower(), "image": image, "question": text}
        source = ImageSource(path=str(task.pictures / image.lstrip("/")))
        found.append(Example(f"{split}/{id_}" if split else id_, (source,), (Message("user", asked),), meta=meta))
    return found


def _rows(path: Path) -> list[Any]:
    """One JSON list, or a question a line."""
    with opened(path) as file:
        content = file.read()
    if content.lstrip()[:1] == b"[":
        return list(contents(path))
    return [parse(line, f"{path} line {n}") for n, line in enumerate(content.split(b"\n"), 1) if line.strip()]


def identify(fields: Mapping[str, Any], task: Task) -> str | None:
    """Which question a row of answers is about: by its id, and where --data is a folder by the split that the row, its file's name or its
    question says. A row without a question_id (VLMEvalKit's) is found by picture and question."""
    id_ = fields.get("question_id")
    if id_ is None:
        picture = Path(str(fields.get("image_source") or fields.get("image_path") or fields.get("image") or "")).stem
        named = [
            e for e in task.examples.values()
            if e.meta["question"] == _bare(fields) and Path(e.meta["image"]).stem == picture
            and e.meta["part"] in ("", fields.get("category", e.meta["part"]))
        ]  # fmt: skip
        return named[0].id if named else None
    if task.path.is_file() or str(id_) in task.examples:
        return str(id_)
    said = f"{fields.get('category', '')} {fields.get('split', '')} {fields.get('file', '')}"
    splits = [s for s in SPLITS if re.search(rf"\b{s}\b", said.replace("_", " "))] or [
        s for s in SPLITS if (e := task.examples.get(f"{s}/{id_}")) and e.meta["question"] == _bare(fields)
    ]
    return f"{splits[0]}/{id_}" if splits else str(id_)


def _bare(fields: Mapping[str, Any]) -> str:
    """The question of a row, without what a harness wrote behind it."""
    return str(fields.get("question") or fields.get("prompt") or "").split("\n")[0].strip()


# ---- scores ----------------------------------------------------------------------------------------------------------


def score(example: Example, answers: list[str], task: Task) -> dict[str, Any]:
    """What the first answer says, by the script's rule and by ours."""
    said = yes_no(answers[0], example.meta["question"])
    return {"label": example.meta["label"], "official": pope_says(answers[0]), "said": said, "unparsed": said is None}


def aggregate(rows: list[dict[str, Any]], task: Task) -> dict[str, Counted]:
    """Figures flat for a file, per split and as their mean for a folder."""
    official = _official(rows, task) if task.options.rule == "pope" else _repope(rows, task)
    return {"official": official, "robust": _robust(rows, task)}


def _parts(task: Task) -> list[str]:
    return list(dict.fromkeys(e.meta["part"] for e in task.examples.values()))


def _official(rows: list[dict[str, Any]], task: Task) -> Counted:
    """Labels and answers line by line, as POPE's evaluate.py zips two files."""
    clusters, columns, reasons = [], [], {}
    parts = _parts(task)
    for number, part in enumerate(parts):
        examples = [e for e in task.examples.values() if e.meta["part"] == part]
        answered = [r for r in rows if not part or r["id"].startswith(f"{part}/")]
        if any(r["status"] == "null" for r in answered):
            reasons[part] = "the official script raises AttributeError on an answer that is null"
            continue
        told = [pope_says(r["answers"][0]) for r in answered]
        counts = _confusion([(e.meta["label"], said) for e, said in zip(examples, told, strict=False)])
        clusters += [e.meta["image"] for e in examples[: len(counts)]]
        columns += [np.concatenate([np.zeros(4 * number), c, np.zeros(4 * (len(parts) - number - 1))]) for c in counts]
        reasons[part] = _why(np.sum(counts, 0) if counts else np.zeros(4), bool(answered))

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        return _by_part(parts, sums, _printed)

    return Counted(
        clusters, np.array(columns).reshape(len(columns), 4 * len(parts)), metrics, reasons | {"mean": _mean_reason(reasons)}
    )


def _confusion(pairs: list[tuple[str, str | None]]) -> list[np.ndarray]:
    """TP, FP, TN, FN of each, yes positive."""
    place = {("yes", "yes"): 0, ("no", "yes"): 1, ("no", "no"): 2, ("yes", "no"): 3}
    return [np.eye(4)[place[label, said]] for label, said in pairs if said is not None]


def _printed(counts: np.ndarray) -> dict[str, np.ndarray]:
    """What the script prints, of counts [..., 4]; it prints nothing where it would divide by zero."""
    tp, fp, tn, fn = np.moveaxis(counts, -1, 0)
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    f1 = 2 * precision * recall / (precision + recall)
    n = tp + tn + fp + fn
    values = {"accuracy": (tp + tn) / n, "precision": precision, "recall": recall, "f1": f1, "yes_ratio": (tp + fp) / n}
    return {k: np.where(np.isfinite(f1), v, np.nan) for k, v in values.items()}


def _why(counts: np.ndarray, answered: bool) -> str:
    """Where the script stops."""
    tp, fp, _, fn = counts
    if not answered:
        return "there are no answers to this split"
    where = (
        "precision (no answer was read as yes)"
        if tp + fp == 0
        else "recall (no label is yes)"
        if tp + fn == 0
        else "f1 (no true positive)"
    )
    return f"the official script raises ZeroDivisionError at {where}"


def _mean_reason(reasons: Mapping[str, str]) -> str:
    return f"a split has no value ({'; '.join(f'{p}: {why}' for p, why in reasons.items() if p)})"


def _by_part(parts: list[str], sums: np.ndarray, measure: Any) -> dict[str, np.ndarray]:
    """Figures of each part's columns, flat for one without a name, else with their mean."""
    width = sums.shape[-1] // len(parts)
    each = {part: measure(sums[..., i * width : (i + 1) * width]) for i, part in enumerate(parts)}
    if parts == [""]:
        return dict(each[""])
    found = {f"{part}/{name}": value for part, values in each.items() for name, value in values.items()}
    return found | {f"mean/{name}": np.mean([values[name] for values in each.values()], 0) for name in METRICS}


def _repope(rows: list[dict[str, Any]], task: Task) -> Counted:
    """RePOPE's script: by id, the letters `yes` first, then `no`, anywhere in the answer; neither: left out."""

    def says(answer: str) -> str | None:
        return "yes" if "yes" in answer.lower() else "no" if "no" in answer.lower() else None

    return _joined(task, {r["id"]: says(r["answers"][0]) for r in first(rows)}, dropped=True)


def _robust(rows: list[dict[str, Any]], task: Task) -> Counted:
    return _joined(task, {r["id"]: r["said"] for r in first(rows)}, dropped=False)


def _joined(task: Task, said: Mapping[str, str | None], dropped: bool) -> Counted:
    """By id, columns TP, FP, TN, FN, unread with label yes, unread with label no. Unread answers are wrong, and neither yes nor no."""
    parts = _parts(task)
    answered = [e for e in task.examples.values() if e.id in said and not (dropped and said[e.id] is None)]
    columns = np.zeros((len(answered), 6 * len(parts)))
    place = {("yes", "yes"): 0, ("no", "yes"): 1, ("no", "no"): 2, ("yes", "no"): 3, ("yes", None): 4, ("no", None): 5}
    for row, e in enumerate(answered):
        columns[row, 6 * parts.index(e.meta["part"]) + place[e.meta["label"], said[e.id]]] = 1

    def measure(counts: np.ndarray) -> dict[str, np.ndarray]:
        tp, fp, tn, fn, unread_yes, unread_no = np.moveaxis(counts, -1, 0)
        n, positive = counts.sum(-1), tp + fn + unread_yes
        return {
            "accuracy": (tp + tn) / n, "precision": tp / (tp + fp), "recall": tp / positive,
            "f1": 2 * tp / (tp + fp + positive), "yes_ratio": (tp + fp) / (tp + fp + tn + fn), "unparsed": (unread_yes + unread_no) / n,
        }  # fmt: skip

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        return _by_part(parts, sums, measure)

    empty = {p: "there are no answers to this split" for p in parts if not any(e.meta["part"] == p for e in answered)}
    reasons = {"": "no answer was read as yes, or no label is yes"} | empty | {"mean": "a split has no value"}
    return Counted([e.meta["image"] for e in answered], columns, metrics, reasons)
