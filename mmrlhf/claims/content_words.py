"""Choose the tag of a word with several uses: noun, verb, adjective, -ing or -ed form.

Tables of rules decide (see `tag_rules`). They see the tags already chosen to the left and all
possible tags to the right.
"""

from __future__ import annotations

from mmrlhf.claims.grammar import (
    AMBIGUOUS_COLOUR_MODIFIERS,
    BARE_INFINITIVE_VERBS,
    COLOUR_MODIFIERS,
    COLOUR_NOUNS,
    COMMON_VERBS,
    COPULAS,
    MODIFIABLE_COLOURS,
    SHADED_COLOURS,
)
from mmrlhf.claims.tag_rules import NOUN, Rule, RuleTable
from mmrlhf.claims.tagging import Tokens
from mmrlhf.claims.tags import (
    AFTER_BARE_INFINITIVE,
    AFTER_ING_VERB,
    AFTER_IRREGULAR_PARTICIPLE,
    AFTER_LEFT_PARTICIPLE,
    AFTER_LISTED_ADJECTIVE,
    AFTER_PHRASE_HEAD,
    COORDINATION_TAGS,
    HEAD_START_TAGS,
    INNER_PHRASE_TAGS,
    NOUN_TAGS,
    OBJECT_START_TAGS,
    PREFERS_NOUN_BEFORE,
    PREPOSITION_TAGS,
    PUNCTUATION_TAGS,
)
from mmrlhf.claims.verb_forms import base_form
from mmrlhf.claims.verb_or_other import choose_verb_or_other
from mmrlhf.claims.word_context import WordContext, starts_noun_phrase
from mmrlhf.text.words import word_set

# ---- certain words and constructions -----------------------------------------------------------


def _is_had(word: WordContext) -> bool:
    """Return whether the word describes something that somebody has: has its windows *open*."""
    tags, words, index = word.tokens.tags, word.tokens.words, word.index
    return tags[max(0, index - 3) : index - 1] == ["H", "D"] or "with" in words[max(0, index - 4) : index - 1]


LEFT_OR_RIGHT = RuleTable(
    Rule("He holds it in his *right* hand.", "J", applies=lambda w: w.next_tag in NOUN_TAGS),
    Rule("The *left* pedal is red.", "J", "D", lambda w: not NOUN_TAGS.isdisjoint(w.next_tags)),
    Rule("A bus *left* the station.", "E", "N", lambda w: w.text == "left" and w.next_tags == "D"),
    Rule("Two letters are *left* on the mat.", "E", "BR", lambda w: w.text == "left" and w.next_tags in AFTER_LEFT_PARTICIPLE),
    Rule("A lamp is on the *left*.", "X"),
)
CONSTRUCTIONS = RuleTable(
    Rule(
        "People watching the boy *play* baseball.",
        "V",
        "NX",
        lambda w: (
            w.text in COMMON_VERBS
            and "V" in w.possible_tags
            and w.next_tag in AFTER_BARE_INFINITIVE
            and not BARE_INFINITIVE_VERBS.isdisjoint(w.words_before(4))
        ),
    ),
    Rule(
        "A woman in red *stands* here.",
        "V",
        "J",
        lambda w: (
            w.index > 1
            and w.word_at(-2) in ("painted", "colored", "dyed", "dressed in", "clad in", "in")
            and base_form(w.text) in COMMON_VERBS
        ),
    ),
)
GIFT_OCCASIONS = word_set("birthday christmas wedding shower anniversary graduation")
"""Nouns before a `present` that is a gift."""
WORD_RULES = {
    "present": RuleTable(
        Rule("A dog is not *present* here.", "J", "OR", lambda w: w.word_at(-2) in COPULAS and not w.head_follows),
        Rule(
            "There is a dog *present*.",
            "J",
            "NUu",
            lambda w: w.presents() and not w.head_follows and w.word_at(-1) not in GIFT_OCCASIONS,
        ),
    ),
    "half": RuleTable(Rule("The pizza is *half* eaten.", "R", "B", lambda w: "E" in w.next_tags)),
    **dict.fromkeys(
        ("open", "shut"),
        RuleTable(
            Rule(
                "A lid is *shut* on the box.", "E", "NXB", lambda w: w.text == "shut" and w.next_tag in AFTER_IRREGULAR_PARTICIPLE
            ),
            Rule("The van has its windows *open*.", "J", "NRJ", _is_had),
        ),
    ),
    **dict.fromkeys(
        ("cut", "set", "spread", "split"),
        RuleTable(Rule("A pizza *cut* into slices.", "E", "NXB", lambda w: w.next_tag in AFTER_IRREGULAR_PARTICIPLE)),
    ),
    **dict.fromkeys(
        ("look", "looks", "seem", "appear"), RuleTable(Rule("The sky *looks* blue.", "V", applies=lambda w: w.next_tag == "J"))
    ),
}
"""Rules for certain words."""

