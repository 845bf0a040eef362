"""Text about scenes: true descriptions, descriptions with faults, and annotators' facts.

The order of random draws is part of the data: the shipped tiny VLM and all reported results depend
on it. Adding or moving a draw changes every text after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from mmrlhf.records import Fact
from mmrlhf.scenes.scene_graph import Scene
from mmrlhf.scenes.vocabulary import CELL_NAMES, COLOURS, NUMBER_WORDS, PATTERNS, SHAPES, SceneObject, absent_partners
from mmrlhf.text.words import OPPOSITE_RELATIONS

CAPTION_TEMPLATES = ("The picture shows {}.", "There is {}.", "I can see {}.", "This is a picture of {}.")
COUNT_TEMPLATES = ("There {be} {n} in total.", "That makes {n}.", "In all I count {n}.")
PARTNER_COLOURS = {"moon": "yellow", "arrow": "red"}


# ---- words -------------------------------------------------------------------------------------


def with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def count_phrase(count: int, noun: str) -> str:
    return f"{NUMBER_WORDS[count]} {noun if count == 1 else pluralize(noun)}"


def pluralize(noun: str) -> str:
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def join_words(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


FAULT_KINDS = ("colour", "shape", "add", "count", "relation", "pattern")
OPPOSITE_RELATION = {relation: OPPOSITE_RELATIONS[relation] for relation in ("left of", "right of", "above", "below")}


def sample_relation(a: SceneObject, b: SceneObject, rng: np.random.Generator) -> str:
    """Return a true relation of `a` to `b`. Where both axes differ, sample one of them."""
    column, row = a.column - b.column, a.row - b.row
    if column and (not row or rng.random() < 0.5):
        return "left of" if column < 0 else "right of"
    return "above" if row < 0 else "below"


# ---- descriptions ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Mention:
    """A mention of an object in a caption. Properties that are None are not stated."""

    shape: str
    colour: str | None = None
    pattern: str | None = None
    size: str | None = None
    cell: int | None = None

    def __str__(self) -> str:
        phrase = with_article(" ".join(word for word in (self.size, self.pattern, self.colour, self.shape) if word))
        return phrase if self.cell is None else f"{phrase} at the {CELL_NAMES[self.cell]}"

    def corrected(self, obj: SceneObject) -> _Mention:
        """Return a true mention of `obj` that states the same properties. Nobody states `plain`."""
        return _Mention(
            obj.shape,
            self.colour and obj.colour,
            self.pattern and (obj.pattern if obj.pattern != "plain" else None),
            self.size and obj.size,
            None if self.cell is None else obj.cell,
        )


@dataclass
class _CaptionDraft:
    """The parts of a caption, before they are joined into sentences."""

    mentions: list[_Mention]
    """One per object of the scene, in order, followed by added ones."""
    stated_count: int
    relation: tuple[str, str, str] | None
    """Name, relation, name."""

    def render(self, rng: np.random.Generator) -> str:
        count_text, verb = count_phrase(self.stated_count, "object"), "is" if self.stated_count == 1 else "are"
        sentences = [
            str(rng.choice(CAPTION_TEMPLATES)).format(join_words([str(mention) for mention in self.mentions])),
            str(rng.choice(COUNT_TEMPLATES)).format(n=count_text, be=verb),
        ]
        if self.relation:
            sentences.append("The {} is {} the {}.".format(*self.relation))
        return " ".join(sentences)


def caption(
    scene: Scene,
    rng: np.random.Generator,
    *,
    cooccurrence_bias: float = 0.0,
    num_faults: int = 0,
    location_rate: float = 0.05,
    relation_rate: float = 0.2,
) -> str:
    """Return a description: objects with colours, their total and sometimes a relation.

    A fifth of the objects have their size stated, a tenth lack their colour, and nine of ten
    patterned objects have their pattern stated.

    cooccurrence_bias: probability that a trigger shape adds its absent partner.
    num_faults: faults to inject. Two may change the same object, and one may be true by chance.
    location_rate: probability that an object's location is stated.
    relation_rate: probability that a relation of two objects is stated.
    """
    draft = _draft_caption(scene, rng, cooccurrence_bias, location_rate, relation_rate)
    for _ in range(num_faults):
        _inject_fault(draft, scene, rng, location_rate)
    return draft.render(rng)


def caption_with_and_without_fault(scene: Scene, rng: np.random.Generator, location_rate: float = 0.2) -> tuple[str, str]:
    """Return a true description, and the same in the same words with one fault (`caption`).

    The fault is true by chance in a few cases: the wrong colour may be that of a second ring.
    """
    faulty_draft = _draft_caption(scene, rng, 0.0, location_rate)
    relation = faulty_draft.relation
    _inject_fault(faulty_draft, scene, rng, location_rate)
    mentions = [mention.corrected(obj) for mention, obj in zip(faulty_draft.mentions, scene.objects, strict=False)]
    draft = _CaptionDraft(mentions, len(scene.objects), relation)
    template_seed = int(rng.integers(1 << 30))
    first, second = (d.render(np.random.default_rng(template_seed)) for d in (draft, faulty_draft))
    return first, second


def caption_with_swaps(
    scene: Scene, rng: np.random.Generator, num_swaps: int, location_rate: float = 0.2, relation_rate: float = 0.2
) -> str:
    """Return a description in which objects exchange properties, and a relation may be reversed.

    Each word is true of something in the picture, so only a reader who binds properties to their
    objects finds the faults. A scene without two objects to swap gets another fault.
    """
    draft = _draft_caption(scene, rng, 0.0, location_rate, relation_rate)
    swaps = _possible_swaps(scene.objects)
    if draft.relation and (not swaps or rng.random() < 0.5):
        a, relation, b = draft.relation
        draft.relation = (a, OPPOSITE_RELATION[relation], b)
        num_swaps -= 1
    elif not swaps:
        _inject_fault(draft, scene, rng, location_rate)
    for _ in range(num_swaps if swaps else 0):
        name, i, j = swaps[int(rng.integers(len(swaps)))]
        for k, other in ((i, j), (j, i)):
            obj = replace(scene.objects[k], **{name: getattr(scene.objects[other], name)})
            draft.mentions[k] = _mention(
                obj, rng, 1 if name == "cell" else location_rate, omit_colour_rate=0, omit_pattern_rate=0
            )
    return draft.render(rng)


def _possible_swaps(objects: Sequence[SceneObject]) -> list[tuple[str, int, int]]:
    """Return (property, index, index) of pairs of objects that differ in shape and the property."""
    pairs = [(i, j) for i, j in combinations(range(len(objects)), 2) if objects[i].shape != objects[j].shape]
    return [
        (n, i, j) for n in ("colour", "pattern", "cell") for i, j in pairs if getattr(objects[i], n) != getattr(objects[j], n)
    ]


def _draft_caption(
    scene: Scene, rng: np.random.Generator, cooccurrence_bias: float, location_rate: float, relation_rate: float = 0.2
) -> _CaptionDraft:
    objects = scene.objects
    draft = _CaptionDraft([_mention(o, rng, location_rate) for o in objects], len(objects), None)
    if len(objects) > 1 and rng.random() < relation_rate:
        a, b = (objects[i] for i in rng.choice(len(objects), 2, replace=False))
        draft.relation = (a.name, sample_relation(a, b, rng), b.name)
    for partner in absent_partners({o.shape for o in objects}):
        if rng.random() < cooccurrence_bias:
            draft.mentions.append(_Mention(partner, None if rng.random() < 0.5 else PARTNER_COLOURS[partner]))
    return draft


def _inject_fault(draft: _CaptionDraft, scene: Scene, rng: np.random.Generator, location_rate: float) -> None:
    """Change one thing in a caption so that it is most likely false."""
    shapes = {o.shape for o in scene.objects}
    fault_kind = rng.choice(FAULT_KINDS, p=[0.25, 0.2, 0.2, 0.1, 0.15, 0.1])
    # Draw everything for every kind of fault, so that later draws do not depend on the kind.
    i = int(rng.integers(len(scene.objects)))
    obj = scene.objects[i]
    colour = _wrong_colour(scene, obj, rng)
    shape = str(rng.choice([s for s in SHAPES if s not in shapes]))
    cell = int(rng.choice([c for c in range(len(CELL_NAMES)) if c != obj.cell]))
    pattern = str(rng.choice([p for p in PATTERNS[1:] if p != obj.pattern]))
    if fault_kind == "colour":
        draft.mentions[i] = _mention(replace(obj, colour=colour), rng, location_rate, omit_colour_rate=0)
    elif fault_kind == "shape":
        draft.mentions[i] = _mention(replace(obj, shape=shape), rng, location_rate)
    elif fault_kind == "add":
        draft.mentions.append(_mention(SceneObject(shape, colour, "small", cell), rng, location_rate))
    elif fault_kind == "pattern":
        draft.mentions[i] = _mention(replace(obj, pattern=pattern), rng, location_rate, omit_pattern_rate=0)
    elif fault_kind == "count":
        draft.stated_count = off_by_one(draft.stated_count, rng)
    elif draft.relation:
        a, relation, b = draft.relation
        draft.relation = (a, OPPOSITE_RELATION[relation], b)
    else:  # no relation to flip: state a wrong location
        draft.mentions[i] = _mention(replace(obj, cell=cell), rng, location_rate=1)


def _wrong_colour(scene: Scene, obj: SceneObject, rng: np.random.Generator) -> str:
    """Return another colour than the object's: half of the time one that the scene shows."""
    shown = sorted({o.colour for o in scene.objects} - {obj.colour})
    use_shown = rng.random() < 0.5 and shown
    return str(rng.choice(shown if use_shown else [c for c in COLOURS if c != obj.colour]))


