"""Verify claims by comparing them with facts: supported, contradicted, or unknown.

A claim that no fact mentions is unknown. It is contradicted only by a fact that excludes it: an
object listed as absent, another number, another colour of the only object with that name, the
opposite relation, or an action that excludes the claimed one. The places of objects support a
relation that holds for every pair of that name (`listed`). If facts disagree, the verdict is
unknown. A complete list also contradicts claims about anything that it leaves out (`closed_world`).
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from mmrlhf.claims import Lexicon, load_lexicon
from mmrlhf.facts import split_scope
from mmrlhf.facts.render import box_text
from mmrlhf.records import Claim, Fact, Verdict
from mmrlhf.text.words import COLOURS, IMAGE_RELATIONS, ONE_WAY_ACTIONS, OPPOSITE_ACTIONS
from mmrlhf.verifiers.closed_world import CompleteList, Evidence
from mmrlhf.verifiers.exclusions import (
    ACTION_SYNONYMS,
    EXCLUSIVE_RELATIONS,
    HYPERNYM_CLASSES,
    INVERSE_RELATIONS,
    MATERIALS,
    ONE_AT_A_TIME,
    RELATION_SYNONYMS,
    WHOLE_PLACES,
    canonical_value,
    mutually_exclusive,
)
from mmrlhf.verifiers.fact_claims import claims_of_fact
from mmrlhf.verifiers.listed import ListedObject, agreeing_evidence, image_place_evidence, is_place_of_unlisted, read_place
from mmrlhf.verifiers.nouns import is_a, may_be_same

# ---- entry point ---------------------------------------------------------------------------------


@dataclass
class FactIndex:
    """The facts about an image, indexed to look up claims.

    Keys are canonical nouns, or pairs of subject and target. Inner keys are numbers, values or
    relations.
    """

    objects: dict[str, Evidence] = field(default_factory=lambda: defaultdict(list))
    absent: dict[str, Evidence] = field(default_factory=lambda: defaultdict(list))
    counts: dict[str, dict[int, Evidence]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    attributes: dict[str, dict[str, Evidence]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    negated_attributes: dict[str, dict[str, Evidence]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    relations: dict[tuple[str, str], dict[str, Evidence]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    negated_relations: dict[tuple[str, str], dict[str, Evidence]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    actions: dict[tuple[str, str], dict[str, Evidence]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    negated_actions: dict[tuple[str, str], dict[str, Evidence]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    listed: list[ListedObject] = field(default_factory=list)
    """The object facts, one for each object."""
    complete: CompleteList | None = None
    """The list itself if it is marked as complete."""


def verify_against_facts(claims: Sequence[Claim], facts: Sequence[Fact], lexicon: Lexicon | None = None) -> list[Verdict]:
    """Return a verdict for each claim, in order.

    The probability follows from the confidence of the facts that decide, and is 0.5 if none does.
    """
    lexicon = lexicon or load_lexicon()
    fact_index = _index_facts(tuple(facts), lexicon)
    verdicts = [_verify_claim(claim, fact_index, lexicon) for claim in claims]
    for index, verdict in enumerate(verdicts):
        is_unlisted = not fact_index.complete and is_place_of_unlisted(verdict.claim, verdicts, fact_index.listed)
        if verdict.value == "contradicted" and (is_unlisted or is_partial_denial(verdict.claim, claims, lexicon)):
            verdicts[index] = Verdict(verdict.claim, "unknown", "", 0.5)
    return verdicts


def is_partial_denial(claim: Claim, claims: Sequence[Claim], lexicon: Lexicon) -> bool:
    """Return whether a denial covers only an object's place, action, or one of several objects.

    "No people inside the café" denies none outside it, and an answer that names a man denies only
    some people with "nobody looks at the camera".
    """
    if claim.kind != "object" or not claim.negated:
        return False
    for other in claims:
        if other.kind == "object" and not other.negated and not other.hedged and is_a(other.subject, claim.subject, lexicon):
            return True
        restricts = (
            other.negated and other.kind in ("relation", "action", "attribute") and claim.subject in (other.subject, other.target)
        )
        is_same_phrase = other.span[0] <= claim.span[0] and claim.span[1] <= other.span[1]
        is_whole_place = other.kind == "relation" and other.relation in ("in", "on", "at") and other.target in WHOLE_PLACES
        if restricts and is_same_phrase and not is_whole_place:
            return True
    return False


# ---- index ---------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _index_facts(facts: tuple[Fact, ...], lexicon: Lexicon) -> FactIndex:
    fact_index = FactIndex()
    for fact in facts:
        claims, evidence = list(claims_of_fact(fact, lexicon)), _evidence_of(fact)
        place = read_place(fact.text) if fact.kind == "object" else None
        for claim in claims:
            if place is None or claim.relation not in IMAGE_RELATIONS:  # the cell says more
                _add_claim(fact_index, claim, evidence)
        noun = next((claim.subject for claim in claims if claim.kind == "object" and not claim.negated), "")
        if fact.kind == "object" and noun:
            values = {canonical_value(c.value) for c in claims if c.kind == "attribute" and c.subject == noun and not c.negated}
            fact_index.listed.append(ListedObject(noun, frozenset(values), evidence, place, fact.box))
    if split_scope(facts)[0] == "complete":
        scope = next(_evidence_of(fact) for fact in facts if fact.kind == "scope")
        counts = {noun: max(numbers) for noun, numbers in fact_index.counts.items()}
        fact_index.complete = CompleteList(scope, fact_index.listed, counts, frozenset(fact_index.objects))
    return fact_index


def _evidence_of(fact: Fact) -> tuple[str, float]:
    """Return a fact as text for reports, and its confidence."""
    source = f" ({fact.source})" if fact.source else ""
    return f"{fact.kind}: {' '.join(fact.text.split())}{box_text(fact)}{source}", fact.confidence


def _add_claim(fact_index: FactIndex, claim: Claim, evidence: tuple[str, float]) -> None:
    """Add a fact's claim to the index; add a relation also in its inverse direction."""
    noun = claim.subject
    if claim.kind == "object":
        objects = fact_index.absent if claim.negated else fact_index.objects
        objects[noun].append(evidence)
    elif claim.kind == "count" and not claim.negated:
        fact_index.counts[noun][int(claim.value)].append(evidence)
    elif claim.kind == "attribute":
        attributes = fact_index.negated_attributes if claim.negated else fact_index.attributes
        attributes[noun][canonical_value(claim.value)].append(evidence)
    elif claim.kind == "relation":
        relation = RELATION_SYNONYMS.get(claim.relation, claim.relation)
        relations = fact_index.negated_relations if claim.negated else fact_index.relations
        relations[noun, claim.target][relation].append(evidence)
        if relation in INVERSE_RELATIONS:
            relations[claim.target, noun][INVERSE_RELATIONS[relation]].append(evidence)
    elif claim.kind == "action":
        actions = fact_index.negated_actions if claim.negated else fact_index.actions
        actions[noun, claim.target][ACTION_SYNONYMS.get(claim.relation, claim.relation)].append(evidence)


