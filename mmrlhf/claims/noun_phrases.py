"""Parse noun phrases: an object's name, with its determiner, number and attributes."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field

from mmrlhf.claims.grammar import (
    ADDITIVE_WORDS,
    APPROXIMATE_NUMBER_WORDS,
    COLOUR_MODIFIERS,
    COLOURED_MARKS,
    DEFINITE_DETERMINERS,
    INVARIANT_NOUNS,
    LATERAL_BODY_PARTS,
    MASS_NOUNS,
    MODIFIABLE_COLOURS,
    NUMBER_VALUES,
    OCCUPIED_OBJECTS,
    PAIRED_NOUNS,
    PART_NOUNS,
    UNIT_WORDS,
    WALL_ART_WORDS,
)
from mmrlhf.claims.lexicon import Lexicon
from mmrlhf.claims.tagging import Tokens
from mmrlhf.claims.tags import (
    CLAUSE_BREAK_TAGS,
    COORDINATION_TAGS,
    DESCRIPTIVE_TAGS,
    DETERMINER_TAGS,
    FINITE_VERB_TAGS,
    NOMINAL_TAGS,
    NOUN_TAGS,
    QUANTIFIER_TAGS,
    UNKNOWN_TAGS,
)

PHRASE_PATTERN = re.compile(
    r"[^DZ?RJK#NXUu]|J(?=,)(?:(?<=(?<!T)BJ)|(?<=BRJ))"  # is calm, and pine trees
    r"|(?P<np>(?:DJC(?=DJ+N))?"  # the first of `a red and a blue car`
    r"(?:(?:D{1,2}|ZD?)\??)?(?:\?(?=#))?"  # determiners, about
    r"(?:R{0,2}(?:#|[JK](?:[,C]{1,2}(?=R?[JK]{1,5}(?:[,C]{1,2}R?[JK]{1,5}){0,3}[NXUu]))?)){0,8}"  # adjectives, numbers
    r"[NXUu]{1,8})"  # nouns
    r"|.",
    re.DOTALL,
)
"""A noun phrase (group np) or a single tag.

The first alternative matches tags that cannot begin a phrase, the most frequent case. In a phrase,
a comma or `and` may only come between adjectives: adjectives and a noun must follow it. All
repetitions are bounded to keep the time linear in the number of tags.
"""


@dataclass(slots=True)
class Phrase:
    """A noun phrase: tokens `start` to `end`; the object's name is tokens `head` to `end`.

    `name` is the object's name in claims, or "" if the phrase names none; `noun` is the last noun
    in the singular. A bare phrase has no determiner or number. `antecedent` is the phrase that a
    pronoun refers to. `attributes` are values with their token indices.
    """

    start: int
    head: int
    end: int
    name: str
    noun: str
    is_plural: bool
    is_definite: bool
    is_bare: bool
    is_negated: bool = False
    count: int | None = None
    is_approximate: bool = False
    count_index: int = 0
    attributes: list[tuple[str, int]] = field(default_factory=list)
    antecedent: Phrase | None = None
    is_additive: bool = False
    """Whether it implies more of its kind: no other dog, two more dogs, nobody else."""
    category: str = ""
    """COCO's class of the object, once its claims have been added."""
    is_alternative: bool = False
    """Whether it is one of two alternatives: a dog or a cat."""

    @property
    def determiner_kind(self) -> str:
        """How the phrase begins (the, bare, #, a); joined phrases mostly begin in the same way."""
        if self.is_definite:
            return "the"
        if self.is_bare:
            return "bare"
        return "#" if self.count is not None and self.count_index == self.start else "a"

    @property
    def referent(self) -> Phrase:
        """The phrase itself or, of a pronoun, its antecedent."""
        return self.antecedent or self


