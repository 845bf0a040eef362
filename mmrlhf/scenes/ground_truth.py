"""Verify answers by the scene graph: judge each atomic claim, compute the utility."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from mmrlhf.records import Claim, Verdict
from mmrlhf.scenes.captions import count_phrase, join_words, with_article
from mmrlhf.scenes.claim_parser import Mention, Properties, parse_claims, parse_mentions
from mmrlhf.scenes.scene_graph import Scene
from mmrlhf.scenes.vocabulary import CELL_NAMES, SceneObject, absent_partners

CLAIM_KINDS = ("object", "attribute", "count", "relation")
"""Kinds of claims about scenes, which show no actions."""
_KINDS = [
    ("shape", *names)
    for size in (4, 3, 2, 1, 0)
    for names in itertools.combinations(("size", "pattern", "colour", "place"), size)
]
"""Sets of properties that define a kind of object, the narrowest kinds first."""


def _matching_objects(scene: Scene, noun: str) -> list[SceneObject]:
    """Return the objects that fit a phrase, such as `striped star` or `star at the top left`."""
    phrase, _, place = noun.partition(" at the ")
    words = set(phrase.split())
    return [
        o
        for o in scene.objects
        if words <= {"object", o.shape, o.colour, o.pattern, o.size} and place in ("", CELL_NAMES[o.cell])
    ]


def verify_claim(scene: Scene, claim: Claim) -> Verdict:
    """Judge a claim by the scene graph: supported or contradicted, with evidence, never unknown."""
    return Verdict(claim, "supported" if _is_true(scene, claim) else "contradicted", _evidence(scene, claim))


def _is_true(scene: Scene, claim: Claim) -> bool:
    objects = _matching_objects(scene, claim.subject)
    if claim.kind == "object":
        return bool(objects)
    if claim.kind == "attribute":
        return any(claim.value in (o.colour, o.pattern, o.size) for o in objects)
    if claim.kind == "count":
        return len(objects) == int(claim.value)
    relation, _, location = claim.value.partition(" ")
    if relation == "at":
        cell = CELL_NAMES.index(location)
        if claim.subject == "nothing":
            return not any(o.cell == cell for o in scene.objects)
        return any(o.cell == cell for o in objects)
    relation, target = re.fullmatch(r"(left of|right of|above|below) (.+)", claim.value).groups()  # type: ignore[union-attr]
    targets = _matching_objects(scene, target)
    return any(_relation_holds(relation, a, b) for a in objects for b in targets if a != b)


def _relation_holds(relation: str, a: SceneObject, b: SceneObject) -> bool:
    if relation == "left of":
        return a.column < b.column
    if relation == "right of":
        return a.column > b.column
    return a.row < b.row if relation == "above" else a.row > b.row


def _evidence(scene: Scene, claim: Claim) -> str:
    """Return what supports the claim, or what the scene shows instead, in words."""
    if claim.kind == "count":
        return f"the picture has {count_phrase(len(_matching_objects(scene, claim.subject)), claim.subject)}"
    if claim.subject == "nothing":
        objects = [o for o in scene.objects if claim.value == f"at {CELL_NAMES[o.cell]}"] or list(scene.objects)
    else:
        objects = _matching_objects(scene, claim.subject.partition(" at the ")[0].split(" ")[-1])
    missing_noun = "" if objects else claim.subject
    if objects and claim.kind == "relation" and not claim.value.startswith("at "):
        target = claim.value.split(" ")[-1]
        missing_noun = "" if _matching_objects(scene, target) else target
    if missing_noun:
        return f"the picture has no {missing_noun}; it shows {join_words([with_article(o.name) for o in scene.objects])}"
    return "; ".join(f"{with_article(f'{o.size} {o.pattern} {o.name}')} at the {CELL_NAMES[o.cell]}" for o in objects)


def verify_description(scene: Scene, text: str) -> list[Verdict]:
    """Judge each claim of a text, and the objects that its sentences name together.

    Two mentions in one sentence are two objects: "a ring and a ring" needs two rings.
    """
    verdicts = [verify_claim(scene, claim) for claim in parse_claims(text)]
    return verdicts + [Verdict(claim, "contradicted", evidence) for claim, evidence in _surplus_mentions(scene, text)]


def _surplus_mentions(scene: Scene, text: str) -> Iterator[tuple[Claim, str]]:
    """Yield a claim, with evidence, for each mention without a separate object in the scene.

    A mention with a false claim of its own is left out, since it is already counted.
    """
    for sentence_mentions in parse_mentions(text):
        undisputed = [mention for mention in sentence_mentions if all(_is_true(scene, claim) for claim in mention.claims)]
        for mention in undisputed:
            if not mention.is_new and not any(_fits(o, mention.properties) for o in scene.objects):
                yield _surplus_claim(scene, mention, [mention])
        mentions = [mention for mention in undisputed if mention.is_new]
        if not mentions:
            continue
        fits = np.array([[_fits(o, mention.properties) for o in scene.objects] for mention in mentions], dtype=bool)
        object_of = maximum_bipartite_matching(csr_matrix(fits), perm_type="column")
        for mention, index in zip(mentions, object_of, strict=True):
            if index < 0:
                yield _surplus_claim(scene, mention, mentions)


def _fits(scene_object: SceneObject, properties: Properties) -> bool:
    values = {
        "shape": scene_object.shape,
        "colour": scene_object.colour,
        "size": scene_object.size,
        "pattern": scene_object.pattern,
        "place": CELL_NAMES[scene_object.cell],
    }
    return all(values[name] == value for name, value in properties)


def _surplus_claim(scene: Scene, mention: Mention, mentions: Sequence[Mention]) -> tuple[Claim, str]:
    """Return a false count, with evidence, for the narrowest kind that a sentence names too
    often."""
    for names in _KINDS:
        kind = frozenset(item for item in mention.properties if item[0] in names)
        num_named = sum(kind <= other.properties for other in mentions)
        num_objects = sum(_fits(o, kind) for o in scene.objects)
        if num_named > num_objects:
            noun = _describe(kind)
            return Claim("count", noun, str(num_named), mention.span), f"the picture has {_describe(kind, num_objects)}"
    # Each word is true of some object, but no remaining object has all of them.
    evidence = _evidence(scene, Claim("object", dict(mention.properties).get("shape", "object")))
    return Claim("object", _describe(mention.properties), "", mention.span), evidence


def _describe(properties: Properties, count: int | None = None) -> str:
    """Return a kind of object in words, with the number of them if `count` is given."""
    words = [value for name in ("size", "pattern", "colour", "shape") for item, value in sorted(properties) if item == name]
    noun = " ".join(words if any(name == "shape" for name, _ in properties) else [*words, "object"])
    place = "".join(f" at the {value}" for name, value in sorted(properties) if name == "place")
    return (noun if count is None else count_phrase(count, noun)) + place


def is_cooccurrence_error(scene: Scene, claim: Claim) -> bool:
    """Return whether a false claim mentions an absent partner of a trigger in the scene."""
    claim_words = set(f"{claim.subject} {claim.value}".split())
    return any(partner in claim_words for partner in absent_partners({o.shape for o in scene.objects}))


def canonical_claims(scene: Scene) -> frozenset[Claim]:
    """Return the claims that a full description makes: shapes, their colours and the total.

    Coverage is measured against them. A description need not state sizes and relations.
    """
    shapes = {Claim("object", o.shape) for o in scene.objects}
    colours = {Claim("attribute", o.shape, o.colour) for o in scene.objects}
    return frozenset({*shapes, *colours, Claim("count", "object", str(len(scene.objects)))})


@dataclass(frozen=True)
class SceneVerdicts:
    """The distinct claims of an answer, grouped by their verdict."""

    true_claims: frozenset[Claim]
    cooccurrence_errors: frozenset[Claim]
    perception_errors: frozenset[Claim]
    num_covered: int
    """Number of canonical claims that the answer makes."""
    num_canonical: int

    @property
    def false_claims(self) -> frozenset[Claim]:
        return self.cooccurrence_errors | self.perception_errors


def verify_answer(scene: Scene, answer: str) -> SceneVerdicts:
    """Verify an answer's distinct claims. Repetition earns nothing; vagueness costs coverage.

    True denials ("there is no ring") earn nothing either, because answers could be padded with
    them. A sentence that names more objects of a kind than the scene has makes a false claim.
    """
    distinct_claims = set(parse_claims(answer))
    surplus_claims = {claim for claim, _ in _surplus_mentions(scene, answer)}
    false_claims = {c for c in distinct_claims if not _is_true(scene, c)}
    true_claims = frozenset(c for c in distinct_claims - false_claims if not _is_denial(c))
    cooccurrence_errors = frozenset(c for c in false_claims if is_cooccurrence_error(scene, c))
    expected_claims = canonical_claims(scene)
    return SceneVerdicts(
        true_claims,
        cooccurrence_errors,
        frozenset((false_claims - cooccurrence_errors) | surplus_claims),
        len(true_claims & expected_claims),
        len(expected_claims),
    )


def _is_denial(claim: Claim) -> bool:
    return (claim.kind == "count" and claim.value == "0") or claim.subject == "nothing"


def utility(scene: Scene, answer: str, false_claim_penalty: float) -> float:
    """Return the number of true claims minus `false_claim_penalty` per false claim.

    The penalty decides whether an answer should risk an uncertain claim or leave it out.
    """
    verdicts = verify_answer(scene, answer)
    return len(verdicts.true_claims) - false_claim_penalty * len(verdicts.false_claims)
