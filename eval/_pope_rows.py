"""Find the question of POPE that a row of an answer file is about.

POPE's ids are line numbers: they begin again in every split, and other versions of the data give
them to other questions. So an id is trusted only if the row's question, image and split do not
contradict it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmrlhf.evaluation.benchmark import Task

SPLITS = ("random", "popular", "adversarial")
MIN_MATCH_RATE, MIN_MATCH_RATE_ONLY_PART = 0.9, 0.75
"""Minimum share of a block's rows that match a part's questions, if there are several parts, and if
there is one.
"""
SPELLINGS = {"an": "a", "imange": "image"}
"""Words that differ between the two versions of POPE, and the spelling for comparisons."""
AnswerRow = Mapping[str, Any]


def match_rows(rows: list[AnswerRow], task: Task) -> list[AnswerRow]:
    """Return the rows with the id of their example under `about`, or None without id and question.

    The id is an unknown one if a row's question, image or split is not in the data. If a row or its
    file names a split, it belongs to that split. Other rows are cut into blocks where ids begin
    again, and a block belongs to the split with its questions. If ids do not fit the questions, a
    block with all questions of a split in order is recognised by its text.
    """
    questions = _QuestionIndex(task)
    row_groups: dict[tuple[str, str | None], list[int]] = {}
    for number, row in enumerate(rows):
        row_groups.setdefault((str(row.get("file", "")), _row_split(row)), []).append(number)
    matched_ids: dict[int, str] = {}
    num_other_questions = 0
    for (_, stated_split), numbers in row_groups.items():
        parts, default_split = _candidate_parts(stated_split, task, list(questions.by_part))
        group_ids, part_of_row = _assign_ids(rows, numbers, parts, questions) if parts else ({}, {})
        matched_ids |= group_ids
        for number in numbers:
            if number in group_ids:
                continue
            row = rows[number]
            possible_parts = [part_of_row[number]] if number in part_of_row else parts
            if _row_question(row) and any(_row_id(row) is None or questions.find_by_id(row, part) for part in possible_parts):
                num_other_questions += 1
            unknown_id = _unknown_id(row, part_of_row.get(number, default_split), task)
            if unknown_id is not None:
                matched_ids[number] = unknown_id
    if num_other_questions:
        print(
            f"note: {num_other_questions} answers are to questions that --data does not have: is it another version?",
            file=sys.stderr,
        )
    return [{**row, "about": matched_ids.get(number)} for number, row in enumerate(rows)]


def _candidate_parts(stated_split: str | None, task: Task, parts: list[str]) -> tuple[list[str], str | None]:
    """Return the parts that rows of a stated split may be about, and the split of unknown ids.

    Data in one file has a single part without a name; a folder has a part for each split.
    """
    if not task.path.is_file():
        if stated_split is None:
            return parts, None
        return ([stated_split] if stated_split in parts else []), stated_split
    file_split = _split_in_text(task.path.stem)
    if stated_split is None or file_split is None or stated_split == file_split:
        return [""], ""
    return [], stated_split


class _QuestionIndex:
    """A task's questions, by id, and by image and words."""

    def __init__(self, task: Task) -> None:
        self.examples = task.examples
        self.by_part: dict[str, dict[str, str]] = {}
        """Ids and questions of each part, in order."""
        self.image_stems: set[str] = set()
        self._ids: dict[tuple[str, str, str], set[str]] = {}
        """Ids by part, image and question. One version of POPE has some questions twice."""
        for example in task.examples.values():
            question, image_stem = _normalise_question(example.meta["question"]), Path(example.meta["image"]).stem
            part = example.meta["part"]
            self.by_part.setdefault(part, {})[example.id] = question
            self._ids.setdefault((part, image_stem, question), set()).add(example.id)
            self.image_stems.add(image_stem)

    def find_by_id(self, row: AnswerRow, part: str) -> str | None:
        """Return the example of a part that the row's id names."""
        id_ = _row_id(row)
        if id_ is None:
            return None
        example_id = f"{part}/{id_}" if part else id_
        return example_id if example_id in self.examples else None

    def find_match(self, row: AnswerRow, part: str) -> str | None:
        """Return the example of a part that the row is about.

        It is the one with the row's id, unless question or image contradict it; then it is the only
        one with this question and image.
        """
        example_id, question, image_stem = self.find_by_id(row, part), _row_question(row), _image_stem(row)
        if not question:
            return example_id
        if example_id is not None and self.by_part[part][example_id] == question:
            # Some logs have their own names for images, which do not contradict the id.
            is_same_image = Path(self.examples[example_id].meta["image"]).stem == image_stem
            if is_same_image or image_stem not in self.image_stems:
                return example_id
        candidates = self._ids.get((part, image_stem, question), set())
        return next(iter(candidates)) if len(candidates) == 1 else None


