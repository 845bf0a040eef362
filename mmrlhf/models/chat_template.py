"""Write conversations in a processor's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmrlhf.records import Message


def apply_chat_template(processor: Any, messages: Sequence[Message], num_images: int, *, generation_prompt: bool) -> str:
    """Write a conversation in a processor's chat template; images go before the first user text."""
    turns, images_placed = [], False
    for message in messages:
        content: list[dict[str, str]] = [{"type": "text", "text": message.content}]
        if message.role == "user" and not images_placed:
            content, images_placed = [{"type": "image"}] * num_images + content, True
        turns.append({"role": message.role, "content": content})
    return str(processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation_prompt))
