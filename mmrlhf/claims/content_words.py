"""Choose the tag of a word with several uses: noun, verb, adjective, -ing or -ed form.

Rules run in a fixed order, and the first that applies decides. They see the tags already chosen to
the left and all possible tags to the right. Comments give an example with the word in *stars*.
"""

from __future__ import annotations

from mmrlhf.claims.grammar import (
    AMBIGUOUS_COLOUR_MODIFIERS,
    BARE_INFINITIVE_VERBS,
    COLOUR_MODIFIERS,
    COLOUR_NOUNS,
    COMMON_VERBS,
    MODIFIABLE_COLOURS,
    SHADED_COLOURS,
)
from mmrlhf.claims.tagging import Tokens
from mmrlhf.claims.tags import (
    AFTER_BARE_INFINITIVE,
    AFTER_ING_VERB,
    AFTER_IRREGULAR_PARTICIPLE,
    AFTER_LEFT_PARTICIPLE,
    AFTER_LISTED_ADJECTIVE,
    AFTER_PHRASE_HEAD,
    BEFORE_ED_ADJECTIVE,
    BEFORE_ING_MODIFIER,
    BEFORE_ING_NOUN,
    BEFORE_ING_VERB,
    BEFORE_OPENNESS,
    BEFORE_PREDICATE_ADJECTIVE,
    COORDINATION_TAGS,
    DETERMINER_TAGS,
    HEAD_START_TAGS,
    INNER_PHRASE_TAGS,
    NOUN_TAGS,
    OBJECT_START_TAGS,
    PREFERS_NOUN_BEFORE,
    PREPOSITION_TAGS,
)
from mmrlhf.claims.verb_forms import base_form
from mmrlhf.claims.verb_or_other import choose_verb_or_other
from mmrlhf.claims.word_context import WordContext, starts_noun_phrase


def choose_tag(tokens: Tokens, index: int, possible_tags: str, previous_tag: str, next_tags: str, phrase_start: int) -> str:
    """Return the possible tag that fits a word's surroundings best."""
    text, tags = tokens.words[index], tokens.tags
    if text in ("left", "right"):
        return _choose_left_or_right(text, previous_tag, next_tags)
    noun_tag = "N" if "N" in possible_tags else "X" if "X" in possible_tags else ""
    next_tag = next_tags[0]
    in_phrase = previous_tag in INNER_PHRASE_TAGS and (previous_tag != "J" or phrase_start >= 0)
    head_follows = next_tag in HEAD_START_TAGS or (next_tag == "E" and len(next_tags) > 1) or "N" in next_tags or "X" in next_tags
    # The next word is a verb with an object: a *locomotive* crossing a bridge.
    if noun_tag and "G" in next_tags and tags[index + 2 : index + 3] in (["D"], ["Z"]):
        head_follows = False
    # A list of adjectives: a *round*, red ball.
    if next_tag == "," and in_phrase and "J" in possible_tags and index + 2 < len(tags) and "J" in tags[index + 2]:
        head_follows = True
    word = WordContext(
        tokens, index, text, possible_tags, noun_tag, previous_tag, next_tags, next_tag, phrase_start, in_phrase, head_follows
    )
    fixed_tag = _match_fixed_pattern(word)
    if fixed_tag:
        return fixed_tag
    if "G" in possible_tags:
        return _choose_ing_tag(word)
    if "E" in possible_tags:
        return _choose_ed_tag(word)
    # A word that modifies the colour after it: a *light* blue car, a *navy* blue door.
    modified_colours = MODIFIABLE_COLOURS if text in AMBIGUOUS_COLOUR_MODIFIERS else SHADED_COLOURS
    if text in COLOUR_MODIFIERS and word.word_at(1) in modified_colours:
        return "J"
    if "V" in possible_tags and (noun_tag or "J" in possible_tags):
        return choose_verb_or_other(word)
    if noun_tag and "J" in possible_tags:
        return _choose_noun_or_adjective(word)
    if noun_tag and "R" in possible_tags:
        return noun_tag if in_phrase or possible_tags[0] == noun_tag else "R"
    if "J" in possible_tags and "R" in possible_tags:
        if head_follows or previous_tag in ("B", "D"):
            return "J"
        return "R" if possible_tags[0] == "R" else "J"
    if "J" in possible_tags and "V" in possible_tags:
        return "J"
    return possible_tags[0]