def parse_phrase(tokens: Tokens, start: int, end: int, lexicon: Lexicon) -> Phrase:
    """Return the phrase of tokens `start` to `end`, a match of `PHRASE_PATTERN`."""
    tags, words = tokens.tags, tokens.words
    head = end
    while head > start and tags[head - 1] in NOMINAL_TAGS:
        head -= 1
    last_index = end - 1
    phrase = Phrase(
        start,
        head,
        end,
        "",
        tokens.nouns[last_index],
        tokens.is_plural[last_index],
        words[start] in DEFINITE_DETERMINERS and tags[start] == "D",
        tags[start] not in QUANTIFIER_TAGS,
        tags[start] == "Z",
    )
    if (start < head and not ADDITIVE_WORDS.isdisjoint(words[start:head])) or (end < len(words) and words[end] == "else"):
        phrase.is_additive = True
    if (start > 1 and tags[start - 2] == "#" and _joins_numbers(tokens, start - 1)) or (
        start and words[start - 1] in APPROXIMATE_NUMBER_WORDS and words[start - 1] != "between"
    ):
        phrase.is_approximate = True
    # 6 foot tall
    if phrase.noun in UNIT_WORDS and end - start > 1 and tags[end - 2] == "#" and tags[end : end + 1] == ["J"]:
        return phrase
    head = _resolve_name(tokens, phrase, head, end, lexicon)
    phrase.head = head
    _parse_modifiers(tokens, phrase, start, head)
    return phrase


def _resolve_name(tokens: Tokens, phrase: Phrase, head: int, end: int, lexicon: Lexicon) -> int:
    """Set a phrase's name and return the index at which it begins."""
    tags, words, nouns = tokens.tags, tokens.words, tokens.nouns
    word_sets = lexicon.word_sets
    last_index = end - 1
    singular = nouns[last_index] if words[last_index] != "glasses" else _singular_of_glasses(tokens, last_index)
    compounds: Collection[str] = lexicon.compounds_by_last_word.get(singular, ())
    # The longest known compound that ends here, adjectives included (hot dog), goes first; without
    # one, all nouns in a row are the name.
    for begin in range(max(phrase.start, end - lexicon.max_compound_words), last_index) if compounds else ():
        name = " ".join([*words[begin:last_index], singular])
        if name in compounds:
            name = lexicon.canonical_name(name)
            if name not in word_sets["not objects"]:
                # Nouns before the compound belong to the name, unless they name a material or
                # nothing visible: baby *fire hydrant*, but plastic *trash can*.
                extra = [
                    words[k]
                    for k in range(head, begin)
                    if not (
                        (tokens.attribute_rank[k] and words[k] in word_sets["materials"])
                        or words[k] in word_sets["not attributes"]
                    )
                ]
                phrase.name = lexicon.canonical_name(" ".join([*extra, name]))
                return begin - len(extra)
    if tags[last_index] == "X" or (
        tags[last_index] == "N"
        and nouns[last_index] in word_sets["not objects"]
        and nouns[last_index] not in word_sets["objects"]
    ):
        # pizza *slices*
        if nouns[last_index] in PART_NOUNS and last_index > head and tags[last_index - 1] == "N":
            phrase.end = last_index
            phrase.noun = nouns[last_index - 1]
            return _resolve_name(tokens, phrase, head, last_index, lexicon)
        # yellow *stripes*
        if nouns[last_index] in COLOURED_MARKS and last_index > phrase.start and words[last_index - 1] in word_sets["colours"]:
            phrase.name = nouns[last_index]
            return last_index
        # on a *swing*
        is_place = phrase.start > 0 and tags[phrase.start - 1] in ("P", "F")
        if last_index == head and nouns[last_index] in OCCUPIED_OBJECTS and (is_place or tokens.is_plural[last_index]):
            phrase.name = nouns[last_index]
            return last_index
        # parking *area*
        is_described = last_index > head or (
            last_index > phrase.start and tags[last_index - 1] == "J" and tokens.attribute_rank[last_index - 1]
        )
        if (
            nouns[last_index] == "area"
            and is_described
            and all(tags[k] == "N" and words[k] not in word_sets["not objects"] for k in range(head, last_index))
        ):
            phrase.name = " ".join([*words[head:last_index], "area"])
        return head
    if last_index > head and tags[head:end].count("U") > 1:
        return head  # words of another language
    if tags[last_index] in UNKNOWN_TAGS:
        if end == len(tags) and tokens.text.rstrip()[-1:].isalnum():
            return head  # a word that may have been cut short
        # a heading in another language: Hash tagit
        is_heading = phrase.is_bare and last_index > head and phrase.start == head and tags[end : end + 1] in ([], ["."])
        if is_heading and (phrase.start == 0 or tags[phrase.start - 1] == "."):
            return head
        if (
            last_index == head
            and (tags[last_index] == "u" or (phrase.is_bare and not phrase.count))
            and not (last_index > phrase.start and tags[last_index - 1] in ("J", "#"))
        ):
            return head  # a name, or a word of another language
        if tags[last_index] == "u" and words[phrase.start] not in ("a", "an") and last_index == head:
            return head
    if last_index == head:
        phrase.name = lexicon.canonical_name(singular)
        return head
    # the actor | *Joe Smith*; South Korea
    name_start = _find_proper_name(tokens, phrase, head, end)
    if name_start == head:
        return head
    if name_start < end:
        phrase.end, phrase.noun = name_start, nouns[name_start - 1]
        return _resolve_name(tokens, phrase, head, name_start, lexicon)
    begin = head
    while begin < last_index and (
        (words[begin] in UNIT_WORDS and tags[begin - 1] == "#")
        or words[begin] in word_sets["materials"]
        or words[begin] in word_sets["colours"]
        or words[begin] in word_sets["not attributes"]
    ):
        begin += 1
    phrase.name = lexicon.canonical_name(" ".join([*words[begin:last_index], singular]))
    return begin


