"""Process verbs, participles and adjectives: who acts, and the subject's attributes."""

from __future__ import annotations

from mmrlhf.claims.actions import begin_action
from mmrlhf.claims.builder import TO_SENTENCE_END, ClaimBuilder
from mmrlhf.claims.grammar import (
    ABSENCE_WORDS,
    ANIMATE_ACTIONS,
    BARE_INFINITIVE_VERBS,
    BODY_PARTS,
    CLOTHES,
    CLUTTER_PARTICIPLES,
    COLOUR_MODIFIERS,
    OPENNESS_ADJECTIVES,
    PAINT_PARTICIPLES,
    POSSESSION_VERBS,
    PRESENCE_WORDS,
    SEEM_FORMS,
    SPEAKERS,
    UNDENIED_OBJECT_VERBS,
)
from mmrlhf.claims.noun_phrases import Phrase
from mmrlhf.claims.tags import (
    AFTER_ACTION_PARTICIPLE,
    AFTER_SEEN,
    BEFORE_ATTRIBUTIVE,
    BEFORE_MADE_OF,
    BEFORE_OPENNESS,
    BEFORE_PREDICATE_PARTICIPLE,
    COMMON_NOUN_TAGS,
    COORDINATION_TAGS,
    HEAD_START_TAGS,
)
from mmrlhf.claims.verb_forms import base_form


def process_verb(
    builder: ClaimBuilder, index: int, tag: str, word: str, previous_tag: str, next_tag: str, tags: str, end: int
) -> None:
    """Update the state for a finite verb."""
    state = builder.state
    state.open_relation = None
    is_negated = builder.is_negated_at(index)
    # might *be*: continues the verb
    if tag == "B" and word in ("be", "been", "being") and state.verb_index >= 0 and previous_tag not in COORDINATION_TAGS:
        state.verb, state.verb_index = word, index
        return
    if tag == "V":
        _hedge_by_verb(builder, index, word, next_tag, tags, is_negated)
    if is_negated:
        # It is not red and *has* a roof; but: it does not sit or *stand*
        is_third_person = tag in ("B", "H") or word.endswith("s")
        begins_predicate = previous_tag == "C" and is_third_person and builder.tokens.words[index - 1] == "and"
        # The man does not *notice* the dog: it is there.
        if begins_predicate or (tag == "V" and _is_undenied_object_verb(builder, base_form(word))):
            state.negated_until = -1
    # Who acts: in a relative clause the phrase before it, then the subject of the main clause.
    if state.in_relative_clause:
        state.in_relative_clause = False
    elif state.outer_subjects is not None and (previous_tag == "," or state.verb_index >= 0):
        state.actors = state.outer_subjects
        state.subjects, state.outer_subjects = state.outer_subjects, None
        state.conjuncts, state.conjunct_role = state.subjects, "subject"
    elif state.conjunct_role == "subject" and state.conjuncts:
        state.actors = state.subjects = state.conjuncts
    elif tag == "V" and previous_tag == "N" and state.verb in BARE_INFINITIVE_VERBS and not word.endswith("s"):
        # The children watch the man in the chair *read*.
        state.actors = state.last_relation[1] if state.conjunct_role == "target" and state.last_relation else state.conjuncts
    elif state.conjunct_role == "target" and state.fronted_relation is None:
        state.actors = state.subjects or state.actors
    elif previous_tag in COORDINATION_TAGS or (state.conjunct_role == "with" and state.subjects):
        state.actors = state.subjects
    # No dog *is* on the couch: a negated subject negates the predicate.
    if (
        state.actors
        and state.actors[0].is_negated
        and state.actors[0].antecedent is None
        and all(phrase.is_negated for phrase in state.actors)
    ):
        state.negated_until = TO_SENTENCE_END
    if state.pending_negation == "neither":
        state.negated_until = TO_SENTENCE_END
    state.pending_negation = ""
    state.verb, state.verb_index, state.has_finite_verb = word, index, True
    state.conjuncts, state.conjunct_role = [], "verb"
    if tag == "V":
        begin_action(builder, index, tag, word, is_negated)
    else:
        state.action = None


