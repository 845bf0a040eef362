"""Tag a text: choose for each token the tag that fits the words around it."""

from __future__ import annotations

from mmrlhf.claims.content_words import choose_tag
from mmrlhf.claims.grammar import (
    AMBIGUOUS_COLOUR_MODIFIERS,
    AMBIGUOUS_FUNCTION_WORDS,
    CAN_MODIFIERS,
    HEDGING_MODALS,
    MODIFIABLE_COLOURS,
    NUMBER_APPROXIMATORS,
    PARTICLE_PREPOSITIONS,
    VAGUE_QUALIFIERS,
    VERBS_BY_PARTICLE,
)
from mmrlhf.claims.lexicon import Lexicon
from mmrlhf.claims.tagging import Tokens, tokenize
from mmrlhf.claims.tags import (
    AFTER_DETERMINER_THAT,
    AFTER_IS_CLITIC,
    AFTER_PARTICLE,
    AFTER_POSSESSIVE_HER,
    AFTER_PRONOUN_ONE,
    BEFORE_COMPOUND,
    CLAUSE_BREAK_TAGS,
    CLAUSE_END_TAGS,
    DETERMINER_TAGS,
    NOUN_PHRASE_TAGS,
    NOUN_TAGS,
    PHRASE_FILLER_TAGS,
    PUNCTUATION_TAGS,
    VERB_FORM_TAGS,
)
from mmrlhf.claims.verb_forms import verb_stem


def tag_text(text: str, lexicon: Lexicon) -> Tokens:
    """Return a text's tokens, each with a single tag, chosen from left to right."""
    tokens = tokenize(text, lexicon)
    compounds, coco_category = lexicon.word_sets["compounds"], lexicon.coco_category
    tags = tokens.tags
    phrase_start = -1  # where the noun phrase of the previous token began
    previous_tag = "."
    # `tags` changes in the loop: before i it has single tags, from i on all possible ones. The next
    # word's tags can come from a copy, since they do not change before its turn.
    for i, (possible_tags, next_tags, word) in enumerate(zip(tags, [*tags[1:], "."], tokens.words, strict=False)):
        tag = possible_tags
        if tag == "%":
            continue  # the noun before it is what the next word follows
        if len(possible_tags) == 1 and possible_tags not in VERB_FORM_TAGS:
            if word in AMBIGUOUS_FUNCTION_WORDS:
                tag = _retag_function_word(tokens, i, possible_tags, previous_tag, next_tags)
        elif (
            ("G" in possible_tags or (possible_tags[0] == "V" and previous_tag in BEFORE_COMPOUND))
            and i + 1 < len(tags)
            and ((name := f"{word} {tokens.nouns[i + 1]}") in compounds or name in coco_category)
        ):
            tag = "J"  # a *swimming* pool, a *cruise* ship
        elif possible_tags != "V":
            tag = choose_tag(tokens, i, possible_tags, previous_tag, next_tags, phrase_start)
        if tag in NOUN_PHRASE_TAGS:
            if phrase_start < 0 or tag in DETERMINER_TAGS or (tag == "#" and previous_tag not in ("D", "J")):
                phrase_start = i
        elif tag not in PHRASE_FILLER_TAGS:
            phrase_start = -1
        tags[i] = previous_tag = tag
    return tokens


def _retag_function_word(tokens: Tokens, i: int, tag: str, previous_tag: str, next_tags: str) -> str:
    """Return a function word's tag in its context, which is `tag` by default."""
    word, words, tags = tokens.words[i], tokens.words, tokens.tags
    next_tag = next_tags[0]
    if word == "yes":
        return ","
    if word in AMBIGUOUS_COLOUR_MODIFIERS:
        if words[i + 1 : i + 2] and words[i + 1] in MODIFIABLE_COLOURS:
            return "J"
        if word != "off":
            return tag
    if word == "that":
        # *that* dog; but: a dog *that* sits
        if tag == "W" and next_tag in AFTER_DETERMINER_THAT and previous_tag not in NOUN_TAGS:
            return "D"
        # *That* is a dog.
        if tag == "W" and next_tag in ("B", "V") and previous_tag in CLAUSE_END_TAGS:
            return "Q"
    elif word == "her":
        return "D" if next_tag in AFTER_POSSESSIVE_HER else "Q"
    elif word == "only":
        # the *only* dog
        return "J" if previous_tag == "D" else tag
    elif word == "between":
        # *between* five and seven birds: no place
        return "?" if next_tags == "#" and tags[i + 2 : i + 4] == ["C", "#"] else tag
    elif word == "one":
        # *one* of them; *one* dog; *one* brown dog
        if previous_tag in ("D", "Z", "J") or next_tags in AFTER_PRONOUN_ONE:
            return "X"
        next_is_adjective = not {"X", "J"}.isdisjoint(next_tags) and i + 2 < len(tags) and "N" in tags[i + 2]
        return "#" if "N" in next_tags or next_tag in ("J", "U") or next_is_adjective else "X"
    elif tag == "Z":
        # In `No, there is a dog.` it answers a question and negates nothing.
        if next_tags in PUNCTUATION_TAGS or (next_tags == "T" and previous_tag == "."):
            return ","
    elif word in ("there", "here"):
        # The dog is not *there*.
        return "J" if previous_tag == "O" and (next_tags in CLAUSE_BREAK_TAGS or next_tags == "C") else tag
    elif tag == "P" and word in PARTICLE_PREPOSITIONS:
        # looks *up*
        if next_tags in AFTER_PARTICLE and not (next_tags == "W" and words[i + 1] in ("which", "whom", "whose")):
            return "R"
        # *about* twenty people
        if next_tags == "#" and word in NUMBER_APPROXIMATORS and previous_tag not in VERB_FORM_TAGS:
            return "?"
        # puts *on* a hat
        if (word == "up" and next_tags != "D") or (
            previous_tag in VERB_FORM_TAGS and word in VERBS_BY_PARTICLE and verb_stem(words[i - 1]) in VERBS_BY_PARTICLE[word]
        ):
            return "R"
    elif word in VAGUE_QUALIFIERS or (
        # *nearly* twenty people, *nearly* a dozen eggs
        word in NUMBER_APPROXIMATORS and (next_tags == "#" or (next_tags == "D" and "#" in tags[i + 2 : i + 3]))
    ):
        return "?"
    elif word == "'s":
        # The dog*'s* not brown.
        if tag == "S" and (next_tag in AFTER_IS_CLITIC or next_tags == "G"):
            return "B"
    elif word == "can":
        # a trash *can*
        if i and (words[i - 1] in CAN_MODIFIERS or (previous_tag in ("D", "J", "#") and next_tags != "B")):
            return "N"
    elif tag == "M" and word in HEDGING_MODALS:
        return "?"
    return tag
