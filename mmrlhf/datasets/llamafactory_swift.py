"""Parse rows of LLaMA-Factory, ms-swift and OpenAI, whose prompts and answers are in other fields.

LLaMA-Factory   conversations (or messages) up to the question; chosen and rejected as turns
ms-swift        messages that end with the chosen answer; rejected_response as text, or
                rejected_messages as a second conversation; or query and response;
                or conversation, a list of {human, assistant};
                rejected_images, if the rejected conversation shows other images
OpenAI          input with messages; preferred_output and non_preferred_output, a message each
The first two   a prompt that is text may follow `history`, and every prompt `system`
"""

from __future__ import annotations

from dataclasses import replace

from mmrlhf.datasets.conversations import (
    Turn,
    check_answer,
    make_turn,
    parse_llava_conversation,
    parse_turn,
    parse_turns,
)
from mmrlhf.files.rows import Row, preview, type_name

PROMPT_FIELDS = ("prompt", "question", "messages", "conversations", "query")
OPENAI_ANSWERS = {"preferred_output": "chosen", "non_preferred_output": "rejected"}
SWIFT_FIELDS = frozenset(("messages", "query", "response", "history", "system", "rejected_response", "rejected_messages",
                          "rejected_images"))  # fmt: skip


def unpack_instruction(row: Row) -> Row:
    """Rename Alpaca's instruction, input and output, and the `problem` of reasoning datasets.

    ms-swift's `conversation` of {human, assistant} and the messages in OpenAI's `input` become
    `messages`. Other rows stay as they are. Raises InputError if one of the fields has another
    type.
    """
    if is_openai_pair(row):
        return _unpack_openai_pair(row)
    if is_swift_conversation(row):
        return _unpack_conversation(row)
    name = next((name for name in ("instruction", "problem") if name in row.fields), None)
    if name is None or any(field in row.fields for field in PROMPT_FIELDS):
        return row
    fields = {field: value for field, value in row.fields.items() if field not in (name, "input", "output")}
    texts = [row.require_text(row.fields[field], field) for field in (name, "input") if field in row.fields]
    fields["prompt"] = "\n".join(text for text in texts if text)
    if "output" in row.fields and not {"chosen", "rejected"} & row.fields.keys():
        fields["completion"] = row.fields["output"]
    return replace(row, fields=fields)


def is_openai_pair(row: Row) -> bool:
    """Return whether the row is a pair for preference fine-tuning at OpenAI."""
    return "preferred_output" in row.fields or "non_preferred_output" in row.fields


def _unpack_openai_pair(row: Row) -> Row:
    prompt = row.require("input")
    if not isinstance(prompt, dict) or "messages" not in prompt:
        row.fail(f"`input` must be an object with messages, not {preview(prompt)}")
    fields = {name: value for name, value in row.fields.items() if name not in ("input", *OPENAI_ANSWERS)}
    fields["messages"] = prompt["messages"]
    for name, new_name in OPENAI_ANSWERS.items():
        answer = row.require(name)
        is_answer = isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], dict)
        if not is_answer or answer[0].get("role") != "assistant":
            row.fail(f"`{name}` must be a list of one message of the assistant, not {preview(answer)}")
        fields[new_name] = answer[0]
    return replace(row, fields=fields)


def is_swift_conversation(row: Row) -> bool:
    """Return whether ms-swift's `conversation` contains the prompt: no other field does."""
    other_fields = (*PROMPT_FIELDS, "instruction", "problem", "chosen", "rejected")
    return "conversation" in row.fields and not any(field in row.fields for field in other_fields)


def _unpack_conversation(row: Row) -> Row:
    exchanges = row.fields["conversation"]
    roles = {"human": "user", "assistant": "assistant"}
    if not isinstance(exchanges, list) or not all(isinstance(exchange, dict) and "human" in exchange for exchange in exchanges):
        row.fail("`conversation` must be a list of objects with human and assistant")
    turns = [{"role": role, "content": exchange[key]} for exchange in exchanges for key, role in roles.items() if key in exchange]
    fields = {name: value for name, value in row.fields.items() if name != "conversation"}
    return replace(row, fields=fields | {"messages": turns})


