"""Prompt templates for judges: the benchmark's own, or the user's file."""

from __future__ import annotations

from pathlib import Path

from mmrlhf.records import InputError


def load_template(path: str | None, default: str) -> str:
    """Return a judge's prompt template: the user's file, or else the benchmark's own.

    Raises InputError.
    """
    if path is None:
        return default
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--judge_prompt {path} cannot be read ({error}): give a text file") from None


def fill_template(template: str, **fields: str) -> str:
    """Fill a template's fields, by name or, for `{}`, in order.

    Raises InputError if it has other fields.
    """
    try:
        return template.format(*fields.values(), **fields)
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        names = ", ".join(f"{{{name}}}" for name in fields)
        raise InputError(f"--judge_prompt cannot be filled in ({type(error).__name__}: {error}): it may hold {names}") from None