# ---- verdicts ----------------------------------------------------------------------------------


def _verify_claim(claim: Claim, fact_index: FactIndex, lexicon: Lexicon) -> Verdict:
    find_evidence = {
        "object": _object_evidence,
        "attribute": _attribute_evidence,
        "count": _count_evidence,
        "relation": _relation_evidence,
        "action": _action_evidence,
    }[claim.kind]
    supporting, contradicting = find_evidence(claim, fact_index, lexicon)
    if fact_index.complete and not supporting and not contradicting:
        contradicting = fact_index.complete.evidence_against(claim, lexicon)
    if claim.negated:
        supporting, contradicting = contradicting, supporting
    if supporting and contradicting:
        return Verdict(claim, "unknown", f"facts disagree: {supporting[0][0]}; {contradicting[0][0]}", 0.5)
    if supporting:
        return Verdict(claim, "supported", supporting[0][0], max(confidence for _, confidence in supporting))
    if contradicting:
        return Verdict(claim, "contradicted", contradicting[0][0], 1 - max(confidence for _, confidence in contradicting))
    return Verdict(claim, "unknown", "", 0.5)


def _evidence_for(evidence_by_noun: dict[str, Evidence], noun: str, lexicon: Lexicon) -> Evidence:
    return [item for name, evidence in evidence_by_noun.items() if is_a(name, noun, lexicon) for item in evidence]


