"""Split a text into tokens, each with all tags that it may have (see `tags`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import compress, pairwise
from typing import Any

from mmrlhf.claims.grammar import (
    CLITIC_TAGS,
    CLOSED_CLASS_TAGS,
    MULTIWORD_TERMS,
    MULTIWORD_TERMS_BY_PREFIX,
    NUMBER_VALUES,
    PERSON_PRONOUNS,
)
from mmrlhf.claims.lexicon import MAX_CACHED_WORDS, Lexicon
from mmrlhf.claims.tags import NOUN_TAGS, SENTENCE_BREAK_TAGS

TOKEN_PATTERN = re.compile(
    r"(?=[^ ])(?:[A-Za-z]++(?![-'’À-ɏ])"  # fast path for most words: only ASCII letters
    r"|[A-Za-z]+(?=n['’]t\b)|n['’]t\b"  # does|n't
    r"|['’](?:s|re|m|ve|ll|d)\b|['’](?=\s)"  # other clitics; dogs' collars
    r"|\d+(?:[.,:/]\d+)*(?:st|nd|rd|th|%|s)?\b"  # numbers
    r"|[A-Za-zÀ-ɏ]+(?:['’](?!(?:s|re|m|ve|ll|d)\b)[A-Za-z]+)?(?:-[A-Za-zÀ-ɏ0-9]+)*"  # o'clock, red-haired
    r"|[.!?]+|[,;:()|—–&]|\n|[^\sA-Za-z0-9])"  # signs
)
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
QUOTE_MARKERS = ("`", '"', "“", "'", "‘", "<", "[", "~~~", "://")
"""`QUOTED_OR_MARKUP` matches nothing in a text without one of these."""
CODE_LINE = re.compile(r"(?m)^.*(?: = | == |=>|\w\.\w+\(|\w\[\w+\]).*$")
"""A line of a program, recognised by what prose does not have: ` = `, `x.f(`, `x[i]`."""
BULLET = re.compile(r"(?m)^[ \t]*(?:[-*+•◦▪·‣–—>#]+[ \t]*|\(?\d{1,3}[.)][ \t]+|\(?[a-zA-Z][.)][ \t]+|\|)+")
"""Bullets, numbers and heading marks at the start of a line."""


@dataclass(slots=True)
class Tokens:
    """A text's tokens as parallel lists.

    `starts` and `ends` are positions in the text. `words` are in lower case. `tags` are all
    possible tags, the likeliest first, until `disambiguation.tag_text` chooses one. `nouns` are the
    singulars of the words as nouns. `attribute_rank` is that of `lexicon.Word`.
    """

    text: str
    starts: list[int]
    ends: list[int]
    words: list[str]
    tags: list[str]
    nouns: list[str]
    is_plural: list[bool]
    attribute_rank: list[int]


CONTEXT_TAGS = frozenset(("\n", "'", "S", "u"))
"""Tags that depend on the token before."""


def _analyze_token(surface: str, lexicon: Lexicon) -> tuple[str, str, str, bool, int]:
    """Return a token's word, possible tags, noun, whether it is a plural, and attribute rank."""
    lower, first_char = surface.lower().replace("’", "'"), surface[0]
    if (tag := CLOSED_CLASS_TAGS.get(lower)) is not None:
        return lower, tag, lower, lower == "others", 0
    if lower in NUMBER_VALUES:
        return lower, "#", lower, lower != "one", 0
    if first_char.isdigit():
        return lower, "#" if (lower.isascii() and lower.isdecimal()) else "X", lower, True, 0
    if lower == "'":
        return lower, "'", lower, False, 0
    if lower == "n't":
        return "not", "O", lower, False, 0
    if lower[0] == "'" and lower[1:] in CLITIC_TAGS:
        return lower, CLITIC_TAGS[lower[1:]], lower, False, 0
    if first_char.isalpha():
        if lower in PERSON_PRONOUNS:
            return lower, "N", "person", False, 0
        word = lexicon.analyze(lower)
        is_name = first_char.isupper() and word.tags == "U" and surface[1:].islower()
        return lower, "u" if is_name else word.tags, word.noun, word.is_plural, word.attribute_rank
    tag = {"\n": "\n", ".": ".", "!": ".", "?": ".", ":": ":", ";": ":"}.get(first_char, ",")
    return lower, tag, lower, False, 0


def _mask(match: re.Match[str]) -> str:
    """Replace quotations and tags with blanks, and code and links with dots, of the same length.

    No noun phrase can extend across dots.
    """
    text = match.group()
    is_quotation_or_tag = len(text) > 1 and text[0] in "\"“'‘<"
    return (" " if is_quotation_or_tag else ".") * len(text)


