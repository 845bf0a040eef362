"""The environment of the pages' templates. It imports no plots, so that pages without any start
fast."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mmrlhf.text.visible_text import visible


def jinja_environment() -> Environment:
    """Return the environment of the templates in this folder. It escapes everything they print, and
    makes control characters and marks of direction visible, which would affect the surrounding
    text."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