def _hedge_by_verb(builder: ClaimBuilder, index: int, word: str, next_tag: str, tags: str, is_negated: bool) -> None:
    """Hedge the predicate after a verb of appearance: the dog *appears* to sleep."""
    is_seeming = word in SEEM_FORMS and not is_negated
    is_followed = next_tag in ("I", "J") or (next_tag == "R" and tags[index + 2 : index + 3] in ("I", "J", "E"))
    is_doubt = word in ("doubt", "doubts") and not is_negated
    if (is_seeming and is_followed) or is_doubt or word in ("suggests", "suggest", "resembles", "resemble"):
        builder.state.is_hedged, builder.state.hedge_index = True, index


def _is_undenied_object_verb(builder: ClaimBuilder, base: str) -> bool:
    """Return whether a denied verb leaves its object: he does not *notice* the dog.

    Things that `we` do not see are not in the image.
    """
    if base not in UNDENIED_OBJECT_VERBS:
        return False
    return not any(phrase.noun in SPEAKERS for phrase in builder.state.subjects) or base in (
        "miss",
        "ignore",
        "overlook",
        "forget",
        "doubt",
    )


def process_participle(
    builder: ClaimBuilder, index: int, tag: str, word: str, previous_tag: str, next_tag: str, tags: str, end: int
) -> None:
    """Update the state for an -ing or -ed form that is not part of a noun phrase."""
    state, tokens = builder.state, builder.tokens
    state.open_relation = None
    is_negated = builder.is_negated_at(index)
    if word in OPENNESS_ADJECTIVES and previous_tag in BEFORE_OPENNESS and _is_possession(builder):
        builder.add_attribute(state.conjuncts[-1], word, index, index + 1)
        return
    if state.in_relative_clause:
        state.in_relative_clause = False
    # a man with a bag *walking*: not the bag
    if (
        previous_tag == "N"
        and state.conjunct_role in ("with", "target", "object")
        and state.subjects
        and not state.subjects[0].is_negated
        and state.conjuncts
        and (word in ANIMATE_ACTIONS or (tag == "G" and _is_worn(state.conjuncts[-1])))
        and builder.is_animate(state.subjects[0])
        and not builder.is_animate(state.conjuncts[-1])
    ):
        state.actors = state.subjects
    elif previous_tag == "N" and state.conjuncts:
        state.actors = (
            state.conjuncts
            if state.conjunct_role == "subject" or (len(state.conjuncts) == 2 and state.conjunct_role != "with")
            else state.conjuncts[-1:]
        )
    elif previous_tag == "," and state.subjects and state.conjunct_role != "subject":
        # The image shows an elephant standing in a river, *spraying* water.
        if any(phrase.referent.name for phrase in state.subjects) or not state.actors:
            state.actors = state.subjects
    elif previous_tag == "," and state.conjuncts and not state.subjects:
        state.actors = state.conjuncts
    if tag == "G" and builder.is_negated_at(index) and _is_undenied_object_verb(builder, builder.lexicon.verb_base(word)):
        state.negated_until = -1
    if word in ("suggesting", "indicating", "implying", "resembling"):
        state.is_hedged, state.hedge_index = True, index
    # Negated: a dog is not *seen*. Hedged: a dog can possibly be *seen*.
    is_presence = word in PRESENCE_WORDS or _is_spotted(builder, index, word, next_tag)
    if word == "used" and previous_tag == "T":
        state.negated_until = TO_SENTENCE_END  # there *used* to be a tree
    # A bicycle is *missing* a wheel. What is *missing* is a dog.
    if word == "missing" and next_tag in ("D", "#"):
        state.pending_negation = "word"
    elif word in ABSENCE_WORDS and not any(phrase.referent.name for phrase in state.actors):
        state.negated_until = TO_SENTENCE_END
    elif word in ABSENCE_WORDS or (is_presence and builder.is_negated_at(index)):
        for phrase in state.actors:
            builder.negate_absent(phrase)
    elif is_presence and state.is_hedged and state.hedge_index < index and index - state.hedge_index <= 3:
        for phrase in state.actors:
            builder.hedge(phrase)
    if tag == "E":
        if word in PAINT_PARTICIPLES and (next_tag in ("J", "R") or not builder.is_negated_at(index)):
            _add_painted_colours(builder, index, tags, end)
        elif word == "made" and previous_tag in BEFORE_MADE_OF:
            _add_materials(builder, index, tags, end)
        elif (
            # The door is *closed*; the desk is *cluttered* with books.
            previous_tag in BEFORE_PREDICATE_PARTICIPLE
            and not is_presence
            and tokens.attribute_rank[index]
            and next_tag != "I"
            and (
                next_tag not in AFTER_ACTION_PARTICIPLE
                or (next_tag == "A" and word in CLUTTER_PARTICIPLES)
                or (next_tag == "P" and word in ("closed", "broken"))
            )
            and state.verb_index >= 0
            and tokens.words[state.verb_index] in ("is", "are", "was", "were", "be", "'s")
        ):
            for phrase in state.actors:
                builder.add_attribute(phrase, word, index, index + 1)
    state.verb, state.verb_index = word, index
    state.conjuncts, state.conjunct_role = [], "verb"
    begin_action(builder, index, tag, word, is_negated)


