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
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from mmrlhf.answers import pope_says, yes_no
from mmrlhf.benchmark import Counted, Task, first
from mmrlhf.config import STRICT
from mmrlhf.intervals import wilson
from mmrlhf.records import Example, ImageSource, InputError, Message
from mmrlhf.rows import contents, opened, parse

VERSION, LICENSE = "1", "MIT"
HEADLINE, DIRECTION, CLUSTER = "f1", "higher", "image"
ANSWER = ("question_id", "answer")
SPLITS = ("random", "popular", "adversarial")
WIDTH, PLACE = 6, {("yes", "yes"): 0, ("no", "yes"): 1, ("no", "no"): 2, ("yes", "no"): 3}
"""Columns of a part: TP, FP, TN, FN, yes positive, by label and answer; two more, which are the mode's own."""
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


# ---- answers ---------------------------------------------------------------------------------------------------------


def identify(fields: Mapping[str, Any], task: Task) -> str | None:
    """Which question a row of answers is about, as `sort_out` has found."""
    return fields.get("about")


def sort_out(rows: list[Mapping[str, Any]], task: Task) -> list[Mapping[str, Any]]:
    """Rows, each with the id it is `about`: an example's, or an unknown one where its own question, picture or split is another.

    Rows that say their split, or whose file's name does, are of it. Others are cut into blocks where ids begin anew, and a block is of the split
    whose questions it asks. Where ids do not fit the questions, a block that asks all of a split's in their order is found by its text.
    """
    file = task.path.is_file()
    here, parts, known = (_named(task.path.stem) if file else None), _parts(task), _Known(task)
    groups: dict[tuple[str, str | None], list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault((str(row.get("file", "")), _said(row)), []).append(number)
    about: dict[int, str] = {}
    others = 0
    for (_, said), numbers in groups.items():
        if file:
            candidates, of = ([""], "") if None in (said, here) or said == here else ([], said)
        else:
            candidates, of = (parts, None) if said is None else ([said] if said in parts else [], said)
        found, split = _assigned(rows, numbers, candidates, known) if candidates else ({}, {})
        about |= found
        for number in (n for n in numbers if n not in found):
            row = rows[number]
            might = [split[number]] if number in split else candidates
            others += bool(_asked(row)) and any(_id(row) is None or known.by_id(row, p) for p in might)
            if (name := _unknown(row, split.get(number, of), task)) is not None:
                about[number] = name
    if others:
        print(f"note: {others} answers are to other questions than the data's: is it another version?", file=sys.stderr)
    return [{**row, "about": about.get(number)} for number, row in enumerate(rows)]


class _Known:
    """The questions of a task, by id and by picture and words."""

    def __init__(self, task: Task) -> None:
        self.examples = task.examples
        self.asked: dict[str, dict[str, str]] = {}
        """Ids and questions of each part, in order."""
        self._shown: dict[tuple[str, str, str], set[str]] = {}
        self.pictures = set()
        for e in task.examples.values():
            words, picture = _words(e.meta["question"]), Path(e.meta["image"]).stem
            self.asked.setdefault(e.meta["part"], {})[e.id] = words
            self._shown.setdefault((e.meta["part"], picture, words), set()).add(e.id)
            self.pictures.add(picture)

    def by_id(self, row: Mapping[str, Any], part: str) -> str | None:
        """The example of a part that the row's id names."""
        id_ = _id(row)
        found = None if id_ is None else f"{part}/{id_}" if part else id_
        return found if found in self.examples else None

    def about(self, row: Mapping[str, Any], part: str) -> str | None:
        """The example of a part that a row is about: the one that its id names, unless its own words or picture are another's."""
        named, words, picture = self.by_id(row, part), _asked(row), _picture(row)
        if not words:
            return named
        if named and self.asked[part][named] == words and (
            picture not in self.pictures or Path(self.examples[named].meta["image"]).stem == picture
        ):  # fmt: skip
            return named
        shown = self._shown.get((part, picture, words), set())
        return next(iter(shown)) if len(shown) == 1 else None


def _assigned(
    rows: list[Mapping[str, Any]], numbers: list[int], candidates: list[str], known: _Known
) -> tuple[dict[int, str], dict[int, str]]:
    """Ids of the rows of one file that may be of these parts, and the parts of those whose block has one."""
    alone = len(candidates) == 1
    used: list[str] = []
    found: dict[int, str] = {}
    of: dict[int, str] = {}
    for block in [numbers] if alone else sorted(_blocks(rows, numbers), key=len, reverse=True):
        about = {part: {n: id_ for n in block if (id_ := known.about(rows[n], part))} for part in candidates}
        share = {}
        for part in candidates:
            asks = [n for n in block if _asked(rows[n])]
            counted = [n for n in asks if n in about[part] or _id(rows[n]) is None or known.by_id(rows[n], part)]
            share[part] = sum(n in about[part] for n in counted) / len(counted) if counted else float(alone and not asks)
        # half of the questions are the same in all splits, and what is common to two says nothing of the rest
        best = [p for p in candidates if share[p] == max(share.values()) >= (0.75 if alone else 0.9)]
        free = [p for p in best if p not in used]
        part = best[0] if len(best) == 1 else free[0] if len(free) == 1 else None
        if part is not None:
            used.append(part)
            found |= about[part]
            of |= dict.fromkeys(block, part)
        elif not best:
            if alone:
                found |= {n: id_ for n, id_ in about[candidates[0]].items() if not _asked(rows[n])}
            found |= _aligned([(n, _asked(rows[n])) for n in block], [p for p in candidates if p not in used], alone, known, used)
    return found, of


def _blocks(rows: list[Mapping[str, Any]], numbers: list[int]) -> list[list[int]]:
    """Rows cut where ids begin anew, or one asks something else; another row with the same question is a duplicate."""
    blocks: list[list[int]] = [[]]
    seen: dict[str, str] = {}
    for number in numbers:
        if (id_ := _id(rows[number])) is not None:
            if id_ in seen and (id_ == next(iter(seen)) or seen[id_] != _asked(rows[number])):
                blocks.append([])
                seen = {}
            seen[id_] = _asked(rows[number])
        blocks[-1].append(number)
    return blocks


def _aligned(asks: list[tuple[int, str]], parts: list[str], alone: bool, known: _Known, used: list[str]) -> dict[int, str]:
    """Ids of rows that ask all of a part's questions one after another; where there is one part alone, its first will do."""
    texts = [text for _, text in asks]
    found: dict[int, str] = {}
    for part in parts:
        ids, questions = list(known.asked[part]), list(known.asked[part].values())
        if alone and texts == questions[: len(texts)]:
            start = 0
        else:
            starts = (o for o, text in enumerate(texts) if text == questions[0] and asks[o][0] not in found)
            start = next((o for o in starts if texts[o : o + len(questions)] == questions), -1)
        if start >= 0:
            used.append(part)
            found |= {number: id_ for (number, _), id_ in zip(asks[start:], ids, strict=False)}
    return found


def _unknown(row: Mapping[str, Any], split: str | None, task: Task) -> str | None:
    """An id that no example has, for a row that is about none; None for a row that says nothing."""
    id_, asked = _id(row), _question(row).strip().split("\n")[0]
    if id_ is None:
        return "/".join(filter(None, (split, _picture(row), asked))) if asked else None
    name = f"{split}/{id_}" if split else id_
    return f"{name}/{asked}" if name in task.examples else name


def _id(row: Mapping[str, Any]) -> str | None:
    """The row's id, without its split."""
    id_ = row.get("question_id")
    if id_ is None:
        return None
    split, _, rest = str(id_).partition("/")
    return rest if split in SPLITS and rest else str(id_)


def _said(row: Mapping[str, Any]) -> str | None:
    """The split that a row or its file's name says."""
    split, _, rest = str(row.get("question_id", "")).partition("/")
    if split in SPLITS and rest:
        return split
    return _named(f"{row.get('category', '')} {row.get('split', '')}") or _named(str(row.get("file", "")))


def _named(text: str) -> str | None:
    return next((s for s in SPLITS if re.search(rf"\b{s}\b", text.replace("_", " "))), None)


def _picture(row: Mapping[str, Any]) -> str:
    image = next((row[f] for f in ("image_source", "image_path", "image") if row.get(f)), "")
    return Path(str(image)[:300]).stem  # a table may hold the picture itself


def _question(row: Mapping[str, Any]) -> str:
    return str(row.get("question") or row.get("prompt") or "")[:2000]


def _asked(row: Mapping[str, Any]) -> str:
    return _words(_question(row))


@lru_cache(maxsize=1 << 16)
def _words(text: str) -> str:
    """The words of the question in a prompt, as both versions of POPE spell them; empty where it has none."""
    text = text.replace("<image>", "\n").strip()
    found = re.search(r"[^\n.:?!]{1,300}\?", text)
    words = re.findall(r"\w+", (found[0] if found else text.split("\n")[0]).lower())
    return " ".join({"an": "a", "imange": "image"}.get(w, w) for w in words)


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
    """Labels and answers line by line, as POPE's evaluate.py zips two files; its yes ratio is that of all answers, with those past the labels."""
    clusters, columns, reasons, notes = [], [], {}, {}
    parts = _parts(task)
    for number, part in enumerate(parts):
        examples = [e for e in task.examples.values() if e.meta["part"] == part]
        answered = [r for r in rows if _of(r["id"], part, task)]
        if any(r["status"] == "null" for r in answered):
            reasons[part] = "the official script raises AttributeError on an answer that is null"
            continue
        told = [pope_says(r["answers"][0]) for r in answered]
        counts = np.zeros((len(told), WIDTH))
        counts[:, 5] = 1
        counts[:, 4] = [said == "yes" for said in told]
        for row, e, said in zip(counts, examples, told, strict=False):
            row[PLACE[e.meta["label"], said]] = 1
        clusters += [e.meta["image"] for e, _ in zip(examples, told, strict=False)]
        clusters += [
            task.examples[r["id"]].meta["image"] if r["id"] in task.examples else r["id"] for r in answered[len(examples) :]
        ]
        columns.append(np.pad(counts, ((0, 0), (WIDTH * number, WIDTH * (len(parts) - number - 1)))))
        reasons[part] = _why(counts.sum(0), bool(answered))
        if elsewhere := sum(e.id != r["id"] for e, r in zip(examples, answered, strict=False)):
            notes[f"{part}/other_line" if part else "other_line"] = _elsewhere(elsewhere, len(answered), part)

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        return _by_part(parts, sums, _printed)

    table = np.concatenate([np.zeros((0, WIDTH * len(parts))), *columns])
    return Counted(clusters, table, metrics, reasons | {"mean": _mean_reason(reasons)}, more=notes)


def _of(id_: str, part: str, task: Task) -> bool:
    """Whether an answer stands in the file that a part's labels are zipped with: all but those of other splits."""
    split = id_.partition("/")[0]
    return split == part if part else id_ in task.examples or split not in SPLITS


def _elsewhere(count: int, answers: int, part: str) -> dict[str, Any]:
    """The share of answers that the script holds against another question's label, with Wilson's interval, and a note that says so."""
    note = f"official pairs by line; {count} of {answers} answers stand on another question's line"
    print(f"note: {f'{part}: ' if part else ''}{note}", file=sys.stderr)
    low, high = wilson(count, answers)
    return {"value": count / answers, "low": low, "high": high, "note": note}


def _printed(counts: np.ndarray) -> dict[str, np.ndarray]:
    """What the script prints, of counts [..., 6]; it prints nothing where it would divide by zero."""
    tp, fp, tn, fn, said_yes, answers = np.moveaxis(counts, -1, 0)
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    f1 = 2 * precision * recall / (precision + recall)
    n = tp + tn + fp + fn
    values = {"accuracy": (tp + tn) / n, "precision": precision, "recall": recall, "f1": f1, "yes_ratio": said_yes / answers}
    return {k: np.where(np.isfinite(f1), v, np.nan) for k, v in values.items()}


def _why(counts: np.ndarray, answered: bool) -> str:
    """Where the script stops; empty where it does not."""
    tp, fp, _, fn = counts[:4]
    if not answered:
        return "there are no answers to this split"
    stops = (
        (tp + fp, "precision (no answer was read as yes)"),
        (tp + fn, "recall (no label is yes)"),
        (tp, "f1 (no true positive)"),
    )
    return next((f"the official script raises ZeroDivisionError at {where}" for count, where in stops if count == 0), "")


def _mean_reason(reasons: Mapping[str, str]) -> str:
    return f"a split has no value ({'; '.join(f'{p}: {why}' for p, why in reasons.items() if why)})"


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
    columns = np.zeros((len(answered), WIDTH * len(parts)))
    place = PLACE | {("yes", None): 4, ("no", None): 5}
    for row, e in enumerate(answered):
        columns[row, WIDTH * parts.index(e.meta["part"]) + place[e.meta["label"], said[e.id]]] = 1

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
