"""One tag of several: what a word is, given the words around it."""

from __future__ import annotations

from mmrlhf.claims.grammar import (
    AMBIGUOUS_COLOUR_MODIFIERS,
    AMBIGUOUS_FUNCTION_WORDS,
    BARE_INFINITIVE_VERBS,
    CAN_MODIFIERS,
    COLOUR_MODIFIERS,
    COLOUR_NOUNS,
    COMMON_VERBS,
    HEDGING_MODALS,
    MODIFIABLE_COLOURS,
    NUMBER_APPROXIMATORS,
    PARTICLE_PREPOSITIONS,
    SHADED_COLOURS,
    VAGUE_QUALIFIERS,
    VERBS_BY_PARTICLE,
)
from mmrlhf.claims.lexicon import Lexicon
from mmrlhf.claims.tagging import Tokens, tokenize
from mmrlhf.claims.tags import (
    AFTER_BARE_INFINITIVE,
    AFTER_COORDINATED_SUBJECT_VERB,
    AFTER_COORDINATED_VERB,
    AFTER_DETERMINER_THAT,
    AFTER_ING_VERB,
    AFTER_IRREGULAR_PARTICIPLE,
    AFTER_IS_CLITIC,
    AFTER_LEFT_PARTICIPLE,
    AFTER_LISTED_ADJECTIVE,
    AFTER_NOUN_OF_VERB_FORM,
    AFTER_PARTICLE,
    AFTER_PHRASE_HEAD,
    AFTER_PLURAL_COMMON_VERB,
    AFTER_PLURAL_VERB,
    AFTER_POSSESSIVE_HER,
    AFTER_PRONOUN_ONE,
    AFTER_SINGULAR_COMMON_VERB,
    AFTER_SINGULAR_VERB,
    AFTER_VERB_ADVERBIAL,
    BEFORE_BARE_NOUN,
    BEFORE_COMPOUND,
    BEFORE_ED_ADJECTIVE,
    BEFORE_ING_MODIFIER,
    BEFORE_ING_NOUN,
    BEFORE_ING_VERB,
    BEFORE_PREDICATE_ADJECTIVE,
    CLAUSE_BREAK_TAGS,
    CLAUSE_END_TAGS,
    CLAUSE_START_TAGS,
    COORDINATION_TAGS,
    DETERMINER_TAGS,
    FINITE_VERB_TAGS,
    HEAD_START_TAGS,
    INNER_PHRASE_TAGS,
    NOMINAL_TAGS,
    NOUN_PHRASE_TAGS,
    NOUN_TAGS,
    OBJECT_START_TAGS,
    PHRASE_FILLER_TAGS,
    PREFERS_NOUN_BEFORE,
    PREPOSITION_TAGS,
    PUNCTUATION_TAGS,
    VERB_FORM_TAGS,
)


def tag_text(text: str, lexicon: Lexicon) -> Tokens:
    """A text's tokens, each with its one tag, chosen from left to right."""
    tokens = tokenize(text, lexicon)
    compounds, coco_category = lexicon.word_sets["compounds"], lexicon.coco_category
    tags = tokens.tags
    phrase_start = -1  # where the noun phrase began that the last token is in
    previous_tag = "."
    for i, (possible_tags, next_tags, word) in enumerate(zip(tags, [*tags[1:], "."], tokens.words, strict=False)):
        if len(possible_tags) == 1 and possible_tags not in VERB_FORM_TAGS:
            tag = (
                _retag_function_word(tokens, i, possible_tags, previous_tag, next_tags)
                if word in AMBIGUOUS_FUNCTION_WORDS
                else possible_tags
            )
        elif (
            ("G" in possible_tags or (possible_tags[0] == "V" and previous_tag in BEFORE_COMPOUND))
            and i + 1 < len(tags)
            and ((name := f"{word} {tokens.nouns[i + 1]}") in compounds or name in coco_category)
        ):
            tag = "J"  # a swimming pool and a cruise ship, and nobody who swims
        else:
            tag = (
                possible_tags
                if possible_tags == "V"
                else _choose_tag(tokens, i, possible_tags, previous_tag, next_tags, phrase_start)
            )
        if tag in NOUN_PHRASE_TAGS:
            if tag in DETERMINER_TAGS or phrase_start < 0 or (tag == "#" and previous_tag not in ("D", "J")):
                phrase_start = i
        elif tag not in PHRASE_FILLER_TAGS:
            phrase_start = -1
        tags[i] = previous_tag = tag
    return tokens