def _choose_left_or_right(text: str, previous_tag: str, next_tags: str) -> str:
    # the *left* pedal
    if next_tags[0] in NOUN_TAGS or (previous_tag == "D" and ("N" in next_tags or "X" in next_tags)):
        return "J"
    # A bus *left* the station. Two letters are *left* on the mat.
    is_verb_form = (previous_tag == "N" and next_tags == "D") or (
        previous_tag in ("B", "R") and next_tags in AFTER_LEFT_PARTICIPLE
    )
    return "E" if text == "left" and is_verb_form else "X"


def _match_fixed_pattern(word: WordContext) -> str:
    """Return the tag that a pattern of certain words requires, or "" if no pattern matches."""
    text, tags, index, previous_tag = word.text, word.tokens.tags, word.index, word.previous_tag
    # watching the boy *play* baseball
    if (
        "V" in word.possible_tags
        and previous_tag in NOUN_TAGS
        and word.next_tag in AFTER_BARE_INFINITIVE
        and text in COMMON_VERBS
        and not BARE_INFINITIVE_VERBS.isdisjoint(word.words_before(4))
    ):
        return "V"
    # The pizza is *half* eaten.
    if text == "half" and previous_tag == "B" and "E" in word.next_tags:
        return "R"
    # a pizza *cut* into slices
    if (
        text in ("cut", "set", "spread", "split", "shut")
        and previous_tag in ("N", "X", "B")
        and word.next_tag in AFTER_IRREGULAR_PARTICIPLE
    ):
        return "E"
    # a woman in red *stands*
    if (
        previous_tag == "J"
        and index > 1
        and word.word_at(-2) in ("painted", "colored", "dyed", "dressed in", "clad in", "in")
        and base_form(text) in COMMON_VERBS
    ):
        return "V"
    # The van has its windows *open*. A crocodile with its jaws wide *open*.
    if (
        text in ("open", "shut")
        and previous_tag in BEFORE_OPENNESS
        and (tags[max(0, index - 3) : index - 1] == ["H", "D"] or "with" in word.tokens.words[max(0, index - 4) : index - 1])
    ):
        return "J"
    # The sky *looks* blue.
    if text in ("look", "looks", "seem", "appear") and word.next_tag == "J":
        return "V"
    return ""


# ---- -ing and -ed forms ------------------------------------------------------------------------


def _choose_ing_tag(word: WordContext) -> str:
    previous_tag, next_tag, noun_tag = word.previous_tag, word.next_tag, word.noun_tag
    # Verb: a dog *running* on grass; a boy is *painting* a wall; *watching* the game.
    if previous_tag in BEFORE_ING_VERB and next_tag in AFTER_ING_VERB and noun_tag != "N":
        return "G"
    if previous_tag == "B" and (
        next_tag in OBJECT_START_TAGS or (next_tag in PREPOSITION_TAGS and not word.is_plural and not word.follows_there())
    ):
        return "G"
    # Two workers are *loading* suitcases; but: there are *swimming* pools
    if previous_tag == "B" and not word.attribute_rank and {"N", "X"} & set(word.next_tags) and not word.follows_there():
        return "G"
    if noun_tag == "N" and next_tag in OBJECT_START_TAGS:
        if previous_tag == "N" and word.text not in ("building", "ceiling"):
            return "G"
        if not word.in_phrase:
            return "G"
    # Noun or modifier: the *building* is tall; *running* water.
    if word.in_phrase or previous_tag in BEFORE_ING_NOUN:
        if noun_tag == "N" and (not word.head_follows or previous_tag != "."):
            return "N"
        if word.head_follows and (word.in_phrase or previous_tag in BEFORE_ING_MODIFIER):
            return "J" if word.attribute_rank or not noun_tag else noun_tag
        if word.in_phrase and noun_tag:
            return noun_tag
    # a red and *shining* car
    if previous_tag == "C" and word.head_follows and word.attribute_rank:
        return "J"
    # Otherwise the likeliest use, unless that is a noun and an object shows a verb.
    if word.possible_tags[0] == "N" and not (previous_tag in ("B", "N") and next_tag in OBJECT_START_TAGS):
        return "N"
    if word.possible_tags[0] == "J" and word.head_follows:
        return "J"
    return "G"


