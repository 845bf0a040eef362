"""POPE: is there an X in the image? Six questions a picture, three of them on things that are not there (Li et al. 2023).

    mmrlhf eval pope --model runs/sft/model --data POPE/coco_pope_adversarial.json --image_folder val2014 --out runs/pope
    mmrlhf eval pope --answers answers.jsonl --data POPE/coco_pope_adversarial.json --out runs/pope

--data is a file of questions, or a folder with one for each of random, popular and adversarial: then every figure is given per split, and as
their mean. RePOPE's labels and SEEM's questions on A-OKVQA and GQA are such files, POPEv2's annotations too. `official` is what AoiDragon/POPE's
evaluate.py prints: answers go with labels line by line, the shorter file ends both, and what says no in none of its words says yes. `robust` joins
by id and reads answers with `mmrlhf.text.answer_parsing.yes_no`: what cannot be read counts as wrong, and as neither yes nor no. Fractions.
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

from mmrlhf.config import STRICT
from mmrlhf.evaluation.benchmark import Benchmark, Task, first_valid
from mmrlhf.files.rows import open_binary, parse_json, read_json
from mmrlhf.metrics.intervals import SufficientStats, wilson
from mmrlhf.records import Example, ImageSource, InputError, Message
from mmrlhf.text.answer_parsing import parse_yes_no, pope_official

SPLITS = ("random", "popular", "adversarial")

NUM_COLUMNS, COLUMN_OF = 6, {("yes", "yes"): 0, ("no", "yes"): 1, ("no", "no"): 2, ("yes", "no"): 3}

"""Columns of a part: TP, FP, TN, FN, yes positive, by label and answer; two more, which are the mode's own."""

METRICS = ("accuracy", "precision", "recall", "f1", "yes_ratio")

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
    """What POPE's question files can be told."""

    suffix: str | None = "Answer the question using a single word or phrase."
    """A line after each question; `none` asks it as it stands."""
    rule: Literal["pope", "repope"] = "pope"
    """Whose script `official` is: POPE's, or RePOPE's, which looks for the letters yes and no by question id and drops what has neither."""


class Pope(Benchmark):
    """TODO."""

    version = "1"
    license = "MIT"
    headline = "f1"
    direction = "higher"
    cluster = "image"
    answer_fields = ("question_id", "answer")
    known_versions = KNOWN_VERSIONS
    options_type = Options

    def load(self, task: Task) -> list[Example]:
        """Questions of a file, or of every split in a folder, with ids `17` or `adversarial/17`."""
        if task.path.is_file():
            return _load_questions(task, task.path, "")
        return [e for split, path in _splits(task.path).items() for e in _load_questions(task, path, split)]

    def files(self, task: Task) -> list[Path]:
        """The question files."""
        return [task.path] if task.path.is_file() else list(_splits(task.path).values())

    def match_rows(self, rows: list[Mapping[str, Any]], task: Task) -> list[Mapping[str, Any]]:
        """Rows, each with the id it is `about`: an example's, or an unknown one where its own question, picture or split is another.

        Rows that say their split, or whose file's name does, are of it. Others are cut into blocks where ids begin anew, and a block is of the split
        whose questions it asks. Where ids do not fit the questions, a block that asks all of a split's in their order is found by its text.
        """
        is_file = task.path.is_file()
        file_split, parts, questions = (_split_in_text(task.path.stem) if is_file else None), _parts(task), _QuestionIndex(task)
        row_groups: dict[tuple[str, str | None], list[int]] = {}
        for number, row in enumerate(rows):
            row_groups.setdefault((str(row.get("file", "")), _row_split(row)), []).append(number)
        matched_ids: dict[int, str] = {}
        num_other_questions = 0
        for (_, stated_split), numbers in row_groups.items():
            if is_file:
                candidates, default_split = (
                    ([""], "") if None in (stated_split, file_split) or stated_split == file_split else ([], stated_split)
                )
            else:
                candidates, default_split = (
                    (parts, None) if stated_split is None else ([stated_split] if stated_split in parts else [], stated_split)
                )
            group_ids, split_of_row = _assign_ids(rows, numbers, candidates, questions) if candidates else ({}, {})
            matched_ids |= group_ids
            for number in (n for n in numbers if n not in group_ids):
                row = rows[number]
                possible_parts = [split_of_row[number]] if number in split_of_row else candidates
                num_other_questions += bool(_row_question(row)) and any(
                    _row_id(row) is None or questions.find_by_id(row, p) for p in possible_parts
                )
                if (unknown_id := _unknown_id(row, split_of_row.get(number, default_split), task)) is not None:
                    matched_ids[number] = unknown_id
        if num_other_questions:
            print(
                f"note: {num_other_questions} answers are to other questions than the data's: is it another version?",
                file=sys.stderr,
            )
        return [{**row, "about": matched_ids.get(number)} for number, row in enumerate(rows)]

    def match_id(self, fields: Mapping[str, Any], task: Task) -> str | None:
        """Which question a row of answers is about, as `match_rows` has found."""
        return fields.get("about")

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """What the first answer says, by the script's rule and by ours."""
        parsed = parse_yes_no(answers[0], example.meta["question"])
        return {"label": example.meta["label"], "official": pope_official(answers[0]), "said": parsed, "unparsed": parsed is None}

    def aggregate(self, rows: list[dict[str, Any]], task: Task) -> dict[str, SufficientStats]:
        """Figures flat for a file, per split and as their mean for a folder."""
        official = _official_stats(rows, task) if task.options.rule == "pope" else _repope_stats(rows, task)
        return {"official": official, "robust": _robust_stats(rows, task)}


