"""Tables of rules for prepositions of place: whether one gives a place, and of what.

As in `tag_rules`, the first rule that applies decides, and its example, with the preposition in
*stars*, is its test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mmrlhf.claims.actions import PLACE_ACTIONS
from mmrlhf.claims.grammar import (
    CLOTHES,
    COPULAS,
    DIRECTED_ACTIONS,
    MOTION_VERBS,
    NON_LOCATIVE_VERBS,
    PEER_RELATIONS,
    POSSESSION_VERBS,
    STATIVE_PARTICIPLES,
    VERTICAL_RELATIONS,
)
from mmrlhf.claims.noun_phrases import Phrase
from mmrlhf.claims.sentence_state import SentenceState
from mmrlhf.claims.tag_rules import ALL_TAGS
from mmrlhf.text.words import word_set


@dataclass(slots=True)
class Preposition:
    """A preposition of place in its sentence."""

    state: SentenceState
    word: str
    previous_tag: str
    next_tag: str


# ---- prepositions that give no place -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NoPlaceRule:
    """After one of the tags in `after`, one of `words` gives no place, if `applies`.

    `ends_relation` says whether the relation before it ends, too.
    """

    example: str
    words: frozenset[str]
    after: str
    applies: Callable[[Preposition], object]
    ends_relation: bool = True


TALKING = word_set("talking talks talk speaking chatting")


def _is_part_of_action(preposition: Preposition) -> bool:
    action = preposition.state.action
    return action is not None and action.verb.endswith(f" {preposition.word}") and action.verb not in PLACE_ACTIONS


PART_OF_ACTION = NoPlaceRule("A dog chews *on* a bone.", frozenset(), ALL_TAGS, _is_part_of_action)
NO_PLACE = (
    NoPlaceRule("A man is talking *over* a phone.", word_set("on over into"), "VGER", lambda p: p.state.verb in TALKING),
    NoPlaceRule(
        "It is looking *at* a dog.",
        word_set("at towards toward out"),
        ALL_TAGS,
        lambda p: p.state.verb == "looking",
        ends_relation=False,
    ),
    NoPlaceRule(
        "A house faces *towards* the sea.", word_set("toward towards"), ALL_TAGS, lambda p: p.state.verb not in MOTION_VERBS
    ),
    NoPlaceRule(
        "It smiles *at* a dog.",
        word_set("at toward towards on through over into around"),
        "VGER",
        lambda p: p.state.verb in DIRECTED_ACTIONS,
    ),
    NoPlaceRule(
        "A man is wrapped *in* a blanket.",
        word_set("in on against with"),
        "VGE",
        lambda p: p.state.verb in NON_LOCATIVE_VERBS,
        ends_relation=False,
    ),
    NoPlaceRule(
        "A cart is pulled *by* a horse.",
        word_set("by"),
        "E",
        lambda p: p.state.verb not in STATIVE_PARTICIPLES,
        ends_relation=False,
    ),
)


_NO_PLACE_BY_WORD = {
    word: tuple(rule for rule in NO_PLACE if word in rule.words) for word in frozenset().union(*(rule.words for rule in NO_PLACE))
}


def gives_no_place(preposition: Preposition) -> NoPlaceRule | None:
    """Return the rule by which a preposition gives no place, or None if it gives one."""
    if preposition.state.action is not None and PART_OF_ACTION.applies(preposition):
        return PART_OF_ACTION
    for rule in _NO_PLACE_BY_WORD.get(preposition.word, ()):
        if preposition.previous_tag in rule.after and rule.applies(preposition):
            return rule
    return None


# ---- what a place locates ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LocatedRule:
    """After one of the tags in `after`, a place locates the phrases `located`, if `applies`."""

    example: str
    after: str
    located: Callable[[SentenceState], list[Phrase]]
    applies: Callable[[Preposition], object]


def _actors(state: SentenceState) -> list[Phrase]:
    return state.actors


def _conjuncts(state: SentenceState) -> list[Phrase]:
    return state.conjuncts


def _actors_or_conjuncts(state: SentenceState) -> list[Phrase]:
    return state.actors or state.conjuncts


def _conjuncts_or_actors(state: SentenceState) -> list[Phrase]:
    return state.conjuncts or state.actors


def _last_conjunct(state: SentenceState) -> list[Phrase]:
    return state.conjuncts[-1:]


def _located_before(state: SentenceState) -> list[Phrase]:
    """Return the phrases that the latest relation locates."""
    return state.last_relation[1] if state.last_relation is not None else state.actors


def _follows_target(preposition: Preposition) -> bool:
    return preposition.state.conjunct_role == "target" and preposition.state.last_relation is not None


def _is_beside_target(preposition: Preposition) -> bool:
    """Return whether a relation between equals follows another: on a bed *next to* a cat."""
    state, word = preposition.state, preposition.word
    is_peer = word in PEER_RELATIONS and not (word in VERTICAL_RELATIONS and state.verb in COPULAS)
    return is_peer and not all(phrase.is_negated for phrase in _located_before(state))


LOCATED = (
    LocatedRule("A man stands *on* a hill.", "VGEBRJOH?", _actors, lambda p: p.state.actors),
    LocatedRule("A man *on* a hill waves.", "N", _conjuncts, lambda p: p.state.conjunct_role == "subject"),
    LocatedRule(
        "A room has a table *near* a door.",
        "N",
        _last_conjunct,
        lambda p: p.state.conjunct_role == "object" and p.state.verb in POSSESSION_VERBS,
    ),
    LocatedRule(
        "A girl with a red hat *beside* a horse.",
        "N",
        _actors,
        lambda p: (
            p.state.conjunct_role == "with"
            and p.word in PEER_RELATIONS
            and p.state.actors
            and p.state.conjuncts
            and p.state.conjuncts[-1].noun in CLOTHES
        ),
    ),
    LocatedRule(
        "A man without a hat *on* a beach.",
        "N",
        _actors_or_conjuncts,
        lambda p: p.state.conjunct_role == "denied" and p.next_tag != "Q",
    ),
    LocatedRule(
        "A cat is on a bed *next to* a lamp.", "N", _located_before, lambda p: _follows_target(p) and _is_beside_target(p)
    ),
    LocatedRule("A cat is on a bed *in* a room.", "N", _conjuncts, _follows_target),
    LocatedRule(
        "A cat is on a bed, *next to* a lamp.", ",", _located_before, lambda p: _follows_target(p) and p.word in PEER_RELATIONS
    ),
    LocatedRule("A cat sleeps here, *on* a bed.", ",", _actors_or_conjuncts, lambda p: True),
    LocatedRule("A cat is on a bed and *near* a lamp.", "C", _located_before, lambda p: True),
    LocatedRule(
        "On the table are a cup and a knife *near* a plate.",
        "N",
        _last_conjunct,
        lambda p: p.state.conjunct_role == "object" and p.state.resolved_relation is not None,
    ),
    LocatedRule("A man holds a cup *near* a lamp.", "NQ", _conjuncts_or_actors, lambda p: True),
    LocatedRule("The dog isn't on the couch, but *on* the rug.", ALL_TAGS, _actors_or_conjuncts, lambda p: True),
)
_LOCATED_AFTER = {tag: tuple(rule for rule in LOCATED if tag in rule.after) for tag in ALL_TAGS}


def find_located(preposition: Preposition) -> list[Phrase]:
    """Return the phrases that a preposition of place locates."""
    for rule in _LOCATED_AFTER[preposition.previous_tag]:
        if rule.applies(preposition):
            return rule.located(preposition.state)
    return []
