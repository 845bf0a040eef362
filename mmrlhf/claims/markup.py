"""Mask everything in a text except prose: code, quotations, read-out text, tables, bullets.

Masked characters become spaces or dots, so that positions in the text do not change.
"""

from __future__ import annotations

import re

QUOTED_OR_MARKUP = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]{1,300}`"
    r"|\"[^\"\n]{1,200}\"|“[^”\n]{1,200}”"
    # Single quotation marks must not be apostrophes: no letter before the first or after the last.
    r"|'(?<![A-Za-z]')(?=\S)[^'’\n]{1,120}(?<=\S)['’](?![A-Za-z])"
    r"|‘(?<![A-Za-z]‘)(?=\S)[^'’\n]{1,120}(?<=\S)['’](?![A-Za-z])"
    r"|https?://\S+|<[^<>\n]{1,200}>"
    r"|!\[[^\[\]\n]{0,200}\]\([^()\n]{1,300}\)|\[[^\[\]\n]{0,200}\]\([^()\n]{1,300}\)",
    re.DOTALL,
)
"""Code, quotations, URLs, tags and links.

Each alternative begins with its own character, without which `re` does not try it; lengths are
bounded to keep the time linear.
"""
TIMES_SIGN = re.compile(r"(?<=\d)( ?[x×]) (?=[a-z])")
"""The sign in `3 x apple`."""
DIMENSIONS = re.compile(r"\b\d{1,5}(?:\.\d{1,3})? ?[x×] ?\d{1,5}\b(?: ?[x×] ?\d{1,5}\b)?")
"""Measures such as `2 x 4`, which count nothing."""
QUOTE_MARKERS = re.compile("[`\"“'‘<\\[]")
"""`QUOTED_OR_MARKUP` matches nothing in a text without one of these, ~~~ or ://."""
CODE_LINE = re.compile(r"(?m)^.*(?: = | == |=>|\w\.\w+\(|\w\[\w+\]).*$")
"""A line of a program, recognised by signs that prose lacks: ` = `, `x.f(`, `x[i]`."""
BULLET = re.compile(r"(?m)^[ \t]*(?:[-*+•◦▪·‣–—>#]+[ \t]*|\(?\d{1,3}[.)][ \t]+|\(?[a-zA-Z][.)][ \t]+|\|)+")
"""Bullets, numbers and heading marks at the start of a line."""
ABBREVIATIONS = r"(?!(?:TV|LED|LCD|CD|DVD|SUV|BBQ|PC|ATM|RV|USB|AC|BMX|UFO|VR|US|USA|UK|II|III|IV|A|I)\b)"
"""Words in capitals that are ordinary words."""
CAPITALS = re.compile(
    rf"\b[A-Z]{{2,30}}(?= (?:is|are) (?:written|printed|painted))"
    rf"|\b{ABBREVIATIONS}[A-Z][A-Z'’&.!-]{{1,30}}(?:[ ,:/&-]{{1,3}}{ABBREVIATIONS}[A-Z0-9][A-Z0-9'’&.!-]{{0,30}}){{1,12}}(?![a-z])"
)
"""At least two words in capitals, mostly the text of a sign: HOME OFFICE CELL."""
SENTENCE_IN_CAPITALS = re.compile(r"\b(?:A|AN|THE|IS|ARE|THERE)\b")
"""Words that show that a text in capitals is a sentence."""
TWO_CAPITALS = re.compile("[A-Z][A-Z]")
"""`CAPITALS` matches nothing in a text without these."""
READ_OUT = re.compile(
    r"\b(?:reads?|says?|reading|saying|states?|stating|(?<![Aa]lt )text|title|label(?:l?ed)?|captioned|inscription)"
    r"(?: as)?(?::[ \n]{0,2}[^\n.]{1,200}"
    r"|,? ((?:[A-Z][\w'’&!-]{0,30}|\d{1,6})(?: (?:(?:of|the|and|to|for|in|a|on|&) ){0,2}(?:[A-Z][\w'’&!-]{0,30}|\d{1,6})){0,12}))"
)
"""The text of a sign without quotation marks: after a colon or in words with capitals."""
TABLE_ROW = re.compile(r"(?m)^[ \t]*\|?([^|\n]{1,200}(?:\|[^|\n]{0,200}){1,20})\|?[ \t]*$")
COUNT_TITLES = re.compile(r"\b(?:count|counts|number|quantity|qty|amount|total|how many|no\.?|#)(?:\b|$)|^#$", re.IGNORECASE)
"""Titles of a table's column of numbers of objects."""
LOOK_TITLES = re.compile(r"\b(?:colou?rs?|materials?|sizes?|shapes?|conditions?|states?|appearance)\b", re.IGNORECASE)
"""Titles of a table's column that describes the things in the first."""


