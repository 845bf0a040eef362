"""Split a text into tokens, each with all tags that it may have (see `tags`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import compress
from operator import add
from typing import Any

from mmrlhf.claims.grammar import (
    CLITIC_TAGS,
    CLOSED_CLASS_TAGS,
    COUNTED_PARTS,
    DESIGNATORS,
    MULTIWORD_TERMS,
    MULTIWORD_TERMS_BY_PREFIX,
    NUMBER_VALUES,
    PERSON_PRONOUNS,
    SIDES_OF_PRONOUNS,
)
from mmrlhf.claims.lexicon import MAX_CACHED_WORDS, Lexicon
from mmrlhf.claims.markup import mask_markup
from mmrlhf.claims.tags import HEAD_START_TAGS, NOMINAL_TAGS, NOUN_TAGS, SENTENCE_BREAK_TAGS, UNKNOWN_TAGS

TOKEN_PATTERN = re.compile(
    r"(?=[^ ])(?:x(?<=[a-z)] x) {1,3}\d{1,3}\b(?! ?[x×])"  # dog x 2
    r"|[A-Za-z]++(?![-'’À-ɏ0-9])"  # fast path for most words: only ASCII letters
    r"|[.!?]+|[,;:\n]"  # most signs
    r"|[A-Za-z]+(?=n['’]t\b)|n['’]t\b"  # does|n't
    r"|['’](?:s|re|m|ve|ll|d)\b|['’](?=\s)"  # other clitics; dogs' collars
    r"|\((?:[x×] ?)?(?:\d{1,3}|one|two|three|four|five|six|seven|eight|nine|ten)(?: ?[x×])?\)"  # dog (2)
    r"|(?:(?<=[a-z)] )[x×]|×) {0,40}\d{1,3}\b(?! ?[x×])"  # dog x2
    r"|(?<=[a-z] )[-–—] {1,3}\d{1,3}(?= *(?:\n|\Z))"  # dogs - 2
    r"|\d+(?:[.,]\d+)?(?:-?[A-Za-z]+)(?:-[A-Za-z]+)*+"  # 12-year-old, 3D
    r"|[A-Za-z]+\d[A-Za-z\d]*+"  # S4
    r"|\d+(?:[.,:/]\d+)*%?"  # numbers
    r"|[A-Za-zÀ-ɏ]+(?:['’](?!(?:s|re|m|ve|ll|d)\b)[A-Za-z]+)?(?:-[A-Za-zÀ-ɏ0-9]+)*"  # o'clock, red-haired
    r"|[^\sA-Za-z0-9])"  # other signs
)
NUMBER_AFTER_NOUN = re.compile(r"[x–—-] *\d{1,3}")
"""A number after its noun: dog *x2*."""


@dataclass(slots=True)
class Tokens:
    """A text's tokens as parallel lists.

    `starts` and `ends` are positions in the text. `words` are in lower case. `tags` are all
    possible tags, the most likely first, until `disambiguation.tag_text` chooses one. `nouns` are
    the singulars of the words as nouns. `attribute_rank` is that of `lexicon.Word`.
    """

    text: str
    starts: list[int]
    ends: list[int]
    words: list[str]
    tags: list[str]
    nouns: list[str]
    is_plural: list[bool]
    attribute_rank: list[int]


Entry = tuple[str, str, str, bool, int]
"""A token's word, possible tags, noun, whether it is a plural, and attribute rank."""
CONTEXT_TAGS = frozenset(("\n", "'", "S", "u", "%"))
"""Tags that depend on the previous token."""


