"""Parse rows into Examples. A row that compares answers becomes an Example without an answer."""

from __future__ import annotations

from typing import Any

from mmrlhf.datasets.conversations import (
    Turn,
    answer_text,
    build_prompt,
    parse_answer,
    parse_prompt,
)
from mmrlhf.datasets.image_fields import RowContext, collect_facts, parse_id, parse_images, without_decimals
from mmrlhf.datasets.llamafactory_swift import (
    is_factory_pair,
    is_openai_pair,
    is_swift_conversation,
    is_swift_pair,
    parse_any_conversation,
    parse_factory_pair,
    parse_query,
    parse_swift_answered,
    parse_swift_pair,
    unpack_instruction,
    with_context,
)
from mmrlhf.datasets.preferences import (
    PAIR_FIELDS,
    is_preference,
    is_rlhf_v,
    is_vlfeedback,
    parse_trl_pair,
    unpack_rlhf_v,
    unused_fields,
)
from mmrlhf.files.rows import Row, is_finite_number, preview
from mmrlhf.records import Example, InputError

ANSWER_FIELDS = ("completion", "answer", "response", "solution")
"""Fields with the answer to a prompt; the first of them that a row has."""
EXAMPLE_FIELDS = (PAIR_FIELDS | {"problem"}) - {*ANSWER_FIELDS}
REFERENCE_FIELDS = frozenset(("answer", "solution"))
"""Fields that may also contain a reference of another kind, for reward functions."""
LABEL_FIELDS = ("label", "kto_tag")
"""Fields that are false if the answer is one to avoid (KTO)."""


def parse_example(row: Row, context: RowContext, require_answer: bool) -> Example:
    """Parse a row. Raises InputError if it cannot be used, or lacks an answer that is required."""
    row = unpack_instruction(unpack_rlhf_v(row))
    images, facts = parse_images(row, context), collect_facts(row, context)
    if is_swift_pair(row):
        turns, answer = parse_swift_pair(row)[0], None
    else:
        turns, answer = _parse_llava(row) if "conversations" in row.fields else _parse_trl(row, require_answer)
    if require_answer and answer is None:
        if is_preference(row):
            row.fail("the row compares answers and has no SFT target: `mmrlhf data convert --to sft` takes the chosen answers")
        reason = "prompts for ppo have no SFT target: " if is_ppo_prompt(row) else ""
        row.fail(f"the row has no answer: {reason}add `completion`, or end the conversation with the assistant's turn")
    label = label_to_avoid(row)
    if label is not None and require_answer:
        row.fail(f"`{label}` is false, so the answer is one to avoid (KTO): drop the row, or make it a preference")
    answer = answer if label is None else None
    turns = with_context(row, turns)
    used_fields = EXAMPLE_FIELDS | _answer_fields(row)
    if answer is None:
        used_fields -= REFERENCE_FIELDS
    return Example(parse_id(row), images, build_prompt(row, turns, len(images)), answer, facts, unused_fields(row, used_fields))


def _answer_fields(row: Row) -> set[str]:
    """Return the field that the answer is read from, if it is one of ANSWER_FIELDS."""
    has_messages = "messages" in row.fields
    if is_swift_pair(row):
        return set() if has_messages else {"response"}
    if "conversations" in row.fields or (has_messages and is_preference(row)):
        return set()
    if has_messages:
        return set() if row.fields["messages"][-1]["role"] == "assistant" else {"solution"}
    if "query" in row.fields and "prompt" not in row.fields and not is_preference(row):
        return {"response"}
    return set([name for name in ANSWER_FIELDS if name in row.fields][:1])


def label_to_avoid(row: Row) -> str | None:
    """Return the field that says that the row's answer, if any, is one to avoid (KTO), or None.

    0 counts only in `kto_tag`: a column `label` may contain classes.
    """
    if row.fields.get("label") is False:
        return "label"
    return "kto_tag" if row.fields.get("kto_tag") in (False, 0.0) else None


def is_ppo_prompt(row: Row) -> bool:
    """Return whether the row is a PPO prompt of LLaVA-RLHF; only its first human turn is used."""
    return any(field in row.fields for field in ("caption_type", "length_bonus", "captions"))


