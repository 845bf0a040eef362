"""From text to tokens, each with the tags that it may have.

Tags are letters, so that a sentence's tags are a string and phrases are found in it by regular expressions:

    N noun one can see   X other noun   U unknown word   J adjective   K comparative   R adverb   # number
    V verb   G its -ing form   E its -ed form   B be   H have   M modal or do   I to
    D determiner   Z no   S 's   Q pronoun   T there   W which, who, that   P where (on, next to)   A other preposition   F of
    C and, or   Y but, while, because   O not   L neither, nor   ? maybe   , : . punctuation
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import compress, pairwise
from typing import Any

from mmrlhf.claims.grammar import CLOSED, NUMBERS, PEOPLE, PHRASES, SHORT, STARTS
from mmrlhf.claims.lexicon import Lexicon

TOKEN = re.compile(
    r"(?=[^ ])(?:[A-Za-z]++(?![-'’À-ɏ])"
    r"|[A-Za-z]+(?=n['’]t\b)|n['’]t\b|['’](?:s|re|m|ve|ll|d)\b|['’](?=\s)|\d+(?:[.,:/]\d+)*(?:st|nd|rd|th|%|s)?\b"
    r"|[A-Za-zÀ-ɏ]+(?:['’](?!(?:s|re|m|ve|ll|d)\b)[A-Za-z]+)?(?:-[A-Za-zÀ-ɏ0-9]+)*|[.!?]+|[,;:()|—–&]|\n|[^\sA-Za-z0-9])"
)
"""A token; its first line finds by itself what most are: a word of plain letters with no sign after it that could go on with it."""
MASKED = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]{1,300}`|\"[^\"\n]{1,200}\"|“[^”\n]{1,200}”"
    r"|'(?<![A-Za-z]')(?=\S)[^'’\n]{1,120}(?<=\S)['’](?![A-Za-z])|‘(?<![A-Za-z]‘)(?=\S)[^'’\n]{1,120}(?<=\S)['’](?![A-Za-z])"
    r"|https?://\S+|<[^<>\n]{1,200}>|!\[[^\[\]\n]{0,200}\]\([^()\n]{1,300}\)|\[[^\[\]\n]{0,200}\]\([^()\n]{1,300}\)",
    re.DOTALL,
)
"""What is quoted or marked up. Each way begins with a sign of its own, so that `re` looks for these and tries nothing else."""
TIMES = re.compile(r"(?<=\d)( ?[x×]) (?=[a-z])")
"""The sign in `3 x apple`."""
QUOTING = ("`", '"', "“", "'", "‘", "<", "[", "~~~", "://")
"""Without any of these there is nothing for `MASKED`."""
CODE = re.compile(r"(?m)^.*(?: = | == |=>|\w\.\w+\(|\w\[\w+\]).*$")
"""A line of a program: prose has no such signs."""
BULLET = re.compile(r"(?m)^[ \t]*(?:[-*+•◦▪·‣–—>#]+[ \t]*|\(?\d{1,3}[.)][ \t]+|\(?[a-zA-Z][.)][ \t]+|\|)+")


@dataclass(slots=True)
class Tokens:
    """A text's tokens, side by side: where they are, in lower case, their tags, and the noun each would be."""

    text: str
    starts: list[int]
    ends: list[int]
    words: list[str]
    tags: list[str]
    nouns: list[str]
    many: list[bool]
    looks: list[int]


MOST_KEPT = 200_000
"""Words that a lexicon remembers: text that never repeats must not fill the memory."""
SPECIAL = frozenset(("\n", "'", "S", "u"))
"""Tags that hang on what stands before."""


def _row(surface: str, lexicon: Lexicon) -> tuple[str, str, str, bool, int]:
    """A token by itself: in lower case, its possible tags, its noun, whether that is a plural, and whether it says how something looks."""
    lower, first = surface.lower().replace("’", "'"), surface[0]
    if (tag := CLOSED.get(lower)) is not None:
        return lower, tag, lower, lower == "others", 0
    if lower in NUMBERS:
        return lower, "#", lower, lower != "one", 0
    if first.isdigit():
        return lower, "#" if (lower.isascii() and lower.isdecimal()) else "X", lower, True, 0
    if lower == "'":
        return lower, "'", lower, False, 0
    if lower == "n't":
        return "not", "O", lower, False, 0
    if lower[0] == "'" and lower[1:] in SHORT:
        return lower, SHORT[lower[1:]], lower, False, 0
    if first.isalpha():
        if lower in PEOPLE:
            return lower, "N", "person", False, 0
        word = lexicon.word(lower)
        name = first.isupper() and word.uses == "U" and surface[1:].islower()
        return lower, "u" if name else word.uses, word.noun, word.many, word.looks
    tag = "\n" if first == "\n" else "." if first in ".!?" else ":" if first in ":;" else ","
    return lower, tag, lower, False, 0