def _absence_evidence(noun: str, fact_index: FactIndex, lexicon: Lexicon) -> Evidence:
    """Return the facts that say there is no such object."""
    evidence = [
        item for absent_noun, items in fact_index.absent.items() if _is_absent(noun, absent_noun, lexicon) for item in items
    ]
    return evidence + [
        item for counted_noun, items in fact_index.counts.items() if counted_noun == noun for item in items.get(0, [])
    ]


def _is_absent(noun: str, absent_noun: str, lexicon: Lexicon) -> bool:
    """Return whether the absence of `absent_noun` implies that of `noun`: no dog, no puppy."""
    return noun == absent_noun or (
        lexicon.coco_class(noun) == absent_noun in HYPERNYM_CLASSES and is_a(noun, absent_noun, lexicon)
    )


# Each of these returns the evidence for a claim's positive form, and the evidence against it.


def _object_evidence(claim: Claim, fact_index: FactIndex, lexicon: Lexicon) -> tuple[Evidence, Evidence]:
    return _evidence_for(fact_index.objects, claim.subject, lexicon), _absence_evidence(claim.subject, fact_index, lexicon)


def _count_evidence(claim: Claim, fact_index: FactIndex, lexicon: Lexicon) -> tuple[Evidence, Evidence]:
    number = int(claim.value)
    counts = fact_index.counts.get(claim.subject, {})
    # Another number does not contradict an approximate one: about twenty, at least three.
    contradicting = [
        item for other, evidence in counts.items() if other != number and not (claim.hedged and other) for item in evidence
    ]
    # Absence contradicts any number but zero.
    if number and not _evidence_for(fact_index.objects, claim.subject, lexicon):
        contradicting += _absence_evidence(claim.subject, fact_index, lexicon)
    return counts.get(number, []), contradicting


def _is_unique(noun: str, fact_index: FactIndex) -> bool:
    """Return whether facts neither count nor list more than one object of that name."""
    is_counted = any(number > 1 for number in fact_index.counts.get(noun, {}))
    return not is_counted and sum(listed.noun == noun for listed in fact_index.listed) < 2


def _exclude_value(value: str, noun: str, fact_index: FactIndex) -> bool:
    """Return whether no object of that name can have a value: each is listed with another one."""
    is_counted = any(number > 1 for number in fact_index.counts.get(noun, {}))
    listed = [other for other in fact_index.listed if other.noun == noun]
    excluding = mutually_exclusive(value)
    return not is_counted and (len(listed) < 2 or all(other.values & excluding for other in listed))


def _is_single(noun: str, fact_index: FactIndex) -> bool:
    """Return whether facts count exactly one object of that name."""
    return 1 in fact_index.counts.get(noun, {}) and _is_unique(noun, fact_index)


def _counted_objects(noun: str, fact_index: FactIndex, lexicon: Lexicon) -> list[ListedObject]:
    """Return the listed objects that a noun may refer to, or [] if others may be in the image.

    All are listed if facts count as many. A man is one of the listed people. An animal may be one
    that nobody listed.
    """
    objects = [o for o in fact_index.listed if is_a(noun, o.noun, lexicon) or is_a(o.noun, noun, lexicon)]
    for name in {o.noun for o in objects}:
        if not is_a(noun, name, lexicon) or set(fact_index.counts.get(name, {})) != {sum(o.noun == name for o in objects)}:
            return []
    return objects


def _attribute_evidence(claim: Claim, fact_index: FactIndex, lexicon: Lexicon) -> tuple[Evidence, Evidence]:
    value = canonical_value(claim.value)
    tables = [table for name, table in fact_index.attributes.items() if is_a(name, claim.subject, lexicon)]
    supporting = [item for table in tables for item in table.get(value, [])]
    contradicting = list(fact_index.negated_attributes.get(claim.subject, {}).get(value, []))
    # Another value contradicts only if no second object may have this one.
    if claim.subject in fact_index.attributes and not supporting and _exclude_value(value, claim.subject, fact_index):
        own_values = fact_index.attributes[claim.subject]
        contradicting += [item for exclusive in sorted(mutually_exclusive(value)) for item in own_values.get(exclusive, [])]
    elif supporting and 1 in fact_index.counts.get(claim.subject, {}) and value in COLOURS | MATERIALS:
        # Facts that give one object two colours disagree, unless a single fact says both.
        texts = {text for text, _ in supporting}
        contradicting += [
            entry
            for exclusive in sorted(mutually_exclusive(value))
            for entry in fact_index.attributes[claim.subject].get(exclusive, [])
            if entry[0] not in texts
        ]
    if not _evidence_for(fact_index.objects, claim.subject, lexicon):
        contradicting += _absence_evidence(claim.subject, fact_index, lexicon)
    return supporting, contradicting


