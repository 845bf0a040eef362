"""Find control tokens in texts: ends of turns, roles and image placeholders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from mmrlhf.records import InputError, Message

MARKS = "\U000f0000", "\U000f0001"
"""Private-use characters around markup in a text, such as <s>, that the tokenizer must read as
text. transformers uses the same for `sanitize_control_tokens`."""
MARKED = re.compile(rf"{MARKS[0]}(</?[a-z]+>){MARKS[1]}")


class ControlTokens:
    """The control tokens of a processor: special tokens, its placeholders, and ends of answers.

    A pair of tags around a text, `<s>old price</s>`, is markup, even if the tokenizer has these
    tags as special tokens.
    """

    def __init__(self, processor: Any, eos_texts: Iterable[str]):
        special = {str(token) for token in processor.tokenizer.added_tokens_decoder.values() if token.special}
        names = [re.escape(token[1:-1]) for token in special if re.fullmatch(r"<[a-z]+>", token) and f"</{token[1:]}" in special]
        # (?!) matches nothing, but has the groups that callers name.
        self._markup = re.compile(rf"(?s)<({'|'.join(names)})>((?:(?!</?\1>).)*)(</\1>)" if names else r"(?!)()()()")
        placeholders = {value for key, value in vars(processor).items() if key.endswith("_token") and isinstance(value, str)}
        # Longest first: an alternation takes the first match.
        longest_first = sorted((token for token in {*special, *placeholders, *eos_texts} if token.strip()), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def mark(self, message: Message) -> Message:
        """Mark the special tokens that are markup of the message's text, for `ChatText.encode`."""
        if not self._markup.search(message.content) or MARKS[0] in message.content:
            return message
        content, positions = "", []
        for part in message.parts():
            if part["type"] == "image":
                positions.append(len(content))
            content += self._markup.sub(rf"{MARKS[0]}<\1>{MARKS[1]}\2{MARKS[0]}\3{MARKS[1]}", part.get("text", ""))
        return Message(message.role, content, tuple(positions))

    def check(self, messages: Sequence[Message], what: str) -> None:
        """Raise InputError, beginning with `what`, if a message holds a control token."""
        for message in messages:
            texts = (self._markup.sub(r"\2", part.get("text", "")) for part in message.parts())
            if match := next(filter(None, map(self._pattern.search, texts)), None):
                raise InputError(f"{what} holds {match[0]}, which the model takes for a control token: remove it from its text")

    def skip(self, text: str, position: int) -> int:
        """Return the end of the control tokens, if any, that a rendered text has at a position."""
        while match := self._pattern.match(text, position + len(text[position:]) - len(text[position:].lstrip())):
            position = match.end()
        return position

    def escape(self, text: str) -> str:
        """Split each control token in a text written by a model with a space."""
        return self._pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