def _blank(match: re.Match[str]) -> str:
    """Dots, so that no phrase reaches across, or spaces for what is quoted: it is read, not seen."""
    found = match.group()
    return (" " if len(found) > 1 and found[0] in "\"“'‘<" else ".") * len(found)


def tokens(text: str, lexicon: Lexicon) -> Tokens:
    """A text's tokens, each with all its tags, with Markdown, code and quotations passed over. Time grows with the text's length and no faster."""
    clean = text
    whole = text.strip()
    if (
        len(whole) > 2
        and whole[0] + whole[-1] in ('""', "''", "“”", "‘’")
        and not any(c in whole[1:-1] for c in whole[0] + whole[-1])
    ):
        clean = text.replace(whole[0], " ").replace(whole[-1], " ")  # an answer in quotation marks is no quotation
    if any(mark in text for mark in QUOTING):
        clean = MASKED.sub(_blank, clean)
    if "=" in text or "(" in text or "[" in text:
        clean = CODE.sub(_blank, clean)
    if "\n" in text or text[:1] in "-*+•|#>(0123456789":
        clean = BULLET.sub(lambda m: "\n" + " " * (len(m.group()) - 1) if m.start() else " " * len(m.group()), clean)
    if "x " in clean or "×" in clean:
        clean = TIMES.sub(lambda m: " " * len(m.group()), clean)
    for mark in "*_~":
        clean = clean.replace(mark, " ")
    spans: list[tuple[int, int]] = []
    rows: list[tuple[str, str, str, bool, int]] = []
    seen = lexicon.surfaces
    for m in TOKEN.finditer(clean):
        surface = m[0]
        row = seen.get(surface)
        if row is None:
            row = _row(surface, lexicon)
            if len(seen) < MOST_KEPT:
                seen[surface] = row
        tag = row[1]
        if tag in SPECIAL:
            before = rows[-1][1] if rows else "."
            if tag == "\n":
                if not (tag := _break(clean, m.start())):
                    continue
                row = (row[0], tag, *row[2:])
            elif tag == "'":
                if before[0] not in "NX":
                    continue
                row = ("'s", "S", *row[2:])
            elif tag == "S" and before in ("Q", "T", "W"):
                row = ("'s", "B", *row[2:])
            elif tag == "u" and before in ".:":
                row = (row[0], "U", *row[2:])  # a sentence's first word has a capital anyhow
        spans.append(m.span())
        rows.append(row)
    if not rows:
        return Tokens(text, [], [], [], [], [], [], [])
    found = Tokens(text, *map(list, zip(*spans, strict=True)), *map(list, zip(*rows, strict=True)))
    _join(found)
    return found


def _break(text: str, at: int) -> str:
    """A line's end is a sentence's, unless the next line goes on with it."""
    before, after = text[max(0, at - 3) : at].rstrip(" "), text[at + 1 : at + 40].lstrip(" ")
    if before and (before[-1].isalnum() or before[-1] == ",") and after[:1].islower():
        return ""
    return "."


def _join(t: Tokens) -> None:
    """Phrases of several words that are one thing to grammar become one token."""
    words = t.words
    gone: list[int] = []
    last = -1
    for i, start in [(i, pair) for i, pair in enumerate(pairwise(words)) if pair in STARTS]:
        if i <= last:
            continue
        for phrase in STARTS[start]:
            if words[i : i + len(phrase)] == phrase:
                tag, name = PHRASES[" ".join(phrase)]
                if name.endswith("t of") and i and words[i - 1] in ("closer", "nearer", "close", "near", "the"):
                    continue
                last = i + len(phrase) - 1
                t.tags[i], t.ends[i], words[i], t.looks[i] = tag, t.ends[last], name, 0
                t.nouns[i] = "person" if name == "nobody" else name
                gone += range(i + 1, last + 1)
                break
    if not gone:
        return
    kept = [True] * len(words)
    for i in gone:
        kept[i] = False
    columns: tuple[list[Any], ...] = (t.starts, t.ends, words, t.tags, t.nouns, t.many, t.looks)
    for column in columns:
        column[:] = compress(column, kept)


def sentences(t: Tokens, tags: str) -> list[tuple[int, int]]:
    """Where sentences begin and end, those left out that ask, and those that are not English."""
    found, begin, n = [], 0, len(tags)
    while begin < n:
        stop = tags.find(".", begin)
        end = n if stop < 0 else stop + 1
        asks = stop >= 0 and "?" in t.words[stop]
        unknown = tags.count("U", begin, end) + tags.count("u", begin, end)
        if not asks and unknown * (3 if end - begin < 10 else 4) <= end - begin:
            found.append((begin, end))
        begin = end
    return found