def _splits(folder: Path) -> dict[str, Path]:
    paths = {}
    for split in SPLITS:
        matching = sorted(folder.glob(f"*_{split}.json*"))
        if len(matching) > 1:
            raise InputError(
                f"--data {folder} has several files for {split} ({', '.join(p.name for p in matching)}): give a folder of one set"
            )
        if matching:
            paths[split] = matching[0]
    if not paths:
        raise InputError(f"--data {folder} has no file of questions: it should hold NAME_{{{','.join(SPLITS)}}}.json")
    return paths


def _load_questions(task: Task, path: Path, split: str) -> list[Example]:
    rows = _read_rows(path)[: task.limit]
    examples = []
    for number, row in enumerate(rows, 1):
        location = f"{path} row {number}"
        if not isinstance(row, dict):
            raise InputError(f"{location}: a question must be an object with image, text and label")
        image, text, label = row.get("image", row.get("image_name")), row.get("text", row.get("query")), row.get("label")
        if not (isinstance(image, str) and isinstance(text, str) and str(label).lower() in ("yes", "no")):
            raise InputError(f"{location}: a question needs image, text, and a label that is yes or no: correct the row")
        id_ = str(row.get("question_id", number))
        prompt = f"{text}\n{task.options.suffix}" if task.options.suffix else text
        meta = {"part": split, "label": str(label).lower(), "image": image, "question": text}
        source = ImageSource(path=str(task.image_root / image.lstrip("/")))
        examples.append(Example(f"{split}/{id_}" if split else id_, (source,), (Message("user", prompt),), meta=meta))
    return examples


def _read_rows(path: Path) -> list[Any]:
    """One JSON list, or a question a line."""
    with open_binary(path) as file:
        content = file.read()
    if content.lstrip()[:1] == b"[":
        return list(read_json(path))
    return [parse_json(line, f"{path} line {n}") for n, line in enumerate(content.split(b"\n"), 1) if line.strip()]


class _QuestionIndex:
    """The questions of a task, by id and by picture and words."""

    def __init__(self, task: Task) -> None:
        self.examples = task.examples
        self.questions_by_part: dict[str, dict[str, str]] = {}
        """Ids and questions of each part, in order."""
        self._ids_by_image_question: dict[tuple[str, str, str], set[str]] = {}
        self.image_stems = set()
        for example in task.examples.values():
            question, image_stem = _normalise_question(example.meta["question"]), Path(example.meta["image"]).stem
            self.questions_by_part.setdefault(example.meta["part"], {})[example.id] = question
            self._ids_by_image_question.setdefault((example.meta["part"], image_stem, question), set()).add(example.id)
            self.image_stems.add(image_stem)

    def find_by_id(self, row: Mapping[str, Any], part: str) -> str | None:
        """The example of a part that the row's id names."""
        id_ = _row_id(row)
        example_id = None if id_ is None else f"{part}/{id_}" if part else id_
        return example_id if example_id in self.examples else None

    def find_match(self, row: Mapping[str, Any], part: str) -> str | None:
        """The example of a part that a row is about: the one that its id names, unless its own words or picture are another's."""
        example_id, question, image_stem = self.find_by_id(row, part), _row_question(row), _image_stem(row)
        if not question:
            return example_id
        if example_id and self.questions_by_part[part][example_id] == question and (
            image_stem not in self.image_stems or Path(self.examples[example_id].meta["image"]).stem == image_stem
        ):  # fmt: skip
            return example_id
        candidates = self._ids_by_image_question.get((part, image_stem, question), set())
        return next(iter(candidates)) if len(candidates) == 1 else None