def _is_worn(phrase: Phrase) -> bool:
    """Return whether a phrase names clothes or a part of the body, which do not act."""
    return phrase.noun in CLOTHES or phrase.name in CLOTHES or phrase.noun in BODY_PARTS


def _is_spotted(builder: ClaimBuilder, index: int, word: str, next_tag: str) -> bool:
    """Return whether `spotted` means seen: cups can be *spotted*, a plane is *spotted* flying."""
    return word == "spotted" and (next_tag in AFTER_SEEN or builder.tokens.words[index - 1] in ("be", "been"))


def _add_painted_colours(builder: ClaimBuilder, index: int, tags: str, end: int) -> None:
    """Add the colours after `painted`, with their modifiers: painted light blue and white."""
    tokens, k = builder.tokens, index + 1
    while k < end and tags[k] == "R":
        k += 1
    while k < end and tags[k] == "J" and (tokens.attribute_rank[k] or tokens.words[k] in COLOUR_MODIFIERS):
        has_modifier = tokens.words[k] in COLOUR_MODIFIERS and tags[k + 1 : min(k + 2, end)] == "J"
        for phrase in builder.state.actors:
            builder.add_attribute(phrase, " ".join(tokens.words[k : k + 1 + has_modifier]), index, k + 1 + has_modifier)
        k += 1 + has_modifier
        # The list ends where the next colour describes a noun: painted blue and white walls.
        next_has_modifier = tokens.words[k + 1 : k + 2] != [] and tokens.words[k + 1] in COLOUR_MODIFIERS
        last_colour_word = k + 1 + next_has_modifier
        if (
            tags[k : k + 1] not in COORDINATION_TAGS
            or tags[k + 1 : last_colour_word + 1].strip("J")
            or tags[last_colour_word + 1 : last_colour_word + 2] in HEAD_START_TAGS
        ):
            return
        k += 1