# ---- -ing and -ed forms ------------------------------------------------------------------------

ING_FORM = RuleTable(
    Rule("A dog is *running* on grass.", "G", "BNXQYWR", lambda w: w.next_tag in AFTER_ING_VERB and w.noun_tag != "N"),
    Rule("A boy is *painting* a wall.", "G", "B", lambda w: w.next_tag in OBJECT_START_TAGS),
    Rule(
        "A boy is *painting* near a wall.",
        "G",
        "B",
        lambda w: w.next_tag in PREPOSITION_TAGS and not w.is_plural and not w.follows_there(),
    ),
    Rule(
        "Two workers are *loading* suitcases.",
        "G",
        "B",
        lambda w: not w.attribute_rank and not NOUN_TAGS.isdisjoint(w.next_tags) and not w.follows_there(),
    ),
    Rule(
        "Nobody is *crossing*.",
        "G",
        "B",
        lambda w: (
            w.next_tag in PUNCTUATION_TAGS and not w.is_plural and not w.follows_there() and w.text not in ("building", "ceiling")
        ),
    ),
    Rule(
        "A boy *painting* a wall sits here.",
        "G",
        "N",
        lambda w: w.noun_tag == "N" and w.next_tag in OBJECT_START_TAGS and w.text not in ("building", "ceiling"),
    ),
    Rule(
        "*Painting* a wall, a boy sings.",
        "G",
        applies=lambda w: w.noun_tag == "N" and w.next_tag in OBJECT_START_TAGS and not w.in_phrase,
    ),
    Rule(
        "The *building* is tall.",
        NOUN,
        applies=lambda w: (
            (w.in_phrase or w.previous_tag in "PAFVGH.") and w.noun_tag == "N" and (not w.head_follows or w.previous_tag != ".")
        ),
    ),
    Rule(
        "A spoon in a pot of *boiling* soup.",
        "J",
        applies=lambda w: w.head_follows and (w.in_phrase or w.previous_tag in "PFH") and (w.attribute_rank or not w.noun_tag),
    ),
    Rule(
        "The man has a *hearing* aid in his ear.",
        NOUN,
        applies=lambda w: w.head_follows and (w.in_phrase or w.previous_tag in "PFH"),
    ),
    Rule("The *fishing* is good.", NOUN, applies=lambda w: w.in_phrase and w.noun_tag),
    Rule("A red and *shining* car is here.", "J", "C", lambda w: w.head_follows and w.attribute_rank),
    Rule(
        "A cyclist stops at a railway *crossing*, with a bag.",
        NOUN,
        applies=lambda w: w.possible_tags[0] == "N" and not (w.previous_tag in ("B", "N") and w.next_tag in OBJECT_START_TAGS),
    ),
    Rule("*Standing*, a man sings.", "G"),
)
ED_FORM = RuleTable(
    Rule(
        "A *striped* shirt is here.",
        "J",
        "DZ#SK",
        lambda w: w.in_phrase and w.head_follows and w.next_tag not in COORDINATION_TAGS,
    ),
    Rule(
        "A *grilled*, clean fish is here.",
        "J",
        "DZ#SK",
        lambda w: w.in_phrase and w.next_tag in COORDINATION_TAGS and w.attribute_rank,
    ),
    Rule("The *gathered* and people are here.", "E", "DZ#SK", lambda w: w.in_phrase and w.next_tag in COORDINATION_TAGS),
    Rule("A big *striped* shirt is here.", "J", applies=lambda w: w.in_phrase and w.head_follows),
    Rule("A red *shed* is here.", NOUN, applies=lambda w: w.noun_tag and w.in_phrase and not w.head_follows),
    Rule(
        "A lamp and *used* books are here.",
        "E",
        "C,",
        lambda w: w.head_follows and not w.attribute_rank,
    ),
    Rule(
        "A blue car with *tinted* windows.",
        "J",
        applies=lambda w: w.head_follows and (w.previous_tag in "PFAC,.HVG" or w.word_at(-1) == ":"),
    ),
    Rule(
        "The wall is *painted* green.",
        "E",
        applies=lambda w: (
            w.text in ("painted", "colored", "dyed") and "J" in w.next_tags and w.previous_tag != "D" and w.word_at(1)
        ),
    ),
    Rule(
        "The door is *closed*.",
        "J",
        "BRCV",
        lambda w: "J" in w.possible_tags and w.next_tag not in PREPOSITION_TAGS and w.attribute_rank,
    ),
    Rule("A car *parked* near a wall.", "E"),
)

# ---- noun or adjective --------------------------------------------------------------------------