def _retag_function_word(tokens: Tokens, i: int, tag: str, previous_tag: str, next_tags: str) -> str:
    """What a small word's tag becomes where it stands."""
    word, words, tags = tokens.words[i], tokens.words, tokens.tags
    next_tag = next_tags[0]
    if word == "yes":
        return ","
    if word in AMBIGUOUS_COLOUR_MODIFIERS:
        return "J" if words[i + 1 : i + 2] and words[i + 1] in MODIFIABLE_COLOURS else tag
    if word == "that":
        if tag == "W" and next_tag in AFTER_DETERMINER_THAT and previous_tag not in NOUN_TAGS:
            return "D"
        if tag == "W" and next_tag in ("B", "V") and previous_tag in CLAUSE_END_TAGS:
            return "Q"
    elif word == "her":
        return "D" if next_tag in AFTER_POSSESSIVE_HER else "Q"
    elif word == "one":
        if previous_tag in ("D", "Z", "J") or next_tags in AFTER_PRONOUN_ONE:
            return "X"
        next_is_adjective = set(next_tags) & set("XJ") and i + 2 < len(tags) and "N" in tags[i + 2]
        return "#" if "N" in next_tags or next_tag in ("J", "U") or next_is_adjective else "X"
    elif tag == "Z":
        if next_tags in PUNCTUATION_TAGS or (next_tags == "T" and previous_tag == "."):
            return ","  # "No, ..." answers and denies nothing by itself
    elif tag == "P" and word in PARTICLE_PREPOSITIONS:
        if next_tags in AFTER_PARTICLE:
            return "R"
        if next_tags == "#" and word in NUMBER_APPROXIMATORS and previous_tag not in VERB_FORM_TAGS:
            return "?"
        if (word == "up" and next_tags != "D") or (
            previous_tag in VERB_FORM_TAGS and word in VERBS_BY_PARTICLE and verb_stem(words[i - 1]) in VERBS_BY_PARTICLE[word]
        ):
            return "R"
    elif word in VAGUE_QUALIFIERS or (
        word in NUMBER_APPROXIMATORS and (next_tags == "#" or (next_tags == "D" and "#" in tags[i + 2 : i + 3]))
    ):
        return "?"
    elif word == "'s":
        if tag == "S" and (next_tag in AFTER_IS_CLITIC or next_tags == "G"):
            return "B"
    elif word == "can":
        if i and (words[i - 1] in CAN_MODIFIERS or (previous_tag in ("D", "J", "#") and next_tags != "B")):
            return "N"
    elif tag == "M" and word in HEDGING_MODALS:
        return "?"
    return tag