def _analyze_token(surface: str, lexicon: Lexicon) -> Entry:
    """Return a token's word, possible tags, noun, whether it is a plural, and attribute rank."""
    lower, first_char = surface.lower().replace("’", "'"), surface[0]
    if (tag := CLOSED_CLASS_TAGS.get(lower)) is not None:
        return lower, tag, lower, lower == "others", 0
    if lower in NUMBER_VALUES:
        return lower, "#", lower, lower != "one", 0
    if (first_char == "(" and len(lower) > 1) or first_char == "×" or NUMBER_AFTER_NOUN.fullmatch(lower):
        return lower, "%", lower, False, 0
    if first_char.isdigit() and lower[-1].isalpha():
        return lower, "J", lower, False, int(lower.rpartition("-")[2] in COUNTED_PARTS)
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
        is_name = (
            first_char.isupper()
            and (
                (word.tags == "U" and surface[1:].islower())
                # Coca-Cola
                or ("-" in surface and lower not in lexicon.dictionary and all(part[:1].isupper() for part in surface.split("-")))
            )
        )
        return lower, "u" if is_name else word.tags, word.noun, word.is_plural, word.attribute_rank
    tag = {"\n": "\n", ".": ".", "!": ".", "?": ".", ":": ":", ";": ":"}.get(first_char, ",")
    return lower, tag, lower, False, 0


def tokenize(text: str, lexicon: Lexicon) -> Tokens:
    """Return a text's tokens with all their tags, without Markdown, code and quotations.

    The time is linear in the length of the text.
    """
    masked_text = mask_markup(text)
    cache = lexicon.token_cache
    matches = list(TOKEN_PATTERN.finditer(masked_text))
    surfaces = [match[0] for match in matches]
    entries = list(map(cache.get, surfaces))
    if not entries:
        return Tokens(text, [], [], [], [], [], [], [])
    if not all(entries):
        entries = [entry or _analyze_cached(surface, lexicon) for entry, surface in zip(entries, surfaces, strict=True)]
    words, tags, nouns, is_plural, attribute_rank = map(list, zip(*entries, strict=True))
    starts = [match.start() for match in matches]
    ends = list(map(add, starts, map(len, surfaces)))
    tokens = Tokens(text, starts, ends, words, tags, nouns, is_plural, attribute_rank)
    if not CONTEXT_TAGS.isdisjoint(tags):
        _choose_by_context(tokens, masked_text)
    _merge_multiword_terms(tokens)
    if _DIGIT.search(masked_text):
        _merge_designations(tokens)
    return tokens


def _analyze_cached(surface: str, lexicon: Lexicon) -> Entry:
    entry = _analyze_token(surface, lexicon)
    if len(lexicon.token_cache) < MAX_CACHED_WORDS:
        lexicon.token_cache[surface] = entry
    return entry


def _choose_by_context(tokens: Tokens, masked_text: str) -> None:
    """Choose the tags that depend on the previous token, and drop tokens without meaning there."""
    words, tags = tokens.words, tokens.tags
    keep_mask = [True] * len(words)
    previous_tag = "."
    for i, tag in enumerate(tags):
        if tag in CONTEXT_TAGS:
            if tag == "\n":
                tags[i] = _line_break_tag(masked_text, tokens.starts[i])
                keep_mask[i] = tags[i] != ""
            elif tag == "'":
                words[i], tags[i] = "'s", "S"
                keep_mask[i] = previous_tag[0] in NOUN_TAGS
            elif tag == "%":
                keep_mask[i] = previous_tag != "#"  # two (2) dogs
            elif tag == "S" and previous_tag in ("Q", "T", "W"):
                words[i], tags[i] = "'s", "B"
            elif tag == "u" and previous_tag in SENTENCE_BREAK_TAGS:
                tags[i] = "U"  # a sentence begins with a capital, name or not
        if keep_mask[i]:
            previous_tag = tags[i]
    if not all(keep_mask):
        _keep(tokens, keep_mask)


_DIGIT = re.compile("[0-9]")