def _parse_trl(row: Row, require_answer: bool) -> tuple[list[Turn], str | None]:
    if is_factory_pair(row):
        return parse_factory_pair(row)[0], None
    has_only_prompt = "messages" not in row.fields and ("prompt" in row.fields or "question" in row.fields)
    if not has_only_prompt and ("chosen" in row.fields or "rejected" in row.fields):
        return parse_trl_pair(row)[0], None
    if "query" in row.fields and not {"prompt", "messages"} & row.fields.keys() and not is_preference(row):
        if "response" not in row.fields:
            return parse_query(row), None
        turns, response = parse_swift_answered(row)
        return turns, answer_text(row, response, "response")
    if is_preference(row):
        name = row.require_any("prompt", "question", "messages", "query")
    else:
        name = row.require_any("messages", "prompt", "question", "problem", hint="add it, or `prompt`")
    turns = parse_prompt(row, name) if name != "messages" else parse_any_conversation(row)
    if name == "messages" and turns[-1].role == "assistant":
        return _split_last_answer(row, turns, name)
    answer_fields = ("solution",) if name == "messages" else ANSWER_FIELDS
    answer = next((field for field in answer_fields if field in row.fields), None)
    return turns, None if answer is None else _parse_reference(row, answer, require_answer)


def _parse_reference(row: Row, name: str, is_required: bool) -> str | None:
    """Parse an answer: text, a turn, or a number, as in the solutions of counting questions.

    Return None for a reference of another kind. Raises InputError for it if `is_required`, and for
    empty text and malformed turns.
    """
    value = row.fields[name]
    if name in REFERENCE_FIELDS and is_finite_number(value):
        return str(without_decimals(value))
    try:
        return answer_text(row, parse_answer(row, name), name)
    except InputError:
        if is_required or name not in REFERENCE_FIELDS or isinstance(value, str) or _looks_like_turns(value):
            raise
        return None


def _looks_like_turns(value: Any) -> bool:
    """Return whether a value is a turn, or a list with one: an object with role or content."""
    return any(
        isinstance(item, dict) and {"role", "content"} & item.keys() for item in (value if isinstance(value, list) else [value])
    )


def _parse_llava(row: Row) -> tuple[list[Turn], str | None]:
    turns = parse_any_conversation(row)
    if is_ppo_prompt(row):
        _check_ppo_fields(row)
        return [turn for turn in turns if turn.role == "user"][:1], None
    if is_preference(row):
        return turns[:-1] if turns[-1].role == "assistant" else turns, None
    return _split_last_answer(row, turns, "conversations")


def _check_ppo_fields(row: Row) -> None:
    """Check the fields that rewards use later."""
    caption_type, length_bonus = row.fields.get("caption_type", 1), row.fields.get("length_bonus", 1.0)
    if isinstance(caption_type, bool) or not isinstance(caption_type, int) or not 1 <= caption_type <= 7:
        row.fail(f"`caption_type` must be a whole number from 1 to 7, not {preview(caption_type)}")
    if not is_finite_number(length_bonus):
        row.fail(f"`length_bonus` must be a finite number, not {preview(length_bonus)}")


def _split_last_answer(row: Row, turns: list[Turn], name: str) -> tuple[list[Turn], str | None]:
    if turns[-1].role != "assistant":
        return turns, None
    return turns[:-1], answer_text(row, turns[-1], f"{name}[{len(turns)}]")


def detect_format(row: Row) -> str:
    """Return the name of a row's format."""
    has_field = row.fields.__contains__
    if is_openai_pair(row):
        return "OpenAI pairs"
    if is_swift_pair(row):
        return "ms-swift pairs"
    if is_factory_pair(row):
        return "LLaMA-Factory pairs"
    if has_field("conversations"):
        if is_preference(row):
            return "LLaVA-RLHF pairs"
        return "LLaVA-RLHF prompts" if is_ppo_prompt(row) else "LLaVA-RLHF conversations"
    if is_rlhf_v(row):
        return "RLHF-V pairs"
    if has_field("chosen") or has_field("rejected"):
        if any(map(has_field, ("is_tie", "ls_factor", "chosen_reason", "rejected_reason"))):
            return "MM-RLHF pairs"
        is_rlaif_v = has_field("question") and (has_field("idx") or has_field("origin_dataset"))
        return "RLAIF-V pairs" if is_rlaif_v else "TRL preference pairs"
    if is_vlfeedback(row):
        return "VLFeedback rankings"
    if is_preference(row):
        return "LLaVA-RLHF pairs" if has_field("output_1") or has_field("output_2") or has_field("preference") else "rankings"
    if has_field("messages"):
        return "TRL messages"
    if is_swift_conversation(row):
        return "ms-swift conversations"
    if has_field("query") and not has_field("prompt"):
        return "ms-swift queries"
    return "TRL prompts with answers" if any(map(has_field, ANSWER_FIELDS)) else "TRL prompts"
