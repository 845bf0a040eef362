"""Read rows of Label Studio's and Argilla's JSON exports as rows with images, prompt and answers.

In both, users choose the field names. An answer is a field called answer, response, completion,
output, caption or text with a number or letter, or one of a pair of names (left and right); a
prompt is prompt, question, instruction or query.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mmrlhf.files.rows import Row

IMAGE_NAMES = ("image", "images", "img", "picture", "photo", "image_url")
PROMPT_NAMES = ("prompt", "question", "instruction", "query", "messages", "conversation")
ANSWER_NAME = re.compile(
    r"(?:answer|response|completion|output|caption|description|generation|text)s?[_ -]?(?:[0-9]{1,2}|[a-i])$", re.IGNORECASE
)
SINGLE_ANSWERS = ("answer", "response", "completion", "output", "caption", "generation", "text")
LIST_ANSWERS = ("answers", "responses", "completions", "items")
SIDES = (("left", "right"), ("chosen", "rejected"))


def unpack_other_export(row: Row) -> Row:
    """Return a row of such an export as images, prompt and answers; other rows unchanged.

    Raises InputError if it has no image, or no prompt.
    """
    fields = row.fields
    if isinstance(fields.get("data"), dict) and ("annotations" in fields or "completions" in fields or "predictions" in fields):
        source = fields["data"]
    elif isinstance(fields.get("fields"), dict):
        source = fields["fields"]
    elif _is_flat_export(fields):
        source = {name: value for name, value in fields.items() if "." not in name}
    else:
        return row
    lowered = {str(name).lower(): value for name, value in source.items() if value is not None}
    image = next((lowered[name] for name in IMAGE_NAMES if name in lowered), None)
    prompt = next((lowered[name] for name in PROMPT_NAMES if name in lowered), None)
    present = ", ".join(lowered) or "nothing"
    if image is None:
        row.fail(
            f"the exported task has no field called {', '.join(IMAGE_NAMES)} (it has {present}): rename the field of its image"
        )
    images = [_local_path(value) for value in (image if isinstance(image, list) else [image])]
    unpacked: dict[str, Any] = {"images": images, "prompt": prompt if prompt is not None else "Describe the image."}
    answers = _answers_of(lowered)
    if answers:
        unpacked["answers"] = answers
    if "id" in fields and isinstance(fields["id"], int | str):
        unpacked["id"] = fields["id"]
    return replace(row, fields=unpacked)


def _is_flat_export(fields: Mapping[str, Any]) -> bool:
    """Return whether a row is of Argilla's flat table, or of Label Studio's JSON-MIN.

    Argilla's has a column of responses only for questions that somebody has answered. Until then it
    is recognised by `status`, which other rows may also have, next to their own answers.
    """
    is_argilla = "_server_id" in fields or any(name.endswith((".responses", ".suggestion")) for name in fields)
    is_label_studio = "annotation_id" in fields and "lead_time" in fields
    has_own_answers = any(name in fields for name in ("answers", "chosen", "rejected"))
    is_unanswered = "status" in fields and not has_own_answers and bool(numbered_answers(fields))
    return is_argilla or is_label_studio or is_unanswered


def numbered_answers(fields: Mapping[str, Any]) -> list[str]:
    """Return the names of fields that look like numbered answers, by their numbers or letters."""

    def order(name: str) -> tuple[str, int]:
        stem = name.rstrip("0123456789")
        return stem, int(name.removeprefix(stem) or 0)

    return sorted((name for name, value in fields.items() if value is not None and ANSWER_NAME.fullmatch(name)), key=order)


def _answers_of(fields: Mapping[str, Any]) -> list[Any]:
    for name in LIST_ANSWERS:
        if isinstance(fields.get(name), list):
            return [_text_of(item) for item in fields[name]]
    for names in SIDES:
        if all(name in fields for name in names):
            return [_text_of(fields[name]) for name in names]
    if numbered := numbered_answers(fields):
        return [_text_of(fields[name]) for name in numbered]
    single = next((name for name in SINGLE_ANSWERS if name in fields), None)
    return [] if single is None else [_text_of(fields[single])]


def _text_of(item: Any) -> Any:
    """Return the text of an item: of Label Studio's ranker (title, body), or of a chat turn."""
    if isinstance(item, dict):
        return next((item[name] for name in ("text", "body", "content", "html", "title") if name in item), None)
    return item


def _local_path(value: Any) -> Any:
    """Return the path below the image folder for a server's address of an image.

    /data/local-files/?d=photos/1.png is photos/1.png, /data/upload/3/ab-1.png is ab-1.png.
    """
    if isinstance(value, dict):
        value = value.get("path") or value.get("src") or value
    if not isinstance(value, str) or not value.startswith("/data/"):
        return value
    parts = urlsplit(value)
    if local := parse_qs(parts.query).get("d"):
        return local[0].lstrip("/")
    return PurePosixPath(parts.path).name
