"""What rows mean: TRL's vision formats and LLaVA-RLHF's, read into Examples and Pairs.

A row is judged by its own fields, so a format is declared nowhere. Rows with `conversations` are LLaVA's: `output_1`,
`output_2` and `preference` make a pair, `captions`, `caption_type` or `length_bonus` a prompt for PPO of which only the
first human turn counts, and anything else a conversation to learn. All other rows are TRL's. Turns carry text alone:
where an image stood among them is not kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrlhf.facts import typed
from mmrlhf.records import Example, Fact, ImageSource, InputError, Message, Preference, Role
from mmrlhf.rows import Row, folder, kind, read, shown

PLACEHOLDER = "<image>"

Facts = Mapping[str, tuple[Fact, ...]]


def read_examples(
    dataset_name: str,
    split: str = "train",
    image_folder: str | None = None,
    facts: Facts | None = None,
    need_answer: bool = False,
) -> list[Example]:
    """The prompts of a dataset, with their answers where it has them; of pairs the prompts alone.

    Raises InputError on the first row that cannot be used; with `need_answer` also on one without an answer.
    """
    beside = beside_of(dataset_name, image_folder, facts)
    return [example_of(unread.row(), beside, need_answer) for unread in read(dataset_name, split)]


def read_preferences(
    dataset_name: str, split: str = "train", image_folder: str | None = None, facts: Facts | None = None
) -> list[Preference]:
    """The preference pairs of a dataset. Raises InputError on the first row that cannot be used."""
    beside = beside_of(dataset_name, image_folder, facts)
    return [preference_of(unread.row(), beside) for unread in read(dataset_name, split)]


def holds_preferences(dataset_name: str, split: str = "train") -> bool:
    """Whether the first row is a preference pair. Raises InputError when it cannot be read."""
    return _is_pair(next(read(dataset_name, split)).row())


# ---- a row as a record -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Beside:
    """What a row is read with: the folder that its paths must stay in (a Hub dataset has none), and known facts.

    A link may lead out of a folder that the user named: whoever names it vouches for it. The data file's own folder came
    with the data, and its links, too.
    """

    folder: str | None
    links_may_leave: bool
    facts: Facts


def beside_of(dataset_name: str, image_folder: str | None, facts: Facts | None) -> _Beside:
    if image_folder is not None and not os.path.isdir(image_folder):
        raise InputError(f"image folder {image_folder} does not exist: correct the path")
    where = image_folder if image_folder is not None else folder(dataset_name)
    return _Beside(None if where is None else os.path.abspath(where), image_folder is not None, facts or {})


def _is_pair(row: Row) -> bool:
    return any(field in row.fields for field in ("chosen", "rejected", "output_1", "output_2", "preference"))


SHARED = frozenset(("id", "image", "images", "facts", "prompt", "question", "conversations"))
PAIR_FIELDS = SHARED | {"chosen", "rejected", "output_1", "output_2", "preference"}
EXAMPLE_FIELDS = PAIR_FIELDS | {"messages", "completion"}


def preference_of(row: Row, beside: _Beside) -> Preference:
    images, facts = _images(row, beside), _facts(row, beside)
    if "conversations" in row.fields:
        turns, chosen, rejected = _llava_pair(row)
    else:
        turns, chosen, rejected = _trl_pair(row)
    if chosen == rejected:
        row.fail("the chosen and the rejected answer are the same: correct one of them or drop the row")
    return Preference.pair(
        _id(row), images, _prompt(row, turns, len(images)), chosen, rejected, facts, meta=_meta(row, PAIR_FIELDS)
    )


def example_of(row: Row, beside: _Beside, need_answer: bool) -> Example:
    images, facts = _images(row, beside), _facts(row, beside)
    if "conversations" in row.fields:
        turns, answer = _llava_example(row)
    else:
        turns, answer = _trl_example(row)
    if need_answer and answer is None:
        what = "pairs and prompts cannot be imitated: " if _is_pair(row) or _is_ppo(row) else ""
        row.fail(f"the row has no answer: {what}add `completion`, or end the conversation with the assistant's turn")
    elsewhere = any(field in row.fields for field in ("completion", "messages", "conversations"))
    used = EXAMPLE_FIELDS if elsewhere else EXAMPLE_FIELDS | {"answer"}
    return Example(_id(row), images, _prompt(row, turns, len(images)), answer, facts, _meta(row, used))


def _id(row: Row) -> str:
    name = row.fields.get("id", row.number)
    if isinstance(name, bool) or not isinstance(name, int | str):
        row.fail(f"`id` must be text or a whole number, not {kind(name)}")
    return row.text(str(name), "id")


def _meta(row: Row, used: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in row.fields.items() if name not in used}


# ---- turns -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Turn:
    """A message before it is checked against the images: how many places for one it holds, and whether it must."""

    role: Role
    text: str
    places: int = 0
    parts: bool = False


ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
LLAVA_ROLES: dict[str, Role] = {"system": "system", "human": "user", "gpt": "assistant"}


def _turn(row: Row, value: Any, name: str, by: str = "role", says: str = "content") -> _Turn:
    roles = ROLES if by == "role" else LLAVA_ROLES
    if not isinstance(value, dict):
        row.fail(f"`{name}` must be an object with {by} and {says}, not {kind(value)}")
    role = value.get(by)
    if not isinstance(role, str) or role not in roles:
        row.fail(f"`{name}.{by}` must be one of {', '.join(roles)}, not {shown(role)}")
    content = value.get(says)
    if isinstance(content, list) and by == "role":
        return _parts(row, roles[role], content, f"{name}.{says}")
    text, places = _split(row.text(content, f"{name}.{says}"))
    return _Turn(roles[role], text, places)


def _parts(row: Row, role: Role, parts: list[Any], name: str) -> _Turn:
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
    return _Turn(role, text, places + more, parts=True)


def _split(text: str) -> tuple[str, int]:
    """Text without its placeholders, and their number."""
    pieces = [piece.strip() for piece in text.split(PLACEHOLDER)]
    return "\n".join(piece for piece in pieces if piece), len(pieces) - 1


def _turns(row: Row, value: Any, name: str, by: str = "role", says: str = "content") -> list[_Turn]:
    if not isinstance(value, list) or not value:
        or_text = "" if name in ("messages", "conversations") else "text or "
        row.fail(f"`{name}` must be {or_text}a list of turns, not {'an empty one' if value == [] else kind(value)}")
    return [_turn(row, turn, f"{name}[{number}]", by, says) for number, turn in enumerate(value, 1)]


def _prompt(row: Row, turns: Sequence[_Turn], images: int) -> tuple[Message, ...]:
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


def _answer(row: Row, turn: _Turn, name: str) -> str:
    if turn.role != "assistant":
        row.fail(f"`{name}` must be the assistant's turn, not the {turn.role}'s")
    if turn.places:
        row.fail(f"`{name}` holds an image or {PLACEHOLDER}: an answer is text alone")
    if not turn.text:
        row.fail(f"`{name}` is empty: fill it in or drop the row")
    return turn.text


# ---- TRL -------------------------------------------------------------------------------------------------------------


def _trl_prompt(row: Row, name: str) -> list[_Turn]:
    value = row.fields[name]
    return [_turn(row, {"role": "user", "content": value}, name)] if isinstance(value, str) else _turns(row, value, name)


def _trl_answer(row: Row, name: str) -> str:
    """Text, or a conversation of one turn."""
    value = row.need(name)
    if isinstance(value, str):
        return _answer(row, _Turn("assistant", *_split(row.text(value, name))), name)
    turns = _turns(row, value, name)
    if len(turns) != 1:
        row.fail(f"`{name}` must be one assistant turn, not {len(turns)} turns: move the earlier ones to `prompt`")
    return _answer(row, turns[0], name)


def _trl_pair(row: Row) -> tuple[list[_Turn], str, str]:
    chosen, rejected = row.need("chosen"), row.need("rejected")
    whole = isinstance(chosen, list) and isinstance(rejected, list) and min(len(chosen), len(rejected)) > 1
    if whole and not isinstance(row.fields.get("prompt"), list):  # a prompt in text is then one of the turns, too
        return _implicit_prompt(row)
    prompt = _trl_prompt(row, row.either("prompt", "question"))
    return prompt, _trl_answer(row, "chosen"), _trl_answer(row, "rejected")


def _implicit_prompt(row: Row) -> tuple[list[_Turn], str, str]:
    """Two conversations that share all turns but the last."""
    ours, theirs = (_turns(row, row.fields[name], name) for name in ("chosen", "rejected"))
    if ours[:-1] != theirs[:-1]:
        row.fail("`chosen` and `rejected` may differ in their last turn only: give the shared ones as `prompt`")
    return ours[:-1], _answer(row, ours[-1], "chosen"), _answer(row, theirs[-1], "rejected")


def _trl_example(row: Row) -> tuple[list[_Turn], str | None]:
    if "prompt" not in row.fields and "question" not in row.fields and _is_pair(row):
        return _trl_pair(row)[0], None
    name = row.either("messages", "prompt", "question", hint="add it, or `prompt`")
    turns = _trl_prompt(row, name) if name != "messages" else _turns(row, row.fields[name], name)
    if name == "messages":
        return _last_answered(row, turns, name)
    for answer in ("completion", "answer"):
        if answer in row.fields:
            return turns, _trl_answer(row, answer)
    return turns, None


def _last_answered(row: Row, turns: list[_Turn], name: str) -> tuple[list[_Turn], str | None]:
    if turns[-1].role != "assistant":
        return turns, None
    return turns[:-1], _answer(row, turns[-1], f"{name}[{len(turns)}]")


# ---- LLaVA and LLaVA-RLHF --------------------------------------------------------------------------------------------


def _is_ppo(row: Row) -> bool:
    return any(field in row.fields for field in ("caption_type", "length_bonus", "captions"))


def _conversation(row: Row) -> list[_Turn]:
    return _turns(row, row.fields["conversations"], "conversations", "from", "value")


def _llava_pair(row: Row) -> tuple[list[_Turn], str, str]:
    turns = _conversation(row)
    if turns[-1].role == "assistant":  # one of the two outputs, or another answer: not part of the prompt
        turns = turns[:-1]
    first, second = (_answer(row, _turn(row, row.need(name), name, "from", "value"), name) for name in ("output_1", "output_2"))
    preference = row.need("preference")
    if isinstance(preference, bool) or preference not in (1, 2):
        row.fail(f"`preference` must be 1 or 2, the number of the better output, not {shown(preference)}")
    return (turns, first, second) if preference == 1 else (turns, second, first)


def _llava_example(row: Row) -> tuple[list[_Turn], str | None]:
    turns = _conversation(row)
    if _is_ppo(row):
        return [turn for turn in turns if turn.role == "user"][:1], None
    if _is_pair(row):
        return turns[:-1] if turns[-1].role == "assistant" else turns, None
    return _last_answered(row, turns, "conversations")


# ---- images and facts ------------------------------------------------------------------------------------------------


def _images(row: Row, beside: _Beside) -> tuple[ImageSource, ...]:
    return tuple(_image(row, value, name, beside) for name, value in _image_fields(row))


def _image_fields(row: Row) -> Iterator[tuple[str, Any]]:
    if "images" in row.fields and "image" in row.fields:
        row.fail("both `images` and `image` are given: keep one")
    if "image" not in row.fields and "images" not in row.fields and "conversations" in row.fields:
        return  # LLaVA's rows without a picture have no field for one
    field = row.either("images", "image", hint="add it, `[]` for a row without pictures")
    value = row.fields[field]
    if field == "images" and not isinstance(value, list):
        row.fail(f"`images` must be a list, not {kind(value)}: write one picture as `image`")
    if isinstance(value, list):
        yield from ((f"{field}[{number}]", one) for number, one in enumerate(value, 1))
    else:
        yield field, value


@dataclass(frozen=True)
class _Placed(ImageSource):
    """A picture whose name in messages tells which field of which row gave it."""

    where: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        return f"{super().name} ({self.where})"


def _image(row: Row, value: Any, name: str, beside: _Beside) -> ImageSource:
    inside, where = beside.folder, f"{row.where}, `{name}`"
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return _Placed(data=value["bytes"], where=where)
    path = _given_path(value)
    if path is None:
        row.fail(f"`{name}` must be a path, or an object with bytes, not {shown(value)}")
    if "://" in path:
        row.fail(f"`{name}` is an address, {shown(path)}: download the picture and give its path")
    if inside is None:
        row.fail(f"`{name}` is a path, {shown(path)}: give --image_folder, the folder that it starts from")
    # Compared as text first: `a/../../b` leads out even if `a` is a link to a place where it would not.
    place = os.path.normpath(os.path.join(inside, path))
    if not Path(place).is_relative_to(inside):
        row.fail(f"`{name}` leads out of the image folder {inside}: {shown(path)}; move the picture, or give --image_folder")
    if not os.path.isfile(place):
        row.fail(f"`{name}` does not exist in {inside}: {shown(path)}; correct the path or give --image_folder")
    if not beside.links_may_leave and not Path(os.path.realpath(place)).is_relative_to(os.path.realpath(inside)):
        row.fail(f"`{name}` leads out of {inside} by a link: {shown(path)}; if the link is yours, give --image_folder {inside}")
    return _Placed(path=place, where=where)


def _given_path(value: Any) -> str | None:
    path = value.get("path") if isinstance(value, dict) and "bytes" not in value else value
    return path if isinstance(path, str) and path.strip() else None


def _facts(row: Row, beside: _Beside) -> tuple[Fact, ...]:
    """The row's own, and those known of its images' names, else of its id."""
    known: list[Fact] = []
    for _, value in _image_fields(row) if beside.facts else ():
        path = value.get("path") if isinstance(value, dict) else value
        if isinstance(path, str):
            known += beside.facts.get(path) or beside.facts.get(os.path.basename(path), ())
    return typed(row) + tuple(known or beside.facts.get(str(row.fields.get("id")), ()))


def layout_of(row: Row) -> str:
    """The name of a row's format; `pairs` at its end makes it one for read_preferences."""
    if "conversations" in row.fields:
        return f"LLaVA-RLHF {'pairs' if _is_pair(row) else 'prompts' if _is_ppo(row) else 'conversations'}"
    if _is_pair(row):
        return "TRL preference pairs"
    if "messages" in row.fields:
        return "TRL messages"
    return "TRL prompts with answers" if "completion" in row.fields or "answer" in row.fields else "TRL prompts"