def is_factory_pair(row: Row) -> bool:
    """Return whether a conversation is followed by `chosen` and `rejected` as turns.

    Next to `messages`, answers that are lists of turns are a pair of TRL.
    """
    if "chosen" not in row.fields and "rejected" not in row.fields:
        return False
    are_lists = isinstance(row.fields.get("chosen"), list) and isinstance(row.fields.get("rejected"), list)
    return "conversations" in row.fields or ("messages" in row.fields and not are_lists)


def is_swift_pair(row: Row) -> bool:
    """Return whether the row has a rejected answer in one of ms-swift's fields."""
    names = {name for name in row.fields if name.startswith("rejected_") and name in SWIFT_FIELDS}
    return bool(names - {"rejected_images"}) or (bool(names) and "rejected" not in row.fields)


def parse_factory_pair(row: Row) -> tuple[list[Turn], Turn, Turn]:
    """Return the prompt's turns, the chosen and the rejected answer. Raises InputError."""
    turns = parse_any_conversation(row)
    chosen, rejected = (_parse_answer_turn(row, name) for name in ("chosen", "rejected"))
    return turns, chosen, rejected


def parse_any_conversation(row: Row) -> list[Turn]:
    """Parse `conversations` or `messages`. Raises InputError."""
    if "conversations" in row.fields:
        return parse_llava_conversation(row)
    return parse_turns(row, row.require("messages"), "messages")


def with_context(row: Row, turns: list[Turn]) -> list[Turn]:
    """Put a row's `system` text and its `history` of [question, answer] before its turns.

    A conversation has its own history, and may have its own system turn. Raises InputError.
    """
    history = [] if "messages" in row.fields or "conversations" in row.fields else _parse_history(row)
    if "system" not in row.fields or (turns[:1] and turns[0].role == "system"):
        return [*history, *turns]
    system = make_turn(row, "system", row.fields["system"], "system")
    return [*([system] if system.text else []), *history, *turns]


def _parse_history(row: Row) -> list[Turn]:
    history = row.fields.get("history", [])
    if not isinstance(history, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in history):
        row.fail("`history` must be a list of [question, answer]")
    turns: list[Turn] = []
    for number, (question, answer) in enumerate(history, 1):
        turns += [make_turn(row, "user", question, f"history[{number}][1]")]
        turns += [make_turn(row, "assistant", answer, f"history[{number}][2]")]
    return turns


def _parse_answer_turn(row: Row, name: str) -> Turn:
    value = row.require(name)
    if isinstance(value, str):
        return check_answer(row, make_turn(row, "assistant", value, name), name)
    is_llava = isinstance(value, dict) and "from" in value
    keys = ("from", "value") if is_llava else ("role", "content")
    if isinstance(value, list):
        row.fail(f"`{name}` must be one turn or text next to a conversation, not {type_name(value)}")
    return check_answer(row, parse_turn(row, value, name, *keys), name)


def parse_swift_pair(row: Row) -> tuple[list[Turn], Turn, Turn]:
    """Return the prompt's turns, the chosen and the rejected answer. Raises InputError."""
    turns, chosen = parse_swift_answered(row)
    if "rejected_messages" in row.fields:
        rejected_turns = parse_turns(row, row.fields["rejected_messages"], "rejected_messages")
        rejected = check_answer(row, rejected_turns[-1], f"rejected_messages[{len(rejected_turns)}]")
        shared = [turn for turn in rejected_turns[:-1] if turn.role != "system"]
        if shared and shared != [turn for turn in turns if turn.role != "system"]:
            row.fail("`messages` and `rejected_messages` may differ only in their last turn: make the others equal")
        return turns, chosen, rejected
    value = row.require("rejected_response")
    return turns, chosen, check_answer(row, make_turn(row, "assistant", value, "rejected_response"), "rejected_response")


def parse_swift_answered(row: Row) -> tuple[list[Turn], Turn]:
    """Return the turns up to the question, and the answer. Raises InputError."""
    if "messages" in row.fields:
        turns = parse_any_conversation(row)
        return turns[:-1], check_answer(row, turns[-1], f"messages[{len(turns)}]")
    response = check_answer(row, make_turn(row, "assistant", row.require("response"), "response"), "response")
    return parse_query(row), response


def parse_query(row: Row) -> list[Turn]:
    """Return the turn of ms-swift's `query`. Raises InputError."""
    return [make_turn(row, "user", row.require("query"), "query")]
