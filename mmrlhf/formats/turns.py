"""Turns of a conversation, and the prompt and the answers that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmrlhf.records import Message, Role
from mmrlhf.rows import Row, kind, shown

PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class Turn:
    """A message before it is checked against the images: how many places for one it holds, and whether it must."""

    role: Role
    text: str
    places: int = 0
    parts: bool = False


ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
LLAVA_ROLES: dict[str, Role] = {"system": "system", "human": "user", "gpt": "assistant"}


def turn_of(row: Row, value: Any, name: str, by: str = "role", says: str = "content") -> Turn:
    """An object with a role and what it says; `by="from", says="value"` where it is LLaVA's. Raises InputError."""
    roles = ROLES if by == "role" else LLAVA_ROLES
    if not isinstance(value, dict):
        row.fail(f"`{name}` must be an object with {by} and {says}, not {kind(value)}")
    role = value.get(by)
    if not isinstance(role, str) or role not in roles:
        row.fail(f"`{name}.{by}` must be one of {', '.join(roles)}, not {shown(role)}")
    content = value.get(says)
    if isinstance(content, list) and by == "role":
        return _parts(row, roles[role], content, f"{name}.{says}")
    return said(row, roles[role], content, f"{name}.{says}")


def said(row: Row, role: Role, value: Any, name: str) -> Turn:
    """A turn of text. Raises InputError."""
    return Turn(role, *_split(row.text(value, name)))


def _parts(row: Row, role: Role, parts: list[Any], name: str) -> Turn:
    texts, places = [], 0
    for number, part in enumerate(parts, 1):
        of = part.get("type") if isinstance(part, dict) else None
        if of == "image":
            places += 1
        elif of == "text":
            row.text(part.get("text"), f"{name}[{number}].text")  # checked, but inner white space is the author's
            texts.append(part["text"])
        else:
            row.fail(f"`{name}[{number}]` must be a part of type text or image, not {shown(part)}")
    text, more = _split("".join(texts))
    return Turn(role, text, places + more, parts=True)


def _split(text: str) -> tuple[str, int]:
    """Text without its placeholders, and their number."""
    pieces = [piece.strip() for piece in text.split(PLACEHOLDER)]
    return "\n".join(piece for piece in pieces if piece), len(pieces) - 1


def turns_of(row: Row, value: Any, name: str, by: str = "role", says: str = "content") -> list[Turn]:
    """A list of turns that is not empty. Raises InputError."""
    if not isinstance(value, list) or not value:
        or_text = "" if name in ("messages", "conversations") else "text or "
        row.fail(f"`{name}` must be {or_text}a list of turns, not {'an empty one' if value == [] else kind(value)}")
    return [turn_of(row, turn, f"{name}[{number}]", by, says) for number, turn in enumerate(value, 1)]


def conversation(row: Row) -> list[Turn]:
    """LLaVA's turns."""
    return turns_of(row, row.fields["conversations"], "conversations", "from", "value")


def asked(row: Row, name: str) -> list[Turn]:
    """TRL's prompt: text, or turns."""
    value = row.fields[name]
    return [said(row, "user", value, name)] if isinstance(value, str) else turns_of(row, value, name)


def answered(row: Row, name: str) -> str:
    """TRL's answer: text, or a conversation of one turn."""
    value = row.need(name)
    if isinstance(value, str):
        return answer_of(row, said(row, "assistant", value, name), name)
    turns = turns_of(row, value, name)
    if len(turns) != 1:
        row.fail(f"`{name}` must be one assistant turn, not {len(turns)} turns: move the earlier ones to `prompt`")
    return answer_of(row, turns[0], name)


def answer_of(row: Row, turn: Turn, name: str) -> str:
    """The text of an assistant's turn. Raises InputError."""
    if turn.role != "assistant":
        row.fail(f"`{name}` must be the assistant's turn, not the {turn.role}'s")
    if turn.places:
        row.fail(f"`{name}` holds an image or {PLACEHOLDER}: an answer is text alone")
    if not turn.text:
        row.fail(f"`{name}` is empty: fill it in or drop the row")
    return turn.text


def prompt_of(row: Row, turns: Sequence[Turn], images: int) -> tuple[Message, ...]:
    """Turns as a prompt on so many images. Raises InputError when they are none."""
    if not turns or turns[-1].role != "user":
        row.fail("the prompt must end with a user turn: add the question, or drop what follows it")
    for number, turn in enumerate(turns, 1):
        if turn.role == "system" and number > 1:
            row.fail(f"turn {number} of the prompt is a system turn: only the first may be one")
        if turn.role != "user" and turn.places:
            row.fail(f"turn {number} of the prompt, not the user's, holds an image: move the image to a user turn")
        if not turn.text and not turn.places:
            row.fail(f"turn {number} of the prompt is empty: fill it in or drop the row")
    places = sum(turn.places for turn in turns)
    stated = places or "conversations" in row.fields or any(turn.parts for turn in turns)
    if stated and places != images:
        row.fail(f"the prompt has places for {places} images and the row has {images}: make the numbers equal")
    return tuple(Message(turn.role, turn.text) for turn in turns)