def _add_materials(builder: ClaimBuilder, index: int, tags: str, end: int) -> None:
    """Add the materials after `made of`, and mark their nouns as not objects.

    Made of dark wood and metal: two attributes.
    """
    tokens, materials = builder.tokens, builder.lexicon.word_sets["materials"]
    k = index + 2 if tags[index + 1 : index + 2] in ("F", "A") else end
    while k < end:
        while k < end and tags[k] in ("R", "J") and tokens.words[k] not in materials:
            k += 1
        is_metal_compound = tokens.words[k : k + 1] in (["stainless"], ["wrought"], ["cast"]) and k + 1 < end
        stop = k + 1 + is_metal_compound  # stainless steel, wrought iron
        value = " ".join(tokens.words[k:stop])
        if k >= end or value not in materials or tags[stop : min(stop + 1, end)] in COMMON_NOUN_TAGS:
            return
        for phrase in builder.state.actors:
            builder.add_attribute(phrase, value, k, stop)
        for j in range(k, stop):
            tokens.tags[j], tokens.nouns[j] = "X", "material"
        k = stop + 1 if tags[stop : stop + 1] in COORDINATION_TAGS else end


def _is_possession(builder: ClaimBuilder) -> bool:
    """Return whether the latest phrase is something that somebody has: with his *mouth* open."""
    state = builder.state
    is_owned = state.conjunct_role == "with" or (state.conjunct_role == "object" and state.verb in POSSESSION_VERBS)
    return is_owned and bool(state.conjuncts) and state.conjuncts[-1].is_definite


def process_adjective(
    builder: ClaimBuilder, index: int, word: str, previous_tag: str, next_tag: str, tags: str, end: int
) -> None:
    """Add the attribute of an adjective outside a noun phrase: the dog is *brown* and *large*."""
    state, tokens = builder.state, builder.tokens
    # A dog is not *visible*.
    if word in PRESENCE_WORDS or word in ABSENCE_WORDS or _is_spotted(builder, index, word, next_tag):
        if word in ABSENCE_WORDS and not any(phrase.referent.name for phrase in state.actors):
            state.negated_until = TO_SENTENCE_END  # What is *absent* is a dog.
        elif builder.is_negated_at(index) or word in ABSENCE_WORDS:
            for phrase in state.actors:
                builder.negate_absent(phrase)
            if word == "nowhere":
                state.negated_until = TO_SENTENCE_END
        elif state.is_hedged and index - state.hedge_index <= 3:
            for phrase in state.actors:
                builder.hedge(phrase)
        return
    if word in OPENNESS_ADJECTIVES and previous_tag in BEFORE_OPENNESS and _is_possession(builder):
        builder.add_attribute(state.conjuncts[-1], word, index, index + 1)
        return
    # Not a visible attribute of the subject: taller than ..., it is not *clear* what ...
    if (
        state.verb_index < 0
        or not (tokens.attribute_rank[index] or word in COLOUR_MODIFIERS)
        or not state.actors
        or (next_tag == "W" and state.actors[0].antecedent is not None)
        or tokens.words[index + 1 : index + 2] == ["than"]
    ):
        return
    governing_verb = state.verb
    is_linking = governing_verb in ("is", "are", "was", "were", "be", "been", "'s", "'re") or base_form(governing_verb) in (
        "look",
        "appear",
        "seem",
        "remain",
        "stay",
        "become",
        *(("sit", "stand", "lie", "hang") if word in OPENNESS_ADJECTIVES or word in ("empty", "upright") else ()),
    )
    # Part of a noun phrase, or about an object: with a *red* ..., finds it *empty*.
    if not is_linking or state.conjunct_role == "with" or previous_tag in BEFORE_ATTRIBUTIVE:
        return
    if previous_tag == "P" or (state.conjuncts is not state.actors and state.conjunct_role in ("object", "target")):
        return
    if index > 0 and tags[index - 1] == "J" and tokens.words[index - 1] in COLOUR_MODIFIERS:
        return  # already added together with its modifier
    value, stop = word, index + 1
    if word in COLOUR_MODIFIERS and tags[index + 1 : index + 2] == "J" and index + 1 < end:
        value, stop = f"{word} {tokens.words[index + 1]}", index + 2
    elif not tokens.attribute_rank[index]:
        return
    for phrase in state.actors:
        builder.add_attribute(phrase, value, index, stop)
