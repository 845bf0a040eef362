"""Choose between a verb and a noun or an adjective, such as stands, plays, open, light.

As in `content_words`, the first rule that applies decides. Examples have the word in *stars*.
"""

from __future__ import annotations

from mmrlhf.claims.grammar import COMMON_VERBS
from mmrlhf.claims.tags import (
    AFTER_COORDINATED_SUBJECT_VERB,
    AFTER_COORDINATED_VERB,
    AFTER_NOUN_OF_VERB_FORM,
    AFTER_PLURAL_COMMON_VERB,
    AFTER_PLURAL_VERB,
    AFTER_SINGULAR_COMMON_VERB,
    AFTER_SINGULAR_VERB,
    AFTER_VERB_ADVERBIAL,
    BEFORE_BARE_NOUN,
    COORDINATION_TAGS,
    DETERMINER_TAGS,
    NOMINAL_TAGS,
    NOUN_TAGS,
    OBJECT_START_TAGS,
    PREPOSITION_TAGS,
)
from mmrlhf.claims.verb_forms import base_form
from mmrlhf.claims.word_context import WordContext, has_plural_subject, has_verb


def choose_verb_or_other(word: WordContext) -> str:
    """Choose between a verb and a noun or an adjective, such as stands, plays, open, light."""
    text, possible_tags, noun_tag = word.text, word.possible_tags, word.noun_tag
    previous_tag, next_tag = word.previous_tag, word.next_tag
    can_be_adjective = "J" in possible_tags
    if _is_verb_after_function_word(word):
        return "V"
    # Inside a noun phrase: an *open* door; the red *light*.
    if word.in_phrase and noun_tag:
        is_adjective = (
            word.head_follows
            and can_be_adjective
            and (word.prefers_adjective() or (word.attribute_rank == 2 and text != "light"))
        )
        return "J" if is_adjective else noun_tag
    if word.in_phrase and can_be_adjective:
        return "J"
    # The door is *open*; on *display*; with *open* windows.
    if previous_tag in BEFORE_BARE_NOUN:
        if previous_tag == "B" and can_be_adjective and not word.head_follows:
            return "J"
        if can_be_adjective and word.head_follows and (not noun_tag or word.prefers_adjective()):
            return "J"
        return noun_tag or "J"
    # A man *stands*; two bus *stops*.
    if previous_tag in NOMINAL_TAGS:
        return _choose_after_subject(word)
    # A man sits and *reads*; a dog quickly *jumps*; *watch* the dog.
    if (
        previous_tag in ("R", "C", ",")
        and possible_tags[0] == "V"
        and not (noun_tag == "N" and (previous_tag != "R" or next_tag in COORDINATION_TAGS))
    ):
        return "V"
    is_common_verb_in_s = text.endswith("s") and base_form(text) in COMMON_VERBS
    if previous_tag == "R" and is_common_verb_in_s:
        return "V"
    if previous_tag == "." and next_tag in DETERMINER_TAGS and not word.is_plural and possible_tags[0] == "V":
        return "V"
    if previous_tag == "C" and is_common_verb_in_s and next_tag in AFTER_COORDINATED_VERB:
        return "V"
    # A man, who is tall, *stands* on a hill.
    if previous_tag == "," and is_common_verb_in_s and next_tag in PREPOSITION_TAGS:
        return "V"
    # *Open* windows line the wall.
    if can_be_adjective and (word.head_follows or not noun_tag):
        is_adjective = (
            not noun_tag or word.prefers_adjective() or (word.attribute_rank == 2 and next_tag in NOUN_TAGS and text != "light")
        )
        return "J" if is_adjective else noun_tag
    return noun_tag or possible_tags[0]


