"""Collect a text's claims; the state of the sentence decides whether they are negated or hedged.

Also tracks the phrases that pronouns can refer to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

from mmrlhf.claims.grammar import (
    ANIMATE_CLASSES,
    BALL_SPORTS,
    BODY_PARTS,
    CLAIM_ORDER,
    COLOUR_WORDS,
    FEMALE_NOUNS,
    MALE_NOUNS,
    NEGATIVE_PRONOUNS,
    OTHER_ANIMALS,
    PAIRED_NOUNS,
    POSSESSION_ACTIONS,
)
from mmrlhf.claims.lexicon import Lexicon
from mmrlhf.claims.noun_phrases import Phrase
from mmrlhf.claims.sentence_state import SentenceState
from mmrlhf.claims.tagging import Tokens
from mmrlhf.claims.tags import LABEL_START_TAGS
from mmrlhf.records import Claim

MAX_AMENDABLE_CLAIMS = 40
"""Number of the latest claims that a later word can negate or hedge."""
MAX_RELATION_TOKENS = 40
"""Longest span of a relation in tokens; a longer one starts at the preposition instead."""
TO_SENTENCE_END = 10**9
"""`negated_until` of a negation that holds for the rest of its sentence."""


def split_colours(value: str) -> tuple[str, ...]:
    """Return the colours of a predicate such as `red-and-white`, else the value alone."""
    parts = tuple(value.split("-and-"))
    return parts if len(parts) == 2 and COLOUR_WORDS.issuperset(parts) else (value,)


class ClaimBuilder:
    """Collects the claims of a text."""

    last_singular: Phrase | None = None
    previous_singular: Phrase | None = None
    """The thing before `last_singular`."""
    last_plural: Phrase | None = None
    last_person: Phrase | None = None
    last_male: Phrase | None = None
    """The latest person that `he` can refer to; `previous_male` is the one before."""
    last_female: Phrase | None = None
    previous_male: Phrase | None = None
    previous_female: Phrase | None = None
    last_group: Sequence[Phrase] = ()
    """The latest subjects joined by `and`, to which `they` can refer."""
    item: Phrase | None = None
    """The item of a list, while its line is read."""
    counts_one = False
    """Whether any count is one."""
    skip_until = 0
    """Tokens before this index have been read as the description of an item."""
    _last_singular_is_subject = False

    def __init__(self, tokens: Tokens, lexicon: Lexicon) -> None:
        self.tokens, self.lexicon, self.state = tokens, lexicon, SentenceState()
        self.ranked_claims: list[tuple[int, int, Claim]] = []
        """Start of the phrase's head, rank of the kind, claim. The first two give the order."""
        self.nouns_with_others: set[str] = set()
        """Nouns of phrases that imply more of their kind: another dog."""
        self.mentioned_nouns: set[str] = set()
        self.has_alternatives = "or" in tokens.words

    def claims(self) -> list[Claim]:
        """Return the distinct claims in the order of the text.

        A count of one is left out if it counts one of several: one dog ..., the other dog ...
        """
        claims = [claim for _, _, claim in sorted(self.ranked_claims, key=itemgetter(0, 1))]
        if self.counts_one:
            counted = {(c.subject, c.value) for c in claims if c.kind == "count"}
            partial = {noun for noun, value in counted if value != "1"} | self.nouns_with_others
            partial |= self._partial_nouns()
            claims = [c for c in claims if not (c.kind == "count" and c.value == "1" and ("" in partial or c.subject in partial))]
        return list(dict.fromkeys(claims))

    def _partial_nouns(self) -> set[str]:
        """Return the names that have others of their kind; "" stands for any name.

        One dog is black, the *other* is white; one of the *men*.
        """
        words, tags, partial = self.tokens.words, self.tokens.tags, set()
        for index, word in enumerate(words):
            is_other = word == "other" and tags[index + 1 : index + 2] not in (["N"], ["J"], ["X"])
            if is_other or (word == "one" and tags[index] == "X"):
                is_member = tags[index + 1 : index + 3] == ["F", "D"] and tags[index + 3 : index + 4] == ["N"]
                partial.add(self.lexicon.canonical_name(self.tokens.nouns[index + 3]) if is_member else "")
        return partial

    def is_negated_at(self, index: int) -> bool:
        return index < self.state.negated_until

    def is_negated(self, phrase: Phrase) -> bool:
        """Return whether a phrase is negated, by itself or by its sentence."""
        return phrase.is_negated or (
            self.is_negated_at(phrase.start)
            and not phrase.is_definite
            and self.state.verb_index >= 0
            and phrase.antecedent is None
        )

    def _is_hedged(self, phrase: Phrase) -> bool:
        state = self.state
        # A definite phrase is not hedged, unless the hedge is right before it: it is possibly the
        # dog.
        is_right_after_hedge = (
            phrase.start == state.hedge_index + 1
            and state.hedge_index > 0
            and self.tokens.tags[state.hedge_index - 1] in (",", "B")
        )
        if phrase.is_definite and not is_right_after_hedge:
            return False
        return phrase.start > state.hedge_index

    def add_phrase(self, phrase: Phrase) -> None:
        """Add the claims that a phrase makes by itself: existence, number and attributes."""
        tokens, state = self.tokens, self.state
        words = tokens.words
        if words[phrase.end - 1] in NEGATIVE_PRONOUNS:
            phrase.is_negated = True
        # playing *baseball*, in *light*: not objects
        if phrase.is_bare and not phrase.is_plural and (phrase.name in BALL_SPORTS or phrase.name == "light"):
            phrase.name = ""
        if not phrase.name:
            return
        phrase.category = self.lexicon.coco_class(phrase.name)
        if phrase.start < state.negated_until and state.open_relation is None and self.is_negated(phrase):
            # Nobody throws a coin: there may be one.
            is_undecided = not phrase.is_negated and state.action is not None and state.action.verb not in POSSESSION_ACTIONS
            phrase.is_negated = True
            if is_undecided and state.action is not None and state.action.is_negated:
                return
        if phrase.is_additive and phrase.is_negated:
            # no *other* people: these are there; nobody *else*
            phrase.name = ""
            return
        if phrase.is_additive:
            if phrase.name in self.mentioned_nouns:
                phrase.count = None  # two more dogs: not two in all
            self.nouns_with_others.add(phrase.name)
        # A player in blue kicks the ball, *two players* run: not two in all.
        if phrase.count and phrase.name in self.mentioned_nouns and not phrase.is_definite:
            is_presented = state.verb_index >= 0 and tokens.tags[state.verb_index - 1] == "T"
            if not is_presented:
                phrase.count = None
        # Players: four players
        is_heading = phrase.is_bare and phrase.end < len(words) and words[phrase.end] in (":", "-", "–", "—")
        if not is_heading:
            self.mentioned_nouns.add(phrase.name)
        is_hedged = state.is_hedged and self._is_hedged(phrase)
        if self.has_alternatives and not phrase.is_negated and self._is_alternative(phrase):
            is_hedged = phrase.is_alternative = True
        self._add_claim("object", phrase, phrase.head, phrase.end, negated=phrase.is_negated, hedged=is_hedged)
        if phrase.count == 1:
            self.counts_one = True
            if phrase.is_negated:
                phrase.count = None  # not a single *dog*
        if (
            phrase.count is not None
            and not (phrase.count == 2 and phrase.noun in PAIRED_NOUNS and words[phrase.count_index] == "pair")
            and phrase.name not in self.lexicon.word_sets["plural only"]
        ):
            self._add_claim(
                "count",
                phrase,
                phrase.count_index,
                phrase.end,
                value=str(phrase.count),
                negated=phrase.is_negated,
                hedged=is_hedged or phrase.is_approximate,
            )
        for value, index in phrase.attributes:
            self._add_claim("attribute", phrase, index, phrase.end, value=value, negated=phrase.is_negated, hedged=is_hedged)
        self._update_antecedents(phrase)

    def _is_alternative(self, phrase: Phrase) -> bool:
        """Return whether a phrase is one of two alternatives."""
        words, tags = self.tokens.words, self.tokens.tags
        # a dog or a *cat*
        if phrase.start > 0 and words[phrase.start - 1] == "or" and tags[phrase.start - 1] == "C":
            return bool(self.state.conjuncts) and self.state.conjunct_role != ""
        # a *dog* or a cat
        return phrase.end + 1 < len(words) and words[phrase.end] == "or" and tags[phrase.end + 1][0] in LABEL_START_TAGS

    def add_count(self, phrase: Phrase, stop: int) -> None:
        """Add the count of a phrase whose number follows it: dogs: 2."""
        self.counts_one = self.counts_one or phrase.count == 1
        self._add_claim("count", phrase, phrase.start, stop, value=str(phrase.count), negated=phrase.is_negated, hedged=False)

    def remember_group(self, phrases: list[Phrase]) -> None:
        """Remember subjects joined by `and`: a man and a woman ... *they*."""
        named = [phrase for phrase in phrases if phrase.name]
        if len(named) > 1 and all(self.is_animate(phrase) for phrase in named):
            self.last_group, self.last_plural = named, None

    def _update_antecedents(self, phrase: Phrase) -> None:
        """Remember a phrase for later pronouns; subjects take precedence."""
        # Person: she is ...: a heading
        if phrase.is_bare and self.last_person is not None and self.tokens.words[phrase.end : phrase.end + 1] == [":"]:
            return
        is_subject = self.state.verb_index < 0 or not self.state.subjects
        if phrase.category == "person":
            self._remember_person(phrase, is_subject)
        elif phrase.is_negated:
            return
        elif not phrase.is_plural and (is_subject or self.last_singular is None or not self._last_singular_is_subject):
            self.previous_singular, self.last_singular = self.last_singular, phrase
            self._last_singular_is_subject = is_subject
        # `they` keeps referring to a group of persons, unless others become the subject.
        elif (
            phrase.is_plural
            and phrase.noun not in BODY_PARTS
            and (is_subject or (self.last_plural is None and not self.last_group))
        ):
            self.last_plural = phrase

    def _remember_person(self, phrase: Phrase, is_subject: bool) -> None:
        if phrase.is_plural and (is_subject or self.last_plural is None):
            self.last_plural = phrase
        if (phrase.noun not in FEMALE_NOUNS and (is_subject or self.last_male is None)) or (
            phrase.noun in MALE_NOUNS and self.last_male is not None and self.last_male.noun not in MALE_NOUNS
        ):
            self.previous_male, self.last_male = self.last_male, phrase
        if (phrase.noun not in MALE_NOUNS and (is_subject or self.last_female is None)) or (
            phrase.noun in FEMALE_NOUNS and self.last_female is not None and self.last_female.noun not in FEMALE_NOUNS
        ):
            self.previous_female, self.last_female = self.last_female, phrase
        if is_subject or self.last_person is None:
            self.last_person = phrase

    def _add_claim(
        self, kind: Any, phrase: Phrase, start: int, stop: int, value: str = "", relation: str = "", target: str = "",
        *, negated: bool, hedged: bool,
    ) -> None:  # fmt: skip
        tokens, referent = self.tokens, phrase.antecedent or phrase
        span = (tokens.starts[start], tokens.ends[stop - 1])
        # The constructor of a frozen dataclass, which sets fields one by one, takes over twice as
        # long.
        claim = object.__new__(Claim)
        claim.__dict__.update(
            kind=kind, subject=referent.name, value=value, span=span, relation=relation, target=target, negated=negated,
            hedged=hedged, category=referent.category,
        )  # fmt: skip
        self.ranked_claims.append((tokens.starts[phrase.head], CLAIM_ORDER[kind], claim))

    def add_attribute(self, phrase: Phrase, value: str, index: int, stop: int) -> None:
        """Add an attribute, tokens `index` to `stop`, of a phrase elsewhere in the sentence."""
        for part in split_colours(value) if "-and-" in value else (value,):
            self._add_attribute(phrase, part, index, stop)

    def _add_attribute(self, phrase: Phrase, value: str, index: int, stop: int) -> None:
        if not phrase.referent.name:
            return
        start, end = min(phrase.start if phrase.antecedent else phrase.head, index), max(phrase.end, stop)
        self._add_claim(
            "attribute",
            phrase,
            start,
            end,
            value=value,
            negated=phrase.is_negated or self.is_negated_at(index) or self.state.pending_negation == "word",
            hedged=self.state.is_hedged and index > self.state.hedge_index,
        )

    def add_relation(self, phrases: list[Phrase], relation: str, target: Phrase, index: int) -> None:
        """Add a relation between each phrase and a target; its preposition is token `index`."""
        state = self.state
        target_referent = target.referent
        if not target_referent.name:
            return
        for phrase in phrases:
            referent = phrase.referent
            if (
                not referent.name
                or referent is target_referent
                or (referent.name == target_referent.name and (phrase.antecedent or target.antecedent))
            ):
                continue
            start, stop = min(phrase.head, index, target.head), max(phrase.end, target.end)
            if stop - start > MAX_RELATION_TOKENS:
                start = min(index, target.head)
            # He does not notice the dog behind him: the verb denies nothing about its object.
            is_given_object = phrase.is_definite and (
                0 <= state.verb_index < phrase.start or all(phrase is not subject for subject in state.subjects)
            )
            negated = phrase.is_negated or (self.is_negated_at(index) and not is_given_object)
            hedged = (state.is_hedged and (index > state.hedge_index or phrase.start > state.hedge_index)) or (
                target.is_alternative or phrase.is_alternative
            )
            self._add_claim(
                "relation", phrase, start, stop, relation=relation, target=target_referent.name, negated=negated, hedged=hedged
            )

    def add_action(
        self, actors: list[Phrase], verb: str, targets: list[Phrase], index: int, is_negated: bool, is_hedged: bool
    ) -> None:
        """Add an action of each actor on each target; its verb is token `index`."""
        for actor in actors:
            for target in targets:
                if not actor.referent.name or not target.referent.name or actor.referent is target.referent:
                    continue
                start, stop = min(actor.head, index, target.head), max(actor.end, index + 1, target.end)
                if stop - start > MAX_RELATION_TOKENS:
                    start = min(index, target.head)
                self._add_claim(
                    "action",
                    actor,
                    start,
                    stop,
                    relation=verb,
                    target=target.referent.name,
                    negated=is_negated or actor.is_negated or target.is_negated,
                    hedged=is_hedged or actor.is_alternative or target.is_alternative,
                )

    def is_animate(self, phrase: Phrase) -> bool:
        """Return whether a phrase names a person or an animal."""
        referent = phrase.antecedent or phrase
        return referent.category in ANIMATE_CLASSES or referent.noun in OTHER_ANIMALS

    def negate(self, phrase: Phrase) -> None:
        """Negate a phrase's claims after the fact: the left pedal is *missing*."""
        self._amend(phrase, {"negated": True})

    def negate_absent(self, phrase: Phrase) -> None:
        """Negate what is *missing*. Two of its bulbs are missing: there are others."""
        words, start = self.tokens.words, phrase.start
        is_some = start > 1 and self.tokens.tags[start - 1] == "F" and words[start - 2] not in ("all", "any", "none")
        if not phrase.count and not is_some:
            self.negate(phrase)
            return
        head_start = self.tokens.starts[phrase.head]
        self.ranked_claims = [
            entry
            for entry in self.ranked_claims
            if not (entry[2].kind == "count" and entry[2].subject == phrase.referent.name and entry[0] == head_start)
        ]

    def withdraw(self, phrase: Phrase) -> None:
        """Drop a phrase's claims: no people *except* a man."""
        head_start = self.tokens.starts[phrase.head]
        self.ranked_claims = [
            entry for entry in self.ranked_claims if not (entry[2].subject == phrase.referent.name and entry[0] == head_start)
        ]

    def hedge(self, phrase: Phrase) -> None:
        """Hedge a phrase's claims after the fact: a cat is possibly *present*."""
        self._amend(phrase, {"hedged": True})

    def _amend(self, phrase: Phrase, changes: dict[str, Any]) -> None:
        head_start = self.tokens.starts[phrase.head]
        self.ranked_claims[-MAX_AMENDABLE_CLAIMS:] = [
            (
                start,
                order,
                replace(claim, **changes)
                if claim.subject == phrase.referent.name and start <= head_start <= claim.span[1] and phrase.antecedent is None
                else claim,
            )
            for start, order, claim in self.ranked_claims[-MAX_AMENDABLE_CLAIMS:]
        ]