def _assign_ids(
    rows: list[AnswerRow], numbers: list[int], parts: list[str], questions: _QuestionIndex
) -> tuple[dict[int, str], dict[int, str]]:
    """Return the ids of rows in these parts, and the part of each row in a recognised block."""
    is_only_part = len(parts) == 1
    min_match_rate = MIN_MATCH_RATE_ONLY_PART if is_only_part else MIN_MATCH_RATE
    used_parts: list[str] = []
    matched_ids: dict[int, str] = {}
    part_of_row: dict[int, str] = {}
    # Large blocks first, as their part is less doubtful.
    blocks = [numbers] if is_only_part else sorted(_split_blocks(rows, numbers), key=len, reverse=True)
    for block in blocks:
        ids_by_part = {part: _find_matches(rows, block, part, questions) for part in parts}
        match_rates = {part: _match_rate(rows, block, part, ids_by_part[part], questions, is_only_part) for part in parts}
        # Half of the questions are the same in all splits, so a block may match several splits.
        best_rate = max(match_rates.values())
        best_parts = [part for part in parts if match_rates[part] == best_rate >= min_match_rate]
        if len(best_parts) == 1:
            remaining = best_parts
        else:
            remaining = [part for part in best_parts if part not in used_parts]
        if len(remaining) == 1:
            part = remaining[0]
            used_parts.append(part)
            matched_ids |= ids_by_part[part]
            part_of_row |= dict.fromkeys(block, part)
        elif not best_parts:
            if is_only_part:
                by_id = ids_by_part[parts[0]]
                matched_ids |= {number: id_ for number, id_ in by_id.items() if not _row_question(rows[number])}
            matched_ids |= _align_by_text(rows, block, parts, is_only_part, questions, used_parts)
    return matched_ids, part_of_row


def _find_matches(rows: list[AnswerRow], block: list[int], part: str, questions: _QuestionIndex) -> dict[int, str]:
    """Return the example of a part that each row of a block is about, by the row's number."""
    matches = {number: questions.find_match(rows[number], part) for number in block}
    return {number: id_ for number, id_ in matches.items() if id_ is not None}


def _match_rate(
    rows: list[AnswerRow],
    block: list[int],
    part: str,
    matched_ids: Mapping[int, str],
    questions: _QuestionIndex,
    is_only_part: bool,
) -> float:
    """Return the share of a block's rows that match a part, among those that could.

    Rows with an id that the part lacks are left out: they are unknown in any case. In a block
    without questions, ids are trusted if there is only one part.
    """
    with_question = [number for number in block if _row_question(rows[number])]
    counted = [
        number
        for number in with_question
        if number in matched_ids or _row_id(rows[number]) is None or questions.find_by_id(rows[number], part)
    ]
    if counted:
        return sum(number in matched_ids for number in counted) / len(counted)
    return float(is_only_part and not with_question)