def mask_markup(text: str) -> str:
    """Return a text of the same length with only the prose."""
    masked_text = text
    stripped = text.strip()
    if (
        len(stripped) > 2
        and stripped[0] + stripped[-1] in ('""', "''", "“”", "‘’")
        and not any(char in stripped[1:-1] for char in stripped[0] + stripped[-1])
    ):
        # An answer that is entirely in quotation marks is not a quotation.
        masked_text = text.replace(stripped[0], " ").replace(stripped[-1], " ")
    if QUOTE_MARKERS.search(text) or "~~~" in text or "://" in text:
        masked_text = QUOTED_OR_MARKUP.sub(_mask_quotation, masked_text)
    if "=" in text or "(" in text or "[" in text:
        masked_text = CODE_LINE.sub(_mask_quotation, masked_text)
    if TWO_CAPITALS.search(text) and not (text.isupper() and SENTENCE_IN_CAPITALS.search(text)):
        masked_text = CAPITALS.sub(_blank, masked_text)
    if (
        "read" in text or "say" in text or "stat" in text or "text" in text or "title" in text or "label" in text
        or "caption" in text or "inscription" in text
    ):  # fmt: skip
        masked_text = READ_OUT.sub(_mask_read_out, masked_text)
    if "|" in text:
        masked_text = _mask_tables(masked_text)
    if "\n" in text or text[:1] in "-*+•|#>(0123456789":
        masked_text = BULLET.sub(
            lambda match: "\n" + " " * (len(match.group()) - 1) if match.start() else " " * len(match.group()), masked_text
        )
    if "x " in masked_text or "×" in masked_text:
        masked_text = TIMES_SIGN.sub(_blank, DIMENSIONS.sub(_blank, masked_text))
    for marker in "*_~":
        masked_text = masked_text.replace(marker, " ")
    return masked_text


def _blank(match: re.Match[str]) -> str:
    return " " * len(match.group())


def _mask_quotation(match: re.Match[str]) -> str:
    """Replace quotations and tags with spaces, and code and links with dots, of the same length.

    No noun phrase can extend across dots.
    """
    text = match.group()
    is_quotation_or_tag = len(text) > 1 and text[0] in "\"“'‘<"
    return (" " if is_quotation_or_tag else ".") * len(text)


def _mask_read_out(match: re.Match[str]) -> str:
    """Blank out text that is read out, and keep the word that introduces it."""
    text = match.group()
    start = match.start(1) - match.start() if match[1] is not None else text.index(":")
    return text[:start] + " " * (len(text) - start)


# ---- tables ------------------------------------------------------------------------------------


def _mask_tables(text: str) -> str:
    """Write the rows of tables as items of a list, and blank out their titles.

    A number counts if its column has no title or one for numbers of things. A cell under a title
    such as `colour` describes the first.
    """
    lines = text.split("\n")
    titles: list[str] = []
    for index, line in enumerate(lines):
        if "|" not in line:
            titles = []
            continue
        if set(line) <= set("|-: \t"):
            continue
        next_line = lines[index + 1] if index + 1 < len(lines) else ""
        if "-" in next_line and set(next_line) <= set("|-: \t"):
            titles = _cells(line)
            lines[index] = " " * len(line)
        elif TABLE_ROW.fullmatch(line):
            lines[index] = _row_as_list_item(line, titles)
    return "\n".join(lines)


def _cells(line: str) -> list[str]:
    """Return a row's cells: those between its outer bars, if it has any."""
    return [cell.strip(" \t*_`") for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def _row_as_list_item(line: str, titles: list[str]) -> str:
    """Return a row as `cup × 3 : white`, of the same length: signs replace bars by cell type."""
    parts = line.split("|")
    # The first cell names the thing, unless it only numbers the row.
    first = next((i for i, part in enumerate(parts) if any(char.isalpha() for char in part)), 0)
    parts[:first] = [" " * len(part) for part in parts[:first]]
    offset = 1 if line.lstrip().startswith("|") else 0
    row = parts[0]
    for i, part in enumerate(parts[1:], 1):
        cell = part.strip(" \t*_`")
        column = i - offset
        title = titles[column] if 0 <= column < len(titles) else ""
        bar = " " if i <= first else "|"
        if i > first and cell.isascii() and cell.isdecimal():
            is_count = len(cell) < 4 and (not titles or COUNT_TITLES.search(title) is not None)
            bar, part = ("×", part) if is_count else (bar, " " * len(part))
        elif i > first and LOOK_TITLES.search(title):
            bar = ":"
        row += bar + part
    return row