def _is_verb_after_function_word(word: WordContext) -> bool:
    """Return whether the function word before it makes the word a verb."""
    text, tags, index = word.text, word.tokens.tags, word.index
    previous_tag, previous_word = word.previous_tag, word.tokens.words[word.index - 1]
    is_noun_subject = bool(word.noun_tag) and word.next_tag in ("B", "V")
    # to *play*
    if previous_tag == "I" and not word.is_plural:
        return True
    # cannot *see*, does not *play*
    if previous_tag == "O" and (previous_word == "cannot" or (index > 1 and tags[index - 2] in ("M", "?"))):
        return True
    # they *play*
    if previous_tag == "Q" and previous_word != "each other":
        return True
    # can *play*, might *play*
    is_after_modal = previous_tag == "M" or (
        previous_tag == "?" and not word.is_plural and previous_word in ("could", "may", "might", "would")
    )
    if is_after_modal and not is_noun_subject:
        return True
    # a man who *plays*
    if previous_tag == "W" and not (previous_word == "that" and is_noun_subject):
        return True
    # The man who is tall *stands*.
    if (
        previous_tag == "J"
        and tags[index - 2 : index - 1] == ["B"]
        and text.endswith("s")
        and base_form(text) in COMMON_VERBS
        and not {"which", "who", "that", "whose"}.isdisjoint(word.words_before(6))
    ):
        return True
    # there *stands*
    return previous_tag == "T"


def _choose_after_subject(word: WordContext) -> str:
    """Choose between a verb and a noun after a noun, by whether they agree in number."""
    tokens, index, possible_tags, noun_tag = word.tokens, word.index, word.possible_tags, word.noun_tag
    next_tag, phrase_start = word.next_tag, word.phrase_start
    base = base_form(word.text)
    is_common_verb = base in COMMON_VERBS
    # A singular noun joined by `and` can end a plural subject: a man and a woman *play* ...
    ends_plural_subject = (
        phrase_start > 0
        and tokens.tags[phrase_start - 1] == "C"
        and (next_tag in DETERMINER_TAGS or (next_tag in AFTER_COORDINATED_SUBJECT_VERB and is_common_verb))
    )
    is_singular_subject = not tokens.is_plural[index - 1] and not ends_plural_subject
    # An object or adverbial after the word suggests a verb: the boys *play* the drums.
    has_object = next_tag in OBJECT_START_TAGS or (noun_tag == "X" and next_tag in AFTER_VERB_ADVERBIAL)
    if word.text.endswith("s") and not word.text.endswith("ss"):
        if not is_singular_subject:
            is_verb = has_object or (is_common_verb and next_tag not in AFTER_NOUN_OF_VERB_FORM)
            return "V" if is_verb or not noun_tag else noun_tag
        # the bus *stops* of the city, but: the meal *consists* of rice
        if next_tag == "F" and base != "consist":
            return noun_tag or "V"
        # A man *stands*: after a singular, -s is a verb's ending.
        if _is_singular_phrase(word):
            return "V"
        if is_common_verb and next_tag in AFTER_SINGULAR_COMMON_VERB and not has_verb(tokens, index):
            return "V"
        if (possible_tags[0] == "V" or noun_tag == "X") and next_tag in AFTER_SINGULAR_VERB and not has_verb(tokens, index):
            return "V"
        return noun_tag or "V"
    # The dogs *play* in the park.
    if not is_singular_subject:
        can_follow_verb = next_tag in AFTER_PLURAL_VERB or (next_tag in NOUN_TAGS and possible_tags[0] == "V")
        if can_follow_verb and (possible_tags[0] == "V" or is_common_verb or has_object):
            return "V"
        return noun_tag or "V"
    if possible_tags[0] == "J" and not word.head_follows:
        return "J"
    # The boys in the park *play* with a ball: the verb agrees with the clause's first noun.
    if (
        is_common_verb
        and next_tag in AFTER_PLURAL_COMMON_VERB
        and not has_verb(tokens, index)
        and has_plural_subject(tokens, index)
    ):
        return "V"
    return noun_tag or ("J" if "J" in possible_tags else "V")


def _is_singular_phrase(word: WordContext) -> bool:
    """Return whether the noun phrase before the word begins with a singular determiner."""
    if word.phrase_start < 0:
        return False
    opening_tag, opening_word = word.tokens.tags[word.phrase_start], word.tokens.words[word.phrase_start]
    return (opening_tag == "D" and opening_word in ("a", "an", "this", "each", "every", "another", "one")) or (
        opening_tag == "#" and opening_word == "one"
    )
