"""Extract places in the image: a circle *at the top left*, a dog *in the lower right corner*.

Such a place is a relation to the image: a circle `at the top left of` the image. It is read only if
the lexicon has phrases for places (`[image places]`), and changes no other claim. The phrases may
be followed by `corner` or another part, and by `of the image`. A place that may be one in another
object is left out: a building with a clock *at the top*.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmrlhf.claims.builder import ClaimBuilder
from mmrlhf.claims.grammar import EXISTENCE_VERBS, IMAGE_NOUNS, POSSESSION_VERBS
from mmrlhf.claims.lexicon import Lexicon
from mmrlhf.claims.noun_phrases import Phrase
from mmrlhf.claims.place_rules import Preposition, find_located
from mmrlhf.claims.tagging import Tokens
from mmrlhf.claims.tags import CLAUSE_START_TAGS, COORDINATION_TAGS, FINITE_VERB_TAGS, QUANTIFIER_TAGS, tag_set
from mmrlhf.text.words import IMAGE, word_set

MAX_WORDS = 14
"""Number of words that a place may take, from its preposition."""
PREPOSITIONS = word_set("at in on")
MODIFIERS = word_set("far very extreme")
PARTS = word_set("corner side part half edge area section portion region quarter quadrant")
CONTINUATION_TAGS = tag_set("NXUuJ#SK")
"""Tags after words that describe a noun, and are no place: the *left* wall."""
CLAUSE_OPENING_TAGS = COORDINATION_TAGS | CLAUSE_START_TAGS
AFTER_NOUN_TAGS = tag_set("N,")
FRONTED_SUBJECT_TAGS = QUANTIFIER_TAGS | tag_set("TB")
"""Tags after a place whose subject follows: on the left *is* a dog."""


@dataclass(frozen=True, slots=True)
class ImagePlace:
    """A place in the image: its relation to the image, and the token at which it ends."""

    relation: str
    end: int
    names_image: bool
    """Whether it is a place `of the image`, so that no other object can be meant."""


# ---- words -------------------------------------------------------------------------------------


def read_image_place(tokens: Tokens, index: int, lexicon: Lexicon) -> ImagePlace | None:
    """Return the place in the image that begins with the preposition at a token, if any."""
    words, token_ends = _words_from(tokens, index)
    first = 1 + (words[1:2] == ["the"])
    first += not MODIFIERS.isdisjoint(words[first : first + 1])
    stop = next((k for k in range(len(words), first, -1) if " ".join(words[first:k]) in lexicon.image_places), first)
    if stop == first:
        return None
    name = lexicon.image_places[" ".join(words[first:stop])]
    stop += not PARTS.isdisjoint(words[stop : stop + 1])
    is_one_word = stop - first < 2
    noun = stop + 1 + (words[stop + 1 : stop + 2] in (["the"], ["this"]))
    names_image = words[stop : stop + 1] == ["of"] and not IMAGE_NOUNS.isdisjoint(words[noun : noun + 1])
    # in top left corner, but: on top; in the top left, but: a cup in the right
    if is_one_word and (words[1] != "the" or (words[0] == "in" and words[first] in ("left", "right") and not names_image)):
        return None
    # to the left side of the image, but: a lamp to the left of the picture
    is_side = words[0] == "to" and names_image and not PARTS.isdisjoint(words[first:stop])
    stop = noun + 1 if names_image else stop
    if (words[0] not in PREPOSITIONS and not is_side) or token_ends[stop - 1] in token_ends[stop:]:
        return None
    end = token_ends[stop - 1]
    return None if _goes_on(tokens, end, lexicon) else ImagePlace(f"at the {name} of", end, names_image)


def _words_from(tokens: Tokens, index: int) -> tuple[list[str], list[int]]:
    """Return the words from a token on, and the end of the token of each: tokens merge words."""
    words, token_ends = [], []
    for k in range(index, min(len(tokens.words), index + MAX_WORDS)):
        parts = tokens.text[tokens.starts[k] : tokens.ends[k]].lower().split()
        words += parts
        token_ends += [k + 1] * len(parts)
    return words, token_ends


def _goes_on(tokens: Tokens, end: int, lexicon: Lexicon) -> bool:
    """Return whether words for a place are part of something else: the left *wall*, the left *and
    right*, the top *of* a tower."""
    tag = tokens.tags[end] if end < len(tokens.tags) else "."
    if tag == "C":
        following = tokens.words[end + 1 : end + 3]
        return not lexicon.image_places.keys().isdisjoint(following[following[:1] == ["the"] :][:1])
    return tag == "F" or tag in CONTINUATION_TAGS


# ---- claims ------------------------------------------------------------------------------------


def locate_in_image(builder: ClaimBuilder, index: int, preposition: Preposition) -> None:
    """Add the place in the image that begins at a preposition, or keep it for its subject."""
    state, tags = builder.state, builder.tokens.tags
    if index < state.image_place_end:
        return  # at the top *left of* the image
    place = read_image_place(builder.tokens, index, builder.lexicon)
    if place is None:
        return
    state.image_place_end = place.end
    image = Phrase(index, index, place.end, IMAGE, IMAGE, False, True, False)
    is_fronted = not (state.conjuncts or state.actors) or _is_fronted(tags, place.end, preposition.previous_tag)
    if is_fronted is None:
        return
    if is_fronted:
        state.fronted_place = (place.relation, image, index)
        return
    located = _find_located(preposition)
    if place.names_image or not _may_be_in_object(preposition):
        builder.add_relation(located, place.relation, image, index)


def _is_fronted(tags: list[str], end: int, previous_tag: str) -> bool | None:
    """Return whether a place in mid-sentence precedes its subject: and *on the left* is a dog.

    None if it may belong to either side: a dog, *on the left*, a cat.
    """
    if previous_tag not in CLAUSE_OPENING_TAGS:
        return False
    has_comma = tags[end : end + 1] == [","]
    following = tags[end + has_comma] if end + has_comma < len(tags) else "."
    if previous_tag == "," and has_comma and following in QUANTIFIER_TAGS:
        return None
    # A man, on the left, *is* sleeping: an aside.
    return following in FRONTED_SUBJECT_TAGS and not (has_comma and following in FINITE_VERB_TAGS)


def _find_located(preposition: Preposition) -> list[Phrase]:
    """Return what a place locates; after a noun, only the last phrase: a cat and *a dog* here."""
    state = preposition.state
    if preposition.previous_tag in AFTER_NOUN_TAGS and state.conjuncts:
        return state.conjuncts[-1:]
    if preposition.previous_tag == "Q" and state.conjunct_role == "object":
        return state.actors  # a bridge crosses it on the left
    return find_located(preposition)


def _may_be_in_object(preposition: Preposition) -> bool:
    """Return whether a place without `of the image` may be one in another object of its clause."""
    state = preposition.state
    if preposition.previous_tag in AFTER_NOUN_TAGS:
        # a cup on a tray *at the left*; a building with a clock *at the top*
        if state.conjunct_role == "target":
            return True
        if state.conjunct_role == "with" and state.possessor is not None and state.possessor.referent.name:
            return True
    owns = state.verb in POSSESSION_VERBS and any(subject.referent.name for subject in state.subjects)
    return owns or state.fronted_relation is not None or state.resolved_relation is not None


def resolve_fronted_place(builder: ClaimBuilder, phrase: Phrase) -> None:
    """Add the place in the image that came before its subject.

    The subject is the clause's, or `phrase` if the clause has none with a name.
    """
    state = builder.state
    if state.fronted_place is None:
        return
    relation, image, index = state.fronted_place
    subjects = [subject for subject in state.subjects if subject.start >= image.end and subject.referent.name]
    located = subjects or [phrase]
    if any(other.referent.name for other in located):
        builder.add_relation(located, relation, image, index)
        state.resolved_place, state.fronted_place = state.fronted_place, None


def locate_joined(builder: ClaimBuilder, phrase: Phrase) -> None:
    """Locate a phrase that `and` adds after a place: on the left are a cat and *a dog*."""
    state = builder.state
    if state.resolved_place is not None and state.conjunct_role == "object" and state.verb in EXISTENCE_VERBS:
        relation, image, index = state.resolved_place
        builder.add_relation([phrase], relation, image, index)
