"""Noun phrases: what a description names, with what it says of it right there."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field

from mmrlhf.claims.grammar import COLOURED, DEFINITE, HUNG, LIMBS, MARKS, NUMBERS, PAIRED, PART_OF, RIDDEN, ROUGHLY, SHADES
from mmrlhf.claims.lexicon import Lexicon
from mmrlhf.claims.tagging import Tokens

ITEM = re.compile(
    r"[^DZ?RJK#NXUu]|(?P<np>(?:DJC(?=DJ+N))?(?:(?:D{1,2}|Z)\??)?(?:\?(?=#))?(?:R{0,2}[JK#](?:[,C]{1,2}(?=R?[JK]{1,5}(?:[,C]{1,2}R?[JK]{1,5}){0,3}[NXUu]))?){0,8}[NXUu]{1,8})|.",
    re.DOTALL,
)
"""A noun phrase, or one tag; most of those that begin no phrase are known by themselves."""


@dataclass(slots=True)
class Phrase:
    """A noun phrase. Places are token numbers: `start` to `end`, of which `head` to `end` is the thing's name.

    `name` is what claims call it, "" for what is no object. `it` is the phrase that a pronoun stands for.
    """

    start: int
    head: int
    end: int
    name: str
    noun: str
    many: bool
    definite: bool
    bare: bool
    no: bool = False
    count: int | None = None
    about: bool = False
    counted_at: int = 0
    looks: list[tuple[str, int]] = field(default_factory=list)
    it: Phrase | None = None

    @property
    def manner(self) -> str:
        """What it begins with; phrases that `and` joins mostly begin alike."""
        return (
            "the"
            if self.definite
            else "bare"
            if self.bare
            else "#"
            if self.count is not None and self.counted_at == self.start
            else "a"
        )

    @property
    def thing(self) -> Phrase:
        return self.it or self


def phrase(t: Tokens, start: int, end: int, lexicon: Lexicon) -> Phrase:
    """The phrase of tokens `start` to `end`, as `ITEM` found it."""
    tags, words = t.tags, t.words
    head = end
    while head > start and tags[head - 1] in "NXUu":
        head -= 1
    last = end - 1
    found = Phrase(
        start,
        head,
        end,
        "",
        t.nouns[last],
        t.many[last],
        words[start] in DEFINITE and tags[start] == "D",
        tags[start] not in "DZ#",
        tags[start] == "Z",
    )
    if start > 1 and words[start - 1] in ("or", "to") and tags[start - 2] == "#":
        found.about = True  # four or five people
    elif start and words[start - 1] in ROUGHLY:
        found.about = True
    head = _compound(t, found, head, end, lexicon)
    found.head = head
    _before(t, found, start, head)
    return found


def _compound(t: Tokens, found: Phrase, head: int, end: int, lexicon: Lexicon) -> int:
    """Gives a phrase its name, and says where that begins."""
    tags, words, nouns = t.tags, t.words, t.nouns
    sets = lexicon.sets
    last = end - 1
    single = nouns[last] if words[last] != "glasses" else _glasses(t, last)
    known: Collection[str] = lexicon.ending.get(single, ())
    # The longest known compound that ends here, adjectives and all ("hot dog"), or else all nouns in a row.
    for begin in range(max(found.start, end - lexicon.longest), last) if known else ():
        name = " ".join([*words[begin:last], single])
        if name in known:
            name = lexicon.named(name)
            if name not in sets["not objects"]:
                extra = [
                    words[k]
                    for k in range(head, begin)
                    if not ((t.looks[k] and words[k] in sets["materials"]) or words[k] in sets["not attributes"])
                ]
                found.name = lexicon.named(" ".join([*extra, name]))
                return begin - len(extra)
    if tags[last] == "X" or (tags[last] == "N" and nouns[last] in sets["not objects"] and nouns[last] not in sets["objects"]):
        if nouns[last] in PART_OF and last > head and tags[last - 1] == "N":
            found.end = last
            found.noun = nouns[last - 1]
            return _compound(t, found, head, last, lexicon)
        if nouns[last] in MARKS and last > found.start and words[last - 1] in sets["colours"]:
            found.name = nouns[last]
            return last
        if last == head and nouns[last] in RIDDEN and words[max(0, found.start - 1)] == "on":
            found.name = nouns[last]
            return last
        described = last > head or (last > found.start and tags[last - 1] == "J" and t.looks[last - 1])
        if (
            nouns[last] == "area"
            and described
            and all(tags[k] == "N" and words[k] not in sets["not objects"] for k in range(head, last))
        ):
            found.name = " ".join([*words[head:last], "area"])
        return head
    if last > head and tags[head:end].count("U") > 1:
        return head  # words of another language
    if tags[last] in "Uu":
        if end == len(tags) and t.text.rstrip()[-1:].isalnum():
            return head  # a word that may have been cut short
        if (
            last == head
            and (tags[last] == "u" or (found.bare and not found.count))
            and not (last > found.start and tags[last - 1] in "J#")
        ):
            return head  # a name, or a word of another language
        if tags[last] == "u" and words[found.start] not in ("a", "an") and last == head:
            return head
    if last == head:
        found.name = lexicon.named(single)
        return head
    begin = head
    while begin < last and (
        words[begin] in sets["materials"] or words[begin] in sets["colours"] or words[begin] in sets["not attributes"]
    ):
        begin += 1
    found.name = lexicon.named(" ".join([*words[begin:last], single]))
    return begin


def _glasses(t: Tokens, last: int) -> str:
    """What glasses are: those of something, or two of them, are for drinking."""
    after = t.words[last + 1] if last + 1 < len(t.words) else ""
    before = t.words[last - 1] if last else ""
    drinks = ("wine", "water", "shot", "champagne", "drinking", "beer", "cocktail")
    return "glass" if after == "of" or t.tags[last - 1 : last] == ["#"] or before in drinks else t.nouns[last]


def number_of(word: str) -> int | None:
    """A word's number, of at most six digits; None for what is no number."""
    return int(word) if word.isascii() and word.isdecimal() and len(word) < 7 else NUMBERS.get(word)


