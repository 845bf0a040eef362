"""Claims about scenes that are known to be true or false, the false ones hard: one thing in them is other than in the picture.

An absent shape (the partner that a habit calls for, where there is one), the colour of another thing of the scene, a number one off, a
relation turned round. As many true as false ones of each kind in a scene.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mmrlhf import scenes
from mmrlhf.claims import Lexicon, load_lexicon
from mmrlhf.records import Claim
from mmrlhf.scenes.captions import OPPOSITE_RELATION, sample_relation
from mmrlhf.scenes.vocabulary import COLOURS, COOCCURRENCES, SHAPES, SIZES

EXCLUSIVE_VALUES = [sorted(COLOURS), sorted(SIZES)]


def load_scene_lexicon() -> Lexicon:
    """The lexicon with the world's nouns."""
    return load_lexicon(str(Path(scenes.__file__).parent / "lexicon.txt"))


@dataclass(frozen=True)
class LabelledClaim:
    claim: Claim
    is_true: bool


def is_claim_true(scene: scenes.Scene, claim: Claim) -> bool:
    """What the graph says of a claim that the general extractor would make."""
    if claim.kind == "relation":
        claim = replace(claim, value=f"{claim.relation} {claim.target}", relation="", target="")
    return scenes.verify_claim(scene, claim).value == "supported"


def sample_labelled_claims(scene: scenes.Scene, rng: np.random.Generator) -> list[LabelledClaim]:
    """Claims of all kinds on a scene."""
    pairs: list[tuple[Claim, Claim]] = []
    shapes = sorted({t.shape for t in scene.objects})
    obj = scene.objects[int(rng.integers(len(scene.objects)))]
    absent_partners = [p for t, p in COOCCURRENCES.items() if t in shapes and p not in shapes]
    absent_shapes = absent_partners or [s for s in SHAPES if s not in shapes]
    pairs.append((Claim("object", obj.shape), Claim("object", str(rng.choice(absent_shapes)))))
    other_colours = {t.colour for t in scene.objects} - {obj.colour} or set(COLOURS) - {obj.colour}
    claim = Claim("attribute", obj.shape, obj.colour)
    pairs.append((claim, replace(claim, value=str(rng.choice(sorted(other_colours))))))
    claim = Claim("count", "object", str(len(scene.objects)))
    if rng.random() < 0.5:
        claim = Claim("count", obj.shape, str(sum(t.shape == obj.shape for t in scene.objects)))
    wrong_count = int(claim.value) + (1 if claim.value == "1" else int(rng.choice([-1, 1])))
    pairs.append((claim, replace(claim, value=str(wrong_count))))
    if len(scene.objects) > 1:
        a, b = (scene.objects[i] for i in rng.choice(len(scene.objects), 2, replace=False))
        claim = Claim("relation", a.shape, relation=sample_relation(a, b, rng), target=b.shape)
        pairs.append((claim, replace(claim, relation=OPPOSITE_RELATION[claim.relation])))
    labelled_claims = []
    for true_claim, false_claim in pairs:
        if is_claim_true(scene, true_claim) and not is_claim_true(scene, false_claim):
            labelled_claims += [LabelledClaim(true_claim, True), LabelledClaim(false_claim, False)]
    return labelled_claims
