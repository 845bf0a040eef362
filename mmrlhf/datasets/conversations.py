"""Parse the turns of a conversation into prompts and answers."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmrlhf.files.rows import Row, preview, type_name
from mmrlhf.records import Message, Role

PLACEHOLDER = "<image>"
IMAGE_PARTS: dict[str, tuple[str, ...]] = {
    "image": ("image", "path", "url", "base64", "bytes"),
    "image_url": ("image_url",),
    "input_image": ("image_url",),
}
"""Types of parts that show an image, with the keys that may contain the image itself."""
TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of parts that are text; the last two are those of OpenAI's Responses API."""


@dataclass(frozen=True)
class Turn:
    """A message before it is checked against the row's images."""

    role: Role
    text: str
    image_positions: tuple[int, ...] = ()
    """Offsets in the text of the image placeholders in the text or the parts."""
    has_parts: bool = False
    """Whether the content is a list of parts, which must then include the images."""

    @property
    def num_images(self) -> int:
        """Number of images that the turn shows."""
        return len(self.image_positions)


ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
LLAVA_ROLES: dict[str, Role] = {"system": "system", "human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant"}
"""Those of LLaVA, and those of ShareGPT's other files."""


def parse_turn(row: Row, value: Any, name: str, role_key: str = "role", content_key: str = "content") -> Turn:
    """Parse a turn: role and content, or LLaVA's from and value. Raises InputError."""
    roles = ROLES if role_key == "role" else LLAVA_ROLES
    if not isinstance(value, dict):
        row.fail(f"`{name}` must be an object with {role_key} and {content_key}, not {type_name(value)}")
    role = value.get(role_key)
    if not isinstance(role, str) or role not in roles:
        row.fail(f"`{name}.{role_key}` must be one of {', '.join(roles)}, not {preview(role)}")
    content = value.get(content_key)
    if isinstance(content, list) and role_key == "role":
        return _parse_parts(row, roles[role], content, f"{name}.{content_key}")
    if role_key == "from" and isinstance(content, str) and content.count(PLACEHOLDER) == 1:
        # LLaVA's data has "What is this?\n<image>" in half of its rows, and its trainer shows the
        # image first.
        content = re.sub(rf"(?s)^(.*)\n{PLACEHOLDER}\s*$", rf"{PLACEHOLDER}\n\1", content)
    return make_turn(row, roles[role], content, f"{name}.{content_key}")


def make_turn(row: Row, role: Role, value: Any, name: str) -> Turn:
    """Build a turn from text. Raises InputError if it is not text."""
    return Turn(role, *_place_images(_require_turn_text(row, value, name).split(PLACEHOLDER)))


def _require_turn_text(row: Row, value: Any, name: str) -> str:
    text = row.require_text(value, name)
    if "\0" in text:  # tokenizers read it differently, and files of other programs end at it
        row.fail(f"`{name}` contains a NUL character (U+0000): remove it")
    return text


def _parse_parts(row: Row, role: Role, parts: list[Any], name: str) -> Turn:
    segments = [""]  # the texts before, between and after the images
    for number, part in enumerate(parts, 1):
        part_type = part.get("type") if isinstance(part, dict) else None
        if part_type in IMAGE_PARTS:
            segments.append("")
        elif part_type in TEXT_PARTS:
            _require_turn_text(row, part.get("text"), f"{name}[{number}].text")
            continued, *rest = part["text"].split(PLACEHOLDER)
            segments[-1] += continued  # not stripped, because parts are joined without separators
            segments += rest
        else:
            row.fail(f"`{name}[{number}]` must be a part of type text or image, not {preview(part)}")
    return Turn(role, *_place_images(segments), has_parts=True)


def _place_images(segments: list[str]) -> tuple[str, tuple[int, ...]]:
    """Join the texts before, between and after images; return the text and the images' offsets.

    White space at both ends of the text is stripped, including the line break of LLaVA's "<image>\
What is this?"; all other text is kept unchanged.
    """
    first_text = next((i for i, segment in enumerate(segments) if segment.strip()), len(segments))
    kept = [""] * first_text + segments[first_text:]
    if first_text < len(segments):
        kept[first_text] = kept[first_text].lstrip()
        for i in range(len(kept) - 1, first_text - 1, -1):
            kept[i] = kept[i].rstrip() if i == len(kept) - 1 or not kept[i].strip() else kept[i]
            if kept[i]:
                break
    offsets = list(itertools.accumulate(map(len, kept)))
    return "".join(kept), tuple(offsets[:-1])


def parse_turns(row: Row, value: Any, name: str, role_key: str = "role", content_key: str = "content") -> list[Turn]:
    """Parse a non-empty list of turns. Raises InputError."""
    if not isinstance(value, list) or not value:
        text_or = "" if name in ("messages", "conversations", "rejected_messages") else "text or "
        row.fail(f"`{name}` must be {text_or}a list of turns, not {'an empty one' if value == [] else type_name(value)}")
    return [parse_turn(row, turn, f"{name}[{number}]", role_key, content_key) for number, turn in enumerate(value, 1)]