def _assign_ids(
    rows: list[Mapping[str, Any]], numbers: list[int], candidates: list[str], questions: _QuestionIndex
) -> tuple[dict[int, str], dict[int, str]]:
    """Ids of the rows of one file that may be of these parts, and the parts of those whose block has one."""
    is_only_part = len(candidates) == 1
    used_parts: list[str] = []
    matched_ids: dict[int, str] = {}
    part_of_row: dict[int, str] = {}
    for block in [numbers] if is_only_part else sorted(_split_blocks(rows, numbers), key=len, reverse=True):
        ids_by_part = {part: {n: id_ for n in block if (id_ := questions.find_match(rows[n], part))} for part in candidates}
        match_rate = {}
        for part in candidates:
            with_question = [n for n in block if _row_question(rows[n])]
            counted = [
                n
                for n in with_question
                if n in ids_by_part[part] or _row_id(rows[n]) is None or questions.find_by_id(rows[n], part)
            ]
            match_rate[part] = (
                sum(n in ids_by_part[part] for n in counted) / len(counted)
                if counted
                else float(is_only_part and not with_question)
            )
        # half of the questions are the same in all splits, and what is common to two says nothing of the rest
        best_parts = [p for p in candidates if match_rate[p] == max(match_rate.values()) >= (0.75 if is_only_part else 0.9)]
        unused_parts = [p for p in best_parts if p not in used_parts]
        part = best_parts[0] if len(best_parts) == 1 else unused_parts[0] if len(unused_parts) == 1 else None
        if part is not None:
            used_parts.append(part)
            matched_ids |= ids_by_part[part]
            part_of_row |= dict.fromkeys(block, part)
        elif not best_parts:
            if is_only_part:
                matched_ids |= {n: id_ for n, id_ in ids_by_part[candidates[0]].items() if not _row_question(rows[n])}
            matched_ids |= _align_by_text(
                [(n, _row_question(rows[n])) for n in block],
                [p for p in candidates if p not in used_parts],
                is_only_part,
                questions,
                used_parts,
            )
    return matched_ids, part_of_row


def _split_blocks(rows: list[Mapping[str, Any]], numbers: list[int]) -> list[list[int]]:
    """Rows cut where ids begin anew, or one asks something else; another row with the same question is a duplicate."""
    blocks: list[list[int]] = [[]]
    seen: dict[str, str] = {}
    for number in numbers:
        if (id_ := _row_id(rows[number])) is not None:
            if id_ in seen and (id_ == next(iter(seen)) or seen[id_] != _row_question(rows[number])):
                blocks.append([])
                seen = {}
            seen[id_] = _row_question(rows[number])
        blocks[-1].append(number)
    return blocks


def _align_by_text(
    numbered_questions: list[tuple[int, str]], parts: list[str], is_only_part: bool, index: _QuestionIndex, used_parts: list[str]
) -> dict[int, str]:
    """Ids of rows that ask all of a part's questions one after another; where there is one part alone, its first will do."""
    texts = [text for _, text in numbered_questions]
    matched_ids: dict[int, str] = {}
    for part in parts:
        ids, questions = list(index.questions_by_part[part]), list(index.questions_by_part[part].values())
        if is_only_part and texts == questions[: len(texts)]:
            start = 0
        else:
            starts = (o for o, text in enumerate(texts) if text == questions[0] and numbered_questions[o][0] not in matched_ids)
            start = next((o for o in starts if texts[o : o + len(questions)] == questions), -1)
        if start >= 0:
            used_parts.append(part)
            matched_ids |= {number: id_ for (number, _), id_ in zip(numbered_questions[start:], ids, strict=False)}
    return matched_ids


def _unknown_id(row: Mapping[str, Any], split: str | None, task: Task) -> str | None:
    """An id that no example has, for a row that is about none; None for a row that says nothing."""
    id_, question = _row_id(row), _question_text(row).strip().split("\n")[0]
    if id_ is None:
        return "/".join(filter(None, (split, _image_stem(row), question))) if question else None
    example_id = f"{split}/{id_}" if split else id_
    return f"{example_id}/{question}" if example_id in task.examples else example_id


def _row_id(row: Mapping[str, Any]) -> str | None:
    """The row's id, without its split."""
    id_ = row.get("question_id")
    if id_ is None:
        return None
    split, _, rest = str(id_).partition("/")
    return rest if split in SPLITS and rest else str(id_)


