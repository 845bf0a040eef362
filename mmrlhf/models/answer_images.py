"""Answers that show images: the texts between the images, each with everything before it.

Tokens of images are read and never predicted, and the engine extends a prompt by text alone. So
each text of an answer continues a separate prompt: the prompt and the answer up to this text,
images included. The log-prob of the answer is the sum over its texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrlhf.models.chat_text import ChatText
from mmrlhf.records import InputError, Message


@dataclass(frozen=True)
class AnswerText:
    """A text of an answer: `before` is the rendered conversation before it, with its images."""

    before: str
    num_images: int
    """Images that `before` shows, those of the prompt included."""
    token_ids: Tensor
    """[T]; the last text's include the end of the answer, or what follows the answer."""


def answer_texts(
    chat: ChatText,
    messages: Sequence[Message],
    answer: Message,
    num_images: int,
    following_turns: Sequence[Message] = (),
    row_id: str = "",
) -> list[AnswerText]:
    """Return the texts of an answer that may show images, in order.

    `num_images` are in the prompt. The last text is followed by the tokens of
    `ChatText.answer_token_ids`; if the answer ends with an image, it consists of these alone.
    Raises InputError, naming the row, if a text holds a control token, or the template changes the
    answer.
    """
    where = f"row {row_id}: " if row_id else ""
    turns = [answer, *following_turns]
    chat.control_tokens.check([*messages, *turns], f"{where}the prompt, an answer or what follows it")
    num_shown = num_images + len(answer.image_positions)
    prompt = chat.render(messages, num_images, generation_prompt=True, where=where)
    rendered = chat.render([*messages, *turns], num_shown, generation_prompt=bool(following_turns), where=where)
    rendered = chat.align(prompt, rendered)
    spans, end = _find_parts(chat, prompt, rendered, answer, where)
    ends_with_image = bool(answer.image_positions) and not answer.content[answer.image_positions[-1] :].strip()
    find_end = chat.end_pattern.search if ends_with_image else chat.end_pattern.match
    added, after = chat.reply_start, end
    if following_turns:
        after = rendered.find(chat.control_tokens.mark(following_turns[0]).content.strip(), end)
        end = len(rendered)
    elif match := find_end(rendered, end):
        added, after, end = [], match.start(), match.end()
    else:
        added = [chat.end_id]
        after = end = len(rendered.rstrip()) if ends_with_image else end
    if ends_with_image:
        if after < 0:
            raise InputError(f"{where}the chat template changes the turn after an answer that ends with an image: drop the row")
        spans.append((after, end))
    spans[-1] = spans[-1][0], end
    texts = []
    for i, (start, stop) in enumerate(spans):
        ids = chat.continuation_ids(rendered[:start], rendered[:stop]) + (added if i == len(spans) - 1 else [])
        num_before = rendered[:start].count(chat.processor.image_token)
        texts.append(AnswerText(rendered[:start], num_before, torch.tensor(ids, dtype=torch.long)))
    return texts


def _find_parts(chat: ChatText, prompt: str, rendered: str, answer: Message, where: str) -> tuple[list[tuple[int, int]], int]:
    """Find an answer's texts and images after its prompt; return the texts, and the end of all.

    White space before a text belongs to it, and white space after it does not. Raises InputError.
    """
    spans, position = [], len(prompt)
    for part in chat.control_tokens.mark(answer).parts():
        text = part.get("text", chat.processor.image_token)
        body = text.strip()
        if not body:
            continue
        search_from = chat.control_tokens.skip(rendered, position) if part["type"] == "text" else position
        start = rendered.find(body, search_from) if rendered.startswith(prompt) else -1
        if start < 0 or (part["type"] == "text" and chat.processor.image_token in rendered[position:start]):
            raise InputError(
                f"{where}the chat template of {chat.name} does not write the images and texts of an answer in their order, so it "
                "cannot be read: use another template, or drop the row"
            )
        position = start + len(body)
        if part["type"] == "text":
            lead = text[: len(text) - len(text.lstrip())]
            spans.append((start - len(lead) if rendered[:start].endswith(lead) else start, position))
    return spans, position
