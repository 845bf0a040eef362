"""Rules for a word that is a verb, or else a noun or an adjective: stands, plays, open, light."""

from __future__ import annotations

from mmrlhf.claims.grammar import COMMON_VERBS, HEDGING_MODALS
from mmrlhf.claims.tag_rules import NOUN, Rule, RuleTable
from mmrlhf.claims.tags import (
    AFTER_COORDINATED_SUBJECT_VERB,
    AFTER_COORDINATED_VERB,
    AFTER_NOUN_OF_VERB_FORM,
    AFTER_PLURAL_COMMON_VERB,
    AFTER_PLURAL_VERB,
    AFTER_SINGULAR_COMMON_VERB,
    AFTER_SINGULAR_VERB,
    AFTER_VERB_ADVERBIAL,
    CLAUSE_START_TAGS,
    COORDINATION_TAGS,
    DETERMINER_TAGS,
    FINITE_VERB_TAGS,
    NOMINAL_TAGS,
    NOUN_TAGS,
    OBJECT_START_TAGS,
    PREPOSITION_TAGS,
)
from mmrlhf.claims.verb_forms import base_form
from mmrlhf.claims.word_context import WordContext, has_plural_subject, has_verb
from mmrlhf.text.words import word_set

# ---- what the rules ask ------------------------------------------------------------------------


def _can_be_adjective(word: WordContext) -> bool:
    return "J" in word.possible_tags


def _is_common_verb(word: WordContext) -> bool:
    return base_form(word.text) in COMMON_VERBS


def _is_common_verb_in_s(word: WordContext) -> bool:
    return word.text.endswith("s") and _is_common_verb(word)


def _is_noun_subject(word: WordContext) -> bool:
    """Return whether a verb after the word leaves it to be the noun: can *light* be seen."""
    return bool(word.noun_tag) and word.next_tag in ("B", "V")


def _describes_head(word: WordContext) -> bool:
    """Return whether the word is an adjective before a noun: an *open* door."""
    return (
        word.head_follows
        and _can_be_adjective(word)
        and (not word.noun_tag or word.prefers_adjective() or (word.attribute_rank == 2 and word.text != "light"))
    )


def _has_object(word: WordContext) -> bool:
    """Return whether an object or adverbial after the word shows a verb: *play* the drums."""
    return word.next_tag in OBJECT_START_TAGS or (word.noun_tag == "X" and word.next_tag in AFTER_VERB_ADVERBIAL)


def _ends_relative_clause(word: WordContext) -> bool:
    is_predicate = word.tokens.tags[word.index - 2 : word.index - 1] == ["B"]
    has_pronoun = not {"which", "who", "that", "whose"}.isdisjoint(word.words_before(6))
    return is_predicate and has_pronoun and _is_common_verb_in_s(word)


def _is_singular_phrase(word: WordContext) -> bool:
    """Return whether the noun phrase before the word begins with a singular determiner."""
    if word.phrase_start < 0:
        return False
    opening_tag, opening_word = word.tokens.tags[word.phrase_start], word.tokens.words[word.phrase_start]
    return (opening_tag == "D" and opening_word in ("a", "an", "this", "each", "every", "another", "one")) or (
        opening_tag == "#" and opening_word == "one"
    )


def _follows_bare_material(word: WordContext) -> bool:
    """Return whether the word is a noun after a material without a determiner: paper *lanterns*."""
    tokens, index = word.tokens, word.index
    is_bare = word.phrase_start == index - 1 and tokens.tags[index - 1] not in DETERMINER_TAGS
    return bool(word.noun_tag == "N" and is_bare and tokens.attribute_rank[index - 1] == 2)


def _is_inverted(word: WordContext) -> bool:
    """Return whether a place opens the clause before its subject: on the hill *stands* a man."""
    tags, start = word.tokens.tags, word.phrase_start
    opens_clause = start > 0 and tags[start - 1] in ("P", "I") and (start == 1 or tags[start - 2] in ".:,CY")
    return opens_clause and _is_common_verb(word) and word.next_tag in ("D", "#")


def _ends_reduced_clause(word: WordContext) -> bool:
    """Return whether the word's phrase follows the one that opens the sentence, and a verb follows.

    Looks back at most 8 words.
    """
    tags, start = word.tokens.tags, word.phrase_start
    if start < 1 or tags[start] != "D" or tags[start - 1] not in NOUN_TAGS or word.next_tag not in FINITE_VERB_TAGS:
        return False
    opening = start
    while opening > max(0, start - 8) and tags[opening - 1] not in CLAUSE_START_TAGS:
        opening -= 1
    return all(tag in "DJ#NX" for tag in tags[opening:start])


def _follows_numeric_name(word: WordContext) -> bool:
    """Return whether `a` and a number are a name, as no singular follows: a 747 *stands*."""
    return word.word_at(-2) in ("a", "an") and word.text.endswith("s") and _is_common_verb(word)