def _choose_tag(tokens: Tokens, i: int, possible_tags: str, previous_tag: str, next_tags: str, phrase_start: int) -> str:
    """Which of a word's uses this one is."""
    word, words, tags = tokens.words[i], tokens.words, tokens.tags
    if word in ("left", "right"):
        return (
            "J"
            if next_tags[0] in NOUN_TAGS or (previous_tag == "D" and ("N" in next_tags or "X" in next_tags))
            else "E"
            if word == "left"
            and (
                (previous_tag == "N" and next_tags == "D") or (previous_tag in ("B", "R") and next_tags in AFTER_LEFT_PARTICIPLE)
            )
            else "X"
        )
    noun_tag = "N" if "N" in possible_tags else "X" if "X" in possible_tags else ""
    next_tag = next_tags[0]
    in_phrase = previous_tag in INNER_PHRASE_TAGS and (previous_tag != "J" or phrase_start >= 0)
    head_follows = next_tag in HEAD_START_TAGS or (next_tag == "E" and len(next_tags) > 1) or "N" in next_tags or "X" in next_tags
    if noun_tag and "G" in next_tags and tags[i + 2 : i + 3] in (["D"], ["Z"]):
        head_follows = False  # a locomotive crossing a bridge
    if next_tag == "," and in_phrase and "J" in possible_tags and i + 2 < len(tags) and "J" in tags[i + 2]:
        head_follows = True
    is_plural = tokens.is_plural[i]
    if (
        "V" in possible_tags
        and previous_tag == "N"
        and next_tag in AFTER_BARE_INFINITIVE
        and words[max(0, i - 4) : i]
        and BARE_INFINITIVE_VERBS & set(words[max(0, i - 4) : i])
        and word in COMMON_VERBS
    ):
        return "V"  # watching the boy play baseball
    if word == "half" and previous_tag == "B" and "E" in next_tags:
        return "R"
    if (
        word in ("cut", "set", "spread", "split", "shut")
        and previous_tag in ("N", "X", "B")
        and next_tag in AFTER_IRREGULAR_PARTICIPLE
    ):
        return "E"
    if (
        previous_tag == "J"
        and i > 1
        and words[i - 2] in ("painted", "colored", "dyed", "dressed in", "clad in", "in")
        and base_form(word) in COMMON_VERBS
    ):
        return "V"
    if (
        word in ("open", "shut")
        and previous_tag in ("N", "R", "J")
        and (tags[max(0, i - 3) : i - 1] == ["H", "D"] or words[max(0, i - 4) : i - 1].count("with"))
    ):
        return "J"
    if word in ("look", "looks", "seem", "appear") and next_tag == "J":
        return "V"
    # -ing
    if "G" in possible_tags:
        if previous_tag in BEFORE_ING_VERB and next_tag in AFTER_ING_VERB and noun_tag != "N":
            return "G"
        if previous_tag == "B" and (
            next_tag in OBJECT_START_TAGS or (next_tag in PREPOSITION_TAGS and not is_plural and tags[i - 2 : i - 1] != ["T"])
        ):
            return "G"
        if noun_tag == "N" and previous_tag == "N" and next_tag in OBJECT_START_TAGS and word not in ("building", "ceiling"):
            return "G"
        if noun_tag == "N" and next_tag in OBJECT_START_TAGS and not in_phrase:
            return "G"
        if in_phrase or previous_tag in BEFORE_ING_NOUN:
            if noun_tag == "N" and (not head_follows or previous_tag != "."):
                return "N"
            if head_follows and (in_phrase or previous_tag in BEFORE_ING_MODIFIER):
                return "J" if tokens.attribute_rank[i] or not noun_tag else noun_tag
            if in_phrase and noun_tag:
                return noun_tag
        if previous_tag == "C" and head_follows and tokens.attribute_rank[i]:
            return "J"
        if possible_tags[0] == "N" and not (previous_tag in ("B", "N") and next_tag in OBJECT_START_TAGS):
            return "N"
        if possible_tags[0] == "J" and head_follows:
            return "J"
        return "G"
    # -ed
    if "E" in possible_tags:
        if in_phrase and (head_follows or next_tag in COORDINATION_TAGS) and previous_tag != "J":
            return "J" if next_tag not in COORDINATION_TAGS or tokens.attribute_rank[i] else "E"
        if in_phrase and head_follows:
            return "J"
        if noun_tag and in_phrase and not head_follows:
            return noun_tag
        if head_follows and (previous_tag in BEFORE_ED_ADJECTIVE or words[i - 1 : i] == [":"]):
            if previous_tag in COORDINATION_TAGS and not tokens.attribute_rank[i]:
                return "E"
            return "J"
        if noun_tag and possible_tags[0] == noun_tag and previous_tag not in ("B", "Q", "N"):
            return noun_tag
        if (
            word in ("painted", "colored", "dyed")
            and words[i + 1 : i + 2]
            and (next_tags == "J" or "J" in next_tags)
            and previous_tag != "D"
        ):
            return "E"
        if (
            previous_tag in BEFORE_PREDICATE_ADJECTIVE
            and "J" in possible_tags
            and next_tag not in PREPOSITION_TAGS
            and tokens.attribute_rank[i]
        ):
            return "J"
        return "E"
    if (
        word in COLOUR_MODIFIERS
        and words[i + 1 : i + 2]
        and words[i + 1] in (MODIFIABLE_COLOURS if word in AMBIGUOUS_COLOUR_MODIFIERS else SHADED_COLOURS)
    ):
        return "J"
    can_be_verb = "V" in possible_tags
    if can_be_verb and (noun_tag or "J" in possible_tags):
        after_modal = previous_tag == "M" or (
            previous_tag == "?" and not is_plural and words[i - 1] in ("could", "may", "might", "would")
        )
        after_negation = previous_tag == "O" and (words[i - 1] == "cannot" or (i > 1 and tags[i - 2] in ("M", "?")))
        after_pronoun = previous_tag == "Q" and words[i - 1] != "each other"
        if (
            (previous_tag == "I" and not is_plural)
            or after_negation
            or after_pronoun
            or (after_modal and not (noun_tag and next_tag in ("B", "V")))
        ):
            return "V"
        if previous_tag == "W" and not (words[i - 1] == "that" and noun_tag and next_tag in ("B", "V")):
            return "V"
        if (
            previous_tag == "J"
            and tags[i - 2 : i - 1] == ["B"]
            and word.endswith("s")
            and base_form(word) in COMMON_VERBS
            and {"which", "who", "that", "whose"} & set(words[max(0, i - 6) : i])
        ):
            return "V"  # the man who is tall stands
        if previous_tag == "T":
            return "V"
        if in_phrase and noun_tag:
            return (
                "J"
                if head_follows
                and "J" in possible_tags
                and (
                    possible_tags.index("J") < possible_tags.index(noun_tag)
                    or (tokens.attribute_rank[i] == 2 and word != "light")
                )
                else noun_tag
            )
        if in_phrase and "J" in possible_tags:
            return "J"
        if previous_tag in BEFORE_BARE_NOUN and ("J" in possible_tags or noun_tag):
            if previous_tag == "B" and "J" in possible_tags and not head_follows:
                return "J"
            if (
                "J" in possible_tags
                and head_follows
                and possible_tags.index("J") < (possible_tags.find(noun_tag) if noun_tag else 9)
            ):
                return "J"
            return noun_tag or "J"
        if previous_tag in NOMINAL_TAGS and not in_phrase:
            base = base_form(word)
            singular_subject = not tokens.is_plural[i - 1] and not (
                phrase_start > 0
                and tags[phrase_start - 1] == "C"
                and (
                    next_tag in DETERMINER_TAGS
                    or (next_tag in AFTER_COORDINATED_SUBJECT_VERB and base_form(word) in COMMON_VERBS)
                )
            )
            opening_tag = tags[phrase_start] if phrase_start >= 0 else ""
            is_singular_phrase = (
                opening_tag == "D" and words[phrase_start] in ("a", "an", "this", "each", "every", "another", "one")
            ) or (opening_tag == "#" and words[phrase_start] == "one")
            ends_in_s = word.endswith("s") and not word.endswith("ss")
            if ends_in_s:
                if not singular_subject:
                    is_likely_verb = (
                        next_tag in OBJECT_START_TAGS
                        or (base in COMMON_VERBS and next_tag not in AFTER_NOUN_OF_VERB_FORM)
                        or (noun_tag == "X" and next_tag in AFTER_VERB_ADVERBIAL)
                    )
                    return "V" if is_likely_verb or not noun_tag else noun_tag
                if next_tag == "F" and base not in ("consist",):
                    return noun_tag or "V"
                if is_singular_phrase:
                    return "V"
                if base in COMMON_VERBS and next_tag in AFTER_SINGULAR_COMMON_VERB and not _has_verb(tokens, i):
                    return "V"
                if (possible_tags[0] == "V" or noun_tag == "X") and next_tag in AFTER_SINGULAR_VERB and not _has_verb(tokens, i):
                    return "V"
                return noun_tag or "V"
            if not singular_subject:
                if next_tag in AFTER_PLURAL_VERB or next_tag == "." or (next_tag in NOUN_TAGS and possible_tags[0] == "V"):
                    return (
                        "V"
                        if (
                            possible_tags[0] == "V"
                            or base in COMMON_VERBS
                            or next_tag in OBJECT_START_TAGS
                            or (noun_tag == "X" and next_tag in AFTER_VERB_ADVERBIAL)
                        )
                        else (noun_tag or "V")
                    )
                return noun_tag or "V"
            if "J" in possible_tags and possible_tags[0] == "J" and not head_follows:
                return "J"
            if (
                base in COMMON_VERBS
                and next_tag in AFTER_PLURAL_COMMON_VERB
                and not _has_verb(tokens, i)
                and _has_plural_subject(tokens, i)
            ):
                return "V"
            return noun_tag or ("J" if "J" in possible_tags else "V")
        if (
            previous_tag in ("R", "C", ",")
            and possible_tags[0] == "V"
            and not (noun_tag == "N" and (previous_tag != "R" or next_tag in COORDINATION_TAGS))
        ):
            return "V"
        if previous_tag == "R" and base_form(word) in COMMON_VERBS and word.endswith("s"):
            return "V"
        if previous_tag == "." and next_tag in DETERMINER_TAGS and not is_plural and possible_tags[0] == "V":
            return "V"
        if previous_tag == "C" and word.endswith("s") and base_form(word) in COMMON_VERBS and next_tag in AFTER_COORDINATED_VERB:
            return "V"
        if "J" in possible_tags and (head_follows or not noun_tag):
            return (
                "J"
                if not noun_tag
                or possible_tags.index("J") < possible_tags.index(noun_tag)
                or (tokens.attribute_rank[i] == 2 and next_tag in NOUN_TAGS and word not in ("light",))
                else noun_tag
            )
        return noun_tag or possible_tags[0]
    if noun_tag and "J" in possible_tags:
        prefers_adjective = possible_tags.index("J") < possible_tags.index(noun_tag)
        if word == "light" and words[i + 1 : i + 2] and words[i + 1] in SHADED_COLOURS:
            return "J"
        if previous_tag == "J" and words[i - 1] in COLOUR_MODIFIERS and word in SHADED_COLOURS and tags[i - 2 : i - 1] == ["B"]:
            return "J"  # which is bright orange
        if (
            not head_follows
            and (in_phrase or (previous_tag == "F" and tokens.attribute_rank[i] < 2))
            and (next_tag not in COORDINATION_TAGS or _starts_noun_phrase(tags, i + 1))
        ):
            return noun_tag
        if (
            previous_tag == "N"
            and phrase_start >= 0
            and not (head_follows and tokens.attribute_rank[i] == 2 and possible_tags[0] == "J" and word not in COLOUR_NOUNS)
        ):
            return noun_tag
        if (head_follows or (next_tag in COORDINATION_TAGS and prefers_adjective)) and (next_tag in AFTER_LISTED_ADJECTIVE):
            return "J" if prefers_adjective or (tokens.attribute_rank[i] == 2 and word not in ("light",)) else noun_tag
        if previous_tag in ("B",) and (prefers_adjective or tokens.attribute_rank[i] == 2) and not in_phrase:
            return "J"
        if previous_tag in ("R", "K") and prefers_adjective:
            return "J"
        if prefers_adjective and previous_tag not in PREFERS_NOUN_BEFORE:
            return "J"
        if prefers_adjective and previous_tag in DETERMINER_TAGS and next_tag in AFTER_PHRASE_HEAD:
            return noun_tag
        return "J" if prefers_adjective else noun_tag
    if noun_tag and "R" in possible_tags:
        return noun_tag if in_phrase or possible_tags[0] == noun_tag else "R"
    if "J" in possible_tags and "R" in possible_tags:
        return "J" if head_follows or previous_tag in ("B", "D") else "R" if possible_tags[0] == "R" else "J"
    if "J" in possible_tags and can_be_verb:
        return "J"
    return possible_tags[0]


