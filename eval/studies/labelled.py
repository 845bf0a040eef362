"""Claims about scenes that are known to be true or false, the false ones hard: one thing in them is other than in the picture.

An absent shape (the partner that a habit calls for, where there is one), the colour of another thing of the scene, a number one off, a
relation turned round. As many true as false ones of each kind in a scene.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mmrlhf import scenes
from mmrlhf.claims import Lexicon, lexicon
from mmrlhf.records import Claim
from mmrlhf.scenes.language import OPPOSITE, relation_of
from mmrlhf.scenes.things import COLOURS, HABITS, SHAPES, SIZES

GROUPS = [sorted(COLOURS), sorted(SIZES)]


def words() -> Lexicon:
    """The lexicon with the world's nouns."""
    return lexicon(str(Path(scenes.__file__).parent / "lexicon.txt"))


@dataclass(frozen=True)
class Labelled:
    claim: Claim
    true: bool


def holds(scene: scenes.Scene, claim: Claim) -> bool:
    """What the graph says of a claim that the general extractor would make."""
    if claim.kind == "relation":
        claim = replace(claim, value=f"{claim.relation} {claim.target}", relation="", target="")
    return scenes.verify(scene, claim).value == "supported"


def labelled(scene: scenes.Scene, rng: np.random.Generator) -> list[Labelled]:
    """Claims of all kinds on a scene."""
    pairs: list[tuple[Claim, Claim]] = []
    shapes = sorted({t.shape for t in scene.things})
    thing = scene.things[int(rng.integers(len(scene.things)))]
    called = [p for t, p in HABITS.items() if t in shapes and p not in shapes]
    absent = called or [s for s in SHAPES if s not in shapes]
    pairs.append((Claim("object", thing.shape), Claim("object", str(rng.choice(absent)))))
    others = {t.colour for t in scene.things} - {thing.colour} or set(COLOURS) - {thing.colour}
    said = Claim("attribute", thing.shape, thing.colour)
    pairs.append((said, replace(said, value=str(rng.choice(sorted(others))))))
    said = Claim("count", "object", str(len(scene.things)))
    if rng.random() < 0.5:
        said = Claim("count", thing.shape, str(sum(t.shape == thing.shape for t in scene.things)))
    off = int(said.value) + (1 if said.value == "1" else int(rng.choice([-1, 1])))
    pairs.append((said, replace(said, value=str(off))))
    if len(scene.things) > 1:
        a, b = (scene.things[i] for i in rng.choice(len(scene.things), 2, replace=False))
        said = Claim("relation", a.shape, relation=relation_of(a, b, rng), target=b.shape)
        pairs.append((said, replace(said, relation=OPPOSITE[said.relation])))
    found = []
    for right, wrong in pairs:
        if holds(scene, right) and not holds(scene, wrong):
            found += [Labelled(right, True), Labelled(wrong, False)]
    return found