def _joins_noun(tags: list[str], index: int) -> bool:
    """Return whether the noun before a word is joined to another: a fork and *knife* lie here.

    Looks back at most 4 words.
    """
    for start in range(index - 1, max(0, index - 5), -1):
        if tags[start] not in ("N", "J"):
            return tags[start] == "C" and tags[start - 1] in NOMINAL_TAGS
    return False


# ---- after a noun ------------------------------------------------------------------------------

COLLECTIVES = word_set("couple crew family team group crowd class band pair trio staff audience")
"""Singulars that can have a verb in the plural: a couple *stand* here."""
S_FORM_AFTER_PLURAL = RuleTable(
    Rule("A row of umbrellas *lines* the beach.", "V", applies=lambda w: _has_object(w) or not w.noun_tag),
    Rule(
        "A stack of six plates *stands* on the shelf.",
        "V",
        applies=lambda w: _is_common_verb(w) and w.next_tag not in AFTER_NOUN_OF_VERB_FORM,
    ),
    Rule("It is better to give ducks *seeds* or peas.", NOUN),
)
"""Rules for a form in -s after a plural, which it does not agree with."""
S_FORM_AFTER_SINGULAR = RuleTable(
    Rule(
        "The bus *stops* of the city.",
        NOUN,
        applies=lambda w: w.noun_tag and w.next_tag == "F" and base_form(w.text) != "consist",
    ),
    Rule("A table with paper *garlands* on it.", NOUN, applies=_follows_bare_material),
    Rule("A man *stands* here.", "V", applies=_is_singular_phrase),
    Rule("The horse the woman *rides* is brown.", "V", applies=_ends_reduced_clause),
    Rule("A dog is here, and on the hill *stands* a man.", "V", applies=_is_inverted),
    Rule(
        "The man *rides* a horse.",
        "V",
        applies=lambda w: _is_common_verb(w) and w.next_tag in AFTER_SINGULAR_COMMON_VERB and not has_verb(w.tokens, w.index),
    ),
    Rule(
        "The bride *shares* a cake.",
        "V",
        applies=lambda w: (
            (w.possible_tags[0] == "V" or w.noun_tag == "X")
            and w.next_tag in AFTER_SINGULAR_VERB
            and not has_verb(w.tokens, w.index)
        ),
    ),
    Rule("There are bus *stops*.", NOUN, applies=lambda w: w.noun_tag),
)
"""Rules for a form in -s after a singular: a verb, if the clause has none."""
BASE_FORM_AFTER_PLURAL = RuleTable(
    Rule(
        "The dogs *play* in the park.",
        "V",
        applies=lambda w: (
            (w.next_tag in AFTER_PLURAL_VERB or (w.next_tag in NOUN_TAGS and w.possible_tags[0] == "V"))
            and (w.possible_tags[0] == "V" or _is_common_verb(w) or _has_object(w))
        ),
    ),
    Rule("The sports *light* is on.", NOUN, applies=lambda w: w.noun_tag),
    Rule("The boys *empty* boxes.", "V"),
)
BASE_FORM_AFTER_SINGULAR = RuleTable(
    Rule("Two men hold the ladder *steady*.", "J", applies=lambda w: w.possible_tags[0] == "J" and not w.head_follows),
    Rule(
        "The boys in the park *play* with a ball.",
        "V",
        applies=lambda w: (
            _is_common_verb(w)
            and w.next_tag in AFTER_PLURAL_COMMON_VERB
            and not has_verb(w.tokens, w.index)
            and has_plural_subject(w.tokens, w.index)
        ),
    ),
    Rule(
        "An elderly couple *stand* out.",
        "V",
        applies=lambda w: (
            w.word_at(-1) in COLLECTIVES
            and _is_common_verb(w)
            and w.next_tag in AFTER_PLURAL_VERB
            and not has_verb(w.tokens, w.index)
        ),
    ),
    Rule("The traffic *light* is red.", NOUN, applies=lambda w: w.noun_tag),
    Rule("A lid *open* cans have.", "J", applies=_can_be_adjective),
)


def _choose_after_subject(word: WordContext) -> str:
    """Choose by whether the word agrees in number with the noun before it."""
    tokens, index = word.tokens, word.index
    # A singular noun joined by `and` can end a plural subject: a man and a woman *play* ...
    ends_plural_subject = (
        (word.phrase_start > 0 and tokens.tags[word.phrase_start - 1] == "C") or _joins_noun(tokens.tags, index)
    ) and (word.next_tag in DETERMINER_TAGS or (word.next_tag in AFTER_COORDINATED_SUBJECT_VERB and _is_common_verb(word)))
    is_singular = not tokens.is_plural[index - 1] and not ends_plural_subject
    if word.text.endswith("s") and not word.text.endswith("ss"):
        return (S_FORM_AFTER_SINGULAR if is_singular else S_FORM_AFTER_PLURAL).decide(word) or "V"
    return (BASE_FORM_AFTER_SINGULAR if is_singular else BASE_FORM_AFTER_PLURAL).decide(word)


