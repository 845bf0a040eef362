"""Rows with one answer or none, read into Examples; of a row that compares answers, its prompt."""

from __future__ import annotations

import math

from mmrlhf.formats.pictures import Beside, facts_of, images_of
from mmrlhf.formats.preferences import (
    PAIR_FIELDS,
    id_of,
    is_preference,
    is_rlhf_v,
    is_vlfeedback,
    meta_of,
    trl_pair,
    unpacked,
)
from mmrlhf.formats.turns import Turn, answer_of, answered, asked, conversation, prompt_of, turns_of
from mmrlhf.records import Example
from mmrlhf.rows import Row, shown

EXAMPLE_FIELDS = PAIR_FIELDS | {"messages", "completion"}


def example_of(row: Row, beside: Beside, need_answer: bool) -> Example:
    """Raises InputError when the row cannot be used, with `need_answer` also when it has no answer."""
    row = unpacked(row)
    images, facts = images_of(row, beside), facts_of(row, beside)
    turns, answer = _llava(row) if "conversations" in row.fields else _trl(row)
    if need_answer and answer is None:
        what = "pairs and prompts cannot be imitated: " if is_preference(row) or is_ppo(row) else ""
        row.fail(f"the row has no answer: {what}add `completion`, or end the conversation with the assistant's turn")
    elsewhere = any(field in row.fields for field in ("completion", "messages", "conversations"))
    used = EXAMPLE_FIELDS if elsewhere else EXAMPLE_FIELDS | {"answer"}
    return Example(id_of(row), images, prompt_of(row, turns, len(images)), answer, facts, meta_of(row, used))


def is_ppo(row: Row) -> bool:
    """Whether it is one of LLaVA-RLHF's prompts, of which only the first human turn counts."""
    return any(field in row.fields for field in ("caption_type", "length_bonus", "captions"))


def _trl(row: Row) -> tuple[list[Turn], str | None]:
    if "prompt" not in row.fields and "question" not in row.fields and ("chosen" in row.fields or "rejected" in row.fields):
        return trl_pair(row)[0], None
    name = row.either("messages", "prompt", "question", hint="add it, or `prompt`")
    turns = asked(row, name) if name != "messages" else turns_of(row, row.fields[name], name)
    if name == "messages":
        return _last_answered(row, turns, name)
    for answer in ("completion", "answer"):
        if answer in row.fields:
            return turns, answered(row, answer)
    return turns, None


def _llava(row: Row) -> tuple[list[Turn], str | None]:
    turns = conversation(row)
    if is_ppo(row):
        _check_ppo(row)
        return [turn for turn in turns if turn.role == "user"][:1], None
    if is_preference(row):
        return turns[:-1] if turns[-1].role == "assistant" else turns, None
    return _last_answered(row, turns, "conversations")


def _check_ppo(row: Row) -> None:
    """What the reward is made of later."""
    kind_, bonus = row.fields.get("caption_type", 1), row.fields.get("length_bonus", 1.0)
    if isinstance(kind_, bool) or not isinstance(kind_, int) or not 1 <= kind_ <= 7:
        row.fail(f"`caption_type` must be a whole number from 1 to 7, not {shown(kind_)}")
    if isinstance(bonus, bool) or not isinstance(bonus, int | float) or not math.isfinite(bonus):
        row.fail(f"`length_bonus` must be a number, not {shown(bonus)}")


def _last_answered(row: Row, turns: list[Turn], name: str) -> tuple[list[Turn], str | None]:
    if turns[-1].role != "assistant":
        return turns, None
    return turns[:-1], answer_of(row, turns[-1], f"{name}[{len(turns)}]")


def layout_of(row: Row) -> str:
    """The name of a row's format."""
    has = row.fields.__contains__
    if has("conversations"):
        return f"LLaVA-RLHF {'pairs' if is_preference(row) else 'prompts' if is_ppo(row) else 'conversations'}"
    if is_rlhf_v(row):
        return "RLHF-V pairs"
    if has("chosen") or has("rejected"):
        if any(map(has, ("is_tie", "ls_factor", "chosen_reason", "rejected_reason"))):
            return "MM-RLHF pairs"
        return "RLAIF-V pairs" if has("question") and (has("idx") or has("origin_dataset")) else "TRL preference pairs"
    if is_vlfeedback(row):
        return "VLFeedback rankings"
    if is_preference(row):
        return "LLaVA-RLHF pairs" if has("output_1") or has("output_2") or has("preference") else "rankings"
    if has("messages"):
        return "TRL messages"
    return "TRL prompts with answers" if has("completion") or has("answer") else "TRL prompts"