def _split_blocks(rows: list[AnswerRow], numbers: list[int]) -> list[list[int]]:
    """Cut rows where ids begin again: at the block's first id, or an id with another question.

    A repeated id with the same question is a duplicate answer, and stays in its block.
    """
    blocks: list[list[int]] = [[]]
    question_of_id: dict[str, str] = {}
    for number in numbers:
        id_, question = _row_id(rows[number]), _row_question(rows[number])
        if id_ is not None:
            first_id = next(iter(question_of_id), None)
            if id_ in question_of_id and (id_ == first_id or question_of_id[id_] != question):
                blocks.append([])
                question_of_id = {}
            question_of_id[id_] = question
        blocks[-1].append(number)
    return blocks


def _align_by_text(
    rows: list[AnswerRow],
    block: list[int],
    parts: list[str],
    is_only_part: bool,
    index: _QuestionIndex,
    used_parts: list[str],
) -> dict[int, str]:
    """Return ids for rows with all questions of an unused part in order.

    Adds these parts to `used_parts`. If there is only one part, its first questions are enough.
    """
    texts = [_row_question(rows[number]) for number in block]
    matched_ids: dict[int, str] = {}
    for part in [part for part in parts if part not in used_parts]:
        ids, questions = list(index.by_part[part]), list(index.by_part[part].values())
        if is_only_part and texts == questions[: len(texts)]:
            start = 0
        else:
            starts = (offset for offset, text in enumerate(texts) if text == questions[0] and block[offset] not in matched_ids)
            start = next((offset for offset in starts if texts[offset : offset + len(questions)] == questions), -1)
        if start >= 0:
            used_parts.append(part)
            matched_ids |= dict(zip(block[start:], ids, strict=False))
    return matched_ids


def _unknown_id(row: AnswerRow, split: str | None, task: Task) -> str | None:
    """Return an id that no example has, or None for a row without id and question."""
    id_, question = _row_id(row), _question_text(row).strip().split("\n")[0]
    if id_ is None:
        return "/".join(filter(None, (split, _image_stem(row), question))) if question else None
    example_id = f"{split}/{id_}" if split else id_
    return f"{example_id}/{question}" if example_id in task.examples else example_id


# ---- fields of a row -----------------------------------------------------------------------------


def _row_id(row: AnswerRow) -> str | None:
    """Return the row's id, without its split."""
    id_ = row.get("question_id")
    if id_ is None:
        return None
    split, _, rest = str(id_).partition("/")
    return rest if split in SPLITS and rest else str(id_)


def _row_split(row: AnswerRow) -> str | None:
    """Return the split that a row names, or else the one that its file names."""
    split, _, rest = str(row.get("question_id", "")).partition("/")
    if split in SPLITS and rest:
        return split
    own_fields = f"{row.get('category', '')} {row.get('split', '')}"
    return _split_in_text(own_fields) or _split_in_text(str(row.get("file", "")))


def _split_in_text(text: str) -> str | None:
    return next((split for split in SPLITS if re.search(rf"\b{split}\b", text.replace("_", " "))), None)


def _image_stem(row: AnswerRow) -> str:
    image = next((row[name] for name in ("image_source", "image_path", "image") if row.get(name)), "")
    return Path(str(image)[:300]).stem  # a table may hold the image itself instead of a name


def _question_text(row: AnswerRow) -> str:
    return str(row.get("question") or row.get("prompt") or "")[:2000]


def _row_question(row: AnswerRow) -> str:
    return _normalise_question(_question_text(row))


@lru_cache(maxsize=1 << 16)
def _normalise_question(text: str) -> str:
    """Return the words of a prompt's question, in one spelling for both versions of POPE."""
    text = text.replace("<image>", "\n").strip()
    # The first sentence that ends in a question mark, without instructions before and after it.
    match = re.search(r"[^\n.:?!]{1,300}\?", text)
    words = re.findall(r"\w+", (match[0] if match else text.split("\n")[0]).lower())
    return " ".join(SPELLINGS.get(word, word) for word in words)