def parse_llava_conversation(row: Row) -> list[Turn]:
    """Parse LLaVA's `conversations`, with from and value or role and content. Raises InputError."""
    value = row.fields["conversations"]
    has_roles = isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "role" in value[0]
    keys = ("role", "content") if has_roles else ("from", "value")
    return parse_turns(row, value, "conversations", *keys)


def parse_prompt(row: Row, name: str) -> list[Turn]:
    """Parse TRL's prompt: text or turns. Raises InputError."""
    value = row.fields[name]
    return [make_turn(row, "user", value, name)] if isinstance(value, str) else parse_turns(row, value, name)


def parse_answer(row: Row, name: str) -> Turn:
    """Parse TRL's answer: text, or a conversation of one turn. Raises InputError."""
    value = row.require(name)
    if isinstance(value, str):
        return check_answer(row, make_turn(row, "assistant", value, name), name)
    turns = parse_turns(row, value, name)
    if len(turns) != 1:
        row.fail(f"`{name}` must be one assistant turn, not {len(turns)} turns: move the earlier ones to `prompt`")
    return check_answer(row, turns[0], name)


def check_answer(row: Row, turn: Turn, name: str) -> Turn:
    """Return an assistant's turn, which may show images. Raises InputError if it is no answer."""
    if turn.role != "assistant":
        row.fail(f"`{name}` must be the assistant's turn, not the {turn.role}'s")
    if is_blank(turn.text) and not turn.num_images:
        row.fail(f"`{name}` is empty: fill it in or drop the row")
    return turn


def answer_text(row: Row, turn: Turn, name: str) -> str:
    """Return the text of an assistant's turn. Raises InputError if it is not a usable answer."""
    if check_answer(row, turn, name).num_images:
        row.fail(f"`{name}` contains an image or {PLACEHOLDER}: an answer must be text only")
    return turn.text


BLANK_LETTERS_AND_MARKS = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Invisible characters that are letters, marks or symbols in Unicode: fillers, variation selectors
and the empty Braille pattern."""


_JOINED = r"[^\s\0-\u02ff\u2000-\u206f]"
"""A character that a joiner may change: none of Latin script, and no space or punctuation."""
_JOINERS_AND_TAGS = re.compile(
    "(\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f)"  # the flags of England and Scotland: a black flag and tags
    rf"|(?<={_JOINED})([\u200c\u200d])[\u200c\u200d]*(?={_JOINED})"
    r"|[\u200c\u200d\U000e0020-\U000e007f]"
)
"""Joiners (ZWNJ, ZWJ) and tags: those in a group are visible by what they change, others not."""


def is_blank(text: str) -> bool:
    """Return whether a text has only white space and invisible characters (U+200B)."""
    text = BLANK_LETTERS_AND_MARKS.sub("", text)
    return all(unicodedata.category(character) in ("Cc", "Cf", "Zs", "Zl", "Zp") for character in text)


def visible_form(text: str) -> str:
    """Return the visible form of a text, the same for all texts that look the same.

    It has no invisible characters (U+200B), composed characters (NFC) and ordinary spaces. Format
    characters that change others stay: in a family emoji, a Persian word, a flag. NFKC would go too
    far: it makes x² and x2 equal.
    """
    text = unicodedata.normalize("NFC", BLANK_LETTERS_AND_MARKS.sub("", text))
    categories = {character: unicodedata.category(character) for character in set(text)}
    kept = (c for c in text if c in "\n\t" or categories[c] not in ("Cc", "Cf") or _JOINERS_AND_TAGS.fullmatch(c))
    spaced = "".join(" " if categories[c] == "Zs" else c for c in kept)
    return _JOINERS_AND_TAGS.sub(r"\1\2", spaced).strip()


def build_prompt(row: Row, turns: Sequence[Turn], num_images: int) -> tuple[Message, ...]:
    """Build a prompt from turns. Raises InputError if they do not fit the row's images."""
    if not turns or turns[-1].role != "user":
        row.fail("the prompt must end with a user turn: add the question, or drop what follows it")
    for number, turn in enumerate(turns, 1):
        if turn.role == "system" and number > 1:
            row.fail(f"turn {number} of the prompt is a system turn: only the first may be one")
        if turn.role != "user" and turn.num_images:
            row.fail(f"turn {number} of the prompt contains an image, but is not a user turn: move the image to a user turn")
        if is_blank(turn.text) and not turn.num_images:
            row.fail(f"turn {number} of the prompt is empty: fill it in or drop the row")
    num_placeholders = sum(turn.num_images for turn in turns)
    # Plain text needs no placeholders. Parts, and text with placeholders, need one per image.
    must_match = num_placeholders > 0 or any(turn.has_parts for turn in turns)
    if must_match and num_placeholders != num_images:
        plural = "" if num_placeholders == 1 else "s"
        row.fail(
            f"the prompt has placeholders for {num_placeholders} image{plural} and the row has {num_images}: make the numbers equal"
        )
    positions = [turn.image_positions for turn in turns]
    first_user_turn = next(index for index, turn in enumerate(turns) if turn.role == "user")
    if not any(positions[first_user_turn]) and not any(positions[first_user_turn + 1 :]):
        positions[first_user_turn] = ()  # the images are in front, where images without a place go
    return tuple(Message(turn.role, turn.text, places) for turn, places in zip(turns, positions, strict=True))
