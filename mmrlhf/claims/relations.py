"""Extract spatial relations: a preposition of place, the phrases that it locates, and its target.

The located phrases come before the preposition. In a fronted relation, which opens its sentence,
they come after the target: to the left of the lamp is a chair.
"""

from __future__ import annotations

from mmrlhf.claims.actions import PLACE_ACTIONS, add_preposition, complete_action
from mmrlhf.claims.builder import ClaimBuilder
from mmrlhf.claims.grammar import (
    AIMING_VERBS,
    BODY_PARTS,
    CLOTHES,
    COLOURED_MARKS,
    CONTENTS_WORDS,
    COPULAS,
    DIRECTED_ACTIONS,
    DIRECTED_VERBS,
    EXISTENCE_VERBS,
    LOCATION_PREPOSITIONS,
    MAX_CONJUNCTS,
    MOTION_VERBS,
    NON_LOCATIVE_VERBS,
    PEER_RELATIONS,
    POSSESSION_VERBS,
    ROOMS,
    STATIVE_PARTICIPLES,
    VERTICAL_RELATIONS,
)
from mmrlhf.claims.noun_phrases import Phrase
from mmrlhf.claims.tags import AFTER_VERB_OR_ADVERB, BEFORE_PLACE_OF_ACTOR, COORDINATION_TAGS, FRONTED_TARGET_TAGS, VERB_FORM_TAGS
from mmrlhf.claims.verb_forms import verb_stem


def begin_relation(builder: ClaimBuilder, index: int, word: str, previous_tag: str, next_tag: str) -> None:
    """Start a relation at a preposition of place, with the phrases that it locates, if known."""
    state = builder.state
    add_preposition(builder, index, word)
    # ---- not a place ----
    # chews *on* a bone
    if state.action is not None and state.action.verb.endswith(f" {word}") and state.action.verb not in PLACE_ACTIONS:
        state.open_relation = None
        return
    # talking *on* a phone
    if (
        state.verb in ("talking", "talks", "talk", "speaking", "chatting")
        and word in ("on", "over", "into")
        and previous_tag in AFTER_VERB_OR_ADVERB
    ):
        state.open_relation = None
        return
    # looking *at* a dog
    if state.verb == "looking" and word in ("at", "towards", "toward", "out"):
        return
    # facing *towards* the sea, but: walking *towards* the sea
    if word in ("toward", "towards") and state.verb not in MOTION_VERBS:
        state.open_relation = None
        return
    # smiling *at* a dog
    if (
        word in ("at", "toward", "towards", "on", "through", "over", "into", "around")
        and state.verb in DIRECTED_ACTIONS
        and previous_tag in AFTER_VERB_OR_ADVERB
    ):
        state.open_relation = None
        return
    # dressed *in* black
    if state.verb in NON_LOCATIVE_VERBS and previous_tag in VERB_FORM_TAGS and word in ("in", "on", "against", "with"):
        return
    # pulled *by* a horse, but: parked *by* a house
    if word == "by" and previous_tag == "E" and state.verb not in STATIVE_PARTICIPLES:
        return
    # ---- located phrases ----
    if word == "during" or not (state.conjuncts or state.actors):
        state.open_relation = (word, index, [], True)
        return
    if previous_tag in BEFORE_PLACE_OF_ACTOR and state.actors:
        located = state.actors
    elif previous_tag == "N" and state.conjunct_role == "subject":
        located = state.conjuncts
    elif previous_tag == "N" and state.conjunct_role == "object" and state.verb in POSSESSION_VERBS:
        located = state.conjuncts[-1:]
    elif (
        previous_tag == "N"
        and state.conjunct_role == "with"
        and word in PEER_RELATIONS
        and state.actors
        and state.conjuncts
        and state.conjuncts[-1].noun in CLOTHES
    ):
        located = state.actors  # a girl in a red dress beside a horse
    elif previous_tag == "N" and state.conjunct_role == "denied" and next_tag != "Q":
        located = state.actors or state.conjuncts  # a man without a hat on a beach
    elif previous_tag == "N" and state.conjunct_role == "target" and state.last_relation is not None:
        # Nobody sits on the bench *near* the crosswalk: the bench is there.
        is_peer = word in PEER_RELATIONS and not (word in VERTICAL_RELATIONS and state.verb in COPULAS)
        is_denied = all(phrase.is_negated for phrase in state.last_relation[1])
        located = state.last_relation[1] if is_peer and not is_denied else state.conjuncts
    elif previous_tag == ",":
        located = state.actors or state.conjuncts
        if state.conjunct_role == "target" and state.last_relation is not None and word in PEER_RELATIONS:
            located = state.last_relation[1]
    elif previous_tag == "C":
        located = state.last_relation[1] if state.last_relation is not None else state.actors
    elif previous_tag in ("N", "Q"):
        located = state.conjuncts or state.actors
    else:
        located = state.actors or state.conjuncts
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
        if phrase.end < len(builder.tokens.tags) and builder.tokens.tags[phrase.end] == "F":
            state.open_relation = (relation, index, located, is_fronted)
        elif located:
            state.conjuncts, state.conjunct_role, state.last_relation = located, "located", None
        else:
            state.conjuncts, state.conjunct_role, state.last_relation = [], "", None
        return
    # The located phrases are yet to come: in the *kitchen*, a woman ...
    if not located or is_fronted:
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
    is_action_object = state.conjunct_role == "object" and state.verb not in EXISTENCE_VERBS and state.actors and state.subjects
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
    for target in targets:
        builder.add_relation(state.conjuncts, relation, target, index)
