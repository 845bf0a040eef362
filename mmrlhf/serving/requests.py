"""Read the bodies of requests: chat completions in OpenAI's form, and answers to score.

Every problem is an InputError with one sentence, which the server answers with status 400. Images
come as data URLs only: the server opens no file and fetches nothing for a client.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmrlhf.datasets.examples import parse_example
from mmrlhf.datasets.image_fields import RowContext
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.files.rows import Row, is_finite_number, preview, type_name
from mmrlhf.models.images import read_image_size
from mmrlhf.records import Example, InputError
from mmrlhf.rewards.reward_model import AnswerGroup

MAX_IMAGES = 16
MAX_ANSWERS = 64
"""Maximum number of answers that one request may ask for, or have scored."""
MAX_STOPS = 4
MAX_SEED = 2**32 - 1
MIN_TEMPERATURE = 1e-3
NEUTRAL_VALUES: Mapping[str, tuple[Any, ...]] = {
    "stream": (False,), "logprobs": (False,), "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "tools": ([],),
    "tool_choice": ("none", "auto"), "response_format": ({"type": "text"},), "functions": ([],), "top_logprobs": (0,), "modalities": (["text"],),
}  # fmt: skip
"""Unsupported fields of OpenAI's requests, with the values that have no effect."""
IGNORED_FIELDS = ("model", "user", "metadata", "store", "stream_options", "service_tier", "parallel_tool_calls")
CHAT_FIELDS = ("messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "n", "seed", "stop")
SCORE_FIELDS = ("messages", "answers", "facts")


@dataclass(frozen=True)
class ChatRequest:
    """A prompt, and how many answers to sample. Requests with equal sampling share a batch."""

    example: Example
    num_answers: int
    params: SamplingParams


def parse_chat(body: Any, max_tokens: int) -> ChatRequest:
    """Read a chat completion request; `max_tokens` is the limit and the default of answers.

    Raises InputError.
    """
    row = _parse_body(body, CHAT_FIELDS)
    names = [name for name in ("max_completion_tokens", "max_tokens") if name in row.fields]
    limits = [_integer(row, name, 1, max_tokens, max_tokens) for name in names]
    # The row's id determines the noise: equal requests with a seed get equal answers.
    example = _parse_messages(row, "seeded" if "seed" in row.fields else uuid.uuid4().hex)
    if example.answer is not None:
        row.fail("the last message must be the user's: leave out the assistant's last turn")
    temperature = _number(row, "temperature", 0.0, 2.0, 1.0)
    if 0 < temperature < MIN_TEMPERATURE:  # logits that it divides would overflow
        row.fail(f"`temperature` must be 0, which takes the likeliest token, or at least {MIN_TEMPERATURE:g}")
    params = SamplingParams(
        max_tokens=min(limits, default=max_tokens),
        temperature=temperature,
        top_p=_number(row, "top_p", 0.0, 1.0, 1.0) or row.fail("`top_p` must be above 0"),
        top_k=_integer(row, "top_k", 0, 1 << 20, 0),
        stop=_stop_strings(row),
        seed=_integer(row, "seed", 0, MAX_SEED, 0),
    )
    return ChatRequest(example, _integer(row, "n", 1, MAX_ANSWERS, 1), params)


def parse_score(body: Any) -> AnswerGroup:
    """Read a request to score answers: `messages`, `answers`, and `facts` if the model reads any.

    Raises InputError.
    """
    row = _parse_body(body, SCORE_FIELDS)
    answers = row.require("answers")
    if not isinstance(answers, list) or not 1 <= len(answers) <= MAX_ANSWERS:
        row.fail(f"`answers` must be a list of 1 to {MAX_ANSWERS} texts")
    texts = tuple(row.require_text(answer, f"answers[{number}]") for number, answer in enumerate(answers, 1))
    example = _parse_messages(row, "score")
    if example.answer is not None:
        row.fail("the last message must be the user's: put the assistant's turn into `answers`")
    return AnswerGroup(example.images, example.prompt, texts, example.facts, example.id)


def _parse_body(body: Any, known_fields: tuple[str, ...]) -> Row:
    """Return a request's fields, without nulls. Raises InputError for unsupported ones."""
    if not isinstance(body, dict):
        raise InputError(f"the request must be a JSON object, not {type_name(body)}")
    row = Row("request", 1, {name: value for name, value in body.items() if value is not None})
    for name, value in row.fields.items():
        if name in NEUTRAL_VALUES and value not in NEUTRAL_VALUES[name]:
            row.fail(f"`{name}` is not supported: leave it out")
        if name not in (*known_fields, *NEUTRAL_VALUES, *IGNORED_FIELDS):
            row.fail(f"`{preview(name)[1:-1]}` is not a field of this request: the fields are {', '.join(known_fields)}")
    return row


def _parse_messages(row: Row, id_: str) -> Example:
    """Return the conversation with its images and facts. Raises InputError."""
    messages = row.require("messages")
    if not isinstance(messages, list) or not messages:
        row.fail("`messages` must be a list of turns with role and content")
    for number, message in enumerate(messages, 1):
        content = message.get("content") if isinstance(message, dict) else None
        for part_number, part in enumerate(content if isinstance(content, list) else (), 1):
            if isinstance(part, dict) and part.get("type") not in (None, "text"):
                _check_data_url(row, part, f"messages[{number}].content[{part_number}]")
    facts = {"facts": row.fields["facts"]} if "facts" in row.fields else {}
    fields = {"id": id_, "messages": messages, "images": [], **facts}
    example = parse_example(Row("request", 1, fields), RowContext(None, False, {}), False)
    if len(example.images) > MAX_IMAGES:
        row.fail(f"it has {len(example.images)} images: give at most {MAX_IMAGES}")
    for image in example.images:
        read_image_size(image)  # refuses what is no image, or too large, before it waits for the model
    return example


def _check_data_url(row: Row, part: Mapping[str, Any], name: str) -> None:
    if part.get("type") != "image_url":
        row.fail(f"`{name}.type` must be text or image_url, not {preview(part.get('type'))}")
    value = part.get("image_url")
    url = value.get("url") if isinstance(value, dict) else value
    if not isinstance(url, str) or not url.startswith("data:image/"):
        row.fail(
            f"`{name}.image_url` must be a data URL (data:image/png;base64,...): this server fetches no addresses and opens no files"
        )


def _number(row: Row, name: str, low: float, high: float, default: float) -> float:
    value = row.fields.get(name, default)
    if not is_finite_number(value) or not low <= value <= high:
        row.fail(f"`{name}` must be a number from {low:g} to {high:g}, not {preview(value)}")
    return float(value)


def _integer(row: Row, name: str, low: int, high: int, default: int) -> int:
    value = row.fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        row.fail(f"`{name}` must be a whole number from {low} to {high}, not {preview(value)}")
    return value


def _stop_strings(row: Row) -> tuple[str, ...]:
    value = row.fields.get("stop", [])
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > MAX_STOPS or not all(isinstance(text, str) and text for text in texts):
        row.fail(f"`stop` must be a text, or a list of at most {MAX_STOPS} of them")
    return tuple(texts)
