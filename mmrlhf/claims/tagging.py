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

from mmrlhf.claims.grammar import (
    CLITIC_TAGS,
    CLOSED_CLASS_TAGS,
    MULTIWORD_TERMS,
    MULTIWORD_TERMS_BY_PREFIX,
    NUMBER_VALUES,
    PERSON_PRONOUNS,
)
from mmrlhf.claims.lexicon import Lexicon
from mmrlhf.claims.tags import NOUN_TAGS, SENTENCE_BREAK_TAGS

TOKEN_PATTERN = re.compile(
    r"(?=[^ ])(?:[A-Za-z]++(?![-'’À-ɏ])"
    r"|[A-Za-z]+(?=n['’]t\b)|n['’]t\b|['’](?:s|re|m|ve|ll|d)\b|['’](?=\s)|\d+(?:[.,:/]\d+)*(?:st|nd|rd|th|%|s)?\b"
    r"|[A-Za-zÀ-ɏ]+(?:['’](?!(?:s|re|m|ve|ll|d)\b)[A-Za-z]+)?(?:-[A-Za-zÀ-ɏ0-9]+)*|[.!?]+|[,;:()|—–&]|\n|[^\sA-Za-z0-9])"
)
"""A token; its first line finds by itself what most are: a word of plain letters with no sign after it that could go on with it."""
QUOTED_OR_MARKUP = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]{1,300}`|\"[^\"\n]{1,200}\"|“[^”\n]{1,200}”"
    r"|'(?<![A-Za-z]')(?=\S)[^'’\n]{1,120}(?<=\S)['’](?![A-Za-z])|‘(?<![A-Za-z]‘)(?=\S)[^'’\n]{1,120}(?<=\S)['’](?![A-Za-z])"
    r"|https?://\S+|<[^<>\n]{1,200}>|!\[[^\[\]\n]{0,200}\]\([^()\n]{1,300}\)|\[[^\[\]\n]{0,200}\]\([^()\n]{1,300}\)",
    re.DOTALL,
)
"""What is quoted or marked up. Each way begins with a sign of its own, so that `re` looks for these and tries nothing else."""
TIMES_SIGN = re.compile(r"(?<=\d)( ?[x×]) (?=[a-z])")
"""The sign in `3 x apple`."""
QUOTE_MARKERS = ("`", '"', "“", "'", "‘", "<", "[", "~~~", "://")
"""Without any of these there is nothing for `MASKED`."""
CODE_LINE = re.compile(r"(?m)^.*(?: = | == |=>|\w\.\w+\(|\w\[\w+\]).*$")
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
    is_plural: list[bool]
    attribute_rank: list[int]


MAX_CACHED_WORDS = 200_000
"""Words that a lexicon remembers: text that never repeats must not fill the memory."""
CONTEXT_TAGS = frozenset(("\n", "'", "S", "u"))
"""Tags that hang on what stands before."""


def _analyze_token(surface: str, lexicon: Lexicon) -> tuple[str, str, str, bool, int]:
    """A token by itself: in lower case, its possible tags, its noun, whether that is a plural, and whether it says how something looks."""
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
    tag = "\n" if first_char == "\n" else "." if first_char in ".!?" else ":" if first_char in ":;" else ","
    return lower, tag, lower, False, 0


def _mask(match: re.Match[str]) -> str:
    """Dots, so that no phrase reaches across, or spaces for what is quoted: it is read, not seen."""
    masked = match.group()
    return (" " if len(masked) > 1 and masked[0] in "\"“'‘<" else ".") * len(masked)


def tokenize(text: str, lexicon: Lexicon) -> Tokens:
    """A text's tokens, each with all its tags, with Markdown, code and quotations passed over. Time grows with the text's length and no faster."""
    masked_text = text
    stripped = text.strip()
    if (
        len(stripped) > 2
        and stripped[0] + stripped[-1] in ('""', "''", "“”", "‘’")
        and not any(char in stripped[1:-1] for char in stripped[0] + stripped[-1])
    ):
        masked_text = text.replace(stripped[0], " ").replace(stripped[-1], " ")  # an answer in quotation marks is no quotation
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
                entry = (entry[0], "U", *entry[2:])  # a sentence's first word has a capital anyhow
        spans.append(match.span())
        entries.append(entry)
    if not entries:
        return Tokens(text, [], [], [], [], [], [], [])
    tokens = Tokens(text, *map(list, zip(*spans, strict=True)), *map(list, zip(*entries, strict=True)))
    _merge_multiword_terms(tokens)
    return tokens


def _line_break_tag(text: str, position: int) -> str:
    """A line's end is a sentence's, unless the next line goes on with it."""
    text_before, text_after = text[max(0, position - 3) : position].rstrip(" "), text[position + 1 : position + 40].lstrip(" ")
    if text_before and (text_before[-1].isalnum() or text_before[-1] == ",") and text_after[:1].islower():
        return ""
    return "."


def _merge_multiword_terms(tokens: Tokens) -> None:
    """Phrases of several words that are one thing to grammar become one token."""
    words = tokens.words
    merged_indices: list[int] = []
    last_index = -1
    for i, first_words in [(i, pair) for i, pair in enumerate(pairwise(words)) if pair in MULTIWORD_TERMS_BY_PREFIX]:
        if i <= last_index:
            continue
        for phrase in MULTIWORD_TERMS_BY_PREFIX[first_words]:
            if words[i : i + len(phrase)] == phrase:
                tag, term = MULTIWORD_TERMS[" ".join(phrase)]
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
    """Where sentences begin and end, those left out that ask, and those that are not English."""
    spans, begin, num_tags = [], 0, len(tags)
    while begin < num_tags:
        period = tags.find(".", begin)
        end = num_tags if period < 0 else period + 1
        is_question = period >= 0 and "?" in tokens.words[period]
        num_unknown = tags.count("U", begin, end) + tags.count("u", begin, end)
        if not is_question and num_unknown * (3 if end - begin < 10 else 4) <= end - begin:
            spans.append((begin, end))
        begin = end
    return spans