def _before(t: Tokens, found: Phrase, start: int, head: int) -> None:
    """What stands before the name: numbers, and words for how it looks."""
    tags, words = t.tags, t.words
    if words[start] == "both" and found.many and found.noun not in PAIRED:
        found.count, found.counted_at = 2, start
    k = start + (tags[start] in "DZ")
    while k < head:
        tag, word = tags[k], words[k]
        if tag == "#":
            number = number_of(word)
            if number is not None and (number > 0):
                if found.count and number in (100, 12):
                    number *= found.count
                found.count, found.counted_at = number, k
        elif tag == "?":
            found.about = True
        elif word in ("single", "lone", "solitary") and start < k and words[start] in ("a", "one"):
            found.count, found.counted_at = 1, k
        if word in ("left", "right") and found.noun in LIMBS:
            found.looks.append((word, k))
        elif tag in "JE" and (t.looks[k] or word in SHADES):
            value = word
            if k + 1 < head and word in SHADES and tags[k + 1] == "J" and words[k + 1] in COLOURED:
                value = f"{word} {words[k + 1]}"
                found.looks.append((value, k))
                k += 2
                continue
            if k + 1 <= head and word in ("stainless", "wrought", "cast") and words[k + 1 : k + 2] in (["steel"], ["iron"]):
                found.looks.append((f"{word} {words[k + 1]}", k))
                k += 2
                continue
            if not t.looks[k]:
                k += 1
                continue
            found.looks.append((value.removesuffix("-colored").removesuffix("-coloured"), k))
        elif tag in "NX" and t.looks[k]:
            found.looks.append((word, k))
        k += 1


def goes_on(tags: str, i: int, end: int) -> bool:
    """Whether a comma is one of a list's."""
    m = ITEM.match(tags, i + 1, end)
    if m is None or m.lastgroup != "np":
        return (
            tags[i + 1 : i + 2] == "C"
            and tags[i + 2 : i + 3] not in ("B", "V")
            and "B" not in tags[i + 2 : i + 7]
            and "V" not in tags[i + 2 : i + 7]
        )
    rest = tags[m.end() : m.end() + 1]
    return rest in (",", "C")


def is_hung(words: list[str], begin: int, i: int, end: int) -> bool:
    """Whether a picture is one that a thing bears, or a wall."""
    return words[i - 1 : i] == ["with"] or any(word in HUNG for word in words[begin : min(end, begin + 40)])
