"""Extract spatial relations: a preposition of place, the phrases that it locates, and its target.

The located phrases come before the preposition. In a fronted relation, which opens its sentence,
they come after the target: to the left of the lamp is a chair.
"""

from __future__ import annotations

from mmrlhf.claims.actions import add_preposition, complete_action
from mmrlhf.claims.builder import ClaimBuilder
from mmrlhf.claims.grammar import (
    AIMING_VERBS,
    BODY_PARTS,
    CLOTHES,
    COLOURED_MARKS,
    CONTENTS_WORDS,
    DIRECTED_VERBS,
    EXISTENCE_VERBS,
    IMAGE_NOUNS,
    LOCATION_PREPOSITIONS,
    MAX_CONJUNCTS,
    ROOMS,
)
from mmrlhf.claims.image_places import locate_in_image
from mmrlhf.claims.noun_phrases import Phrase
from mmrlhf.claims.place_rules import Preposition, find_located, gives_no_place
from mmrlhf.claims.tags import COORDINATION_TAGS, FRONTED_TARGET_TAGS
from mmrlhf.claims.verb_forms import verb_stem


def begin_relation(builder: ClaimBuilder, index: int, word: str, previous_tag: str, next_tag: str) -> None:
    """Start a relation at a preposition of place, with the phrases that it locates, if known."""
    state = builder.state
    if state.action is not None:
        add_preposition(builder, index, word)
    preposition = Preposition(state, word, previous_tag, next_tag)
    rule = gives_no_place(preposition)
    if rule is not None:
        if rule.ends_relation:
            state.open_relation = None
        return
    if builder.lexicon.image_places:
        locate_in_image(builder, index, preposition)
    # Below the clock, *on* a shelf, is a cup.
    is_fronted_again = state.fronted_relation is not None and previous_tag == "," and state.conjunct_role == "target"
    if word == "during" or is_fronted_again or not (state.conjuncts or state.actors):
        state.open_relation = (word, index, [], True)
        return
    located = find_located(preposition)
    state.open_relation = (
        word,
        index,
        located,
        previous_tag in COORDINATION_TAGS and (next_tag == "Q" or _is_fronted(builder.tokens.tags, index)),
    )


def _is_fronted(tags: list[str], index: int) -> bool:
    """Return whether a relation's subject follows its target: and *behind* the car is a bus."""
    position = index + 1
    while position < min(len(tags), index + 9) and tags[position] in FRONTED_TARGET_TAGS:
        position += 1
    if tags[position : position + 1] == ["V"]:  # and on the bridge stands *a* man
        return tags[position + 1 : position + 2] in (["D"], ["#"]) and tags[index - 1] == "C"
    return tags[position : position + 1] in (["T"], ["B"])


