"""Write conversations in a processor's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmrlhf.records import InputError, Message, place_images


def images_shown(messages: Sequence[Message], conversation: Sequence[Message], num_images: int) -> int:
    """Return how many of a conversation's images its first `messages` show."""
    num_unplaced = num_images - sum(len(message.image_positions) for message in conversation)
    return num_unplaced + sum(len(message.image_positions) for message in messages)


def apply_chat_template(
    processor: Any, messages: Sequence[Message], num_images: int, *, generation_prompt: bool, name: str, where: str | None = None
) -> str:
    """Write a conversation in a processor's chat template.

    Images have their places in the messages; those without one go before the first user text.
    Raises InputError if the template refuses it: about the row `where` names, or about the model
    called `name` if the conversation is no row's (None).
    """
    turns = [{"role": message.role, "content": message.parts()} for message in place_images(messages, num_images)]
    try:
        return str(processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation_prompt))
    except Exception as error:  # a template may raise anything
        reason = (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__
    if where is None:
        raise InputError(f"{name}: its chat template fails on a plain question ({reason}): use another template")
    raise InputError(f"{where}the chat template of {name} refuses it ({reason}): change the row, or use another template")
