"""Resolve pronouns and give them their roles in the sentence."""

from __future__ import annotations

from dataclasses import replace

from mmrlhf.claims.actions import complete_action
from mmrlhf.claims.builder import TO_SENTENCE_END, ClaimBuilder
from mmrlhf.claims.grammar import PEER_RELATIONS, VERTICAL_RELATIONS
from mmrlhf.claims.noun_phrases import Phrase
from mmrlhf.claims.relations import attach_target
from mmrlhf.claims.tags import COORDINATION_TAGS, FINITE_VERB_TAGS, PARTICIPLE_TAGS


def process_pronoun(builder: ClaimBuilder, index: int, word: str, previous_tag: str, next_tag: str) -> None:
    """Resolve a pronoun and give it its role."""
    state = builder.state
    antecedent = _find_antecedent(builder, word, state.verb_index >= 0 and next_tag not in FINITE_VERB_TAGS)
    phrase = Phrase(index, index, index + 1, "", word, word in ("they", "them"), True, False)
    if antecedent is not None:
        phrase.antecedent, phrase.is_plural, phrase.is_negated = antecedent, antecedent.is_plural, antecedent.is_negated
    if state.open_relation is not None:
        if word in ("them", "they") and _attach_group(builder, phrase):
            return
        _attach_pronoun(builder, phrase, word)
        return
    if state.verb_index >= 0 and next_tag not in FINITE_VERB_TAGS:
        if state.action is not None and state.action.is_open:
            complete_action(builder, phrase)
        state.conjuncts, state.conjunct_role = [phrase], "object"
        return
    if previous_tag in COORDINATION_TAGS:
        state.negated_until, state.pending_negation = -1, ""
    if word == "none":
        state.negated_until, state.denies_aside = TO_SENTENCE_END, previous_tag == ","
    members = builder.last_group if word in ("they", "them", "none") and builder.last_plural is None else []
    phrases = [replace(phrase, antecedent=member, is_plural=False) for member in members] or [phrase]
    state.subjects = state.actors = state.conjuncts = phrases
    state.conjunct_role, state.verb, state.verb_index, state.has_finite_verb = "subject", "", -1, False
    state.action = None


def _find_antecedent(builder: ClaimBuilder, word: str, is_after_verb: bool) -> Phrase | None:
    """Return the phrase that a pronoun refers to."""
    # A friend films *him*: somebody before the subject.
    is_object = word in ("him", "her")
    if word in ("he", "him", "himself"):
        is_subject = is_object and any(phrase is builder.last_male for phrase in builder.state.subjects)
        return (builder.previous_male if is_subject else builder.last_male) or builder.last_person
    if word in ("she", "her", "herself"):
        is_subject = is_object and any(phrase is builder.last_female for phrase in builder.state.subjects)
        return (builder.previous_female if is_subject else builder.last_female) or builder.last_person
    if word in ("it", "itself", "this", "that"):
        # A bridge crosses *it*: something before the subject.
        is_subject = any(phrase is builder.last_singular for phrase in builder.state.actors)
        is_object = word == "it" and is_after_verb and builder.state.open_relation is None
        return (builder.previous_singular if is_subject and is_object else None) or builder.last_singular
    if word in ("they", "them", "themselves", "these", "those", "none"):
        return builder.last_plural or (builder.last_person if word in ("they", "them") else None) or builder.last_singular
    return None


def _follows_with_phrase(builder: ClaimBuilder) -> bool:
    """Return whether a participle is about a with-phrase: with a guitar leaning against *it*."""
    state = builder.state
    return (
        state.possessor is not None
        and state.conjunct_role == "verb"
        and builder.tokens.tags[state.verb_index] in PARTICIPLE_TAGS
        and bool(state.actors)
        and state.actors[0].start > state.possessor.end
    )


def _attach_group(builder: ClaimBuilder, phrase: Phrase) -> bool:
    """Make each member of the latest group a target: behind *them*. Return False without one."""
    state, members = builder.state, builder.last_group if builder.last_plural is None else []
    opened = state.open_relation
    if not members or opened is None:
        return False
    for member in members:
        state.open_relation = opened
        attach_target(builder, replace(phrase, antecedent=member, is_plural=False))
    return True


def _attach_pronoun(builder: ClaimBuilder, phrase: Phrase, word: str) -> None:
    """Make a pronoun the target of the open relation, or drop it if there is no antecedent."""
    state = builder.state
    assert state.open_relation is not None
    _, _, open_located, is_fronted = state.open_relation
    located = [] if is_fronted else open_located
    if word in ("it", "itself", "them") and state.last_relation is not None:
        # A box on a table with a cat in *it*: the latest target or what is located there, but never
        # what this relation locates.
        latest_target = [state.last_target] if state.last_target else []
        last_located = state.last_relation[1]
        # A cup on a table with a fly in *it* (the table), or with a box next to *it* (the cup).
        relation = state.open_relation[0]
        is_beside = relation in PEER_RELATIONS and relation not in VERTICAL_RELATIONS
        is_within = state.conjunct_role == "with" and not is_beside
        candidates = [*latest_target, *last_located] if is_within else [*last_located, *latest_target]
        for candidate in candidates:
            referent = candidate.referent
            is_person = word != "them" and referent.category == "person"
            if referent.name and not is_person and all(referent is not other.referent for other in located):
                phrase.antecedent = referent
                break
    elif (
        # The room has a table with a vase on *it*.
        word in ("it", "itself")
        and (state.conjunct_role == "with" or _follows_with_phrase(builder))
        and state.possessor is not None
        and state.possessor.name
        and not state.possessor.is_negated
    ):
        phrase.antecedent = state.possessor
        # A vanity with a countertop and a mirror above *it*: the mirror is above the countertop.
        if len(state.conjuncts) == 2 and state.open_relation[0] in VERTICAL_RELATIONS:
            phrase.antecedent = state.conjuncts[0]
            state.open_relation = (*state.open_relation[:2], state.conjuncts[1:], state.open_relation[3])
    if phrase.antecedent is not None:
        attach_target(builder, phrase)
    else:
        state.open_relation = None