def tokenize(text: str, lexicon: Lexicon) -> Tokens:
    """Return a text's tokens with all their tags, without Markdown, code and quotations.

    The time is linear in the length of the text.
    """
    masked_text = text
    stripped = text.strip()
    if (
        len(stripped) > 2
        and stripped[0] + stripped[-1] in ('""', "''", "“”", "‘’")
        and not any(char in stripped[1:-1] for char in stripped[0] + stripped[-1])
    ):
        # An answer that is entirely in quotation marks is not a quotation.
        masked_text = text.replace(stripped[0], " ").replace(stripped[-1], " ")
    if any(marker in text for marker in QUOTE_MARKERS):
        masked_text = QUOTED_OR_MARKUP.sub(_mask, masked_text)
    if "=" in text or "(" in text or "[" in text:
        masked_text = CODE_LINE.sub(_mask, masked_text)
    if "\n" in text or text[:1] in "-*+•|#>(0123456789":
        masked_text = BULLET.sub(
            lambda match: "\n" + " " * (len(match.group()) - 1) if match.start() else " " * len(match.group()), masked_text
        )
    if "x " in masked_text or "×" in masked_text:
        masked_text = TIMES_SIGN.sub(lambda match: " " * len(match.group()), masked_text)
    for marker in "*_~":
        masked_text = masked_text.replace(marker, " ")
    spans: list[tuple[int, int]] = []
    entries: list[tuple[str, str, str, bool, int]] = []
    cache = lexicon.token_cache
    for match in TOKEN_PATTERN.finditer(masked_text):
        surface = match[0]
        entry = cache.get(surface)
        if entry is None:
            entry = _analyze_token(surface, lexicon)
            if len(cache) < MAX_CACHED_WORDS:
                cache[surface] = entry
        tag = entry[1]
        if tag in CONTEXT_TAGS:
            previous_tag = entries[-1][1] if entries else "."
            if tag == "\n":
                if not (tag := _line_break_tag(masked_text, match.start())):
                    continue
                entry = (entry[0], tag, *entry[2:])
            elif tag == "'":
                if previous_tag[0] not in NOUN_TAGS:
                    continue
                entry = ("'s", "S", *entry[2:])
            elif tag == "S" and previous_tag in ("Q", "T", "W"):
                entry = ("'s", "B", *entry[2:])
            elif tag == "u" and previous_tag in SENTENCE_BREAK_TAGS:
                entry = (entry[0], "U", *entry[2:])  # a sentence begins with a capital, name or not
        spans.append(match.span())
        entries.append(entry)
    if not entries:
        return Tokens(text, [], [], [], [], [], [], [])
    tokens = Tokens(text, *map(list, zip(*spans, strict=True)), *map(list, zip(*entries, strict=True)))
    _merge_multiword_terms(tokens)
    return tokens


def _line_break_tag(text: str, position: int) -> str:
    """Return the tag of a line break: ".", or "" if the next line continues the sentence."""
    text_before = text[max(0, position - 3) : position].rstrip(" ")
    text_after = text[position + 1 : position + 40].lstrip(" ")
    if text_before and (text_before[-1].isalnum() or text_before[-1] == ",") and text_after[:1].islower():
        return ""
    return "."


def _merge_multiword_terms(tokens: Tokens) -> None:
    """Merge terms of several words, such as `in front of`, into one token each."""
    words = tokens.words
    merged_indices: list[int] = []
    last_index = -1
    for i, first_words in [(i, pair) for i, pair in enumerate(pairwise(words)) if pair in MULTIWORD_TERMS_BY_PREFIX]:
        if i <= last_index:
            continue
        for phrase in MULTIWORD_TERMS_BY_PREFIX[first_words]:
            if words[i : i + len(phrase)] == phrase:
                tag, term = MULTIWORD_TERMS[" ".join(phrase)]
                # closer *to the left of*: not a relation
                if term.endswith("t of") and i and words[i - 1] in ("closer", "nearer", "close", "near", "the"):
                    continue
                last_index = i + len(phrase) - 1
                tokens.tags[i], tokens.ends[i], words[i], tokens.attribute_rank[i] = tag, tokens.ends[last_index], term, 0
                tokens.nouns[i] = "person" if term == "nobody" else term
                merged_indices += range(i + 1, last_index + 1)
                break
    if not merged_indices:
        return
    keep_mask = [True] * len(words)
    for i in merged_indices:
        keep_mask[i] = False
    columns: tuple[list[Any], ...] = (
        tokens.starts,
        tokens.ends,
        words,
        tokens.tags,
        tokens.nouns,
        tokens.is_plural,
        tokens.attribute_rank,
    )
    for column in columns:
        column[:] = compress(column, keep_mask)


def split_sentences(tokens: Tokens, tags: str) -> list[tuple[int, int]]:
    """Return start and end of each sentence, without questions and text that is not English."""
    spans, begin, num_tags = [], 0, len(tags)
    while begin < num_tags:
        period = tags.find(".", begin)
        end = num_tags if period < 0 else period + 1
        is_question = period >= 0 and "?" in tokens.words[period]
        # More than a third of unknown words, in long sentences a quarter, means another language.
        num_unknown = tags.count("U", begin, end) + tags.count("u", begin, end)
        if not is_question and num_unknown * (3 if end - begin < 10 else 4) <= end - begin:
            spans.append((begin, end))
        begin = end
    return spans