def _row_split(row: Mapping[str, Any]) -> str | None:
    """The split that a row or its file's name says."""
    split, _, rest = str(row.get("question_id", "")).partition("/")
    if split in SPLITS and rest:
        return split
    return _split_in_text(f"{row.get('category', '')} {row.get('split', '')}") or _split_in_text(str(row.get("file", "")))


def _split_in_text(text: str) -> str | None:
    return next((s for s in SPLITS if re.search(rf"\b{s}\b", text.replace("_", " "))), None)


def _image_stem(row: Mapping[str, Any]) -> str:
    image = next((row[f] for f in ("image_source", "image_path", "image") if row.get(f)), "")
    return Path(str(image)[:300]).stem  # a table may hold the picture itself


def _question_text(row: Mapping[str, Any]) -> str:
    return str(row.get("question") or row.get("prompt") or "")[:2000]


def _row_question(row: Mapping[str, Any]) -> str:
    return _normalise_question(_question_text(row))


@lru_cache(maxsize=1 << 16)
def _normalise_question(text: str) -> str:
    """The words of the question in a prompt, as both versions of POPE spell them; empty where it has none."""
    text = text.replace("<image>", "\n").strip()
    match = re.search(r"[^\n.:?!]{1,300}\?", text)
    words = re.findall(r"\w+", (match[0] if match else text.split("\n")[0]).lower())
    return " ".join({"an": "a", "imange": "image"}.get(w, w) for w in words)


def _parts(task: Task) -> list[str]:
    return list(dict.fromkeys(e.meta["part"] for e in task.examples.values()))


def _official_stats(rows: list[dict[str, Any]], task: Task) -> SufficientStats:
    """Labels and answers line by line, as POPE's evaluate.py zips two files; its yes ratio is that of all answers, with those past the labels."""
    clusters, columns, reasons, notes = [], [], {}, {}
    parts = _parts(task)
    for number, part in enumerate(parts):
        examples = [example for example in task.examples.values() if example.meta["part"] == part]
        answered_rows = [r for r in rows if _belongs_to_part(r["id"], part, task)]
        if any(r["status"] == "null" for r in answered_rows):
            reasons[part] = "the official script raises AttributeError on an answer that is null"
            continue
        parsed_answers = [pope_official(r["answers"][0]) for r in answered_rows]
        counts = np.zeros((len(parsed_answers), NUM_COLUMNS))
        counts[:, 5] = 1
        counts[:, 4] = [parsed == "yes" for parsed in parsed_answers]
        for row, example, parsed in zip(counts, examples, parsed_answers, strict=False):
            row[COLUMN_OF[example.meta["label"], parsed]] = 1
        clusters += [example.meta["image"] for example, _ in zip(examples, parsed_answers, strict=False)]
        clusters += [
            task.examples[r["id"]].meta["image"] if r["id"] in task.examples else r["id"] for r in answered_rows[len(examples) :]
        ]
        columns.append(np.pad(counts, ((0, 0), (NUM_COLUMNS * number, NUM_COLUMNS * (len(parts) - number - 1)))))
        reasons[part] = _undefined_reason(counts.sum(0), bool(answered_rows))
        if num_misaligned := sum(example.id != r["id"] for example, r in zip(examples, answered_rows, strict=False)):
            notes[f"{part}/other_line" if part else "other_line"] = _misalignment(num_misaligned, len(answered_rows), part)

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        return _metrics_by_part(parts, sums, _official_metrics)

    table = np.concatenate([np.zeros((0, NUM_COLUMNS * len(parts))), *columns])
    return SufficientStats(clusters, table, metrics, reasons | {"mean": _mean_reason(reasons)}, extra=notes)


def _belongs_to_part(id_: str, part: str, task: Task) -> bool:
    """Whether an answer stands in the file that a part's labels are zipped with: all but those of other splits."""
    split = id_.partition("/")[0]
    return split == part if part else id_ in task.examples or split not in SPLITS


def _misalignment(num_misaligned: int, num_answers: int, part: str) -> dict[str, Any]:
    """The share of answers that the script holds against another question's label, with Wilson's interval, and a note that says so."""
    note = f"official pairs by line; {num_misaligned} of {num_answers} answers stand on another question's line"
    print(f"note: {f'{part}: ' if part else ''}{note}", file=sys.stderr)
    low, high = wilson(num_misaligned, num_answers)
    return {"value": num_misaligned / num_answers, "low": low, "high": high, "note": note}


