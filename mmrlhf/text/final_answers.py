"""Find the final answer of a reply that reasons first: after </think>, in <answer>, or \\boxed{}.

Data for GRPO has such tags in its `solution` column, and asks models for them.
"""

from __future__ import annotations

import re

_ANSWER = re.compile(r"(?s)<answer>(.*?)</answer>")
_FORMAT = re.compile(r"(?s)\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*")
_TAG = re.compile(r"</?(?:think|answer)>")


def final_answer(text: str) -> str:
    """Return a reply's final answer; the whole reply, if nothing is marked.

    Of several marked answers the last one counts. A reply that was cut off during its reasoning has
    none.
    """
    _, closed, rest = text.rpartition("</think>")
    if not closed and "<think>" in text:
        return ""
    if answers := _ANSWER.findall(rest):
        return str(answers[-1]).strip()
    return (rest if (boxed := _last_boxed(rest)) is None else boxed).strip()


def _last_boxed(text: str) -> str | None:
    """Return the content of the last \\boxed{...}, with its braces matched, or None."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin = start + len("\\boxed{")
    depth = 1
    for i in range(begin, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[begin:i]
    return None


def has_answer_format(text: str) -> bool:
    """Return whether a reply is <think>...</think><answer>...</answer>, each once and not empty."""
    match = _FORMAT.fullmatch(text)
    return match is not None and all(part.strip() and not _TAG.search(part) for part in match.groups())