def _merge_designations(tokens: Tokens) -> None:
    """Merge a number that belongs to a name into the word before it: Boeing 747, number 7, S4.

    Before a noun the name becomes an adjective, which describes nothing: a Boeing 747 plane.
    """
    words, tags, starts = tokens.words, tokens.tags, tokens.starts
    keep_mask = [True] * len(words)
    for i in range(len(words) - 1, -1, -1):
        word = words[i]
        is_model = word[0].isalpha() and word[-1].isdigit()
        if not is_model and not (tags[i] == "#" and word.isdecimal()):
            continue
        named = i - 1 if i and starts[i] == tokens.ends[i - 1] + 1 and _is_designated(tokens, i - 1) else i if is_model else -1
        if named < 0:
            continue
        if named < i:
            keep_mask[i], tokens.ends[named] = False, tokens.ends[i]
            # player | number 5
            if words[named] in ("number", "no") and named and tags[named - 1][0] == "N":
                keep_mask[named], tokens.ends[named - 1] = False, tokens.ends[i]
                continue
        next_tags = tags[i + 1] if i + 1 < len(tags) else "."
        is_head = next_tags[0] in HEAD_START_TAGS or ("N" in next_tags and not tokens.is_plural[i + 1])
        if not is_head:
            has_determiner = named > 0 and tags[named - 1] == "D"
            if tokens.words[named] not in DESIGNATORS and _has_capital(tokens, named) and not has_determiner:
                tags[named] = "u"  # Windows 10 is no window
            continue
        while named >= 0 and (tags[named][0] in NOMINAL_TAGS or tags[named] == "R"):
            tags[named], tokens.attribute_rank[named] = "J", 0
            is_preceded_by_name = named and (tags[named - 1] in UNKNOWN_TAGS or tokens.text[starts[named - 1]].isupper())
            if not is_preceded_by_name:
                break
            named -= 1
    _keep(tokens, keep_mask)


def _is_designated(tokens: Tokens, index: int) -> bool:
    """Return whether a number after a word belongs to its name: after a capital, or `type`."""
    if tokens.words[index] in DESIGNATORS or tokens.tags[index] in UNKNOWN_TAGS:
        return True
    begins_sentence = index == 0 or tokens.tags[index - 1] in SENTENCE_BREAK_TAGS
    return _has_capital(tokens, index) and tokens.tags[index][0] in NOMINAL_TAGS and not begins_sentence


def _has_capital(tokens: Tokens, index: int) -> bool:
    return not tokens.text[tokens.starts[index] : tokens.ends[index]].islower()


def _line_break_tag(text: str, position: int) -> str:
    """Return the tag of a line break: ".", or "" if the next line continues the sentence."""
    text_before = text[max(0, position - 3) : position].rstrip(" ")
    text_after = text[position + 1 : position + 40].lstrip(" ")
    if text_before and (text_before[-1].isalnum() or text_before[-1] == ",") and text_after[:1].islower():
        return ""
    return "."


FIRST_WORDS_OF_TERMS = frozenset(first for first, _ in MULTIWORD_TERMS_BY_PREFIX)


def _merge_multiword_terms(tokens: Tokens) -> None:
    """Merge terms of several words, such as `in front of`, into one token each."""
    words = tokens.words
    merged_indices: list[int] = []
    last_index = -1
    for i in [i for i, word in enumerate(words) if word in FIRST_WORDS_OF_TERMS]:
        if i <= last_index or i + 1 == len(words):
            continue
        for phrase in MULTIWORD_TERMS_BY_PREFIX.get((words[i], words[i + 1]), ()):
            if words[i : i + len(phrase)] == phrase:
                tag, term = MULTIWORD_TERMS[" ".join(phrase)]
                # closer *to the left of*: not a relation
                if term.endswith("t of") and i and words[i - 1] in ("closer", "nearer", "close", "near", "the"):
                    continue
                next_tags = tokens.tags[i + len(phrase)] if i + len(phrase) < len(words) else "."
                if term in SIDES_OF_PRONOUNS and not NOUN_TAGS.isdisjoint(next_tags):
                    continue  # on his left arm
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
    _keep(tokens, keep_mask)


def _keep(tokens: Tokens, keep_mask: list[bool]) -> None:
    """Drop the tokens for which the mask is false."""
    columns: tuple[list[Any], ...] = (
        tokens.starts,
        tokens.ends,
        tokens.words,
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
