"""Write Markdown with text from data, which must not become markup, links or HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmrlhf.text.printable import printable

MAX_CHARS = 300
"""Maximum number of characters of a text that are shown."""


def escape_markdown(text: str) -> str:
    """Return a text as one line that Markdown shows literally, in a table too; its end is cut."""
    line = " ".join(printable(text, keep="\n\t").split())
    line = line if len(line) <= MAX_CHARS else line[:MAX_CHARS] + "…"
    escaped = re.sub(r"([\\`*~\[\]<>&|$]|(?<!\w)_|_(?!\w))", r"\\\1", line)
    # Bare addresses become links.
    return re.sub(r"(?i)\b(www)\.", r"\1\\.", escaped.replace("://", ":\\/\\/"))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table of cells, which the caller has escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