def _official_metrics(counts: np.ndarray) -> dict[str, np.ndarray]:
    """What the script prints, of counts [..., 6]; it prints nothing where it would divide by zero."""
    tp, fp, tn, fn, said_yes, answers = np.moveaxis(counts, -1, 0)
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    f1 = 2 * precision * recall / (precision + recall)
    n = tp + tn + fp + fn
    values = {"accuracy": (tp + tn) / n, "precision": precision, "recall": recall, "f1": f1, "yes_ratio": said_yes / answers}
    return {k: np.where(np.isfinite(f1), v, np.nan) for k, v in values.items()}


def _undefined_reason(counts: np.ndarray, answered: bool) -> str:
    """Where the script stops; empty where it does not."""
    tp, fp, _, fn = counts[:4]
    if not answered:
        return "there are no answers to this split"
    denominators = (
        (tp + fp, "precision (no answer was read as yes)"),
        (tp + fn, "recall (no label is yes)"),
        (tp, "f1 (no true positive)"),
    )
    return next(
        (f"the official script raises ZeroDivisionError at {metric_name}" for count, metric_name in denominators if count == 0),
        "",
    )


def _mean_reason(reasons: Mapping[str, str]) -> str:
    return f"a split has no value ({'; '.join(f'{p}: {why}' for p, why in reasons.items() if why)})"


def _metrics_by_part(parts: list[str], sums: np.ndarray, compute: Any) -> dict[str, np.ndarray]:
    """Figures of each part's columns, flat for one without a name, else with their mean."""
    width = sums.shape[-1] // len(parts)
    metrics = {part: compute(sums[..., i * width : (i + 1) * width]) for i, part in enumerate(parts)}
    if parts == [""]:
        return dict(metrics[""])
    flat_metrics = {f"{part}/{name}": value for part, values in metrics.items() for name, value in values.items()}
    return flat_metrics | {f"mean/{name}": np.mean([values[name] for values in metrics.values()], 0) for name in METRICS}


def _repope_stats(rows: list[dict[str, Any]], task: Task) -> SufficientStats:
    """RePOPE's script: by id, the letters `yes` first, then `no`, anywhere in the answer; neither: left out."""

    def parse_repope(answer: str) -> str | None:
        return "yes" if "yes" in answer.lower() else "no" if "no" in answer.lower() else None

    return _stats_by_id(task, {r["id"]: parse_repope(r["answers"][0]) for r in first_valid(rows)}, drop_unparsed=True)


def _robust_stats(rows: list[dict[str, Any]], task: Task) -> SufficientStats:
    return _stats_by_id(task, {r["id"]: r["said"] for r in first_valid(rows)}, drop_unparsed=False)


def _stats_by_id(task: Task, parsed_answers: Mapping[str, str | None], drop_unparsed: bool) -> SufficientStats:
    """By id, columns TP, FP, TN, FN, unread with label yes, unread with label no. Unread answers are wrong, and neither yes nor no."""
    parts = _parts(task)
    answered_examples = [
        example
        for example in task.examples.values()
        if example.id in parsed_answers and not (drop_unparsed and parsed_answers[example.id] is None)
    ]
    columns = np.zeros((len(answered_examples), NUM_COLUMNS * len(parts)))
    column_of = COLUMN_OF | {("yes", None): 4, ("no", None): 5}
    for row, example in enumerate(answered_examples):
        columns[
            row, NUM_COLUMNS * parts.index(example.meta["part"]) + column_of[example.meta["label"], parsed_answers[example.id]]
        ] = 1

    def compute(counts: np.ndarray) -> dict[str, np.ndarray]:
        tp, fp, tn, fn, unread_yes, unread_no = np.moveaxis(counts, -1, 0)
        n, positive = counts.sum(-1), tp + fn + unread_yes
        return {
            "accuracy": (tp + tn) / n, "precision": tp / (tp + fp), "recall": tp / positive,
            "f1": 2 * tp / (tp + fp + positive), "yes_ratio": (tp + fp) / (tp + fp + tn + fn), "unparsed": (unread_yes + unread_no) / n,
        }  # fmt: skip

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        return _metrics_by_part(parts, sums, compute)

    empty_parts = {
        p: "there are no answers to this split"
        for p in parts
        if not any(example.meta["part"] == p for example in answered_examples)
    }
    reasons = {"": "no answer was read as yes, or no label is yes"} | empty_parts | {"mean": "a split has no value"}
    return SufficientStats([example.meta["image"] for example in answered_examples], columns, metrics, reasons)
