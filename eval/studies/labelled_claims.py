"""Labelled claims about scenes. The false ones are hard: each differs from the image in one part.

It has an absent shape (the absent partner of a trigger, if there is one), the colour of another
object of the scene, a number that is off by one, or the opposite relation. A scene has equal
numbers of true and false claims of each kind.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mmrlhf import scenes
from mmrlhf.claims import Lexicon, load_lexicon
from mmrlhf.records import Claim
from mmrlhf.scenes.captions import OPPOSITE_RELATION, sample_relation
from mmrlhf.scenes.vocabulary import COLOURS, SHAPES, SIZES

EXCLUSIVE_VALUES = [sorted(COLOURS), sorted(SIZES)]


def load_scene_lexicon() -> Lexicon:
    """Return the lexicon with the nouns of the scenes."""
    return load_lexicon(str(Path(scenes.__file__).parent / "lexicon.txt"))


@dataclass(frozen=True)
class LabelledClaim:
    claim: Claim
    is_true: bool


def is_claim_true(scene: scenes.Scene, claim: Claim) -> bool:
    """Verify a claim, in the form that the general extractor gives, by the scene graph."""
    if claim.kind == "relation":
        claim = replace(claim, value=f"{claim.relation} {claim.target}", relation="", target="")
    return scenes.verify_claim(scene, claim).value == "supported"


def sample_labelled_claims(scene: scenes.Scene, rng: np.random.Generator) -> list[LabelledClaim]:
    """Sample true and false claims of all kinds about a scene."""
    pairs: list[tuple[Claim, Claim]] = []
    shapes = sorted({o.shape for o in scene.objects})
    obj = scene.objects[int(rng.integers(len(scene.objects)))]
    absent_shapes = scenes.absent_partners(shapes) or [s for s in SHAPES if s not in shapes]
    pairs.append((Claim("object", obj.shape), Claim("object", str(rng.choice(absent_shapes)))))
    other_colours = {o.colour for o in scene.objects} - {obj.colour} or set(COLOURS) - {obj.colour}
    claim = Claim("attribute", obj.shape, obj.colour)
    pairs.append((claim, replace(claim, value=str(rng.choice(sorted(other_colours))))))
    claim = Claim("count", "object", str(len(scene.objects)))
    if rng.random() < 0.5:
        claim = Claim("count", obj.shape, str(sum(o.shape == obj.shape for o in scene.objects)))
    pairs.append((claim, replace(claim, value=str(scenes.off_by_one(int(claim.value), rng)))))
    if len(scene.objects) > 1:
        a, b = (scene.objects[i] for i in rng.choice(len(scene.objects), 2, replace=False))
        claim = Claim("relation", a.shape, relation=sample_relation(a, b, rng), target=b.shape)
        pairs.append((claim, replace(claim, relation=OPPOSITE_RELATION[claim.relation])))
    labelled_claims = []
    for true_claim, false_claim in pairs:
        if is_claim_true(scene, true_claim) and not is_claim_true(scene, false_claim):
            labelled_claims += [LabelledClaim(true_claim, True), LabelledClaim(false_claim, False)]
    return labelled_claims


def sample_claims(scene: scenes.Scene, seed: list[int], num_claims: int) -> tuple[Claim, ...]:
    """Return up to `num_claims` true and false claims about a scene, from four samples."""
    samples = (sample_labelled_claims(scene, np.random.default_rng([*seed, repeat])) for repeat in range(4))
    return tuple(labelled.claim for sample in samples for labelled in sample)[:num_claims]
