"""Verify answers by the scene graph: parse atomic claims, judge each, compute the utility."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from mmrlhf.records import Claim, Verdict
from mmrlhf.scenes.captions import count_phrase, join_words, with_article
from mmrlhf.scenes.scene_graph import Scene
from mmrlhf.scenes.vocabulary import CELL_NAMES, COLOURS, NUMBER_WORDS, PATTERNS, SHAPES, SIZES, SceneObject, absent_partners

_SHAPE, _COLOUR, _SIZE, _PATTERN = ("|".join(words) for words in (SHAPES, COLOURS, SIZES, PATTERNS))
_NOUN = rf"(?:(?:{_COLOUR}) )?(?:{_SHAPE})"
# Longest first: "top left" must match before "top".
_CELL = "|".join(sorted(CELL_NAMES, key=len, reverse=True))
# One alternative per kind of sentence; `parse_claims` tells them apart by the groups that matched.
_CLAIM_PATTERN = re.compile(
    rf"\bthe (?P<a>{_NOUN}) is (?P<relation>left of|right of|above|below) the (?P<b>{_NOUN})\b"
    rf"|\bthe (?P<owner>{_SHAPE}) is (?P<owned>{_COLOUR}|{_PATTERN})\b"
    rf"|\bno (?P<none>(?:(?:{_COLOUR}) )?(?:{_SHAPE}|object))s?\b"
    rf"|\b(?P<number>{'|'.join(NUMBER_WORDS[1:])}) (?P<counted>{_SHAPE}|objects?)(?:e?s)?\b"
    rf"|\ban? (?:(?P<size>{_SIZE}) )?(?:(?P<pattern>{_PATTERN}) )?(?:(?P<colour>{_COLOUR}) )?(?P<shape>{_SHAPE})\b(?: at the (?P<place>{_CELL})\b)?"
    rf"|\b(?P<nothing>nothing) at the (?P<empty>{_CELL})\b",
    re.IGNORECASE,
)

CLAIM_KINDS = ("object", "attribute", "count", "relation")
"""Kinds of claims about scenes, which show no actions."""
_KINDS = [
    ("shape", *names)
    for size in (4, 3, 2, 1, 0)
    for names in itertools.combinations(("size", "pattern", "colour", "place"), size)
]
"""Sets of properties that define a kind of object, the narrowest kinds first."""


def parse_claims(text: str) -> list[Claim]:
    """Return an answer's atomic claims in order of appearance, repetitions included.

    It understands only the language of `captions`. The claims of one noun phrase share its span.
    """
    claims = []
    for match in _CLAIM_PATTERN.finditer(text):
        groups = {k: v.lower() for k, v in match.groupdict().items() if v}
        span = match.span()
        if "relation" in groups:
            claims.append(Claim("relation", groups["a"], f"{groups['relation']} {groups['b']}", span))
        elif "owner" in groups:
            claims.append(Claim("attribute", groups["owner"], groups["owned"], span))
        elif "none" in groups:
            claims.append(Claim("count", groups["none"], "0", span))
        elif "number" in groups:
            noun = "object" if groups["counted"].startswith("object") else groups["counted"]
            claims.append(Claim("count", noun, str(NUMBER_WORDS.index(groups["number"])), span))
        elif "nothing" in groups:
            claims.append(Claim("relation", "nothing", f"at {groups['empty']}", span))
        else:
            shape = groups["shape"]
            noun = f"{groups['colour']} {shape}" if "colour" in groups else shape
            claims.append(Claim("object", shape, "", span))
            if "colour" in groups:
                claims.append(Claim("attribute", shape, groups["colour"], span))
            if "pattern" in groups:
                claims.append(Claim("attribute", noun, groups["pattern"], span))
            if "size" in groups:
                claims.append(Claim("attribute", noun, groups["size"], span))
            if "place" in groups:
                claims.append(Claim("relation", noun, f"at {groups['place']}", span))
    return claims


def _matching_objects(scene: Scene, noun: str) -> list[SceneObject]:
    return [o for o in scene.objects if noun in ("object", o.shape, o.name)]


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
        objects = _matching_objects(scene, claim.subject.split(" ")[-1])
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
    """Yield a claim, with evidence, for each mention that has no object of its own in the scene.

    A mention is a phrase such as "a small orange ring"; one with a false claim of its own is left
    out, since it is already counted.
    """
    for sentence in re.finditer(r"[^.!?]+", text):
        mentions: list[dict[str, str]] = []
        spans: list[tuple[int, int]] = []
        for match in _CLAIM_PATTERN.finditer(text, *sentence.span()):
            mention = {k: v.lower() for k, v in match.groupdict().items() if v}
            if "shape" in mention and all(_is_true(scene, claim) for claim in parse_claims(match[0])):
                mentions.append(mention)
                spans.append(match.span())
        fits = np.array([[_fits(o, mention) for o in scene.objects] for mention in mentions], dtype=bool)
        if not mentions:
            continue
        object_of = maximum_bipartite_matching(csr_matrix(fits), perm_type="column")
        for mention, span, index in zip(mentions, spans, object_of, strict=True):
            if index < 0:
                yield _surplus_claim(scene, mention, mentions, span)


def _fits(scene_object: SceneObject, mention: Mapping[str, str]) -> bool:
    properties = {
        "shape": scene_object.shape,
        "colour": scene_object.colour,
        "size": scene_object.size,
        "pattern": scene_object.pattern,
        "place": CELL_NAMES[scene_object.cell],
    }
    return all(properties[name] == value for name, value in mention.items())


def _surplus_claim(
    scene: Scene, mention: Mapping[str, str], mentions: Sequence[Mapping[str, str]], span: tuple[int, int]
) -> tuple[Claim, str]:
    """Return a false count, with evidence, for the narrowest kind that a sentence names too
    often."""
    for names in _KINDS:
        kind = {name: mention[name] for name in names if name in mention}
        num_named = sum(kind.items() <= other.items() for other in mentions)
        num_objects = sum(_fits(o, kind) for o in scene.objects)
        if num_named > num_objects:
            count = count_phrase(num_objects, _noun_of(kind)) + _place_of(kind)
            return Claim("count", _noun_of(kind) + _place_of(kind), str(num_named), span), f"the picture has {count}"
    # Each word is true of some object, but no object that is left has them all.
    return Claim("object", _noun_of(mention) + _place_of(mention), "", span), _evidence(scene, Claim("object", mention["shape"]))


def _noun_of(mention: Mapping[str, str]) -> str:
    return " ".join(mention[name] for name in ("size", "pattern", "colour", "shape") if name in mention)


def _place_of(mention: Mapping[str, str]) -> str:
    return f" at the {mention['place']}" if "place" in mention else ""


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

    A sentence that names more objects of a kind than the scene has makes a false claim.
    """
    distinct_claims = set(parse_claims(answer))
    surplus_claims = {claim for claim, _ in _surplus_mentions(scene, answer)}
    true_claims = frozenset(c for c in distinct_claims if _is_true(scene, c))
    cooccurrence_errors = frozenset(c for c in distinct_claims - true_claims if is_cooccurrence_error(scene, c))
    expected_claims = canonical_claims(scene)
    return SceneVerdicts(
        true_claims,
        cooccurrence_errors,
        frozenset((distinct_claims - true_claims - cooccurrence_errors) | surplus_claims),
        len(true_claims & expected_claims),
        len(expected_claims),
    )


def utility(scene: Scene, answer: str, false_claim_penalty: float) -> float:
    """Return the number of true claims minus `false_claim_penalty` per false claim.

    The penalty decides whether an answer should risk an uncertain claim or leave it out.
    """
    verdicts = verify_answer(scene, answer)
    return len(verdicts.true_claims) - false_claim_penalty * len(verdicts.false_claims)