def has_capital(tokens: Tokens, index: int) -> bool:
    return tokens.text[tokens.starts[index]].isupper()


def _find_proper_name(tokens: Tokens, phrase: Phrase, head: int, end: int) -> int:
    """Return where a name at the end of a phrase begins, or `end`: the actor | *Joe Smith*.

    A name has capitals and an unknown word. Without one as its last word it needs to be bare: the
    Eiffel *Tower* is a tower.
    """
    tags = tokens.tags
    start = end
    while start > head and has_capital(tokens, start - 1):
        start -= 1
    if UNKNOWN_TAGS.isdisjoint(tags[start:end]):
        return end
    is_title = start == head and start == 0
    return (
        end
        if tags[end - 1] in NOUN_TAGS and ((not phrase.is_bare and start == head) or (is_title and end - start < 2))
        else start
    )


def _singular_of_glasses(tokens: Tokens, index: int) -> str:
    """Return glass for drinking glasses (two glasses, glasses of wine), else glasses."""
    next_word = tokens.words[index + 1] if index + 1 < len(tokens.words) else ""
    previous_word = tokens.words[index - 1] if index else ""
    drink_modifiers = ("wine", "water", "shot", "champagne", "drinking", "beer", "cocktail")
    is_for_drinking = next_word == "of" or tokens.tags[index - 1 : index] == ["#"] or previous_word in drink_modifiers
    return "glass" if is_for_drinking else tokens.nouns[index]


def word_to_number(word: str) -> int | None:
    """Return the value of a number in digits (at most six) or words, or None."""
    if word.isascii() and word.isdecimal() and len(word) < 7:
        return int(word)
    return NUMBER_VALUES.get(word)


def _joins_numbers(tokens: Tokens, index: int) -> bool:
    """Return whether a word joins two numbers: four *or* five, 5*-*7, between five *and* seven."""
    words = tokens.words
    return words[index] in ("or", "to", "-", "–", "—") or (words[index] == "and" and words[max(0, index - 2)] == "between")


def _counts_phrase(tokens: Tokens, phrase: Phrase, index: int, number: int) -> bool:
    """Return whether a number counts: not in 12 year old, a 747 plane, a 2019 Honda."""
    next_word = tokens.words[index + 1]
    is_name = tokens.words[index].isdecimal() and tokens.words[index - 1] in ("a", "an") and not phrase.is_plural
    if is_name or (next_word in UNIT_WORDS and index + 1 < phrase.end - 1):
        return False
    # 2 x fork
    if tokens.starts[index + 1] > tokens.ends[index] + 1:
        return True
    return number == 1 or phrase.is_plural or phrase.noun in INVARIANT_NOUNS or tokens.tags[phrase.end - 1] in UNKNOWN_TAGS