def attach_target(builder: ClaimBuilder, phrase: Phrase) -> None:
    """Complete the open relation with its target."""
    state = builder.state
    assert state.open_relation is not None or state.last_relation is not None
    if state.open_relation is None:
        return
    relation, index, located, is_fronted = state.open_relation
    state.open_relation = None
    # The target is not an object: on the *side*. Before `of` the next phrase may be the target.
    if not phrase.name and phrase.antecedent is None:
        # The dog is not in the *picture*.
        if relation == "in" and builder.is_negated_at(index) and phrase.noun in IMAGE_NOUNS and located is state.actors:
            for other in located:
                builder.negate_absent(other)
        if phrase.end < len(builder.tokens.tags) and builder.tokens.tags[phrase.end] == "F":
            state.open_relation = (relation, index, located, is_fronted)
        elif located:
            state.conjuncts, state.conjunct_role, state.last_relation = located, "located", None
        else:
            state.conjuncts, state.conjunct_role, state.last_relation = [], "", None
        return
    # The located phrases are yet to come: in the *kitchen*, a woman ...
    if not located or is_fronted:
        if state.fronted_relation is not None and state.fronted_relation[0] != relation:
            state.other_fronted, state.fronted_relation = state.fronted_relation, None
        state.fronted_relation = (
            relation,
            [*(state.fronted_relation[1][-MAX_CONJUNCTS:] if state.fronted_relation else []), phrase],
            index,
        )
        state.conjuncts, state.conjunct_role, state.last_relation = [phrase], "target", None
        if is_fronted:
            state.verb_index, state.verb = -1, ""
        return
    referent = phrase.referent
    if relation == "at" and state.conjunct_role == "object" and verb_stem(state.verb) in AIMING_VERBS:
        return  # swings a racket at a ball
    if relation == "in" and referent.noun in COLOURED_MARKS:
        return  # written in red letters
    place_nouns = builder.lexicon.word_sets["places"]
    # The left side of a road is on the road, but the left side of a man is beside him.
    if relation.endswith(" side of"):
        has_sides_within = referent.name in place_nouns or referent.noun in place_nouns or referent.noun in ROOMS
        relation = "on" if has_sides_within else relation.replace(" side", "")
    if relation == "on" and referent.noun in ROOMS:
        relation = "in"  # on the left side of the room
    # a man in a *hat*
    if relation == "in" and (referent.name in CLOTHES or referent.noun in CLOTHES):
        state.conjuncts, state.conjunct_role = [phrase], "with"
        return
    # ---- choose what is at the target: the verb's object or the actor ----
    is_location = relation in ("at", "past", "along", "across", "through", "down") or (
        relation in LOCATION_PREPOSITIONS and (referent.name in place_nouns or referent.noun in place_nouns)
    )
    # Boys kneel by a net, as well as a man in a *chair*: no object of the verb.
    is_listed = state.last_relation is not None and state.last_relation[2] > state.verb_index
    is_action_object = (
        state.conjunct_role == "object"
        and not is_listed
        and state.verb not in EXISTENCE_VERBS
        and state.actors
        and state.subjects
    )
    is_passing = (
        phrase.antecedent is None
        and relation in ("in front of", "behind", "near", "next to")
        and all(other.referent.name in place_nouns for other in located)
    )  # crosses the road in front of a bus
    # Children listen to the man in the *chair*: the object is there.
    is_directed = is_action_object and state.conjuncts[-1].is_definite and builder.lexicon.verb_base(state.verb) in DIRECTED_VERBS
    if is_action_object and not is_directed and (is_location or is_passing) and referent.noun not in BODY_PARTS:
        # A man eats an apple in the *park*: he is there. He holds it in his *hand*: the apple is.
        located = state.actors
    if state.conjunct_role == "with" and phrase.antecedent is not None and state.actors and state.conjuncts:
        located = state.conjuncts
    elif (
        state.conjunct_role == "with"
        and state.verb in CONTENTS_WORDS
        and len(state.subjects) == 1
        and (relation in LOCATION_PREPOSITIONS or relation == "at")
        and referent.noun not in BODY_PARTS
    ):
        # A pizza with mushrooms on a *plate*: the pizza is there.
        container = state.subjects[0].name
        if container not in place_nouns and state.conjuncts and state.conjuncts[0].name != container:
            located = state.subjects
    if state.action is not None and state.action.is_open:
        complete_action(builder, phrase)  # rides on a horse
        state.action = None
    builder.add_relation(located, relation, phrase, index)
    state.conjuncts, state.conjunct_role, state.last_relation, state.last_target = (
        [phrase],
        "target",
        (relation, located, index),
        phrase,
    )


def resolve_fronted(builder: ClaimBuilder) -> None:
    """Add the relations that came before their subject, now that it is known."""
    state = builder.state
    if state.fronted_relation is None:
        return
    relation, targets, index = state.fronted_relation
    state.resolved_relation, state.fronted_relation = state.fronted_relation, None
    if state.other_fronted is not None:
        for target in state.other_fronted[1]:
            builder.add_relation(state.conjuncts, state.other_fronted[0], target, state.other_fronted[2])
        state.other_fronted = None
    for target in targets:
        builder.add_relation(state.conjuncts, relation, target, index)
