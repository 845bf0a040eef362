"""The state of the pass over a sentence: actors, open relations, negations and hedges."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmrlhf.claims.noun_phrases import Phrase


@dataclass(slots=True)
class Action:
    """A verb with its actors, which waits for its target.

    A participle is passive if `by` follows: the phrase after it is the actor. A closed action takes
    only targets that `and` adds.
    """

    verb: str
    index: int
    actors: list[Phrase]
    is_negated: bool
    is_hedged: bool
    is_participle: bool = False
    is_passive: bool = False
    is_open: bool = True


@dataclass(slots=True)
class SentenceState:
    """The state of the pass over a sentence. Indices are token indices."""

    subjects: list[Phrase] = field(default_factory=list)
    actors: list[Phrase] = field(default_factory=list)
    """The phrases that the latest verb, participle or adjective is about."""
    conjuncts: list[Phrase] = field(default_factory=list)
    """The latest phrases, joined by `and`."""
    conjunct_role: str = ""
    """Role of `conjuncts`: subject, object, target (of a relation), with (after `with`), denied
    (after `without` or `, not`), located (at something that is not an object), verb (no phrase
    since the verb) or "".
    """
    verb: str = ""
    verb_index: int = -1
    has_finite_verb: bool = False
    open_relation: tuple[str, int, list[Phrase], bool] | None = None
    """A relation without its target: name, index, located phrases, whether it is fronted."""
    fronted_relation: tuple[str, list[Phrase], int] | None = None
    """A relation that precedes its subject: name, targets, index."""
    other_fronted: tuple[str, list[Phrase], int] | None = None
    """One more relation that precedes its subject: *below the clock*, on a shelf, is a cup."""
    resolved_relation: tuple[str, list[Phrase], int] | None = None
    """A relation that preceded its subject, for subjects that `and` adds."""
    fronted_place: tuple[str, Phrase, int] | None = None
    """A place in the image that precedes its subject: relation, image, index."""
    resolved_place: tuple[str, Phrase, int] | None = None
    """A place in the image that preceded its subject, for subjects that `and` adds."""
    image_place_end: int = -1
    """Where the latest place in the image ends."""
    last_relation: tuple[str, list[Phrase], int] | None = None
    """The latest complete relation, for targets that `and` adds: name, located phrases, index."""
    negated_until: int = -1
    """Indefinite phrases and predicates before this index are negated."""
    denies_aside: bool = False
    """Whether the negation holds for an aside between commas: chairs, *none of which* is taken."""
    pending_negation: str = ""
    """A negation that reaches only the next phrases: word (after not, without), neither or ""."""
    last_target: Phrase | None = None
    possessor: Phrase | None = None
    """The phrase before the latest `with`."""
    is_hedged: bool = False
    hedge_index: int = -9
    in_relative_clause: bool = False
    action: Action | None = None
    """The latest action, to which `and` can add targets."""
    outer_subjects: list[Phrase] | None = None
    """Subjects of the main clause, while a relative clause is read."""
    of_phrase: Phrase | None = None
    """The latest phrase after `of`: the beard of a *man*."""