def _starts_noun_phrase(tags: list[str], comma_index: int) -> bool:
    """Whether a list goes on with another thing after this comma or `and`, and not another adjective: a round ottoman, and a lamp."""
    index = comma_index + 2 if tags[comma_index] == "," and tags[comma_index + 1 : comma_index + 2] == ["C"] else comma_index + 1
    return index >= len(tags) or tags[index] in ("D", ".", "#")


def verb_stem(word: str) -> str:
    """A verb's base, as far as endings tell."""
    base = word.removesuffix("ing").removesuffix("s") if word.endswith(("ing", "s")) else word
    return (
        base[:-1]
        if base[-2:-1] == base[-1:] and base[-1:] in "tnpg"
        else {"tak": "take", "rais": "raise", "giv": "give"}.get(base, base)
    )


def base_form(word: str) -> str:
    if not word.endswith("s"):
        return word
    for suffix, replacement in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("sses", "ss"), ("xes", "x"), ("s", "")):
        if word.endswith(suffix):
            return word[: -len(suffix)] + replacement
    return word


def _has_plural_subject(tokens: Tokens, i: int) -> bool:
    """Whether the clause's first noun is a plural."""
    k = i - 1
    while k >= max(0, i - 30) and tokens.tags[k] not in CLAUSE_BREAK_TAGS:
        k -= 1
    return next(
        (tokens.is_plural[j] for j in range(k + 1, i) if tokens.tags[j] in NOUN_TAGS and tokens.tags[j + 1] not in NOUN_TAGS),
        False,
    )


def _has_verb(tokens: Tokens, i: int) -> bool:
    """Whether the clause had its finite verb before this word."""
    for k in range(i - 1, max(-1, i - 14), -1):
        if tokens.tags[k] in CLAUSE_START_TAGS or tokens.words[k] == "as":
            return False
        if tokens.tags[k] in FINITE_VERB_TAGS:
            return True
    return False