def _both_joins_phrases(tokens: Tokens, start: int, end: int) -> bool:
    """Return whether `both` means this phrase and the next one: *both* men and women."""
    words, tags = tokens.words, tokens.tags
    for index in range(start + 1, min(len(words), end + 8)):
        if words[index] in ("and", "&", "as well as"):
            return True
        if index >= end and tags[index] in CLAUSE_BREAK_TAGS | FINITE_VERB_TAGS:
            return False
    return False


def _parse_modifiers(tokens: Tokens, phrase: Phrase, start: int, head: int) -> None:
    """Read the number and the attributes from the words before the name."""
    tags, words = tokens.tags, tokens.words
    if (
        words[start] == "both"
        and phrase.is_plural
        and phrase.noun not in PAIRED_NOUNS
        and not _both_joins_phrases(tokens, start, phrase.end)
    ):
        phrase.count, phrase.count_index = 2, start
    k = start + (tags[start] in DETERMINER_TAGS)
    while k < head:
        tag, word = tags[k], words[k]
        if tag == "#":
            number = word_to_number(word)
            if number == 0 and _counts_phrase(tokens, phrase, k, number):
                phrase.is_negated = True
            elif number is not None and _counts_phrase(tokens, phrase, k, number):
                if phrase.count and number in (100, 12):  # two *dozen*
                    number *= phrase.count
                phrase.count, phrase.count_index = number, k
        elif tag == "?" or word in ("or so", "or more"):
            phrase.is_approximate = True
        elif word in ("single", "lone", "solitary") and start < k and words[start] in ("a", "one"):
            phrase.count, phrase.count_index = 1, k
        if word in ("left", "right") and phrase.noun in LATERAL_BODY_PARTS:
            phrase.attributes.append((word, k))
        elif tag in DESCRIPTIVE_TAGS and (tokens.attribute_rank[k] or word in COLOUR_MODIFIERS):
            # light *blue*
            if k + 1 < head and word in COLOUR_MODIFIERS and tags[k + 1] == "J" and words[k + 1] in MODIFIABLE_COLOURS:
                phrase.attributes.append((f"{word} {words[k + 1]}", k))
                k += 2
                continue
            if k + 1 <= head and word in ("stainless", "wrought", "cast") and words[k + 1 : k + 2] in (["steel"], ["iron"]):
                phrase.attributes.append((f"{word} {words[k + 1]}", k))
                k += 2
                continue
            if not tokens.attribute_rank[k]:
                k += 1
                continue
            if word == "little" and k == start and words[head] in MASS_NOUNS:
                k += 1  # not much
                continue
            phrase.attributes.append((word.removesuffix("-colored").removesuffix("-coloured"), k))
        elif tag in NOUN_TAGS and tokens.attribute_rank[k]:
            phrase.attributes.append((word, k))
        k += 1
    # one red and *two green* apples: not two in all
    if (phrase.count == 1 and phrase.is_approximate) or tags[max(0, start - 3) : start] == ["#", "J", "C"]:
        phrase.count = None


def continues_list(tags: str, comma_index: int, end: int) -> bool:
    """Return whether a comma separates items of a list, not parts of a sentence."""
    match = PHRASE_PATTERN.match(tags, comma_index + 1, end)
    if match is None or match.lastgroup != "np":
        return (
            tags[comma_index + 1 : comma_index + 2] == "C"
            and tags[comma_index + 2 : comma_index + 3] not in ("B", "V")
            and "B" not in tags[comma_index + 2 : comma_index + 7]
            and "V" not in tags[comma_index + 2 : comma_index + 7]
        )
    next_tag = tags[match.end() : match.end() + 1]
    return next_tag in COORDINATION_TAGS


def is_wall_art(words: list[str], begin: int, phrase_start: int, end: int) -> bool:
    """Return whether a picture is an object, such as one on a wall, and not the image itself."""
    return words[phrase_start - 1 : phrase_start] == ["with"] or any(
        word in WALL_ART_WORDS for word in words[begin : min(end, begin + 40)]
    )