def _relation_evidence(claim: Claim, fact_index: FactIndex, lexicon: Lexicon) -> tuple[Evidence, Evidence]:
    relation = RELATION_SYNONYMS.get(claim.relation, claim.relation)
    evidence_by_relation: dict[str, Evidence] = defaultdict(list)
    for (subject, target), relations in fact_index.relations.items():
        if is_a(subject, claim.subject, lexicon) and is_a(target, claim.target, lexicon):
            for fact_relation, evidence in relations.items():
                evidence_by_relation[fact_relation] += evidence
    contradicting = list(fact_index.negated_relations.get((claim.subject, claim.target), {}).get(relation, []))
    if _is_unique(claim.subject, fact_index) and _is_unique(claim.target, fact_index):
        contradicting += [
            item
            for excluded in EXCLUSIVE_RELATIONS.get(relation, ())
            for item in fact_index.relations.get((claim.subject, claim.target), {}).get(excluded, [])
        ]
    for noun in (claim.subject, claim.target):
        if not _evidence_for(fact_index.objects, noun, lexicon):
            contradicting += _absence_evidence(noun, fact_index, lexicon)
    if claim.relation in IMAGE_RELATIONS:
        count = max(fact_index.counts.get(claim.subject, {}), default=0)
        counted = _counted_objects(claim.subject, fact_index, lexicon)
        supporting, excluding = image_place_evidence(claim, fact_index.listed, fact_index.relations, count, counted, lexicon)
        return supporting, contradicting + excluding
    subjects, targets = ([o for o in fact_index.listed if is_a(o.noun, n, lexicon)] for n in (claim.subject, claim.target))
    supporting = [*evidence_by_relation.get(relation, []), *agreeing_evidence(claim.relation, subjects, targets, True)]
    subjects, targets = (_counted_objects(noun, fact_index, lexicon) for noun in (claim.subject, claim.target))
    return supporting, contradicting + agreeing_evidence(claim.relation, subjects, targets, False)


def _action_evidence(claim: Claim, fact_index: FactIndex, lexicon: Lexicon) -> tuple[Evidence, Evidence]:
    """Return evidence for an action, and for actions that cannot happen at the same time."""
    action = ACTION_SYNONYMS.get(claim.relation, claim.relation)
    supporting, contradicting = [], []
    excluded = set(OPPOSITE_ACTIONS.get(action, ())) | {a for a, others in OPPOSITE_ACTIONS.items() if action in others}
    is_single_subject, is_single_target = (_is_single(noun, fact_index) for noun in (claim.subject, claim.target))
    for (subject, target), actions in fact_index.actions.items():
        is_subject, is_target = is_a(subject, claim.subject, lexicon), is_a(target, claim.target, lexicon)
        if is_subject and is_target:
            supporting += actions.get(action, [])
        # The only bicycle is ridden: nobody pushes it. Another bicycle might be pushed.
        if (subject, target) == (claim.subject, claim.target) and (is_single_subject or is_single_target):
            contradicting += [item for other in sorted(excluded) for item in actions.get(other, [])]
        # A cat that the dog chases may also chase it; but what is eaten does not eat.
        if (target, subject) == (claim.subject, claim.target) and action in ONE_WAY_ACTIONS:
            contradicting += actions.get(action, [])
        is_elsewhere = subject == claim.subject and is_single_subject and action in ONE_AT_A_TIME
        if is_elsewhere and not may_be_same(target, claim.target, lexicon):
            contradicting += actions.get(action, [])
    if _is_unique(claim.subject, fact_index):
        contradicting += fact_index.negated_actions.get((claim.subject, claim.target), {}).get(action, [])
    for noun in (claim.subject, claim.target):
        if not _evidence_for(fact_index.objects, noun, lexicon):
            contradicting += _absence_evidence(noun, fact_index, lexicon)
    return supporting, contradicting
