"""Contradict claims about anything that a complete list of facts leaves out.

A fact of kind `scope` marks a list as complete. Then an object that it does not name is absent,
there are as many objects of a kind as it lists, and an attribute is false if each object that the
claim may refer to has one that excludes it. This applies only if no fact decides a claim directly.
Lists of relations and actions are never complete, but their objects must be there, and a relation
is false if the places of all possible objects say the opposite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmrlhf.claims import Lexicon
from mmrlhf.records import Claim
from mmrlhf.text.words import IMAGE_RELATIONS, word_set
from mmrlhf.verifiers.exclusions import WHOLE_PLACES, canonical_value, mutually_exclusive
from mmrlhf.verifiers.listed import Evidence, ListedObject, agreeing_evidence, excluding_places
from mmrlhf.verifiers.nouns import is_a

GENERAL_NOUNS = word_set(
    "object thing item shape figure animal creature vehicle furniture food fruit vegetable plant building structure clothing"
    " clothes garment tool toy device machine appliance container instrument group pair set scene picture image photo photograph"
    " view background foreground"
)
"""Nouns that may refer to an object listed under another noun, or to the picture itself."""


@dataclass(frozen=True)
class CompleteList:
    """A complete list of facts. `names` are the nouns that any of its facts names."""

    scope: tuple[str, float]
    objects: Sequence[ListedObject]
    counts: Mapping[str, int]
    """The largest number that a fact gives for each noun; not all of these need be in `objects`."""
    names: frozenset[str]

    def evidence_against(self, claim: Claim, lexicon: Lexicon) -> Evidence:
        """Return facts that contradict a claim's positive form, none if the list leaves it open."""
        for noun in filter(None, (claim.subject, claim.target)):
            if self._is_absent(noun, lexicon):
                is_zero = claim.kind == "count" and int(claim.value) == 0
                return [] if is_zero else [(f"{self.scope[0]}, and no {noun} is listed", self.scope[1])]
        if claim.kind == "attribute":
            return self._evidence_against_attribute(claim, lexicon)
        if claim.kind == "relation":
            return self._evidence_against_relation(claim, lexicon)
        return self._evidence_against_count(claim, lexicon) if claim.kind == "count" else []

    def _is_absent(self, noun: str, lexicon: Lexicon) -> bool:
        # Of an orange cross, `orange` may be read as the fruit: it is a listed value.
        if any(noun in listed.values for listed in self.objects):
            return False
        return noun not in GENERAL_NOUNS | WHOLE_PLACES and not any(_may_name(name, noun, lexicon) for name in self.names)

    def _candidates(self, noun: str, lexicon: Lexicon) -> list[ListedObject] | None:
        """Return the objects to which a noun may refer, None if they are not all listed."""
        for counted, number in self.counts.items():
            if _may_name(counted, noun, lexicon) and number > sum(is_a(o.noun, counted, lexicon) for o in self.objects):
                return None
        return [o for o in self.objects if noun in GENERAL_NOUNS or _may_name(o.noun, noun, lexicon)]

    def _evidence_against_attribute(self, claim: Claim, lexicon: Lexicon) -> Evidence:
        candidates = self._candidates(claim.subject, lexicon)
        excluding = mutually_exclusive(canonical_value(claim.value))
        if not candidates or not all(o.values & excluding for o in candidates):
            return []
        return [o.evidence for o in candidates]

    def _evidence_against_count(self, claim: Claim, lexicon: Lexicon) -> Evidence:
        candidates = self._candidates(claim.subject, lexicon)
        if not candidates or claim.hedged or claim.subject in GENERAL_NOUNS:
            return []
        least = sum(is_a(o.noun, claim.subject, lexicon) for o in candidates)
        if least <= int(claim.value) <= len(candidates):
            return []
        return [(f"{self.scope[0]}, and {least} listed: {candidates[0].evidence[0]}", self.scope[1])]

    def _evidence_against_relation(self, claim: Claim, lexicon: Lexicon) -> Evidence:
        if claim.relation in IMAGE_RELATIONS:
            return excluding_places(claim.relation, self._candidates(claim.subject, lexicon) or [])
        subjects, targets = (self._candidates(noun, lexicon) for noun in (claim.subject, claim.target))
        return agreeing_evidence(claim.relation, subjects or [], targets or [], False)


def _may_name(name: str, noun: str, lexicon: Lexicon) -> bool:
    """Return whether a listed noun may refer to the same thing as a claim's noun."""
    has_same_class = lexicon.coco_class(name) == lexicon.coco_class(noun) != ""
    return has_same_class or is_a(name, noun, lexicon) or is_a(noun, name, lexicon)