def _is_shaded_colour(word: WordContext) -> bool:
    """Return whether the word is a colour with a shade in a predicate: is bright *orange*."""
    tokens, index = word.tokens, word.index
    return (
        word.text in SHADED_COLOURS
        and tokens.words[index - 1] in COLOUR_MODIFIERS
        and tokens.tags[index - 2 : index - 1] == ["B"]
    )


def _ends_phrase(word: WordContext) -> bool:
    """Return whether the word is the head of its phrase: a red *light*; a slice of *orange*."""
    return (
        not word.head_follows
        and (word.in_phrase or (word.previous_tag == "F" and word.attribute_rank < 2))
        and (word.next_tag not in COORDINATION_TAGS or starts_noun_phrase(word.tokens.tags, word.index + 1))
    )


def _may_describe(word: WordContext) -> bool:
    """Return whether a head or a list follows: a *plastic* cup; an *orange* and white cat."""
    return (
        word.head_follows or (word.next_tag in COORDINATION_TAGS and word.prefers_adjective())
    ) and word.next_tag in AFTER_LISTED_ADJECTIVE


NOUN_OR_ADJECTIVE = RuleTable(
    Rule("The ball is bright *orange*.", "J", "J", _is_shaded_colour),
    Rule("There is no *adult* in sight.", NOUN, applies=_ends_phrase),
    Rule(
        "The children are eating ice *cream*.",
        NOUN,
        "N",
        lambda w: (
            w.phrase_start >= 0
            and not (w.head_follows and w.attribute_rank == 2 and w.possible_tags[0] == "J" and w.text not in COLOUR_NOUNS)
        ),
    ),
    Rule(
        "A *plastic* cup is here.",
        "J",
        applies=lambda w: _may_describe(w) and (w.prefers_adjective() or (w.attribute_rank == 2 and w.text != "light")),
    ),
    Rule("The cup is *half* full of coffee.", NOUN, applies=_may_describe),
    Rule("The ball is *orange*.", "J", "B", lambda w: (w.prefers_adjective() or w.attribute_rank == 2) and not w.in_phrase),
    Rule("The road is very *flat*.", "J", "RK", lambda w: w.prefers_adjective()),
    Rule("*Short* answer: yes.", "J", applies=lambda w: w.prefers_adjective() and w.previous_tag not in PREFERS_NOUN_BEFORE),
    Rule("A *rainbow* arches over the valley.", NOUN, "DZ", lambda w: w.prefers_adjective() and w.next_tag in AFTER_PHRASE_HEAD),
    Rule("The image shows a harbor at *sunset*.", "J", applies=lambda w: w.prefers_adjective()),
    Rule("*Wood* is here.", NOUN),
)
OTHER_USES = RuleTable(
    Rule(
        "A duck stands in the lower *part* of the scene.",
        NOUN,
        applies=lambda w: w.noun_tag and "R" in w.possible_tags and (w.in_phrase or w.possible_tags[0] == w.noun_tag),
    ),
    Rule("A dog sits here *tonight*.", "R", applies=lambda w: w.noun_tag and "R" in w.possible_tags),
    Rule(
        "The workers wear *hard* hats.",
        "J",
        applies=lambda w: "R" in w.possible_tags and "J" in w.possible_tags and (w.head_follows or w.previous_tag in ("B", "D")),
    ),
    Rule(
        "*Farther* away, a person is paddling.",
        "R",
        applies=lambda w: "R" in w.possible_tags and "J" in w.possible_tags and w.possible_tags[0] == "R",
    ),
    Rule(
        "The cup is half *full* of coffee.",
        "J",
        applies=lambda w: "J" in w.possible_tags and ("R" in w.possible_tags or "V" in w.possible_tags),
    ),
)


def choose_tag(tokens: Tokens, index: int, possible_tags: str, previous_tag: str, next_tags: str, phrase_start: int) -> str:
    """Return the possible tag that fits a word's surroundings best."""
    text, tags = tokens.words[index], tokens.tags
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
    if text in ("left", "right"):
        return LEFT_OR_RIGHT.decide(word)
    table = WORD_RULES.get(text)
    fixed_tag = CONSTRUCTIONS.decide(word) or (table.decide(word) if table is not None else "")
    if fixed_tag:
        return fixed_tag
    if "G" in possible_tags:
        return ING_FORM.decide(word)
    if "E" in possible_tags:
        return ED_FORM.decide(word)
    # A word that modifies the colour after it: a *light* blue car, a *navy* blue door.
    modified_colours = MODIFIABLE_COLOURS if text in AMBIGUOUS_COLOUR_MODIFIERS else SHADED_COLOURS
    if text in COLOUR_MODIFIERS and word.word_at(1) in modified_colours:
        return "J"
    if "V" in possible_tags and (noun_tag or "J" in possible_tags):
        return choose_verb_or_other(word)
    return (NOUN_OR_ADJECTIVE if noun_tag and "J" in possible_tags else OTHER_USES).decide(word) or possible_tags[0]
