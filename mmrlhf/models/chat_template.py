"""Write conversations in a processor's chat template."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from mmrlhf.records import InputError, Message, place_images
from mmrlhf.text.printable import first_line
from mmrlhf.text.templates import BoundedEnvironment


def images_shown(messages: Sequence[Message], conversation: Sequence[Message], num_images: int) -> int:
    """Return how many of a conversation's images its first `messages` show."""
    num_unplaced = num_images - sum(len(message.image_positions) for message in conversation)
    return num_unplaced + sum(len(message.image_positions) for message in messages)


DATE = datetime(2024, 7, 26)
"""The date that templates write into prompts. It is fixed, because a resumed run and a saved reward
model must read the same prompts; Llama 3.2's template falls back to it."""


class _Generation(Extension):
    """The tag `generation`, which marks the model's own text for transformers."""

    tags: set[str] = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the content of the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache(maxsize=16)
def _compile(template: str) -> tuple[BoundedEnvironment, Template]:
    """Compile a template in the environment of transformers' chat templates."""
    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = environment.bounded(_to_json)
    environment.globals |= {"raise_exception": _raise, "strftime_now": environment.bounded(_strftime_now)}
    return environment, environment.compile_bounded(template)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    """Write the date for a template, which is the same every day."""
    return DATE.strftime(format)


def apply_chat_template(
    processor: Any,
    messages: Sequence[Message],
    num_images: int,
    *,
    generation_prompt: bool,
    name: str,
    where: str | None = None,
) -> str:
    """Write a conversation in a processor's chat template.

    Images have their places in the messages; images without one go before the first user text.
    Raises InputError if the template refuses it or leaves out a text: naming the row `where` or, if
    the conversation belongs to no row (None), the model `name`.
    """
    placed = place_images(messages, num_images)
    try:
        text = _render(processor, placed, generation_prompt=generation_prompt)
    except Exception as error:  # a template may raise anything
        reason = first_line(error)
        if where is None:
            raise InputError(f"{name}: its chat template fails on a plain question ({reason}): use another template") from None
        raise InputError(
            f"{where}the chat template of {name} refuses it ({reason}): change the row, or use another template"
        ) from None
    if left_out := _left_out(placed, text):
        if where is None:
            raise InputError(f"{name}: its chat template leaves out a turn's text: use another template")
        raise InputError(f"{where}the chat template of {name} leaves out {left_out}: change the row, or use another template")
    return text


def _render(processor: Any, messages: Sequence[Message], *, generation_prompt: bool) -> str:
    """Write a conversation whose images have their places.

    A turn that the template would write as code is given as plain text (Llama 3.2's expects parts
    for all turns except the system's).
    """
    template = processor.chat_template
    environment, compiled = _compile(template.get("default") if isinstance(template, dict) else template)
    settings = {"tools": None, "documents": None, "add_generation_prompt": generation_prompt}
    settings |= processor.tokenizer.special_tokens_map
    turns: list[dict[str, Any]] = [{"role": message.role, "content": message.parts()} for message in messages]
    text = environment.render_bounded(compiled, messages=turns, **settings)
    written_as_code = [str(turn["content"]) in text for turn in turns]
    if any(written_as_code) and not all(written_as_code):
        plain_turns = zip(turns, messages, written_as_code, strict=True)
        turns = [turn | {"content": message.content} if is_code else turn for turn, message, is_code in plain_turns]
        text = environment.render_bounded(compiled, messages=turns, **settings)
    return text


def _left_out(messages: Sequence[Message], text: str) -> str:
    """Describe the system or user text that a rendered text lacks; return "" if it lacks none.

    Assistant turns may be shortened: some templates leave out the thoughts of earlier turns.
    """
    for message in messages:
        texts = [] if message.role == "assistant" else [part.get("text", "").strip() for part in message.parts()]
        if lacking := next((words for words in texts if words not in text), None):
            return f"the {message.role} turn's text ({lacking[:40]!r})"
    return ""
