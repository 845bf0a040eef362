"""Parse answers about scenes into claims: the captions' language, and most similar text.

A policy trained against a reward leaves the captions' language if that pays off. So a shape named
in any words claims that it is there; adjectives may come in any order and number; digits count; and
a predicate, place or relation without its own subject refers to the last object named in the
sentence. Of a denial, only the absence is a claim.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mmrlhf.records import Claim
from mmrlhf.scenes.vocabulary import CELL_NAMES, COLOURS, NUMBER_WORDS, PATTERNS, SHAPES, SIZES

Properties = frozenset[tuple[str, str]]
"""Names with values, such as ("colour", "red"). A name may have two values, which no object has."""
_PROPERTY_NAMES = {word: "size" for word in SIZES} | {word: "pattern" for word in PATTERNS}
_PROPERTY_NAMES |= {word: "colour" for word in COLOURS} | {word: "shape" for word in SHAPES}
_ADJECTIVE = rf"(?:{'|'.join((*SIZES, *PATTERNS, *COLOURS))})"
_NOUN = rf"(?:{'|'.join(SHAPES)}|object)"
_PHRASE = rf"(?:{_ADJECTIVE},?\s+(?:and\s+)?)*{_NOUN}"
_PLURAL = r"(?:e?s)?\b"
# Longest first: "top left" must match before "top".
_CELL = "|".join(name.replace(" ", r"\s+") for name in sorted(CELL_NAMES, key=len, reverse=True))
_IN = r"(?:at|in|on)\s+(?:the\s+)?"
_NOT_OF = r"\b(?!\s+of\b)"
_RELATION = r"(?:(?:to|at|in|on)\s+the\s+)?(?:left\s+of|right\s+of|above|below)"
_DETERMINER = r"(?:(?:the|an?)\s+)?"
_PREDICATE = rf"{_ADJECTIVE}(?:,?\s+(?:and\s+)?{_ADJECTIVE})*\b(?!,?\s+(?:and\s+)?{_PHRASE})"
# One alternative per kind of statement, told apart by the groups that matched.
_STATEMENT = re.compile(
    rf"\bthe\s+{_PHRASE}\s+is\s+not\s+(?:{_RELATION}\s+{_DETERMINER}{_PHRASE}\b|{_IN}(?:{_CELL})\b)"
    rf"|\bthe\s+(?P<subject>{_PHRASE})\s+is\s+(?P<relation>{_RELATION})\s+the\s+(?P<target>{_PHRASE})\b"
    rf"|\bthe\s+(?P<owner>{_PHRASE})\s+is\s+(?P<owned>{_PREDICATE})"
    rf"|\bis\s+not\s+(?P<denied>{_PREDICATE})"
    rf"|\b(?:is|are)\s+(?P<predicate>{_PREDICATE})"
    rf"|\b(?:no|not\s+an?|not\s+any|without(?:\s+an?|\s+any)?)\s+(?P<none>{_PHRASE}){_PLURAL}"
    rf"|\b(?P<not>not\s+)?(?P<number>{'|'.join(NUMBER_WORDS[1:])}|zero|\d+)\s+(?P<counted>{_PHRASE}){_PLURAL}"
    rf"|\bnothing\s+{_IN}(?P<empty>{_CELL}){_NOT_OF}"
    rf"|\b(?P<next_relation>{_RELATION})\s+{_DETERMINER}(?P<next_target>{_PHRASE}){_PLURAL}"
    rf"|\b(?:(?P<article>the|an?)\s+)?(?P<named>{_PHRASE}){_PLURAL}(?:\s+{_IN}(?P<place>{_CELL}){_NOT_OF})?"
    rf"|\b{_IN}(?P<next_place>{_CELL}){_NOT_OF}",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Mention:
    """A phrase that names an object, such as "a small orange ring", with its claims."""

    properties: Properties
    claims: tuple[Claim, ...]
    span: tuple[int, int]
    is_new: bool
    """Whether it introduces an object. "The ring" may have been named before."""


def parse_claims(text: str) -> list[Claim]:
    """Return an answer's atomic claims in order of appearance, repetitions included.

    The claims of one noun phrase share its span.
    """
    return [claim for claims, _ in _statements(text) for claim in claims]


def parse_mentions(text: str) -> Iterator[list[Mention]]:
    """Yield the mentions of each sentence."""
    for sentence in re.finditer(r"[^.!?]+", text):
        yield [mention for _, mention in _sentence_statements(text, *sentence.span()) if mention]


def _statements(text: str) -> Iterator[tuple[list[Claim], Mention | None]]:
    for sentence in re.finditer(r"[^.!?]+", text):
        yield from _sentence_statements(text, *sentence.span())


def _sentence_statements(text: str, start: int, end: int) -> Iterator[tuple[list[Claim], Mention | None]]:
    """Yield the claims of each statement of a sentence, and the mention if it is one."""
    subject = ""
    for match in _STATEMENT.finditer(text, start, end):
        groups = {name: " ".join(value.lower().split()) for name, value in match.groupdict().items() if value}
        span = match.span()
        if "named" in groups:
            subject = _canonical_phrase(groups["named"]) + (f" at the {groups['place']}" if "place" in groups else "")
            claims, properties = _mention_claims(groups["named"], groups.get("place", ""), span)
            yield claims, Mention(properties, tuple(claims), span, groups.get("article") != "the")
            continue
        if phrase := groups.get("subject") or groups.get("owner") or groups.get("none") or groups.get("counted"):
            subject = "" if "none" in groups else _canonical_phrase(phrase)
        if "next_relation" in groups and not subject:
            yield _mention_claims(groups["next_target"], "", span)[0], None
        else:
            yield list(_statement_claims(groups, subject, span)), None


def _statement_claims(groups: dict[str, str], subject: str, span: tuple[int, int]) -> Iterator[Claim]:
    """Yield the claims of a statement about `subject`, the last object named, if any."""
    if "none" in groups:
        yield Claim("count", _canonical_phrase(groups["none"]), "0", span)
    elif "number" in groups and "not" not in groups:
        yield Claim("count", _canonical_phrase(groups["counted"]), _parse_number(groups["number"]), span)
    elif "empty" in groups:
        yield Claim("relation", "nothing", f"at {groups['empty']}", span)
    elif not subject:
        return
    elif relation := groups.get("relation") or groups.get("next_relation"):
        target = _canonical_phrase(groups.get("target") or groups["next_target"])
        relation = re.sub(r"^(?:to|at|in|on) the ", "", relation)
        yield Claim("relation", subject, f"{relation} {target}", span)
    elif adjectives := groups.get("owned") or groups.get("predicate"):
        for adjective in _words(adjectives):
            yield Claim("attribute", subject, adjective, span)
    elif "denied" in groups:
        for adjective in _words(groups["denied"]):
            yield Claim("count", _canonical_phrase(f"{adjective} {subject}"), "0", span)
    elif "next_place" in groups:
        yield Claim("relation", subject, f"at {groups['next_place']}", span)


def _mention_claims(phrase: str, place: str, span: tuple[int, int]) -> tuple[list[Claim], Properties]:
    words = _words(phrase)
    noun, properties = words[-1], {(_PROPERTY_NAMES[word], word) for word in words if word in _PROPERTY_NAMES}
    colours = [word for word in words if word in COLOURS]
    name = f"{colours[0]} {noun}" if len(colours) == 1 else noun
    # The existence of some object is not a claim.
    claims = [] if noun == "object" else [Claim("object", noun, "", span)]
    claims += [Claim("attribute", noun, colour, span) for colour in colours]
    for values in (PATTERNS, SIZES):
        claims += [Claim("attribute", name, word, span) for word in words if word in values]
    if place:
        claims.append(Claim("relation", name, f"at {place}", span))
        properties.add(("place", place))
    return claims, frozenset(properties)


def _words(phrase: str) -> list[str]:
    """Return a phrase's distinct words of the vocabulary, in their order."""
    return [word for word in dict.fromkeys(re.findall(r"\w+", phrase)) if word != "and"]


def _canonical_phrase(phrase: str) -> str:
    """Return a phrase with its words in the captions' order: size, pattern, colour, noun."""
    order = ("size", "pattern", "colour", "shape")
    return " ".join(sorted(_words(phrase), key=lambda word: order.index(_PROPERTY_NAMES.get(word, "shape"))))


def _parse_number(word: str) -> str:
    if word.isdecimal():
        return str(int(word[:9]))
    return "0" if word == "zero" else str(NUMBER_WORDS.index(word))