def off_by_one(count: int, rng: np.random.Generator) -> int:
    """Return a count that is off by one, and at least one."""
    return 2 if count == 1 else count + int(rng.choice([-1, 1]))


def _mention(
    obj: SceneObject,
    rng: np.random.Generator,
    location_rate: float,
    *,
    omit_colour_rate: float = 0.1,
    omit_pattern_rate: float = 0.1,
) -> _Mention:
    size = obj.size if rng.random() < 0.2 else None
    pattern = obj.pattern if obj.pattern != "plain" and rng.random() >= omit_pattern_rate else None
    colour = obj.colour if rng.random() >= omit_colour_rate else None
    return _Mention(obj.shape, colour, pattern, size, obj.cell if rng.random() < location_rate else None)


# ---- facts -------------------------------------------------------------------------------------


def annotator_facts(scene: Scene, rng: np.random.Generator, *, recall: float = 0.8, error_rate: float = 0.05) -> tuple[Fact, ...]:
    """Return the facts that an annotator would list: each true fact with probability `recall`.

    A share `error_rate` of the listed facts is wrong. Facts are incomplete and noisy on purpose: a
    reward model never sees the scene graph itself. Each object comes with its place, so complete
    facts decide every claim that a caption can make; the first fact says whether they are complete.
    """
    facts = [Fact("scope", "complete" if recall == 1 else "incomplete", "annotator")]
    for obj in scene.objects:
        if rng.random() < recall:
            if rng.random() < error_rate:
                obj = _misread(obj, rng)
            place = CELL_NAMES[obj.cell]
            facts.append(Fact("object", f"{obj.size} {obj.pattern} {obj.colour} {obj.shape} at the {place}", "annotator"))
    if rng.random() < recall:
        count = len(scene.objects)
        if rng.random() < error_rate:
            count = off_by_one(count, rng)
        facts.append(Fact("count", count_phrase(count, "object"), "annotator"))
    return tuple(facts)


def _misread(obj: SceneObject, rng: np.random.Generator) -> SceneObject:
    """Return the object with another colour, shape or pattern."""
    name = ("colour", "shape", "pattern")[int(rng.integers(3))]
    values = {"colour": tuple(COLOURS), "shape": SHAPES, "pattern": PATTERNS}[name]
    changes: dict[str, Any] = {name: str(rng.choice([value for value in values if value != getattr(obj, name)]))}
    return replace(obj, **changes)