# ---- elsewhere ---------------------------------------------------------------------------------

VERB_OR_OTHER = RuleTable(
    Rule(
        "There are no chairs, just *cushions*.",
        NOUN,
        "R",
        lambda w: (
            w.is_plural
            and w.noun_tag == "N"
            and w.word_at(-1) in ("just", "only")
            and w.word_at(-2) in (",", "but", "are", "and")
        ),
    ),
    Rule("A dog wants to *play*.", "V", "I", lambda w: not w.is_plural),
    Rule(
        "The man does not *play* golf.",
        "V",
        "O",
        lambda w: w.word_at(-1) in ("cannot", "no longer") or (w.index > 1 and w.tokens.tags[w.index - 2] in ("M", "?")),
    ),
    Rule("A 747 *stands* here.", "V", "#", _follows_numeric_name),
    Rule("They *play* in the park.", "V", "Q", lambda w: w.word_at(-1) != "each other"),
    Rule("Watering in the morning can *help*.", "V", "M", lambda w: not _is_noun_subject(w)),
    Rule(
        "I would *estimate* the distance.",
        "V",
        "?",
        lambda w: not w.is_plural and w.word_at(-1) in HEDGING_MODALS and not _is_noun_subject(w),
    ),
    Rule("A man who *plays* golf is here.", "V", "W", lambda w: not (w.word_at(-1) == "that" and _is_noun_subject(w))),
    Rule("The man who is tall *stands* here.", "V", "J", _ends_relative_clause),
    Rule("On the hill there *stands* a house.", "V", "T"),
    Rule(
        "The other *hides* behind the dog.",
        "V",
        "J",
        lambda w: (
            w.word_at(-1) == "other" and w.word_at(-2) == "the" and w.next_tag in PREPOSITION_TAGS and _is_common_verb_in_s(w)
        ),
    ),
    Rule("An *open* door is here.", "J", applies=lambda w: w.in_phrase and _describes_head(w)),
    Rule("The red *light* is on.", NOUN, applies=lambda w: w.in_phrase and w.noun_tag),
    Rule("The *open* is on.", "J", applies=lambda w: w.in_phrase and _can_be_adjective(w)),
    Rule("The door is *open*.", "J", "B", lambda w: _can_be_adjective(w) and not w.head_follows),
    Rule(
        "A room with *open* windows.",
        "J",
        "PFABHVGE",
        lambda w: _can_be_adjective(w) and w.head_follows and (not w.noun_tag or w.prefers_adjective()),
    ),
    Rule("There is no adult in *sight*.", NOUN, "PFABHVGE", lambda w: w.noun_tag),
    Rule("It is with *open*.", "J", "PFABHVGE"),
    Rule(
        "The image conveys joy, *love*, and more.",
        "V",
        "RC,",
        lambda w: (
            w.possible_tags[0] == "V" and not (w.noun_tag == "N" and (w.previous_tag != "R" or w.next_tag in COORDINATION_TAGS))
        ),
    ),
    Rule("The wall also *faces* a road.", "V", "R", _is_common_verb_in_s),
    Rule(
        "*Watch* the dog.",
        "V",
        ".",
        lambda w: w.next_tag in DETERMINER_TAGS and not w.is_plural and w.possible_tags[0] == "V",
    ),
    Rule("A man sits and *watches* a dog.", "V", "C", lambda w: _is_common_verb_in_s(w) and w.next_tag in AFTER_COORDINATED_VERB),
    Rule(
        "A dog, which is small, *stands* near a gate.",
        "V",
        ",",
        lambda w: _is_common_verb_in_s(w) and w.next_tag in PREPOSITION_TAGS,
    ),
    Rule(
        "The oldest, a girl, *guides* the hands of the boy.",
        "V",
        ",",
        lambda w: w.text.endswith("s") and not w.text.endswith("ss") and w.next_tag == "D" and w.word_at(-1) == ",",
    ),
    Rule(
        "*Open* windows line the wall.",
        "J",
        applies=lambda w: (
            _can_be_adjective(w)
            and (w.head_follows or not w.noun_tag)
            and (
                not w.noun_tag
                or w.prefers_adjective()
                or (w.attribute_rank == 2 and w.next_tag in NOUN_TAGS and w.text != "light")
            )
        ),
    ),
    Rule("*Light* comes in.", NOUN, applies=lambda w: w.noun_tag),
)
"""Rules for a word that does not follow a noun."""


def choose_verb_or_other(word: WordContext) -> str:
    """Choose between a verb and a noun or an adjective."""
    return _choose_after_subject(word) if word.previous_tag in NOMINAL_TAGS else VERB_OR_OTHER.decide(word)