def _choose_ed_tag(word: WordContext) -> str:
    previous_tag, next_tag, noun_tag = word.previous_tag, word.next_tag, word.noun_tag
    # Adjective in a noun phrase: a *striped* shirt; a *tiled*, clean floor.
    if word.in_phrase and (word.head_follows or next_tag in COORDINATION_TAGS) and previous_tag != "J":
        return "J" if next_tag not in COORDINATION_TAGS or word.attribute_rank else "E"
    if word.in_phrase and word.head_follows:
        return "J"
    # Noun at the end of a noun phrase: a red *shed*.
    if noun_tag and word.in_phrase and not word.head_follows:
        return noun_tag
    # Adjective that begins a noun phrase: on *tiled* floors.
    if word.head_follows and (previous_tag in BEFORE_ED_ADJECTIVE or word.tokens.words[word.index - 1 : word.index] == [":"]):
        if previous_tag in COORDINATION_TAGS and not word.attribute_rank:
            return "E"
        return "J"
    if noun_tag and word.possible_tags[0] == noun_tag and previous_tag not in ("B", "Q", "N"):
        return noun_tag
    # The wall is *painted* green.
    if word.text in ("painted", "colored", "dyed") and word.word_at(1) and "J" in word.next_tags and previous_tag != "D":
        return "E"
    # The door is *closed*.
    if (
        previous_tag in BEFORE_PREDICATE_ADJECTIVE
        and "J" in word.possible_tags
        and next_tag not in PREPOSITION_TAGS
        and word.attribute_rank
    ):
        return "J"
    return "E"


# ---- noun or adjective --------------------------------------------------------------------------


def _choose_noun_or_adjective(word: WordContext) -> str:
    """Choose between a noun and an adjective, such as orange, light, wood, plastic."""
    text, noun_tag, previous_tag, next_tag = word.text, word.noun_tag, word.previous_tag, word.next_tag
    tags, index, attribute_rank = word.tokens.tags, word.index, word.attribute_rank
    prefers_adjective = word.prefers_adjective()
    # *light* grey
    if text == "light" and word.word_at(1) in SHADED_COLOURS:
        return "J"
    # which is bright *orange*
    if (
        previous_tag == "J"
        and word.tokens.words[index - 1] in COLOUR_MODIFIERS
        and text in SHADED_COLOURS
        and tags[index - 2 : index - 1] == ["B"]
    ):
        return "J"
    # The head of its phrase: a red *light*; a slice of *orange*.
    if (
        not word.head_follows
        and (word.in_phrase or (previous_tag == "F" and attribute_rank < 2))
        and (next_tag not in COORDINATION_TAGS or starts_noun_phrase(tags, index + 1))
    ):
        return noun_tag
    # The second noun of a compound: a traffic *light*.
    if (
        previous_tag == "N"
        and word.phrase_start >= 0
        and not (word.head_follows and attribute_rank == 2 and word.possible_tags[0] == "J" and text not in COLOUR_NOUNS)
    ):
        return noun_tag
    # Before a head or in a list: a *plastic* cup; an *orange* and white cat.
    if (word.head_follows or (next_tag in COORDINATION_TAGS and prefers_adjective)) and next_tag in AFTER_LISTED_ADJECTIVE:
        return "J" if prefers_adjective or (attribute_rank == 2 and text != "light") else noun_tag
    # The ball is *orange*.
    if previous_tag == "B" and (prefers_adjective or attribute_rank == 2) and not word.in_phrase:
        return "J"
    # very *light*
    if previous_tag in ("R", "K") and prefers_adjective:
        return "J"
    if prefers_adjective and previous_tag not in PREFERS_NOUN_BEFORE:
        return "J"
    # The *orange* is on a plate.
    if prefers_adjective and previous_tag in DETERMINER_TAGS and next_tag in AFTER_PHRASE_HEAD:
        return noun_tag
    return "J" if prefers_adjective else noun_tag
